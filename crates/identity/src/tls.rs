//! The mesh's TLS: algorithms, the verifier of both directions, and the two configurations made of them.
//!
//! Nothing here is configurable per connection. Sessions are never resumed: docs/design/0002-session-resumption.md.

use std::fmt;
use std::sync::{Arc, LazyLock};

use model::Str;
use model::identity::Identity;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerIncompatible, RootCertStore, ServerConfig, SignatureScheme, version,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::clock::{Clock, TlsTime};
use crate::peer::peer_identity;

/// The only protocol spoken inside a TLS session of ours (HTTP/2, RFC 9113 section 3.2).
pub(crate) const ALPN: &[u8] = b"h2";

/// The algorithms of every TLS session of the project, mesh and control plane, in order of preference.
///
/// Key exchange is hybrid first, so that traffic recorded today stays closed to a quantum computer; a client also sends
/// a plain X25519 share, so older peers need no second round trip. AES-128-GCM comes first because it costs a quarter
/// less per byte than AES-256 and nothing known breaks it. ChaCha20 is absent: it is never preferred where AES
/// instructions exist, and a suite that is never used is only attack surface.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ],
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
            aws_lc_rs::kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    })
});

/// The project's cryptography.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}

/// The trust domains whose workloads are let in: our own, and its aliases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustDomains {
    own: Str,
    aliases: Arc<[Str]>,
}

impl TrustDomains {
    /// The set of `own` and `aliases`. Names are compared exactly; an identity's is lower case by construction.
    pub fn new(own: Str, aliases: Arc<[Str]>) -> Self {
        Self { own, aliases }
    }

    /// Whether workloads of `trust_domain` belong to the mesh.
    pub fn accept(&self, trust_domain: &str) -> bool {
        *self.own == *trust_domain || self.aliases.iter().any(|alias| **alias == *trust_domain)
    }
}

/// A peer whose certificate is sound but whose trust domain is not ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{peer} belongs to another trust domain than {own}; add an alias if it should be let in")]
pub struct ForeignTrustDomain {
    /// Who the peer is.
    pub peer: Identity,
    /// Our own trust domain.
    pub own: Str,
}

/// Checks a peer, whichever side it is on: its chain leads to our roots, it is valid now, and its leaf names exactly one
/// workload of an accepted trust domain. Which workload, only the caller can judge, after the handshake.
pub(crate) struct MeshVerifier {
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    trust_domains: TrustDomains,
}

impl MeshVerifier {
    /// Fails if `roots` is empty.
    pub(crate) fn new(roots: RootCertStore, trust_domains: TrustDomains) -> Result<Self, Error> {
        let roots = Arc::new(roots);
        // Root names are not sent to clients: they have one certificate, and the names would only tell strangers.
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
            .clear_root_hint_subjects()
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Self { roots, clients, trust_domains })
    }

    /// What a client checks of a server, without a handshake: also used on our own new certificate.
    pub(crate) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let algorithms = &provider().signature_verification_algorithms;
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms.all)?;
        self.check_identity(leaf)
    }

    fn check_identity(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        let peer = peer_identity(std::slice::from_ref(leaf)).map_err(|bad| refused(Arc::new(bad)))?;
        if self.trust_domains.accept(&peer.trust_domain) {
            return Ok(());
        }
        Err(refused(Arc::new(ForeignTrustDomain { peer, own: self.trust_domains.own.clone() })))
    }
}

/// What went wrong in a handshake, in words fit for a log: rustls prints the verifier's own reasons as Rust structures.
pub fn explain(error: &Error) -> String {
    if let Error::InvalidCertificate(CertificateError::Other(OtherError(reason))) = error {
        return reason.to_string();
    }
    error.to_string()
}

/// The reason travels to our own log; the peer sees only the alert `certificate_unknown`.
fn refused(reason: Arc<dyn std::error::Error + Send + Sync>) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(reason)))
}

impl fmt::Debug for MeshVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshVerifier")
            .field("roots", &self.roots.len())
            .field("trust_domains", &self.trust_domains)
            .finish_non_exhaustive()
    }
}

impl ServerCertVerifier for MeshVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for MeshVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.clients.verify_client_cert(end_entity, intermediates, now)?;
        self.check_identity(end_entity).map(|()| verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}

/// What a certificate and its key need to become TLS configurations.
pub(crate) struct Credentials {
    /// Leaf first, then intermediates; no root.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key.
    pub(crate) key: PrivateKeyDer<'static>,
}

/// The mesh's server side: client certificates are mandatory. The record layer of tunnels may take the session's keys, here
/// as on the client's side; those of the control plane stay with rustls.
pub(crate) fn mesh_server(
    credentials: &Credentials,
    verifier: Arc<MeshVerifier>,
    clock: Arc<dyn Clock>,
) -> Result<ServerConfig, Error> {
    let config = ServerConfig::builder_with_details(provider(), Arc::new(TlsTime(clock)))
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(credentials.chain.clone(), credentials.key.clone_key())?;
    let mut config = sealed_server(config);
    config.enable_secret_extraction = true;
    Ok(config)
}

/// The mesh's client side: sends no server name, accepts every identity of the mesh (the caller compares).
pub(crate) fn mesh_client(
    credentials: &Credentials,
    verifier: Arc<MeshVerifier>,
    clock: Arc<dyn Clock>,
) -> Result<ClientConfig, Error> {
    let config = ClientConfig::builder_with_details(provider(), Arc::new(TlsTime(clock)))
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(credentials.chain.clone(), credentials.key.clone_key())?;
    let mut config = sealed_client(config);
    config.enable_sni = false;
    config.enable_secret_extraction = true;
    Ok(config)
}

/// What every server of ours has in common: `h2` only, no tickets, no early data, our own order of ciphers.
pub(crate) fn sealed_server(mut config: ServerConfig) -> ServerConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.ignore_client_order = true;
    config
}

/// What every client of ours has in common: `h2` only, no resumption, no early data.
pub(crate) fn sealed_client(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config
}
