//! The client's side of a connection: its next request, its end, and what both need: the timer, the times, and whether
//! the process drains.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::head::Finder;
use super::limits::Timeouts;
use super::refusal::Refusal;
use super::request::RequestHead;
use super::wire::Wire;
use super::write::{self, Persistence};
use crate::decide::FieldEdits;
use crate::timer::Timer;

pub(super) struct Client<'a, Io, F> {
    pub(super) wire: Wire<Io>,
    pub(super) timer: Timer,
    pub(super) timeouts: &'a Timeouts,
    drain: Pin<&'a mut F>,
    draining: bool,
}

impl<'a, Io, F> Client<'a, Io, F>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = ()>,
{
    pub(super) fn new(io: Io, timeouts: &'a Timeouts, drain: Pin<&'a mut F>) -> Self {
        Self { wire: Wire::new(io), timer: Timer::default(), timeouts, drain, draining: false }
    }

    pub(super) fn poll_draining(&mut self, cx: &mut Context<'_>) -> bool {
        self.draining = self.draining || self.drain.as_mut().poll(cx).is_ready();
        self.draining
    }

    /// The next request, and when it began to arrive; `None` when there will be none. Nothing was under way since `rested`.
    pub(super) async fn request(
        &mut self,
        rested: Instant,
    ) -> Result<Option<(RequestHead, Instant)>, Refusal> {
        let mut finder = Finder::request();
        let mut begun = (!self.wire.input.is_empty()).then_some(rested);
        poll_fn(|cx| {
            loop {
                if let Some(range) = finder.find(self.wire.input.filled())? {
                    let end = range.end;
                    let request = RequestHead::parse(self.wire.input.filled(), range);
                    self.wire.input.consume(end);
                    return Poll::Ready(request.map(|request| Some((request, begun.unwrap_or(rested)))));
                }
                match self.wire.poll_fill(cx) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Ok(None)),
                    Poll::Ready(Ok(_)) => begun = begun.or_else(|| Some(Instant::now())),
                    Poll::Pending => return self.poll_patience(cx, rested, begun),
                }
            }
        })
        .await
    }

    fn poll_patience(
        &mut self,
        cx: &mut Context<'_>,
        rested: Instant,
        begun: Option<Instant>,
    ) -> Poll<Result<Option<(RequestHead, Instant)>, Refusal>> {
        if begun.is_none() {
            self.wire.rest();
        }
        let deadline = match begun {
            Some(begun) => begun + self.timeouts.head,
            None if self.poll_draining(cx) => rested + self.timeouts.draining.min(self.timeouts.idle),
            None => rested + self.timeouts.idle,
        };
        ready!(self.timer.poll(cx, deadline));
        // Only empty lines: an answer could be taken for one to the next request.
        let nothing = self.wire.input.filled().iter().all(u8::is_ascii_whitespace);
        Poll::Ready(if nothing { Ok(None) } else { Err(Refusal::HeadTimeout) })
    }

    /// Answers a request that cannot be understood, and ends the connection.
    pub(super) async fn refuse(mut self, refusal: Refusal) {
        write::answer(
            &mut self.wire.out,
            refusal.status(),
            &FieldEdits::default(),
            Some(0),
            Persistence::Close,
        );
        self.close().await;
    }

    /// Writes what is left, ends our direction, and reads on for a moment: bytes that arrive at a closed connection make
    /// it forget the answer that is on its way.
    pub(super) async fn close(mut self) {
        let until = Instant::now() + self.timeouts.linger;
        let mut shut = false;
        poll_fn(|cx| {
            if !shut {
                match self.wire.poll_shutdown(cx) {
                    Poll::Ready(Ok(())) => shut = true,
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => {}
                }
            }
            loop {
                let unread = self.wire.input.filled().len();
                self.wire.input.consume(unread);
                match self.wire.poll_fill(cx) {
                    Poll::Ready(Ok(0) | Err(_)) if shut => return Poll::Ready(()),
                    Poll::Ready(Ok(0) | Err(_)) | Poll::Pending => break,
                    Poll::Ready(Ok(_)) => {}
                }
            }
            self.timer.poll(cx, until)
        })
        .await;
    }
}
