//! Pools of connections to endpoints, of one thread: for HTTP/1.1 a connection for each request at a time, for HTTP/2 one for many.
//!
//! Choose no endpoint, and carry no request.

mod http1;
mod http2;

use std::net::SocketAddr;
use std::sync::Arc;

use model::identity::Identity;
use model::workload::WorkloadUid;

pub(crate) use self::http1::Kept;
pub(crate) use self::http2::Links;
use super::Aimed;
use crate::data::Context;
use crate::refusal::Refusal;
use crate::telemetry::Facts;

/// Which endpoint: a workload, and where its application listens; and the version of the TLS that is begun there, 0 without.
pub(crate) type Key = (WorkloadUid, SocketAddr, u64);

/// What an endpoint's connections are kept by.
pub(crate) fn key(Aimed { target, tls }: &Aimed) -> Key {
    (target.workload.uid.clone(), target.app.0, tls.as_ref().map_or(0, |tls| tls.version))
}

/// What requests of one protocol are sent over: a connection for each at a time, or one for many.
pub(crate) trait Carrier: Send + Sized {
    /// What the protocol is called.
    const PROTOCOL: &'static str;

    /// A way to send a request to an endpoint: one that there is, unless a fresh one is wanted. Notes who answers.
    fn reach(
        context: &Arc<Context>,
        aimed: &Aimed,
        facts: &mut Facts,
        fresh: bool,
    ) -> impl Future<Output = Result<Self, Refusal>> + Send;

    /// Keeps it for another request to the endpoint, which was answered by `who`.
    fn keep(self, context: &Context, key: Key, who: Option<&Identity>);
}
