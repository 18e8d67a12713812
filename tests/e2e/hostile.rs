//! Hostile input on every socket that faces a pod, the network or the node: refused in the right way, at a bounded cost, and
//! nobody else notices.

mod connections;
mod dns;
mod node;
pub(crate) mod tunnels;
