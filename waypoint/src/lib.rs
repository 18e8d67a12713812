//! The waypoint: the L7 proxy of a namespace, a service or a service account that asks for one.
//!
//! A library as well, so that its parts can be tested and fuzzed alone. `main` reads the environment and starts [`app`].

mod admin;
pub mod app;
pub mod balance;
pub mod config;
mod data;
pub mod decide;
mod discovery;
pub mod http1;
pub mod http2;
#[cfg(test)]
mod made;
mod refusal;
mod rules;
pub mod spans;
mod telemetry;
mod timer;
mod watched;
