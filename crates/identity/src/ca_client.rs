//! The CA over gRPC: `istio.v1.auth.IstioCertificateService`, on a channel that the caller made.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::ca::IstioCertificateRequest;
use api::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use model::identity::Identity;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tonic::metadata::errors::InvalidMetadataValue;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::BoxFuture;
use crate::ca::{Ca, CaError};
use crate::certificate::Signed;

/// The metadata key under which a node names the workload it asks for.
const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// The largest reply that is read: eight certificates and 64 roots of 4 KiB are below a third of it.
const MAX_REPLY: usize = 1 << 20;

/// Proof of who this process is, read anew for each call because it is renewed behind our back.
pub trait TokenSource: fmt::Debug + Send + Sync + 'static {
    /// The bearer token to present now.
    fn token(&self) -> Result<String, TokenError>;
}

/// A token that cannot be presented.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("the token file {path} cannot be read ({source}); check that it is mounted")]
    Unreadable {
        /// Where it should be.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is there and empty.
    #[error("the token file {0} is empty; whoever writes it has not finished or has failed")]
    Empty(PathBuf),
    /// Characters that no header may carry.
    #[error("the token contains characters that an HTTP header cannot carry")]
    Unprintable,
}

/// A token in a file, such as a projected service account token or a join token.
#[derive(Clone, Debug)]
pub struct TokenFile(pub PathBuf);

impl TokenSource for TokenFile {
    fn token(&self) -> Result<String, TokenError> {
        let text = std::fs::read_to_string(&self.0)
            .map_err(|source| TokenError::Unreadable { path: self.0.clone(), source })?;
        match text.trim() {
            "" => Err(TokenError::Empty(self.0.clone())),
            token => Ok(token.to_owned()),
        }
    }
}

/// A [`Ca`] that asks the control plane, as this node, for its workloads' certificates.
#[derive(Clone, Debug)]
pub struct CaClient {
    client: IstioCertificateServiceClient<Channel>,
    token: Arc<dyn TokenSource>,
    cluster_id: MetadataValue<Ascii>,
}

impl CaClient {
    /// A client on `channel` (see [`crate::control::channel`]) that presents `token` and names its cluster.
    /// Fails if `cluster_id` has characters that no header may carry.
    pub fn new(
        channel: Channel,
        token: Arc<dyn TokenSource>,
        cluster_id: &str,
    ) -> Result<Self, InvalidMetadataValue> {
        let cluster_id = MetadataValue::try_from(cluster_id)?;
        let client = IstioCertificateServiceClient::new(channel).max_decoding_message_size(MAX_REPLY);
        Ok(Self { client, token, cluster_id })
    }

    fn request(
        &self,
        identity: &Identity,
        csr: String,
        validity: Duration,
    ) -> Result<Request<IstioCertificateRequest>, TokenError> {
        let mut bearer = MetadataValue::try_from(format!("Bearer {}", self.token.token()?))
            .map_err(|_| TokenError::Unprintable)?;
        bearer.set_sensitive(true);
        let name = Value { kind: Some(Kind::StringValue(identity.to_string())) };
        let mut request = Request::new(IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(validity.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(Struct { fields: [(IMPERSONATED_IDENTITY.to_owned(), name)].into() }),
        });
        request.metadata_mut().insert("authorization", bearer);
        request.metadata_mut().insert("clusterid", self.cluster_id.clone());
        Ok(request)
    }
}

impl Ca for CaClient {
    fn sign<'a>(
        &'a self,
        identity: &'a Identity,
        csr_pem: String,
        validity: Duration,
    ) -> BoxFuture<'a, Result<Signed, CaError>> {
        Box::pin(async move {
            let request = self.request(identity, csr_pem, validity)?;
            let reply = self.client.clone().create_certificate(request).await.map_err(failure)?;
            Ok(Signed::from_reply(&reply.into_inner().cert_chain)?)
        })
    }
}

/// Whether the CA said no, or could not say anything.
fn failure(status: Status) -> CaError {
    let message = status.message().to_owned();
    match status.code() {
        code @ (Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Unauthenticated) => CaError::Refused { code, message },
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => CaError::Unreachable(whole_story(&status)),
    }
}

/// The status' message and what lies below it: "transport error" alone helps nobody.
fn whole_story(status: &Status) -> String {
    let mut story = vec![status.message().to_owned()];
    let mut below = status.source();
    while let Some(error) = below {
        // Layers repeat each other.
        let cause = error.to_string();
        if !story.iter().any(|told| told.contains(&cause)) {
            story.push(cause);
        }
        below = error.source();
    }
    story.join(": ")
}
