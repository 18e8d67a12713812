//! Tunnels end to end: two of our ends, and our end against hostile ones. One binary, so that it links once.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot set up its peers has failed, and the line says where"
)]
mod budget;
mod hostile;
mod pool;
mod raw;
mod splice;
mod streams;
mod support;
mod weather;
