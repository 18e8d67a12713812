//! Who I am, proven: SPIFFE identities in X.509, certificates and their rotation, the CA's client and its signer.
//!
//! Owns every rustls configuration of the project, so that "TLS 1.3, both sides verified, no resumption" is said once.
//! Refuses to know workloads, policy or discovery: it is told which identities are wanted, and answers with certificates.

use std::future::Future;
use std::pin::Pin;

mod ca;
mod ca_client;
mod certificate;
mod certificates;
mod clock;
mod csr;
mod hello;
mod peer;
mod tls;

pub mod authority;
pub mod control;
pub mod origination;
pub mod rotation;
pub mod signer;

pub use ca::{Ca, CaError};
pub use ca_client::{CaClient, TokenError, TokenFile, TokenSource};
pub use certificate::{BadReply, Certificate, Signed, Unusable};
pub use certificates::{CertificateError, CertificateState, Certificates, CertificatesConfig, Driver};
pub use clock::{Clock, SystemClock};
pub use csr::KeyRequest;
pub use hello::{ClientHello, NotTls};
pub use peer::{BadPeer, peer_expiry, peer_identity};
pub use tls::{ForeignTrustDomain, TrustDomains, explain};

/// A future behind a pointer: what the object-safe traits of this crate return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
