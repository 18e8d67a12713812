//! HBONE: CONNECT streams in HTTP/2 tunnels over mutual TLS, on any byte stream. Owns tunnels (client, pool, server),
//! streams, and the relay between a stream and a TCP connection. Knows nothing of the mesh: certificates, trust,
//! addresses and policy come from outside as rustls configurations, keys and the caller's decisions.
//!
//! Guide: [`manual`].

mod budget;
mod buffers;
mod client;
mod dialling;
mod frames;
mod handshake;
mod incoming;
mod io;
mod keepalive;
pub mod limits;
#[doc = include_str!("../MANUAL.md")]
pub mod manual {}
mod pool;
mod pool_core;
mod protection;
mod queue;
mod record_error;
mod records;
mod relay;
mod server;
mod session;
mod share;
pub mod socket;
mod splice;
mod stream;
mod tunnel;
mod windows;
mod wire;

pub use budget::Budget;
pub use client::{Chain, ClientTls, Connect, ConnectError, Driver, OpenError, Opener, connect};
pub use frames::{Abuse, Budget as Allowance, Guard};
pub use h2::Reason;
pub use incoming::Incoming;
pub use limits::{ClientLimits, PoolLimits, ServerLimits, TunnelLimits};
pub use pool::{DialError, Pool};
pub use pool_core::PoolStats;
pub use record_error::RecordError;
pub use relay::{Counters, Progress, RelayError, relay};
pub use server::{AcceptError, Authority, ServerConnection, accept};
pub use splice::{Carried, splice};
pub use stream::{FillError, Received, Stream, StreamError};
pub use tunnel::TunnelError;
