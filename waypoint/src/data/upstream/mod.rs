//! Endpoints: which one is chosen, how it is connected to, and the connections that are kept for requests.
//!
//! Decides nothing about requests or streams, and carries neither.

pub(super) mod choice;
mod connect;
pub(super) mod endpoints;
mod io;
pub(super) mod pool;

pub(super) use connect::{ATTEMPTS, Aimed, Inside, Upstream, aim, connect};
pub(super) use io::Io;
