//! One side of a connection: a byte stream, what was read from it and not used yet, and the head that is to be written to
//! it. Bodies are never copied here: they are written from the other side's window, behind the head, in one call.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::buffers::{LARGE, SMALL, Window};

/// A stream and its buffers.
pub(super) struct Wire<Io> {
    io: Io,
    pub(super) input: Window,
    /// What goes out before anything else: heads and the framing of chunks.
    pub(super) out: Vec<u8>,
    written: usize,
    /// Written and not flushed.
    dirty: bool,
    ended: bool,
    want: usize,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Wire<Io> {
    pub(super) fn new(io: Io) -> Self {
        Self {
            io,
            input: Window::default(),
            out: Vec::new(),
            written: 0,
            dirty: false,
            ended: false,
            want: SMALL,
        }
    }

    /// Reads what there is into the window; 0 is the end of the stream. Must not be called without room.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        let spare = self.input.spare(self.want);
        let room = spare.len();
        let mut buffer = ReadBuf::new(spare);
        let polled = Pin::new(&mut self.io).poll_read(cx, &mut buffer);
        let count = buffer.filled().len();
        self.input.grow(count);
        if count == 0 {
            self.input.release();
        }
        ready!(polled)?;
        self.want = if count == room { LARGE } else { SMALL };
        self.ended = count == 0;
        Poll::Ready(Ok(count))
    }

    /// Says that nobody can take what comes, so that it is counted where it is held. Resolves when the stream is broken, or is
    /// ended because all together hold too much.
    pub(super) fn poll_held_up(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if self.ended {
            return Poll::Pending;
        }
        match Pin::new(&mut self.io).poll_read(cx, &mut ReadBuf::new(&mut [])) {
            Poll::Ready(Err(error)) => Poll::Ready(error),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }

    /// Reads ahead while there is room, so that a peer that has gone is noticed. Resolves when it has.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        while !self.ended && self.input.has_room() {
            match self.poll_fill(cx) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(error),
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }

    /// Writes what is in `out`, and `body` behind it; answers how much of `body` was taken. With an empty `body` it
    /// resolves when all of `out` is written.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, body: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let head = &self.out[self.written..];
            let io = Pin::new(&mut self.io);
            let count = match (head.is_empty(), body.is_empty()) {
                (true, true) => return Poll::Ready(Ok(0)),
                (true, false) => ready!(io.poll_write(cx, body))?,
                (false, true) => ready!(io.poll_write(cx, head))?,
                (false, false) => {
                    ready!(io.poll_write_vectored(cx, &[IoSlice::new(head), IoSlice::new(body)]))?
                }
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.dirty = true;
            let of_head = count.min(head.len());
            self.written += of_head;
            if self.written == self.out.len() {
                self.out.clear();
                self.written = 0;
            }
            if count > of_head {
                return Poll::Ready(Ok(count - of_head));
            }
        }
    }

    /// Writes what is in `out`, and flushes.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write(cx, &[]))?;
        if self.dirty {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Ends our direction.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// Whether the peer has ended its direction.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    pub(super) fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Holds no memory while nothing is under way.
    pub(super) fn rest(&mut self) {
        self.input.release();
        if self.out.is_empty() {
            self.out = Vec::new();
        }
    }
}
