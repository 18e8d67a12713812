//! The seam between protocols and whoever decides: where requests go, what is changed on the way, and what became of them.
//! Routing, policy, balancing, retries, mirrors and telemetry stand behind these traits, the same for each protocol; nothing
//! here knows of them, or of how a head is written.

mod answer;
mod edits;
mod kept;
mod outcome;
mod parts;

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};

use model::l7::Headers;
use tokio::time::Instant;

pub use answer::{Answer, GRPC_STATUS, is_grpc};
pub use edits::{FieldEdits, RequestEdits};
pub(crate) use kept::{Kept, Watch};
pub use outcome::{Failed, Failure, Outcome, Record, Refusal};
pub(crate) use parts::is_framing;

/// Bytes of a request's body that may be kept for another attempt, whatever is asked for: above it, a retry would cost
/// more memory than the failure that it hides is worth.
pub const REPLAY_BYTES_MAX: usize = 64 * 1024;

/// Attempts at one request, whatever policy says: a bound on a decision that never tires.
pub const ATTEMPTS_MAX: u32 = 16;

/// A request of any protocol, apart from its body.
pub trait AnyRequest: Headers + Sync {
    /// The method, as it was written: methods have a case.
    fn method(&self) -> &str;

    /// The path, never decoded; `*` for the server as a whole, empty for CONNECT.
    fn path(&self) -> &str;

    /// What follows the question mark.
    fn query(&self) -> Option<&str>;

    /// Host and port that the request is for; empty if nothing says so.
    fn authority(&self) -> &str;

    /// A copy of it with these edits, for somebody else; `None` where there can't be one.
    fn copied(&self, _edits: &RequestEdits) -> Option<Copied> {
        None
    }

    /// Whether doing it twice is doing it once (RFC 9110, section 9.2.2).
    fn is_idempotent(&self) -> bool {
        matches!(self.method(), "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
    }
}

/// A copy of a request, apart from its body.
#[derive(Debug, Clone)]
pub enum Copied {
    /// As HTTP/1.1, on a connection of its own.
    Http1 {
        /// The head.
        head: Vec<u8>,
        /// Bytes of the body; without that it is sent in chunks.
        length: Option<u64>,
    },
    /// As HTTP/2, on a connection that it shares.
    Http2(http::Request<()>),
}

/// A response of any protocol, apart from its body.
pub trait AnyResponse: Headers {
    /// The status, 100 to 599.
    fn status(&self) -> u16;

    /// The code of a gRPC call that is over with this head.
    fn grpc_status(&self) -> Option<u32> {
        None
    }
}

/// Decides for the requests of one connection.
pub trait Decide: Sync {
    /// What requests are forwarded over.
    type Upstream: Send;
    /// One request and its response.
    type Exchange: Exchange<Upstream = Self::Upstream>;

    /// A request has arrived, apart from its body.
    fn begin(&self, request: &dyn AnyRequest) -> Self::Exchange;

    /// Something arrived that is no request; the client was answered with the refusal's status.
    fn refused(&self, refusal: Refusal);
}

/// One request and its response, from the decision to the record. Called by one task, in the order of the methods.
pub trait Exchange: Send {
    /// What requests are forwarded over.
    type Upstream: Send;

    /// Bytes of the body to keep for another attempt. Asked once, before the first. None by default, and never more than
    /// [`REPLAY_BYTES_MAX`].
    fn replay(&self) -> usize {
        0
    }

    /// What to do with the request: asked once, and again after each attempt that failed before anything of a response
    /// was sent on. It may take its time: a fault's delay, a dial. A client that leaves meanwhile drops the future.
    fn next(
        &mut self,
        request: &dyn AnyRequest,
        failed: Option<&Failed>,
    ) -> impl Future<Output = Next<Self::Upstream>> + Send;

    /// Resolves when the client is not let through any more: it is answered with 403, or cut if the response has begun. Polled
    /// by one task while an attempt is under way.
    fn poll_revoked(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    /// Bytes of the body as they pass for the first time, without what frames them: for mirrors.
    fn body(&mut self, _bytes: &[u8]) {}

    /// All of the body has passed. May be said several times.
    fn body_ended(&mut self) {}

    /// A response has arrived, apart from its body: send it on with these edits, or (only when `again` says that the
    /// request can still be sent) try once more.
    fn response(&mut self, request: &dyn AnyRequest, response: &dyn AnyResponse, again: bool) -> Verdict;

    /// What can carry another request.
    fn give_back(&mut self, upstream: Self::Upstream);

    /// It is over.
    fn end(self, request: &dyn AnyRequest, record: &Record);
}

/// What becomes of a request.
pub enum Next<Upstream> {
    /// The connection is cut without an answer.
    Abort,
    /// We answer.
    Answer(Answer),
    /// Somebody else does.
    Forward(Forward<Upstream>),
    /// The last attempt's failure is the client's to know.
    GiveUp,
}

/// Where a request is sent, and how.
pub struct Forward<Upstream> {
    /// What to send it over.
    pub upstream: Upstream,
    /// What to change in its head.
    pub edits: Arc<RequestEdits>,
    /// When a response's head must have arrived; else this attempt has failed with [`Failure::Timeout`].
    pub respond_by: Option<Instant>,
    /// When the response must be complete; the connection is cut if it is not.
    pub complete_by: Option<Instant>,
}

impl<Upstream> Forward<Upstream> {
    /// As it is, without a deadline.
    pub fn over(upstream: Upstream) -> Self {
        Self { upstream, edits: Arc::default(), respond_by: None, complete_by: None }
    }
}

/// What becomes of a response.
pub enum Verdict {
    /// It is sent on with these edits.
    Forward(FieldEdits),
    /// It is dropped, and [`Exchange::next`] asked again.
    Retry,
}
