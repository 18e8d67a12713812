//! How many connections there may be: in all, and from one address. Those beyond are closed at once.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// In all. A node has two or three connections, and the largest clusters 5,000 nodes.
pub(super) const MAX_CONNECTIONS: usize = 20_000;

/// From one address. A node has two or three; several nodes may share an address behind a translation.
pub(super) const MAX_PER_ADDRESS: usize = 256;

/// Passes on what is within the limits, and closes the rest.
pub(super) fn limited<Io: Connected>(
    incoming: impl Stream<Item = io::Result<Io>>,
    address: impl Fn(&Io) -> SocketAddr,
) -> impl Stream<Item = io::Result<Counted<Io>>> {
    let counts = Arc::new(Mutex::new(Counts::default()));
    incoming.filter_map(move |accepted| {
        let counted = match accepted {
            Ok(io) => {
                let peer = address(&io);
                match Counts::take(&counts, peer.ip()) {
                    Some(place) => Some(Ok(Counted { io, _place: place })),
                    None => {
                        tracing::debug!(%peer, "a connection beyond the limits was closed");
                        None
                    }
                }
            }
            Err(error) => Some(Err(error)),
        };
        std::future::ready(counted)
    })
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    of: HashMap<IpAddr, usize>,
}

impl Counts {
    fn take(counts: &Arc<Mutex<Self>>, address: IpAddr) -> Option<Place> {
        let mut held = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let of = held.of.get(&address).copied().unwrap_or_default();
        if held.total >= MAX_CONNECTIONS || of >= MAX_PER_ADDRESS {
            return None;
        }
        held.total += 1;
        held.of.insert(address, of + 1);
        Some(Place { counts: counts.clone(), address })
    }
}

/// One connection's place in the counts; given back when it is dropped.
#[derive(Debug)]
struct Place {
    counts: Arc<Mutex<Counts>>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total -= 1;
        match counts.of.get_mut(&self.address) {
            Some(of) if *of > 1 => *of -= 1,
            _ => drop(counts.of.remove(&self.address)),
        }
    }
}

/// A connection that is counted for as long as it lives.
#[derive(Debug)]
pub(super) struct Counted<Io> {
    io: Io,
    _place: Place,
}

impl<Io: Connected> Connected for Counted<Io> {
    type ConnectInfo = Io::ConnectInfo;

    fn connect_info(&self) -> Io::ConnectInfo {
        self.io.connect_info()
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Counted<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Counted<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back() {
        let counts = Arc::new(Mutex::new(Counts::default()));
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut places: Vec<_> =
            (0..MAX_PER_ADDRESS).map(|_| Counts::take(&counts, a).expect("within the limit")).collect();
        assert!(Counts::take(&counts, a).is_none());
        assert!(Counts::take(&counts, b).is_some(), "others have their own");
        places.pop();
        assert!(Counts::take(&counts, a).is_some());
        places.clear();
        let counts = counts.lock().expect("nobody panicked");
        assert_eq!((counts.total, counts.of.len()), (0, 0));
    }

    #[test]
    fn there_is_a_limit_in_all() {
        let counts = Arc::new(Mutex::new(Counts::default()));
        let address = |n: usize| IpAddr::from(u32::try_from(n).expect("small").to_be_bytes());
        let places: Vec<_> = (0..MAX_CONNECTIONS).filter_map(|n| Counts::take(&counts, address(n))).collect();
        assert_eq!(places.len(), MAX_CONNECTIONS);
        assert!(Counts::take(&counts, address(MAX_CONNECTIONS)).is_none());
    }
}
