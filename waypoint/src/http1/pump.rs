//! Moves one body from one side to the other: what the framing lets through, no faster than it is taken.

use std::io;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};

use super::body::{Body, Kind};
use super::framing::Framing;
use super::refusal::Refusal;
use super::wire::Wire;
use super::write;

/// Reads and writes in one turn, before other tasks of the thread get theirs.
const TURNS: usize = 8;

/// How a body is sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// With the framing that it came with.
    AsItIs,
    /// In chunks of our making.
    Chunked,
    /// Without framing.
    Payload,
}

/// Why a body was not moved to its end.
#[derive(Debug)]
pub(super) enum Broken {
    /// It breaks the rules.
    Malformed(Refusal),
    /// Whoever it is for takes no more.
    Sink(io::Error),
    /// It can't be read any more.
    Source(io::Error),
    /// It ended too early.
    Truncated,
}

/// Sees a body pass.
pub(super) trait Tap {
    /// Bytes of the body itself.
    fn payload(&mut self, bytes: &[u8]);
    /// Bytes as they are sent on, framing and all. Chunks of our own making are not shown.
    fn raw(&mut self, bytes: &[u8]);
    /// There is no more of it. Said in each turn from then on.
    fn ended(&mut self);
}

/// Nobody looks.
impl Tap for () {
    fn payload(&mut self, _bytes: &[u8]) {}
    fn raw(&mut self, _bytes: &[u8]) {}
    fn ended(&mut self) {}
}

/// One body on its way.
pub(super) struct Pump {
    body: Body,
    shape: Shape,
    /// Bytes at the front of the source's window that are to be written.
    ready: usize,
    /// Bytes behind those that are not.
    skip: usize,
    /// No chunk of ours was begun yet.
    first: bool,
    /// The end of our chunks is written.
    closed: bool,
    payload: u64,
}

impl Pump {
    pub(super) fn new(framing: Framing, shape: Shape) -> Self {
        Self {
            body: Body::new(framing),
            shape,
            ready: 0,
            skip: 0,
            first: true,
            closed: shape != Shape::Chunked,
            payload: 0,
        }
    }

    /// Bytes of the body itself that were found so far.
    pub(super) fn payload(&self) -> u64 {
        self.payload
    }

    /// Bytes found and not written yet.
    pub(super) fn unwritten(&self) -> usize {
        self.ready
    }

    /// Resolves when the body has been written and flushed. Answers in `moved` whether any byte did.
    pub(super) fn poll<A, B>(
        &mut self,
        cx: &mut Context<'_>,
        (from, to): (&mut Wire<A>, &mut Wire<B>),
        tap: &mut impl Tap,
        moved: &mut bool,
    ) -> Poll<Result<(), Broken>>
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        for _ in 0..TURNS {
            self.plan(from, to, tap)?;
            while self.ready > 0 || to.has_output() {
                let body = &from.input.filled()[..self.ready];
                let Poll::Ready(written) = to.poll_write(cx, body) else {
                    return from.poll_held_up(cx).map(|error| Err(Broken::Source(error)));
                };
                let count = written.map_err(Broken::Sink)?;
                from.input.consume(count);
                self.ready -= count;
                *moved = true;
                self.plan(from, to, tap)?;
            }
            if self.body.is_done() && self.closed {
                return to.poll_flush(cx).map_err(Broken::Sink);
            }
            match from.poll_fill(cx) {
                Poll::Ready(Ok(0)) if self.body.end() => {}
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(Broken::Truncated)),
                Poll::Ready(Ok(_)) => *moved = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Source(error))),
                Poll::Pending => {
                    ready!(to.poll_flush(cx)).map_err(Broken::Sink)?;
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads and throws away. Resolves when the body has ended, or with `false` when more than `most` payload has come.
    pub(super) fn poll_discard<A>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Wire<A>,
        most: u64,
    ) -> Poll<Result<bool, Broken>>
    where
        A: AsyncRead + AsyncWrite + Unpin,
    {
        from.input.consume(std::mem::take(&mut self.ready) + std::mem::take(&mut self.skip));
        loop {
            while let Some(run) = self.body.next(from.input.filled()).map_err(Broken::Malformed)? {
                from.input.consume(run.len);
                self.count(run.kind, run.len);
            }
            if self.body.is_done() || self.payload > most {
                return Poll::Ready(Ok(self.payload <= most));
            }
            if ready!(from.poll_fill(cx)).map_err(Broken::Source)? == 0 {
                return Poll::Ready(Err(Broken::Truncated));
            }
        }
    }

    /// Decides what of the source's window is written next, when nothing is left of the last decision.
    fn plan<A, B>(&mut self, from: &mut Wire<A>, to: &mut Wire<B>, tap: &mut impl Tap) -> Result<(), Broken> {
        if self.ready > 0 {
            return Ok(());
        }
        from.input.consume(std::mem::take(&mut self.skip));
        loop {
            let rest = &from.input.filled()[self.ready..];
            let Some(run) = self.body.next(rest).map_err(Broken::Malformed)? else { break };
            let bytes = &rest[..run.len];
            self.count(run.kind, run.len);
            if run.kind == Kind::Payload {
                tap.payload(bytes);
            }
            let kept = match run.kind {
                Kind::Payload => true,
                Kind::Framing => self.shape == Shape::AsItIs,
                Kind::Dropped => false,
            };
            if kept {
                tap.raw(bytes);
                self.ready += run.len;
            } else if self.ready > 0 {
                self.skip = run.len;
                break;
            } else {
                from.input.consume(run.len);
            }
        }
        if self.body.is_done() {
            tap.ended();
        }
        if self.shape == Shape::Chunked && self.ready > 0 {
            write::chunk(&mut to.out, self.ready, self.first);
            self.first = false;
        } else if self.body.is_done() && self.ready == 0 && !self.closed {
            write::last_chunk(&mut to.out, self.first);
            self.closed = true;
        }
        Ok(())
    }

    fn count(&mut self, kind: Kind, len: usize) {
        if kind == Kind::Payload {
            self.payload += len as u64;
        }
    }
}
