//! What the rotation driver asks of a certificate authority, and how it can fail.

use std::time::Duration;

use model::identity::Identity;

use crate::BoxFuture;
use crate::ca_client::TokenError;
use crate::certificate::{BadReply, Signed, Unusable};

/// Someone who certifies keys: the controller over gRPC, or another issuer.
pub trait Ca: Send + Sync + 'static {
    /// Has the key of `csr_pem` certified as `identity`, for about `validity` (the CA may shorten it).
    ///
    /// The answer is not trusted: the driver checks it before use (see [`Unusable`]), and puts a deadline on the call.
    fn sign<'a>(
        &'a self,
        identity: &'a Identity,
        csr_pem: String,
        validity: Duration,
    ) -> BoxFuture<'a, Result<Signed, CaError>>;
}

/// Why no certificate came of a request.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// No answer in time.
    #[error("the CA did not answer within {0:?}; check that the controller runs and can be reached")]
    Deadline(Duration),
    /// The CA could not be reached, or failed while answering. Another attempt may succeed.
    #[error("the CA cannot be reached: {0}")]
    Unreachable(String),
    /// The CA answered, and said no.
    #[error("the CA refused ({code}): {message}; check that a pod of this service account is on this node")]
    Refused {
        /// The gRPC code.
        code: tonic::Code,
        /// The CA's words.
        message: String,
    },
    /// Our own proof of who we are is missing.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The answer is not a certificate chain with roots.
    #[error(transparent)]
    Reply(#[from] BadReply),
    /// The certificate is not what was asked for.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// The key or the request could not be made.
    #[error("a key and signing request could not be made: {0}")]
    Request(#[from] rcgen::Error),
}
