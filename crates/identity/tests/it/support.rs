//! A clock to turn by hand, a CA that issues what it should not, and TLS between two ends in memory.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use identity::{Certificate, Clock, KeyRequest, Signed, TrustDomains};
use model::identity::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ClientConnection, Error, ServerConfig, ServerConnection};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use time::OffsetDateTime;

pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

/// When tests begin.
pub(crate) fn epoch() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600)
}

pub(crate) fn id(text: &str) -> Identity {
    text.parse().expect("tests name valid identities")
}

/// `spiffe://cluster.local/ns/shop/sa/<account>`.
pub(crate) fn shop(account: &str) -> Identity {
    id(&format!("spiffe://cluster.local/ns/shop/sa/{account}"))
}

/// A clock that moves when told to.
#[derive(Debug)]
pub(crate) struct ManualClock(Mutex<SystemTime>);

impl ManualClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(epoch())))
    }

    pub(crate) fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

impl TimeProvider for ManualClock {
    fn current_time(&self) -> Option<UnixTime> {
        self.now().duration_since(SystemTime::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

/// What a leaf should say.
#[derive(Clone)]
pub(crate) struct Leaf {
    pub(crate) names: Vec<SanType>,
    pub(crate) start: SystemTime,
    pub(crate) end: SystemTime,
    pub(crate) is_ca: bool,
    pub(crate) usages: Vec<KeyUsagePurpose>,
    /// Contents of further subject alternative name extensions, byte for byte.
    pub(crate) raw_names: Vec<Vec<u8>>,
}

impl Leaf {
    /// An ordinary one for a URI.
    pub(crate) fn uri(uri: &str) -> Self {
        Self::names(&[uri])
    }

    pub(crate) fn names(uris: &[&str]) -> Self {
        let uri = |uri: &&str| SanType::URI((*uri).try_into().expect("tests name ASCII URIs"));
        Self {
            names: uris.iter().map(uri).collect(),
            start: epoch() - 2 * MINUTE,
            end: epoch() + DAY,
            is_ca: false,
            usages: vec![KeyUsagePurpose::DigitalSignature],
            raw_names: Vec::new(),
        }
    }
}

/// A CA without principles.
pub(crate) struct TestCa {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) root: CertificateDer<'static>,
}

impl TestCa {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).unwrap().into();
        Self { issuer: Issuer::new(params, key), root }
    }

    pub(crate) fn leaf(&self, leaf: &Leaf, key: &impl PublicKeyData) -> CertificateDer<'static> {
        params(leaf).signed_by(key, &self.issuer).unwrap().into()
    }

    /// A chain and key for whatever `leaf` says.
    pub(crate) fn issue(&self, leaf: &Leaf) -> Presented {
        let key = KeyPair::generate().unwrap();
        Presented { chain: vec![self.leaf(leaf, &key)], key: private(&key) }
    }

    /// A proper certificate of ours.
    pub(crate) fn certificate(&self, identity: &Identity, clock: &Arc<ManualClock>) -> Certificate {
        self.certificate_with(identity, &[], clock)
    }

    /// [`TestCa::certificate`] that lets workloads of other trust domains in.
    pub(crate) fn certificate_with(
        &self,
        identity: &Identity,
        aliases: &[&str],
        clock: &Arc<ManualClock>,
    ) -> Certificate {
        let request = KeyRequest::for_workload(identity).unwrap();
        let key = rcgen::SubjectPublicKeyInfo::from_der(&request.public_key).unwrap();
        let now = clock.now();
        let leaf = Leaf { start: now - 2 * MINUTE, end: now + DAY, ..Leaf::uri(&identity.to_string()) };
        let signed = Signed { chain: vec![self.leaf(&leaf, &key)], roots: vec![self.root.clone()] };
        let aliases = aliases.iter().map(|alias| (*alias).into()).collect();
        let trust = TrustDomains::new(identity.trust_domain.clone(), aliases);
        Certificate::new(identity.clone(), request, signed, trust, clock.clone()).unwrap()
    }
}

/// What a hostile peer puts into its handshake.
pub(crate) struct Presented {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// A leaf that signed itself.
pub(crate) fn self_signed(leaf: &Leaf) -> Presented {
    let key = KeyPair::generate().unwrap();
    Presented { chain: vec![params(leaf).self_signed(&key).unwrap().into()], key: private(&key) }
}

fn params(leaf: &Leaf) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names.clone_from(&leaf.names);
    params.not_before = OffsetDateTime::from(leaf.start);
    params.not_after = OffsetDateTime::from(leaf.end);
    params.is_ca = if leaf.is_ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
    params.key_usages.clone_from(&leaf.usages);
    let raw = leaf.raw_names.iter().cloned();
    params.custom_extensions = raw.map(|it| CustomExtension::from_oid_content(&[2, 5, 29, 17], it)).collect();
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

/// Both ends after a handshake, with what each of them thinks of it.
pub(crate) struct Session {
    pub(crate) client: ClientConnection,
    pub(crate) server: ServerConnection,
    pub(crate) client_says: Result<(), Error>,
    pub(crate) server_says: Result<(), Error>,
}

impl Session {
    /// The identities as each side reads them: the client's view of the server, the server's view of the client.
    pub(crate) fn peers(&self) -> (Identity, Identity) {
        let of = |chain: Option<&[CertificateDer<'static>]>| identity::peer_identity(chain.unwrap()).unwrap();
        (of(self.client.peer_certificates()), of(self.server.peer_certificates()))
    }

    pub(crate) fn unwrap(self) -> Self {
        self.client_says.clone().expect("the client is content");
        self.server_says.clone().expect("the server is content");
        assert!(
            !self.client.is_handshaking() && !self.server.is_handshaking(),
            "the handshake came to its end"
        );
        self
    }
}

/// A TLS handshake without a network, and everything that both sides want to say right after it.
pub(crate) fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Session {
    let name = ServerName::try_from("10.0.0.1").unwrap();
    let mut session = Session {
        client: ClientConnection::new(client, name).unwrap(),
        server: ServerConnection::new(server).unwrap(),
        client_says: Ok(()),
        server_says: Ok(()),
    };
    loop {
        let mut to_server = Vec::new();
        while session.client.wants_write() {
            session.client.write_tls(&mut to_server).unwrap();
        }
        for mut bytes in to_server.chunks(CHUNK) {
            if session.server_says.is_ok() {
                session.server.read_tls(&mut bytes).unwrap();
                session.server_says = session.server.process_new_packets().map(|_| ());
            }
        }
        let mut to_client = Vec::new();
        while session.server.wants_write() {
            session.server.write_tls(&mut to_client).unwrap();
        }
        for mut bytes in to_client.chunks(CHUNK) {
            if session.client_says.is_ok() {
                session.client.read_tls(&mut bytes).unwrap();
                session.client_says = session.client.process_new_packets().map(|_| ());
            }
        }
        if to_server.is_empty() && to_client.is_empty() {
            return session;
        }
    }
}

/// Bytes given to rustls at a time: less than its buffer, so that each read takes all of it.
const CHUNK: usize = 1024;
