//! HTTP/2, forwarded: requests of a client's connection become requests over connections that many share. Frames, windows and
//! HPACK are the `h2` crate's; this owns how bytes are batched, what a head may say, bodies and trailers both ways, and the
//! limits.
//!
//! Decides nothing: where a request goes and what is changed on the way is asked of a [`Decide`](crate::decide::Decide). Makes
//! no connections: it is handed them. gRPC needs nothing here: it is requests with trailers, whose answers of our own
//! [`Answer`](crate::decide::Answer) writes. Extended CONNECT (RFC 8441) is not offered.

mod attempt;
mod copy;
mod exchange;
mod flow;
mod head;
mod io;
pub mod limits;
mod link;
mod refusal;
mod serve;
mod stalls;

pub use copy::{Answer, Body};
pub use head::{RequestHead, ResponseHead};
pub use link::{Link, Upstream, connect};
pub use refusal::Refusal;
pub use serve::serve;
pub use stalls::Stalls;
