//! What a peer of a tunnel can prove of itself: a certificate of the mesh, or one that only looks like it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use identity::authority::{Authority, AuthorityConfig};
use identity::control::{Roots, Target, channel};
use identity::signer::Subject;
use identity::{Ca, CaClient, Clock, KeyRequest, SystemClock, TokenFile};
use lab::{Lab, Pod};
use model::identity::Identity;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme, version};

/// The default of the controller and of the certificates' own validity.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// TLS of a peer that trusts everybody and shows this proof, if any.
pub(crate) fn tls(proof: Option<Proof>) -> Arc<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting(provider)));
    let mut config = match proof {
        Some(Proof { chain, key }) => {
            builder.with_client_auth_cert(chain, key).expect("a key of its certificate")
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// A certificate and its key.
pub(crate) struct Proof {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Proof {
    /// The real one of a pod: what whoever has taken over its node gets from the CA.
    pub(crate) fn of(lab: &Lab, pod: &Pod) -> Self {
        Self::lasting(lab, pod, DAY)
    }

    /// The same for so long.
    pub(crate) fn lasting(lab: &Lab, pod: &Pod, validity: Duration) -> Self {
        let node = pod.node();
        let environment = node.ztunnel_env();
        let target = Target {
            address: environment["AIRGLOW_CONTROLLER"].parse().expect("an address"),
            roots: Roots::File(environment["AIRGLOW_ROOT_CERT"].clone().into()),
            server_name: None,
        };
        let token = TokenFile(environment["AIRGLOW_TOKEN"].clone().into());
        let identity = identity_of(pod);
        let request = KeyRequest::for_workload(&identity).expect("a key");
        let signed = lab.node(0).netns().run(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let channel = channel(target, Arc::new(SystemClock)).expect("a target");
                let ca = CaClient::new(channel, Arc::new(token), "Kubernetes").expect("a cluster");
                ca.sign(&identity, request.csr_pem, validity).await
            })
        });
        Self { chain: signed.expect("entered").expect("a certificate").chain, key: request.key }
    }

    /// Signed with the mesh's own key, which no one but the controller has, at another time or for another trust domain.
    pub(crate) fn forged(lab: &Lab, identity: &str, at: SystemTime) -> Self {
        let folder = lab.dir().join(format!("forger-{}", fastrand()));
        copy_authority(&lab.dir().join("controller"), &folder);
        Self::signed_by(&folder, identity, at)
    }

    /// Signed by an authority that nobody has heard of.
    pub(crate) fn of_another_authority(lab: &Lab, identity: &str) -> Self {
        let folder = lab.dir().join(format!("stranger-{}", fastrand()));
        Self::signed_by(&folder, identity, SystemTime::now())
    }

    /// Signed by nobody but itself.
    pub(crate) fn self_signed(identity: &str) -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(identity.try_into().expect("a URI"))];
        let certificate = params.self_signed(&key).expect("a certificate");
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Self { chain: vec![certificate.into()], key }
    }

    fn signed_by(folder: &Path, identity: &str, at: SystemTime) -> Self {
        let clock = Arc::new(At(at));
        let authority = Authority::open_or_create(folder, AuthorityConfig::new("cluster.local"), clock);
        let identity: Identity = identity.parse().expect("an identity");
        let request = KeyRequest::for_workload(&identity).expect("a key");
        let subject = Subject::Workload(identity);
        let signed = authority.expect("an authority").sign_for(&request.csr_pem, &subject, Some(DAY));
        Self { chain: signed.expect("a certificate").chain, key: request.key }
    }
}

/// Who a pod is, in the lab's trust domain.
pub(crate) fn identity_of(pod: &Pod) -> Identity {
    let text = format!("spiffe://cluster.local/ns/{}/sa/{}", pod.namespace(), pod.service_account());
    text.parse().expect("an identity")
}

fn fastrand() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

fn copy_authority(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a directory");
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).expect("a mode");
    for name in ["authority.json", "roots.pem"] {
        fs::copy(from.join(name), to.join(name)).expect("a copy");
    }
}

/// A clock that stands still.
#[derive(Debug)]
struct At(SystemTime);

impl Clock for At {
    fn now(&self) -> SystemTime {
        self.0
    }
}

/// A peer that does not care who answers.
#[derive(Debug)]
struct Trusting(Arc<CryptoProvider>);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
