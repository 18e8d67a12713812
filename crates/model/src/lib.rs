//! What the mesh is: identities, addresses, workloads, services, L4 policy, route choice, L7 rules, which pods belong to it, and
//! the store that holds what nodes need of it.
//!
//! Pure: no async, no I/O, no clock, no randomness of its own, no wire types. Every decision is a function of its arguments,
//! so that it can be checked against a naive oracle. Wire forms belong to `api`, effects to the binaries.

pub mod address;
pub mod authority;
pub mod identity;
pub mod l7;
pub mod membership;
pub mod policy;
pub mod route;
pub mod service;
pub mod store;
pub mod workload;

/// A shared, immutable string: mesh objects repeat names by the thousand.
pub type Str = std::sync::Arc<str>;
