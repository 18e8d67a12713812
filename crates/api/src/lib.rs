//! How the mesh is spoken: our .proto files, the types generated from them, and conversions to and from `model`.
//!
//! Wire types stop here: a resource is converted whole, or rejected with an error that names the field and its value.
//! Owns no session (`xds`), no store (`model`), no connection.

pub mod type_url;

mod generated;

pub use generated::{ca, discovery, node, security, workload};
