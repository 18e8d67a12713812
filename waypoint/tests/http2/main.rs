//! The HTTP/2 forwarder between a client and a server, in memory: what passes, what is refused, and what becomes of either side
//! when the other is slow, early, late or gone.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops where it is")]

mod abuse;
mod bodies;
mod calls;
mod lifecycle;
mod passing;
mod raw;
mod refusals;
mod support;
