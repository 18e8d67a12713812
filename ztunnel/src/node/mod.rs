//! The node side: which pods there are, which should be enrolled, and making it so.
//!
//! Two facts make an enrolment: a sandbox (from the node API or the container runtime) and a verdict (from the controller). Touches no bytes of
//! connections: the data threads are handed sockets.

pub(crate) mod api;
mod attach;
mod capture;
pub(crate) mod cni;
mod door;
pub(crate) mod goal;
mod last_known;
pub(crate) mod manager;
pub(crate) mod report;
pub(crate) mod runtime;
pub(crate) mod sandbox;
mod status;
mod succession;
pub(crate) mod uninstall;

pub(crate) use door::ADMIN;
