//! A tunnel's stream as bytes to read and write, for protocols that want that.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use hbone::{Received, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream, and what has come and was not read yet.
pub(crate) struct Tunnelled {
    stream: Stream,
    arrived: VecDeque<Bytes>,
    batch: Vec<Bytes>,
}

impl Tunnelled {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, arrived: VecDeque::new(), batch: Vec::new() }
    }
}

impl AsyncRead for Tunnelled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.arrived.is_empty() {
            match ready!(this.stream.poll_recv(cx, &mut this.batch)).map_err(io::Error::other)? {
                Received::Data(_) => this.arrived.extend(this.batch.drain(..)),
                Received::End => return Poll::Ready(Ok(())),
            }
        }
        let before = buffer.remaining();
        while let Some(mut first) = this.arrived.pop_front() {
            let part = first.len().min(buffer.remaining());
            buffer.put_slice(&first[..part]);
            first.advance(part);
            if !first.is_empty() {
                this.arrived.push_front(first);
                break;
            }
        }
        this.stream.consumed(before - buffer.remaining());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnelled {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let room = ready!(self.stream.poll_capacity(cx, bytes.len())).map_err(io::Error::other)?;
        let part = &bytes[..room.min(bytes.len())];
        self.stream.send(Bytes::copy_from_slice(part)).map_err(io::Error::other)?;
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The tunnel flushes by itself, once per turn.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.finish().map_err(io::Error::other))
    }
}
