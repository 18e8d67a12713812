//! The socket under a tunnel, and the two windows of bytes between it and the record layer: received and not yet opened,
//! sealed and not yet sent. Knows nothing of TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::buffers::{LARGE, TUNNEL, Window};
use crate::record_error::RecordError;

/// A socket and what is on its way through it.
pub(crate) struct Wire<Io> {
    io: Io,
    /// Received, not yet used.
    pub(crate) raw: Window,
    /// To be sent.
    pub(crate) sealed: Window,
    /// Why the peer hears us no more. What it said before it closed explains that better, so it is read first.
    deaf: Option<RecordError>,
    received: u64,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Wire<Io> {
    pub(crate) fn new(io: Io) -> Self {
        Wire { io, raw: Window::default(), sealed: Window::default(), deaf: None, received: 0 }
    }

    /// Bytes read from the socket so far.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// The peer takes nothing any more.
    pub(crate) fn is_deaf(&self) -> bool {
        self.deaf.is_some()
    }

    /// Reads from the socket once. Zero is the end of the stream. A peer that stopped listening to us is heard out; then
    /// that is the error.
    pub(crate) fn fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, RecordError>> {
        let spare = self.raw.spare(LARGE.min(TUNNEL - self.raw.len()));
        if spare.is_empty() {
            // Cannot happen while a handshake message is bounded to 64 KiB; never loop on it if that changes.
            return Poll::Ready(Err(RecordError::Tls(rustls::Error::PeerSentOversizedRecord)));
        }
        let room = spare.len().min(LARGE);
        let mut buf = ReadBuf::new(&mut spare[..room]);
        match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
            Poll::Pending => {
                self.raw.release();
                Poll::Pending
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.deaf.clone().unwrap_or(error.into()))),
            Poll::Ready(Ok(())) => {
                let count = buf.filled().len();
                self.raw.grow(count);
                self.received += count as u64;
                match &self.deaf {
                    Some(error) if count == 0 => Poll::Ready(Err(error.clone())),
                    _ => Poll::Ready(Ok(count)),
                }
            }
        }
    }

    /// Sends all of `sealed` but its last `keep` bytes. To a peer that takes nothing any more everything counts as sent:
    /// `fill` knows the error.
    pub(crate) fn send(&mut self, cx: &mut Context<'_>, keep: usize) -> Poll<()> {
        loop {
            let ready = self.sealed.len() - keep;
            if ready == 0 {
                return Poll::Ready(());
            }
            if self.deaf.is_some() {
                self.sealed.consume(ready);
                continue;
            }
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.sealed.filled()[..ready])) {
                Ok(count) if count > 0 => self.sealed.consume(count),
                Ok(_) => self.deaf = Some(io::Error::from(io::ErrorKind::WriteZero).into()),
                Err(error) => self.deaf = Some(error.into()),
            }
        }
    }

    /// Closes our direction.
    pub(crate) fn close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
