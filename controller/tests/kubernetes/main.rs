//! The controller on a real API server with a real etcd: what it reads, whom it believes, and what it writes.
//!
//! Needs no root and no node. The programs are those of the test cluster (`scripts/cluster-binaries`).

mod definitions;
mod nodes;
mod objects;
mod routes;
mod server;
mod source;
mod waypoints;
mod writes;
