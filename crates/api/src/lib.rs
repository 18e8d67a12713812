//! How the mesh is spoken: our .proto files, the types generated from them, and conversions to and from `model`.
//!
//! Wire types stop here: a resource is converted whole, or rejected with an error that names the field and its value.
//! Owns no session (`xds`), no store (`model`), no connection.

pub mod decode;
pub mod encode;
pub mod type_url;

mod convert;
mod generated;
mod invalid;
mod unknown;

pub use convert::enrolment::{Enrolment, PodReport, PodState};
pub use convert::l7::ReceivedRule;
pub use generated::{ca, cri, discovery, l7, node, otlp, security, workload};
pub use invalid::{Invalid, InvalidField, InvalidPolicy, InvalidRule, Problem};
