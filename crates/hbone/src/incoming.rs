//! A CONNECT that waits for its answer, and the count of those that the caller holds. Answers; decides nothing.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use h2::RecvStream;
use h2::server::SendResponse;
use http::uri::Authority;
use http::{HeaderMap, Response, StatusCode};

use crate::share::Credit;
use crate::stream::{Place, Places, Stream, StreamError};

/// Streams that the caller holds, answered or not.
pub(crate) struct InHand {
    limit: usize,
    count: AtomicUsize,
    /// Cancelled by the peer before they were answered, not yet charged.
    cancelled: AtomicU32,
    waker: AtomicWaker,
}

impl InHand {
    pub(crate) fn new(limit: usize) -> Arc<InHand> {
        let waker = AtomicWaker::new();
        Arc::new(InHand { limit, count: AtomicUsize::new(0), cancelled: AtomicU32::new(0), waker })
    }

    /// One more.
    pub(crate) fn enter(self: &Arc<Self>) -> Place {
        self.count.fetch_add(1, Ordering::AcqRel);
        Place::new(self.clone(), 0)
    }

    /// Wakes this task when there is room again, or something to charge.
    pub(crate) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// How many the peer has cancelled unanswered since the last call.
    pub(crate) fn take_cancelled(&self) -> u32 {
        self.cancelled.swap(0, Ordering::AcqRel)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    pub(crate) fn is_full(&self) -> bool {
        self.count.load(Ordering::Acquire) >= self.limit
    }
}

impl Places for InHand {
    fn release(&self, _: u64) {
        if self.count.fetch_sub(1, Ordering::AcqRel) >= self.limit {
            self.waker.wake();
        }
    }
}

/// Answers without a body, and that is the end.
pub(crate) fn answer(respond: &mut SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    // It only fails when the peer has cancelled the stream, and then it wants no answer.
    let _ = respond.send_response(response, true);
}

/// The answer that is owed. Counts the peer's cancelling it.
struct Answer {
    respond: SendResponse<Bytes>,
    in_hand: Arc<InHand>,
    answered: bool,
}

impl Answer {
    fn poll_cancelled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.respond.poll_reset(cx).map(|_| ())
    }

    /// The peer has given up already.
    fn is_cancelled(&mut self) -> bool {
        self.poll_cancelled(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    fn count_cancelled(&mut self) {
        if self.is_cancelled() {
            self.in_hand.cancelled.fetch_add(1, Ordering::AcqRel);
            self.in_hand.waker.wake();
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.answered {
            self.count_cancelled();
        }
    }
}

/// A CONNECT that waits for its answer. Dropped unanswered, it is reset.
pub struct Incoming {
    /// Where the peer wants to go. It is well-formed, and otherwise whatever the peer wrote.
    pub authority: Authority,
    /// What else it said. Believe it only as far as the peer is to be believed.
    pub headers: HeaderMap,
    answer: Answer,
    recv: RecvStream,
    credit: Credit,
    place: Place,
}

impl Incoming {
    pub(crate) fn new(
        (authority, headers): (Authority, HeaderMap),
        (recv, respond): (RecvStream, SendResponse<Bytes>),
        credit: Credit,
        in_hand: &Arc<InHand>,
    ) -> Incoming {
        let answer = Answer { respond, in_hand: in_hand.clone(), answered: false };
        Incoming { authority, headers, answer, recv, credit, place: in_hand.enter() }
    }

    /// Answers 200 with these headers. Bytes that the peer sent early are the first that the stream delivers.
    pub fn accept(mut self, headers: HeaderMap) -> Result<Stream, StreamError> {
        let mut response = Response::new(());
        *response.headers_mut() = headers;
        let send = self.answer.respond.send_response(response, false)?;
        self.answer.answered = true;
        Ok(Stream::new(send, self.recv, self.credit).with_place(self.place))
    }

    /// Answers with a status other than 200; early bytes are dropped.
    pub fn refuse(mut self, status: StatusCode) {
        self.answer.count_cancelled();
        self.answer.answered = true;
        answer(&mut self.answer.respond, status);
    }

    /// The peer has given up already.
    pub(crate) fn is_cancelled(&mut self) -> bool {
        self.answer.is_cancelled()
    }

    /// Resolves when the peer gives up waiting for the answer.
    pub async fn cancelled(&mut self) {
        poll_fn(|cx| self.answer.poll_cancelled(cx)).await;
    }
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").field("authority", &self.authority).finish_non_exhaustive()
    }
}
