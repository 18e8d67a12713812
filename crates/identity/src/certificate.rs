//! A CA's answer, and the certificate made of it once it was found to be what was asked for.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use model::identity::Identity;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::clock::{Clock, unix_time};
use crate::csr::KeyRequest;
use crate::peer::{BadPeer, parse, peer_identity};
use crate::tls::{Credentials, MeshVerifier, TrustDomains, explain, mesh_client, mesh_server};

/// Certificates in one chain, leaf included. Real chains have two or three; every handshake sends all of them.
pub(crate) const MAX_CHAIN: usize = 8;

/// Roots in one bundle. A rotation needs two or three and a federation a few more; each costs memory per certificate.
const MAX_ROOTS: usize = 64;

/// What a CA hands back: DER certificates, nothing checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// Leaf first, then intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// The roots to trust from now on.
    pub roots: Vec<CertificateDer<'static>>,
}

/// A reply that is not a chain with roots.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadReply {
    /// Fewer than two entries: the last one is the root bundle (`istio.v1.auth`).
    #[error("the CA's reply has {0} entries, and at least a certificate and the roots are needed")]
    Short(usize),
    /// An entry without any certificate, or with bytes that are none.
    #[error("entry {0} of the CA's reply is not a PEM certificate")]
    NotPem(usize),
    /// More certificates than anyone needs.
    #[error("the CA's reply has {0} certificates, which is more than the limit of {1}")]
    Long(usize, usize),
}

impl Signed {
    /// Reads `cert_chain` of `IstioCertificateResponse`: leaf, intermediates, and the whole root bundle as last entry.
    pub fn from_reply(cert_chain: &[String]) -> Result<Self, BadReply> {
        let (roots, chain) = cert_chain.split_last().ok_or(BadReply::Short(0))?;
        if chain.is_empty() {
            return Err(BadReply::Short(1));
        }
        let mut signed = Self { chain: Vec::new(), roots: certificates(roots, chain.len())? };
        for (index, entry) in chain.iter().enumerate() {
            signed.chain.extend(certificates(entry, index)?);
        }
        for (length, limit) in [(signed.chain.len(), MAX_CHAIN), (signed.roots.len(), MAX_ROOTS)] {
            if length > limit {
                return Err(BadReply::Long(length, limit));
            }
        }
        Ok(signed)
    }

    /// Writes `cert_chain` of `IstioCertificateResponse`: one PEM certificate per entry, the root bundle last.
    pub fn to_reply(&self) -> Vec<String> {
        let chain = self.chain.iter().map(|der| to_pem(std::slice::from_ref(der)));
        chain.chain(std::iter::once(to_pem(&self.roots))).collect()
    }
}

fn certificates(pem: &str, entry: usize) -> Result<Vec<CertificateDer<'static>>, BadReply> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match parsed {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(_) => Err(BadReply::NotPem(entry)),
    }
}

/// Certificates as one PEM text, each with a trailing newline.
pub(crate) fn to_pem(certificates: &[CertificateDer<'_>]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    certificates
        .iter()
        .map(|der| pem::encode_config(&pem::Pem::new("CERTIFICATE", der.to_vec()), config))
        .collect()
}

/// A certificate that is not what was asked for. The CA is at fault, or something between us and it.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The leaf names nobody.
    #[error("the CA issued a certificate without an identity: {0}")]
    NoIdentity(#[from] BadPeer),
    /// The leaf names somebody else.
    #[error("the CA issued a certificate for {got} instead of {asked}")]
    OtherIdentity {
        /// Who was asked for.
        asked: Identity,
        /// Who the leaf names.
        got: Identity,
    },
    /// The leaf certifies a key that is not ours.
    #[error("the CA certified another key than the one in the request")]
    OtherKey,
    /// None of the roots can be used.
    #[error("the CA sent no usable root certificate, so no peer could be verified")]
    NoRoot,
    /// The chain does not lead to the roots now: wrong issuer, expired, or not valid yet (compare the clocks).
    #[error("the issued certificate cannot be verified with the CA's own roots: {}", explain(.0))]
    Unverifiable(rustls::Error),
}

/// An identity of ours, proven, with the TLS configurations made of it. Cheap to share, never changed.
pub struct Certificate {
    /// Who the leaf says we are.
    pub identity: Identity,
    /// Leaf first, then intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// What peers are verified against.
    pub roots: Vec<CertificateDer<'static>>,
    /// The leaf is not valid before.
    pub not_before: SystemTime,
    /// The leaf is not valid after.
    pub not_after: SystemTime,
    /// The leaf's serial number, lower-case hexadecimal.
    pub serial: String,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Certificate {
    /// Makes a certificate of a CA's answer to `request`, after checking that it is the answer: same identity, same
    /// key, and a chain that verifies now with the roots that came along.
    pub fn new(
        identity: Identity,
        request: KeyRequest,
        signed: Signed,
        trust_domains: TrustDomains,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Unusable> {
        let got = peer_identity(&signed.chain)?;
        if got != identity {
            return Err(Unusable::OtherIdentity { asked: identity, got });
        }
        let (leaf, intermediates) = signed.chain.split_first().ok_or(BadPeer::NoCertificate)?;
        let parsed = parse(leaf)?;
        if parsed.public_key().raw != request.public_key.as_slice() {
            return Err(Unusable::OtherKey);
        }
        let validity = parsed.validity();
        let not_before = from_timestamp(validity.not_before.timestamp());
        let not_after = from_timestamp(validity.not_after.timestamp());
        let serial = parsed.tbs_certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();

        let verifier = MeshVerifier::new(root_store(&signed.roots)?, trust_domains)
            .map(Arc::new)
            .map_err(Unusable::Unverifiable)?;
        let now =
            unix_time(clock.now()).ok_or(Unusable::Unverifiable(rustls::Error::FailedToGetCurrentTime))?;
        verifier.verify(leaf, intermediates, now).map_err(Unusable::Unverifiable)?;

        let credentials = Credentials { chain: signed.chain.clone(), key: request.key };
        let server = mesh_server(&credentials, verifier.clone(), clock.clone());
        let client = mesh_client(&credentials, verifier, clock);
        Ok(Self {
            identity,
            chain: signed.chain,
            roots: signed.roots,
            not_before,
            not_after,
            serial,
            server: Arc::new(server.map_err(Unusable::Unverifiable)?),
            client: Arc::new(client.map_err(Unusable::Unverifiable)?),
        })
    }

    /// The server side's TLS: client certificates mandatory. Built once; this is a reference count.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// The client side's TLS. It accepts every identity of the mesh: compare [`peer_identity`] with whom you meant.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }

    /// Whether the leaf has not expired yet.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        now < self.not_after
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("identity", &self.identity)
            .field("serial", &self.serial)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .field("chain", &self.chain.len())
            .field("roots", &self.roots.len())
            .finish_non_exhaustive()
    }
}

/// A root that cannot be used is left out: that trusts fewer, and one odd root must not take the others down.
fn root_store(roots: &[CertificateDer<'static>]) -> Result<RootCertStore, Unusable> {
    let mut store = RootCertStore::empty();
    for root in roots {
        if let Err(error) = store.add(root.clone()) {
            tracing::warn!(%error, "a root certificate from the CA cannot be used and is not trusted");
        }
    }
    if store.is_empty() { Err(Unusable::NoRoot) } else { Ok(store) }
}

/// Seconds since 1970, as certificates count.
pub(crate) fn from_timestamp(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    if seconds < 0 { epoch.checked_sub(distance) } else { epoch.checked_add(distance) }.unwrap_or(epoch)
}
