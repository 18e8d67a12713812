//! What nodes can ask for, over TLS with a token inside: discovery, certificates, and a place to report.
//!
//! Owns no state of the mesh: it reads what is published and hands reports to the hub.

mod ca;
mod connections;
mod discovery;
mod gate;
mod guarding;
mod needs;
mod node;
pub mod published;
mod rate;
mod retiring;
mod token_review;
mod tokens;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use api::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use api::node::node_service_server::NodeServiceServer;
use identity::control::{ControlStream, ServerTls, incoming};
use identity::signer::Signer;
use tokio::net::TcpListener;
use tonic::transport::server::Connected as _;

use crate::hub::Handle;
use published::Published;

pub use discovery::Discovery;
pub use gate::Gate;
pub use token_review::{Accepted, NotReviewed, TokenReviews};
pub use tokens::{Authenticator, Caller, JoinTokens, NotProven, Role};

/// Streams of one connection. A node has one session, and certificate requests in a burst when it starts.
const MAX_STREAMS: u32 = 256;

/// Bytes of a request's headers: a token of 1 KiB and a few more.
const MAX_HEADER_BYTES: u32 = 16 << 10;

/// A silent connection is asked for a sign of life, so that a node that vanished is noticed.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// How long the sign may take.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// A signing request is about 1 KiB.
const MAX_CERTIFICATE_REQUEST_BYTES: usize = 64 << 10;

/// A report of as many pods as one may hold, each with a message.
const MAX_REPORT_BYTES: usize = 4 << 20;

/// What serving needs.
pub struct Parts {
    /// Who is let in.
    pub gate: Gate,
    /// What is handed out.
    pub published: Published,
    /// Who signs.
    pub signer: Arc<dyn Signer>,
    /// Who takes reports.
    pub hub: Handle,
    /// Counts the certificates that were issued.
    pub issued: Arc<AtomicU64>,
    /// The discovery service, which the admin socket asks for its sessions.
    pub discovery: Discovery,
}

/// Serves on `listener` until `stop` resolves, then until calls under way have ended.
///
/// # Errors
/// When tonic gives up, which it does only for reasons of its own.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerTls>,
    parts: Parts,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let Parts { gate, published, signer, hub, issued, discovery } = parts;
    let certificates = ca::CertificateService::new(gate.clone(), published, signer, issued);
    let certificates = IstioCertificateServiceServer::new(certificates)
        .max_decoding_message_size(MAX_CERTIFICATE_REQUEST_BYTES);
    let reports =
        NodeServiceServer::new(node::NodeReports::new(gate, hub)).max_decoding_message_size(MAX_REPORT_BYTES);
    let connections =
        connections::limited(incoming(listener, tls), |io: &ControlStream| io.connect_info().address);
    tonic::transport::Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .add_service(discovery.service())
        .add_service(certificates)
        .add_service(reports)
        .serve_with_incoming_shutdown(connections, stop)
        .await
}
