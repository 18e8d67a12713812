//! What a control plane asks of whatever signs for it: its own authority, a plugged-in intermediate, or an issuer
//! somewhere else.

use std::net::IpAddr;
use std::time::Duration;

use model::identity::Identity;
use rustls_pki_types::CertificateDer;

use crate::BoxFuture;
use crate::authority::StorageError;
use crate::certificate::Signed;

/// Whom a certificate is for. The signer decides the names; what the request says about them is ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A workload: one SPIFFE URI.
    Workload(Identity),
    /// A control-plane server: the names and addresses under which clients dial it.
    Server(Vec<ServingName>),
}

/// A name under which a server is dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServingName {
    /// A DNS name.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

/// Certifies keys.
pub trait Signer: Send + Sync + 'static {
    /// Certifies the key of `csr_pem` for `subject`. `ttl`: `None` for the signer's default.
    ///
    /// Whether the caller may have it was decided before.
    fn sign(
        &self,
        csr_pem: String,
        subject: Subject,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<Signed, SignError>>;

    /// The roots that everyone should trust now.
    fn roots(&self) -> Vec<CertificateDer<'static>>;

    /// [`Signer::roots`] as PEM: what goes into clients' root files.
    fn roots_pem(&self) -> String {
        crate::certificate::to_pem(&self.roots())
    }
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The request is not one: its text says which part. The caller is at fault.
    #[error("the signing request is not acceptable: {0}")]
    BadRequest(&'static str),
    /// The caller is at fault.
    #[error("a validity of {asked:?} was asked for, and {max:?} is the most that is granted")]
    TtlTooLong {
        /// The validity asked for.
        asked: Duration,
        /// The most there is.
        max: Duration,
    },
    /// A serving name that is none. Our own configuration is at fault.
    #[error("{0:?} is not a DNS name that a certificate can carry")]
    BadName(String),
    /// The root has expired; rotate it.
    #[error("the root certificate has expired, so nothing can be signed; rotate the root")]
    RootExpired,
    /// A root that became due could not be stored, so it is not used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The cryptography failed.
    #[error("the certificate could not be made: {0}")]
    Crypto(#[from] rcgen::Error),
    /// A signer outside of this process did not sign. Another attempt may succeed.
    #[error("the external signer failed: {0}")]
    External(Box<dyn std::error::Error + Send + Sync>),
}

impl SignError {
    /// Whether the caller must change something before it is worth asking again.
    pub fn is_callers_fault(&self) -> bool {
        match self {
            Self::BadRequest(_) | Self::TtlTooLong { .. } => true,
            Self::BadName(_) | Self::RootExpired | Self::Storage(_) | Self::Crypto(_) | Self::External(_) => {
                false
            }
        }
    }
}
