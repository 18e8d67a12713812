//! TLS between the control plane and its clients: a server that proves its name, clients that prove themselves by a
//! token inside the channel. There is no plaintext form of it.
//!
//! Knows no service: it makes channels and accepts connections, tonic does the rest.

mod client;
mod kubernetes;
mod server;

pub use client::{BadTarget, Roots, Target, channel};
pub use kubernetes::{ApiConnector, ApiServer, ApiStream, ClientPem};
pub use server::{ControlPeer, ControlStream, Incoming, ServerTls, incoming};
