//! Delta discovery, both ends: pure session cores, thin gRPC shells.
//!
//! A client keeps a [`Sink`] current and answers lookups; a server gives each client the view that its [`Provider`] allows.
//! Generic over the resources: owns no meaning of them, no store, no credentials.

pub mod backoff;
pub mod client;
pub mod client_core;
pub mod message;
pub mod server;
pub mod server_core;

mod resource;
mod type_core;
mod wire;

pub use client::{Client, Connection, Connector, Demand};
pub use client_core::{DemandError, Mode, Sink, Subscription};
pub use message::Rejection;
pub use resource::{Resource, Resources};
pub use server::{Provider, Server};
pub use wire::Node;
