//! Copies between two streams, both ways in one task, in the buffers that the bytes came in: half-closes passed on, and an
//! abort on one side made an abort on the other.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::Reason;

use crate::queue::Queue;
use crate::relay::{at_once, ordinary_end, turns};
use crate::stream::{Received, Stream, StreamError};

/// Told of every byte that has left, as it does. Called from one task, often: atomics, no locks.
pub trait Carried: Send + Sync {
    /// Bytes from the first stream that the second one has taken.
    fn forth(&self, bytes: u64);
    /// Bytes from the second stream that the first one has taken.
    fn back(&self, bytes: u64);
}

/// Copies until both directions have ended. `said` was received from `first` before and not consumed; it goes first.
///
/// An end that a peer signals by cancelling a stream it has no more use for counts as an ordinary end. Dropping the future
/// before it resolves aborts both sides.
///
/// # Errors
/// The side that broke first; the other one has been told by an abort.
pub async fn splice(
    first: Stream,
    second: Stream,
    said: Vec<Bytes>,
    carried: &impl Carried,
) -> Result<(), StreamError> {
    let mut ends = Ends { first, second, over: false };
    let mut forth = Direction::default();
    forth.queue.extend(said.into_iter());
    let mut back = Direction::default();
    let result = {
        let Ends { first, second, .. } = &mut ends;
        poll_fn(|cx| {
            let (heard_first, heard_second) = (forth.ended, back.ended);
            let forward = forth.poll(cx, first, (second, heard_second), |bytes| carried.forth(bytes))?;
            let backward = back.poll(cx, second, (first, heard_first), |bytes| carried.back(bytes))?;
            if forward.is_ready() && backward.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    };
    ends.over = result.is_ok();
    result
}

/// Streams that are given up must not look like ones that are over, and a stream that is merely dropped would: it is
/// cancelled, which is an ordinary end.
struct Ends {
    first: Stream,
    second: Stream,
    over: bool,
}

impl Drop for Ends {
    fn drop(&mut self) {
        if !self.over {
            self.first.reset(Reason::CONNECT_ERROR);
            self.second.reset(Reason::CONNECT_ERROR);
        }
    }
}

#[derive(Default)]
struct Direction {
    queue: Queue,
    arrived: Vec<Bytes>,
    /// The source sends nothing more.
    ended: bool,
    done: bool,
}

impl Direction {
    /// `heard`: nobody receives from `to` any more, so nobody else would notice a reset.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
        (to, heard): (&mut Stream, bool),
        carried: impl Fn(u64),
    ) -> Poll<Result<(), StreamError>> {
        // Nobody receives any more, and what is held may still be too much.
        if self.ended
            && let Poll::Ready(error) = from.poll_called(cx)
        {
            return Poll::Ready(Err(error));
        }
        for _ in 0..turns(to.beside()) {
            if self.done {
                return Poll::Ready(Ok(()));
            }
            if heard && let Poll::Ready(error) = to.poll_reset(cx) {
                self.done = true;
                return Poll::Ready(if ordinary_end(error) { Ok(()) } else { Err(error) });
            }
            let news = self.poll_arrivals(cx, from)?;
            let sent = self.poll_send(cx, from, to, &carried);
            if let Poll::Ready(Err(error)) = sent
                && ordinary_end(error)
            {
                // Nobody wants the rest.
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            let sent = sent?;
            if self.ended && self.queue.is_empty() {
                self.done = true;
                // A peer that has gone meanwhile needs no end.
                let _ = to.finish();
                return Poll::Ready(Ok(()));
            }
            if news.is_pending() && (sent.is_pending() || self.queue.is_empty()) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes what has arrived, also while the other side takes nothing: the window bounds it, and here it is packed.
    fn poll_arrivals(&mut self, cx: &mut Context<'_>, from: &mut Stream) -> Poll<Result<(), StreamError>> {
        if self.ended {
            return Poll::Pending;
        }
        let received = from.poll_recv(cx, &mut self.arrived);
        self.queue.extend(self.arrived.drain(..));
        match ready!(received) {
            Ok(Received::Data(_)) => {}
            Ok(Received::End) => self.ended = true,
            Err(error) if ordinary_end(error) => self.ended = true,
            Err(error) => return Poll::Ready(Err(error)),
        }
        Poll::Ready(Ok(()))
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
        to: &mut Stream,
        carried: &impl Fn(u64),
    ) -> Poll<Result<(), StreamError>> {
        while !self.queue.is_empty() {
            let room = match to.poll_capacity(cx, at_once(to.beside())) {
                Poll::Ready(room) => room?,
                Poll::Pending => {
                    self.queue.pack();
                    return Poll::Pending;
                }
            };
            let Some(chunk) = self.queue.pop(room) else { break };
            let count = chunk.len();
            to.send(chunk)?;
            from.consumed(count);
            carried(count as u64);
        }
        Poll::Ready(Ok(()))
    }
}
