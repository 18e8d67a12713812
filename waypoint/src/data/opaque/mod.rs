//! Streams that are carried as bytes: an endpoint where TCPRoutes and TLSRoutes say, and the bytes both ways.
//!
//! Knows no requests, and ends no client's TLS.

mod reach;
mod relay;
mod route;
mod serve;
pub(super) mod tls_passthrough;

pub(super) use reach::{Reached, reach};
pub(super) use relay::relay;
pub(super) use serve::serve;
