//! A CA that somebody else runs and has plugged in: read from the files that Istio's users have, and proven to work before it is
//! used.
//!
//! What is wrong with it is said in full; nothing is guessed, and nothing is used instead.

use std::time::{Duration, SystemTime};

use model::identity::Identity;
use rcgen::{KeyPair, PublicKeyData as _};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::issue;
use super::root::{Above, Root};
use crate::certificate::MAX_CHAIN;
use crate::clock::unix_time;
use crate::peer::parse;
use crate::signer::Subject;
use crate::tls::{MeshVerifier, TrustDomains, explain};

/// Roots in one bundle: those of a rotation, or of a few meshes that trust each other. Each is carried by every certificate.
const MAX_ANCHORS: usize = 8;

/// What a plugged CA has to certify to be believed: for a moment, and for nobody.
const PROBE: (&str, &str, Duration) = ("airglow", "probe", Duration::from_secs(60));

/// The files of a plugged CA, in PEM.
#[derive(Clone, Copy)]
pub struct PluggedPem<'a> {
    /// `ca-cert.pem`: the certificate that signs.
    pub ca_cert: &'a str,
    /// `ca-key.pem`: its key.
    pub ca_key: &'a str,
    /// `root-cert.pem`: the roots that everyone is to trust.
    pub root_cert: &'a str,
    /// `cert-chain.pem`: what leads from the certificate that signs to a root. Both ends may be in it or not.
    pub cert_chain: &'a str,
}

/// A plugged CA that works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluggedCa(pub(super) Root);

/// Why a plugged CA can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPluggedCa {
    /// No certificate, or bytes that are none.
    #[error("{0} holds no PEM certificate, or one that can't be read")]
    Certificate(&'static str),
    /// A leaf where a CA belongs.
    #[error("a certificate in {0} is not a CA's (basic constraints)")]
    NotACa(&'static str),
    /// The key is none.
    #[error("ca-key.pem holds no private key that can be used; RSA, P-256 and P-384 can, unencrypted")]
    Key,
    /// The key of something else.
    #[error("the key in ca-key.pem does not belong to the certificate in ca-cert.pem")]
    Mismatch,
    /// More certificates than anyone needs.
    #[error("{0} holds {1} certificates, and {2} are the most there can be")]
    TooMany(&'static str, usize, usize),
    /// What it signs would be refused by everyone.
    #[error(
        "what it signs does not verify with root-cert.pem: {0}; cert-chain.pem has to lead from ca-cert.pem to a root"
    )]
    Unverifiable(String),
    /// It could not sign.
    #[error("it can't sign: {0}")]
    CantSign(String),
}

impl PluggedCa {
    /// Reads the files, and has a certificate for a workload of `trust_domain` signed and verified, as peers will.
    ///
    /// # Errors
    /// When it would not work `now`; the text says which file is at fault.
    pub fn read(pem: PluggedPem<'_>, trust_domain: &str, now: SystemTime) -> Result<Self, BadPluggedCa> {
        let [certificate] = &certificates(pem.ca_cert, "ca-cert.pem", MAX_CHAIN)?[..1] else {
            return Err(BadPluggedCa::Certificate("ca-cert.pem"));
        };
        let anchors = certificates(pem.root_cert, "root-cert.pem", MAX_ANCHORS)?;
        // Absent where a root signs by itself.
        let listed = match pem.cert_chain.trim() {
            "" => Vec::new(),
            text => certificates(text, "cert-chain.pem", MAX_CHAIN)?,
        };
        let key = KeyPair::from_pem(pem.ca_key).map_err(|_| BadPluggedCa::Key)?;
        let parsed = parse(certificate).map_err(|_| BadPluggedCa::Certificate("ca-cert.pem"))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(BadPluggedCa::Mismatch);
        }
        let is_new = |der: &CertificateDer<'_>| der != certificate && !anchors.contains(der);
        // Roots are never sent: whoever needs to be told does not trust them.
        let signing = (!anchors.contains(certificate)).then(|| certificate.clone());
        let chain: Vec<_> = signing.into_iter().chain(listed.into_iter().filter(is_new)).collect();
        // With the leaf.
        if chain.len() + 1 > MAX_CHAIN {
            return Err(BadPluggedCa::TooMany("cert-chain.pem", chain.len(), MAX_CHAIN - 1));
        }
        let root = Root {
            certificate: certificate.clone(),
            key_pem: pem.ca_key.to_owned().into(),
            above: Some(Above { chain, anchors: anchors.clone() }),
        };
        prove(&root, trust_domain, now)?;
        Ok(Self(root))
    }
}

/// Whatever is wrong that was not looked for is found here: dates, order, lengths of paths, names that are constrained.
fn prove(root: &Root, trust_domain: &str, now: SystemTime) -> Result<(), BadPluggedCa> {
    let cant = |error: &dyn std::fmt::Display| BadPluggedCa::CantSign(error.to_string());
    let (namespace, account, ttl) = PROBE;
    let identity = Identity::new(trust_domain, namespace, account).map_err(|error| cant(&error))?;
    let key = KeyPair::generate().map_err(|error| cant(&error))?;
    let key = rcgen::SubjectPublicKeyInfo::from_der(&key.subject_public_key_info())
        .map_err(|error| cant(&error))?;
    let trusted = TrustDomains::new(identity.trust_domain.clone(), [].into());
    let leaf =
        issue::leaf(root, &key, &Subject::Workload(identity), now, ttl).map_err(|error| cant(&error))?;
    let mut store = RootCertStore::empty();
    for anchor in root.anchors() {
        store.add(anchor).map_err(|_| BadPluggedCa::Certificate("root-cert.pem"))?;
    }
    let unverifiable = |error: rustls::Error| BadPluggedCa::Unverifiable(explain(&error));
    let verifier = MeshVerifier::new(store, trusted).map_err(unverifiable)?;
    let now = unix_time(now).ok_or_else(|| unverifiable(rustls::Error::FailedToGetCurrentTime))?;
    verifier.verify(&leaf, root.chain(), now).map_err(unverifiable)
}

/// At least one, each a CA's.
fn certificates(
    pem: &str,
    file: &'static str,
    most: usize,
) -> Result<Vec<CertificateDer<'static>>, BadPluggedCa> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let read = read.map_err(|_| BadPluggedCa::Certificate(file))?;
    if read.is_empty() {
        return Err(BadPluggedCa::Certificate(file));
    }
    if read.len() > most {
        return Err(BadPluggedCa::TooMany(file, read.len(), most));
    }
    for der in &read {
        if !parse(der).map_err(|_| BadPluggedCa::Certificate(file))?.is_ca() {
            return Err(BadPluggedCa::NotACa(file));
        }
    }
    Ok(read)
}
