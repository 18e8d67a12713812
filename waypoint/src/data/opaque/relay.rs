//! Bytes both ways between a client's stream and an endpoint: plain TCP, a stream of a tunnel, or TLS of ours.
//!
//! Ends when either does, when policies forbid it, or when the proof of who answers has expired.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll, ready};

use bytes::Bytes;
use hbone::{Progress, RelayError, Stream};
use proxy::tunnels::Opened;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::sleep_until;

use super::reach::Reached;
use crate::data::tunnel_io::TunnelIo;
use crate::data::upstream::{Inside, Io, Upstream};
use crate::data::{Context, authorization};
use crate::http1;
use crate::refusal::Refusal;
use crate::telemetry::{Facts, Live};

/// Carries bytes both ways; what the endpoint has said already is `answered`.
pub(crate) async fn relay(
    context: &Arc<Context>,
    (mut stream, said): (Stream, Vec<Bytes>),
    ((upstream, aimed, _lease), answered): (Reached, Vec<Bytes>),
    facts: Facts,
    mut policies: watch::Receiver<u64>,
) {
    let live = context.shared.telemetry.opened(facts);
    let carried = async {
        match upstream {
            Upstream::Secured(inside) => secured((stream, said), (*inside, answered), &live).await,
            Upstream::Tunnel(opened) => {
                let Opened { stream: mut second, until, .. } = *opened;
                for bytes in answered {
                    second.consumed(bytes.len());
                    live.back(bytes.len() as u64);
                    stream.send(bytes)?;
                }
                tokio::select! {
                    outcome = hbone::splice(stream, second, said, &live) => Ok(outcome?),
                    () = sleep_until(until) => {
                        let why = "the certificates of its tunnel expired a day ago";
                        Err(Refusal::Broken(io::Error::other(why)))
                    }
                }
            }
            Upstream::Tcp(tcp) => plain(stream, said, tcp, &live).await,
        }
    };
    let outcome = tokio::select! {
        biased;
        denial = authorization::revoked(context, &aimed.target, &live.facts, &mut policies) => Err(denial.into()),
        outcome = carried => outcome,
    };
    context.shared.telemetry.closed(&live, outcome);
}

async fn plain(mut stream: Stream, said: Vec<Bytes>, mut tcp: TcpStream, live: &Live) -> Result<(), Refusal> {
    for bytes in said {
        tcp.write_all(&bytes).await.map_err(Refusal::Broken)?;
        stream.consumed(bytes.len());
        live.to_tcp(bytes.len() as u64);
    }
    hbone::relay(&tcp, stream, live).await.map_err(|error| match error {
        RelayError::Stream(error) => error.into(),
        RelayError::Tcp(error) => Refusal::Broken(error),
    })
}

/// Carries bytes both ways, to their end. What was `said` is not consumed; what was `answered` is read already.
async fn secured(
    (stream, said): (Stream, Vec<Bytes>),
    (Inside { io, proof }, answered): (Inside, Vec<Bytes>),
    live: &Live,
) -> Result<(), Refusal> {
    let mut client = Counted { io: TunnelIo::new(stream, said), live };
    let copied = async {
        for bytes in answered {
            client.write_all(&bytes).await?;
        }
        http1::carry(client, Io::Secured(Box::new(io))).await
    };
    let proven = async {
        match proof {
            Some((_, until)) => sleep_until(until).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        copied = copied => copied.map_err(Refusal::Broken),
        () = proven => {
            Err(Refusal::Broken(io::Error::other("the certificates of its tunnel expired a day ago")))
        }
    }
}

/// A client's stream whose bytes are counted as they pass.
struct Counted<'a> {
    io: TunnelIo,
    live: &'a Live,
}

impl AsyncRead for Counted<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Task<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        self.live.forth((buffer.filled().len() - before) as u64);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Task<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, bytes))?;
        self.live.back(written as u64);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Task<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, slices))?;
        self.live.back(written as u64);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
