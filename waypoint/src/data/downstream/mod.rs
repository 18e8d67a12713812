//! What comes in: threads that take connections, tunnels of clients, and what each stream in them asks for and speaks.
//!
//! Carries nothing: a stream is handed to `requests` or `opaque`.

mod clients;
mod declared;
mod detect;
mod guarded;
mod plain;
mod stream;
mod thread;
mod tunnel;

pub(crate) use clients::Clients;
pub(crate) use guarded::Past;
pub(crate) use plain::Plain;
pub(crate) use thread::{Door, Thread, accept};
pub(crate) use tunnel::Tunnels;
