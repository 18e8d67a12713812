//! Being a good process: what every long-running program of ours needs and no part of the mesh is about.
//!
//! Knows nothing of the mesh: no identities, no workloads, no tunnels. Never blocks a data-path thread: what must reach a file
//! goes through a bounded queue that loses and counts. Starts nothing behind the caller's back except writer threads; every
//! other task is a future that the caller drives.

pub mod access;
pub mod admin;
pub mod config;
pub mod drain;
pub mod http;
pub mod lines;
pub mod logs;
pub mod metrics;
pub mod readiness;
pub mod signal;
pub mod tasks;
