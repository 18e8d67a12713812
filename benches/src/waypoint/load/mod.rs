//! The programs that ask through a waypoint and answer behind it: one thread each, the same for every proxy.
//!
//! `origin` answers, `client` asks and measures; both check every byte. `attacker` wants to hurt. What they cost themselves is no part of a proxy's figures.

pub(crate) mod abuses;
pub(crate) mod attacker;
pub(crate) mod client;
mod frames;
mod http1;
mod http2;
pub(crate) mod message;
pub(crate) mod origin;
mod pace;
mod tunnelled;
