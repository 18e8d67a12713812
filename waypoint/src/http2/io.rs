//! The byte stream as the engine sees it: what it writes is gathered, and leaves once per turn, so that the frames of all streams
//! share writes. The engine's own flushes, of which there is one for each frame of data, do nothing.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use hbone::{Abuse, Guard};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::limits::{GATE, GATHERED_KEPT};

struct Shared<Io> {
    io: Io,
    out: BytesMut,
    /// The engine was told to wait for room.
    gated: bool,
    guard: Guard,
}

/// The engine's end.
pub(super) struct Gathered<Io>(Arc<Mutex<Shared<Io>>>);

/// The end of the task that polls the engine. Never contended: it is the same task.
pub(super) struct Control<Io>(Arc<Mutex<Shared<Io>>>);

/// Both ends of a byte stream.
pub(super) fn split<Io>(io: Io, guard: Guard) -> (Gathered<Io>, Control<Io>) {
    let shared = Arc::new(Mutex::new(Shared { io, out: BytesMut::new(), gated: false, guard }));
    (Gathered(Arc::clone(&shared)), Control(shared))
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Control<Io> {
    /// After each poll of the engine, whatever it answered.
    pub(super) fn flush(&self, cx: &mut Context<'_>) -> io::Result<()> {
        let shared = &mut *self.0.lock();
        match shared.poll_out(cx) {
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        // The engine waits for room that has appeared meanwhile: nobody else would tell it.
        if shared.gated && shared.out.len() < GATE {
            shared.gated = false;
            cx.waker().wake_by_ref();
        }
        Ok(())
    }

    /// What the peer did too much of.
    pub(super) fn abuse(&self) -> Option<Abuse> {
        self.0.lock().guard.abuse()
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Shared<Io> {
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.out))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.out.advance(count),
            }
        }
        if self.out.capacity() > GATHERED_KEPT {
            self.out = BytesMut::new();
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.out.len() >= GATE {
            match self.poll_out(cx) {
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        let room = GATE.saturating_sub(self.out.len());
        self.gated = room == 0;
        if room == 0 { Poll::Pending } else { Poll::Ready(Ok(room)) }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gathered<Io> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let shared = &mut *self.0.lock();
        // A peer that is to be thrown out is not listened to any more.
        if shared.guard.abuse().is_some() {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut shared.io).poll_read(cx, buffer))?;
        shared.guard.inbound(&buffer.filled()[before..], Instant::now);
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Gathered<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let shared = &mut *self.0.lock();
        let mut room = ready!(shared.poll_room(cx))?;
        let mut written = 0;
        for slice in slices {
            let part = &slice[..slice.len().min(room)];
            shared.guard.outbound(part, Instant::now);
            shared.out.extend_from_slice(part);
            room -= part.len();
            written += part.len();
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shared = &mut *self.0.lock();
        ready!(shared.poll_out(cx))?;
        Pin::new(&mut shared.io).poll_shutdown(cx)
    }
}
