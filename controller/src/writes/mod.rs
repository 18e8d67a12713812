//! What the controller writes to an API server: the authority's state, and the roots that everyone should trust.
//!
//! Whatever several replicas could write is guarded: the authority's Secret by its version, all else by a Lease. Owns no
//! decision about the mesh.

mod api;
mod lease;
mod root_maps;
mod secret;

pub use lease::{Leader, lead};
pub use root_maps::publish_roots;
pub use secret::{SecretError, SharedAuthority};

/// Who we are to the API server: the manager of the fields that we write.
const FIELD_MANAGER: &str = "airglow-controller";
