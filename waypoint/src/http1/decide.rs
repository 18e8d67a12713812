//! The seam to whoever decides: where requests go, what is changed on the way, and what became of them. Routing, policy,
//! balancing, retries, mirrors and telemetry stand behind these traits; nothing here knows of them.

use std::future::Future;
use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::edits::{FieldEdits, RequestEdits};
use super::refusal::Refusal;
use super::request::RequestHead;
use super::response::ResponseHead;
use super::upstream::Upstream;

/// Decides for the requests of one connection.
pub trait Decide: Sync {
    /// What requests are forwarded over.
    type Io: AsyncRead + AsyncWrite + Unpin + Send;
    /// One request and its response.
    type Exchange: Exchange<Io = Self::Io>;

    /// A request has arrived, apart from its body.
    fn begin(&self, request: &RequestHead) -> Self::Exchange;

    /// Something arrived that is no request; the client was answered with the refusal's status.
    fn refused(&self, refusal: Refusal);
}

/// One request and its response, from the decision to the record. Called by one task, in the order of the methods.
pub trait Exchange: Send {
    /// What requests are forwarded over.
    type Io: AsyncRead + AsyncWrite + Unpin + Send;

    /// Bytes of the body to keep for another attempt. Asked once, before the first. None by default, and never more than
    /// [`REPLAY_BYTES_MAX`](super::limits::REPLAY_BYTES_MAX).
    fn replay(&self) -> usize {
        0
    }

    /// What to do with the request: asked once, and again after each attempt that failed before anything of a response
    /// was sent on. It may take its time: a fault's delay, a dial. A client that leaves meanwhile drops the future.
    fn next(
        &mut self,
        request: &RequestHead,
        failed: Option<&Failed>,
    ) -> impl Future<Output = Next<Self::Io>> + Send;

    /// Bytes of the body as they pass for the first time, chunk sizes left out: for mirrors.
    fn body(&mut self, _bytes: &[u8]) {}

    /// A response has arrived, apart from its body: send it on with these edits, or (only when `again` says that the
    /// request can still be sent) try once more.
    fn response(&mut self, request: &RequestHead, response: &ResponseHead, again: bool) -> Verdict;

    /// A connection that can carry another request.
    fn give_back(&mut self, upstream: Upstream<Self::Io>);

    /// It is over.
    fn end(self, request: &RequestHead, record: &Record);
}

/// What becomes of a request.
pub enum Next<Io> {
    /// The connection is cut without an answer.
    Abort,
    /// We answer.
    Answer(Answer),
    /// Somebody else does.
    Forward(Forward<Io>),
}

/// Where a request is sent, and how.
pub struct Forward<Io> {
    /// The connection to send it over.
    pub upstream: Upstream<Io>,
    /// What to change in its head.
    pub edits: RequestEdits,
    /// When a response's head must have arrived; else this attempt has failed with [`Failure::Timeout`].
    pub respond_by: Option<Instant>,
    /// When the response must be complete; the connection is cut if it is not.
    pub complete_by: Option<Instant>,
}

impl<Io> Forward<Io> {
    /// As it is, without a deadline.
    pub fn over(upstream: Upstream<Io>) -> Self {
        Self { upstream, edits: RequestEdits::default(), respond_by: None, complete_by: None }
    }
}

/// A response of our own.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// 200 to 599.
    pub status: u16,
    /// Fields beside those that frame it.
    pub fields: FieldEdits,
    /// All of it; kept small by whoever makes it.
    pub body: Bytes,
    /// The connection ends with it.
    pub close: bool,
}

impl Answer {
    /// A status alone.
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }
}

/// What becomes of a response.
pub enum Verdict {
    /// It is sent on with these edits.
    Forward(FieldEdits),
    /// It is dropped, and [`Exchange::next`] asked again.
    Retry,
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The other side closed the connection without answering.
    #[error("the connection was closed without an answer")]
    Closed,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(io::Error),
    /// What came is no response.
    #[error("the answer breaks the protocol: {0}")]
    Malformed(Refusal),
    /// [`Exchange::response`] did not want this response.
    #[error("status {0} is to be tried again")]
    Status(u16),
    /// No response came in time.
    #[error("no answer in time")]
    Timeout,
    /// It switched to a protocol that nobody had asked for.
    #[error("the answer switches protocols unasked")]
    Unasked,
}

/// An attempt that failed.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub failure: Failure,
    /// The request can be sent again as a whole: its body has not begun, or was kept.
    pub again: bool,
    /// The connection had been used before, and closed before anything of a response came: it had probably been
    /// closed while idle, which is nobody's failure.
    pub stale: bool,
    /// Nothing of the request was sent.
    pub unsent: bool,
}

impl Failed {
    /// Whether another attempt, over a connection that was not used before, does no harm (RFC 9110, section 9.2.2) and
    /// needs no policy that allows it: the endpoint has not failed.
    pub fn is_free(&self, request: &RequestHead) -> bool {
        self.again && self.stale && (self.unsent || request.is_idempotent())
    }

    /// What the client is told if nobody says otherwise.
    pub fn answer(&self) -> Answer {
        Answer::status(match self.failure {
            Failure::Closed | Failure::Io(_) => 503,
            Failure::Malformed(_) | Failure::Unasked => 502,
            Failure::Status(status) => status,
            Failure::Timeout => 504,
        })
    }
}

/// How an exchange ended.
#[derive(Debug)]
pub enum Outcome {
    /// Cut on purpose.
    Aborted,
    /// Answered by us.
    Answered,
    /// The client left before it had everything.
    ClientGone,
    /// The response was forwarded to its end, or the upgraded connection ended.
    Forwarded,
    /// Answered by us because the request's body broke the rules.
    Refused(Refusal),
    /// The response broke off after its head had been forwarded.
    ResponseLost(Failure),
    /// Nothing moved for so long, or the response did not end in time, and the connection was cut.
    TimedOut,
}

/// What happened in one exchange.
#[derive(Debug)]
pub struct Record {
    /// How it ended.
    pub outcome: Outcome,
    /// What the client was answered.
    pub status: Option<u16>,
    /// Attempts that were made.
    pub attempts: u32,
    /// Why the last attempt failed that did.
    pub failure: Option<Failure>,
    /// Bytes of the request's body (or of the client's side of an upgraded connection).
    pub request_bytes: u64,
    /// Bytes of the response's body (or of the other side's).
    pub response_bytes: u64,
    /// When the request's head had arrived.
    pub began: Instant,
    /// When the head of the final response had.
    pub responded: Option<Instant>,
    /// When it was over.
    pub ended: Instant,
}
