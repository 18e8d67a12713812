//! A stream of a tunnel as bytes to read and write.
//!
//! One that is dropped before it was shut down looks broken to its peer, not ended. Speaks no protocol.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use hbone::{FillError, Reason, Received, Stream, StreamError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream, and what has come and was not read yet.
pub(crate) struct TunnelIo {
    stream: Stream,
    arrived: VecDeque<Bytes>,
    batch: Vec<Bytes>,
    ended: bool,
    shut: bool,
}

impl TunnelIo {
    /// Reads `said` first, which was received and not consumed.
    pub(crate) fn new(stream: Stream, said: Vec<Bytes>) -> Self {
        Self { stream, arrived: said.into(), batch: Vec::new(), ended: false, shut: false }
    }

    fn poll_arrivals(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        let received = ready!(self.stream.poll_recv(cx, &mut self.batch));
        self.arrived.extend(self.batch.drain(..));
        match received {
            Ok(Received::Data(_)) => {}
            Ok(Received::End) => self.ended = true,
            // A peer that has no more use for the stream; there is nothing more to read of it.
            Err(StreamError::Reset(Reason::NO_ERROR | Reason::CANCEL)) => self.ended = true,
            Err(error) => return Poll::Ready(Err(io::Error::other(error))),
        }
        Poll::Ready(Ok(()))
    }

    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        count: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Poll<io::Result<usize>> {
        if count == 0 {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(self.stream.poll_capacity(cx, count)).map_err(io::Error::other)?;
        let room = room.min(count);
        let sent = self.stream.send_with(room, |buffer| {
            fill(&mut buffer[..room]);
            Ok(room)
        });
        Poll::Ready(sent.map_err(|error| match error {
            FillError::Fill(error) => error,
            FillError::Stream(error) => io::Error::other(error),
        }))
    }
}

impl Drop for TunnelIo {
    fn drop(&mut self) {
        if !self.shut {
            self.stream.reset(Reason::CONNECT_ERROR);
        }
    }
}

impl AsyncRead for TunnelIo {
    /// Whoever has no room takes nothing, and what has come is counted as held: an empty buffer is how a reader says that it waits.
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            while !self.ended {
                ready!(self.poll_arrivals(cx))?;
            }
            return Poll::Ready(Ok(()));
        }
        if self.arrived.is_empty() {
            ready!(self.poll_arrivals(cx))?;
        }
        let mut count = 0;
        while let Some(first) = self.arrived.front_mut() {
            let part = first.len().min(buffer.remaining());
            buffer.put_slice(&first[..part]);
            first.advance(part);
            count += part;
            if !first.is_empty() {
                break;
            }
            self.arrived.pop_front();
        }
        self.stream.consumed(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_fill(cx, bytes.len(), |buffer| buffer.copy_from_slice(&bytes[..buffer.len()]))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = slices.iter().map(|slice| slice.len()).sum();
        self.get_mut().poll_fill(cx, count, |mut buffer| {
            for slice in slices {
                let part = slice.len().min(buffer.len());
                let (now, rest) = buffer.split_at_mut(part);
                now.copy_from_slice(&slice[..part]);
                buffer = rest;
            }
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The tunnel flushes by itself, once per turn.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shut {
            self.shut = true;
            // A peer that has gone meanwhile needs no end.
            let _ = self.stream.finish();
        }
        Poll::Ready(Ok(()))
    }
}
