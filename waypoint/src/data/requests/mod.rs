//! HTTP: each request of a stream is planned by `rules`, sent to an endpoint or several in turn, and told of when it is over.
//!
//! The same for each protocol: how a head or a body is written is `http1`'s and `http2`'s.

mod attempts;
mod balancing;
mod exchange;
mod failover;
pub(super) mod first_bytes;
mod forwarded;
pub(crate) mod mirror;
pub(super) mod revoked;
mod serve;

pub(super) use serve::{carry, over, serve};
