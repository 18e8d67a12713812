//! How attempts and requests end.

use std::io;

use tokio::time::Instant;

use super::AnyRequest;
use super::answer::Answer;
use crate::{http1, http2};

/// Why something is no request or no response, as its protocol has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Of HTTP/1.1.
    #[error(transparent)]
    Http1(#[from] http1::Refusal),
    /// Of HTTP/2.
    #[error(transparent)]
    Http2(#[from] http2::Refusal),
}

impl Refusal {
    /// What a client is answered whose request is refused.
    pub fn status(self) -> u16 {
        match self {
            Self::Http1(refusal) => refusal.status(),
            Self::Http2(refusal) => refusal.status(),
        }
    }

    /// A stable name of the reason.
    pub fn code(self) -> &'static str {
        match self {
            Self::Http1(refusal) => refusal.code(),
            Self::Http2(refusal) => refusal.code(),
        }
    }
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
    /// The other side says that it has not looked at the request.
    #[error("the request was refused unseen")]
    Refused,
    /// The other side reset the request, with this code.
    #[error("the request was reset with code {0}")]
    Reset(u32),
    /// [`Exchange::response`](super::Exchange::response) did not want this response.
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
    pub fn is_free(&self, request: &dyn AnyRequest) -> bool {
        self.again && self.stale && (self.unsent || request.is_idempotent())
    }

    /// What the client is told if nobody says otherwise.
    pub fn answer(&self) -> Answer {
        Answer::status(match self.failure {
            Failure::Closed | Failure::Io(_) | Failure::Refused => 503,
            Failure::Malformed(_) | Failure::Reset(_) | Failure::Unasked => 502,
            Failure::Status(status) => status,
            Failure::Timeout => return Answer::late(),
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
    /// The `grpc-status` that the response ended with, in its trailers or its head.
    pub grpc_status: Option<u32>,
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

impl Record {
    /// Of a request whose head has just arrived. As long as nothing else is said, its client is what ended it.
    #[must_use]
    pub fn begun(began: Instant) -> Self {
        Self {
            outcome: Outcome::ClientGone,
            status: None,
            grpc_status: None,
            attempts: 0,
            failure: None,
            request_bytes: 0,
            response_bytes: 0,
            began,
            responded: None,
            ended: began,
        }
    }
}
