//! What the identity crate promises, through its public face: handshakes in memory, rotation under virtual time, the
//! authority on a real directory, the control channel over loopback.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops where it is")]

mod authority;
mod ca_client;
mod certificates;
mod control;
mod handshake;
mod origination;
mod peer;
mod plugged;
mod resumption;
mod rotation;
mod support;
