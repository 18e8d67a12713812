//! What the node proxy and the waypoint do alike: keep the mesh that discovery tells, speak with the controller, take tunnels
//! in and make tunnels out, each with a look at who is at the other end.
//!
//! And say of it what operators read. Refuses to know captured pods, HTTP and policy: those are the programs'.

pub mod accept;
pub mod admin;
pub mod control;
pub mod dump;
pub mod expiry;
pub mod feed;
pub mod handshakes;
pub mod headers;
mod memory;
pub mod mesh;
pub mod process;
pub mod reach;
pub mod series;
pub mod tunnels;
