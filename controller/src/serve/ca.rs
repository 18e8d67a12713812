//! The certificate service: a node asks for the certificates of the workloads whose traffic it carries, a waypoint for its own;
//! neither for any other.
//!
//! Owns no key: a [`Signer`] does. A refused caller learns nothing; the log learns why.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::ca::istio_certificate_service_server::IstioCertificateService;
use api::ca::{IstioCertificateRequest, IstioCertificateResponse};
use identity::control::ControlPeer;
use identity::signer::{Signer, Subject};
use model::identity::Identity;
use prost_types::value::Kind;
use tonic::{Request, Response, Status};

use super::gate::Gate;
use super::published::Published;
use super::tokens::{Caller, Role};

/// The key of the request's metadata that names the workload.
const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// The certificate service.
pub(super) struct CertificateService {
    gate: Gate,
    published: Published,
    signer: Arc<dyn Signer>,
    issued: Arc<AtomicU64>,
}

impl CertificateService {
    /// Signs by `signer` for those that `gate` admits. Counts in `issued`.
    pub(super) fn new(
        gate: Gate,
        published: Published,
        signer: Arc<dyn Signer>,
        issued: Arc<AtomicU64>,
    ) -> Self {
        Self { gate, published, signer, issued }
    }

    /// The identity that is asked for, if the caller may have it; else why not.
    fn granted(&self, caller: &Caller, request: &IstioCertificateRequest) -> Result<Identity, String> {
        let named = request.metadata.as_ref().and_then(|metadata| metadata.fields.get(IMPERSONATED_IDENTITY));
        let Some(Kind::StringValue(named)) = named.and_then(|value| value.kind.as_ref()) else {
            return match &caller.role {
                Role::Waypoint(own) => Ok(own.clone()),
                Role::Node => Err(format!(
                    "the request names no {IMPERSONATED_IDENTITY}, and a node has no identity of its own"
                )),
            };
        };
        let identity: Identity = named.parse().map_err(|error| format!("it asks for {named:?}: {error}"))?;
        match &caller.role {
            Role::Waypoint(own) if *own == identity => Ok(identity),
            Role::Waypoint(own) => Err(format!("it asks for {identity}, and is the waypoint {own}")),
            Role::Node if self.published.now().hosts(&caller.node, &identity) => Ok(identity),
            Role::Node => Err(format!("it asks for {identity}, of which no live pod is on its node")),
        }
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let caller = self.gate.admit(&request).await?;
        let peer = request.extensions().get::<ControlPeer>().map(|peer| peer.address);
        let request = request.into_inner();
        let identity = self.granted(&caller, &request).map_err(|why| {
            self.gate.refused(peer, Some(&caller), &why);
            Status::permission_denied("not permitted")
        })?;
        // Nothing or nonsense means the default; too much is the signer's to refuse.
        let ttl =
            u64::try_from(request.validity_duration).ok().filter(|ttl| *ttl > 0).map(Duration::from_secs);
        let signed = self.signer.sign(request.csr, Subject::Workload(identity.clone()), ttl).await;
        match signed {
            Ok(signed) => {
                self.issued.fetch_add(1, Ordering::Relaxed);
                tracing::info!(node = %caller.node, %identity, "certificate issued");
                Ok(Response::new(IstioCertificateResponse { cert_chain: signed.to_reply() }))
            }
            Err(error) if error.is_callers_fault() => Err(Status::invalid_argument(error.to_string())),
            Err(error) => {
                tracing::error!(node = %caller.node, %identity, %error, "a certificate could not be issued");
                Err(Status::unavailable("the certificate authority can't sign now; try again later"))
            }
        }
    }
}
