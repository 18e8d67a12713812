//! Reads the SPIFFE identity out of a peer's certificate (SPIFFE X509-SVID, sections 2 to 5).
//!
//! Checks the leaf's shape only. The chain, the dates and the trust domain are the verifiers' business (`tls`), which
//! call this too: a handshake that succeeded has an identity.

use std::time::{Duration, SystemTime};

use model::identity::{Identity, InvalidIdentity};
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// Why a certificate names nobody. The peer (or its CA) is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPeer {
    /// The chain is empty.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// Not DER, or an extension that cannot be read or is there twice.
    #[error("the peer's certificate cannot be parsed ({0}); have its CA issue a well-formed one")]
    Malformed(&'static str),
    /// A signing certificate where a leaf belongs (X509-SVID section 5.2).
    #[error("the peer presented a certificate authority's certificate instead of a workload's")]
    NotALeaf,
    /// No URI among the subject alternative names.
    #[error("the peer's certificate carries no URI name, so no SPIFFE identity")]
    NoUri,
    /// More than one URI (X509-SVID section 2 allows exactly one).
    #[error("the peer's certificate carries {0} URI names, and exactly one is allowed")]
    SeveralUris(usize),
    /// The URI is not `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`.
    #[error("the peer's URI name is not a SPIFFE identity of the mesh: {0}")]
    NotSpiffe(InvalidIdentity),
}

/// The identity in the leaf (the first certificate) of a chain that a TLS handshake verified.
///
/// Call it after the handshake, on both sides, and compare: the client's verifier accepts every identity of the mesh,
/// and only the caller knows whom it meant to reach.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<Identity, BadPeer> {
    let leaf = parse(chain.first().ok_or(BadPeer::NoCertificate)?)?;
    check_leaf(&leaf)?;
    let names = leaf
        .subject_alternative_name()
        .map_err(|_| BadPeer::Malformed("subject alternative names"))?
        .ok_or(BadPeer::NoUri)?;
    let mut uris = Vec::new();
    for name in &names.value.general_names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::Invalid(..) => return Err(BadPeer::Malformed("a subject alternative name")),
            // Names of other kinds are allowed beside the URI and mean nothing to the mesh.
            GeneralName::OtherName(..)
            | GeneralName::RFC822Name(_)
            | GeneralName::DNSName(_)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::IPAddress(_)
            | GeneralName::RegisteredID(_) => {}
        }
    }
    match uris.as_slice() {
        [] => Err(BadPeer::NoUri),
        [uri] => uri.parse().map_err(BadPeer::NotSpiffe),
        several => Err(BadPeer::SeveralUris(several.len())),
    }
}

/// When a chain that a TLS handshake verified ceases to prove anything: the first of its certificates expires.
pub fn peer_expiry(chain: &[CertificateDer<'_>]) -> Result<SystemTime, BadPeer> {
    let mut first = None;
    for certificate in chain {
        let expires = parse(certificate)?.validity().not_after.timestamp();
        // Before 1970 is in the past, whenever it is.
        let expires =
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(expires).unwrap_or_default());
        first = Some(first.map_or(expires, |first: SystemTime| first.min(expires)));
    }
    first.ok_or(BadPeer::NoCertificate)
}

/// Parses one certificate, refusing bytes after its end.
pub(crate) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, BadPeer> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(BadPeer::Malformed("bytes after the end")),
        Err(_) => Err(BadPeer::Malformed("not a DER certificate")),
    }
}

/// A workload's certificate may not sign others, whoever signed it.
fn check_leaf(leaf: &X509Certificate<'_>) -> Result<(), BadPeer> {
    let constraints = leaf.basic_constraints().map_err(|_| BadPeer::Malformed("basic constraints"))?;
    let usage = leaf.key_usage().map_err(|_| BadPeer::Malformed("key usage"))?;
    let is_ca = constraints.is_some_and(|it| it.value.ca);
    let signs = usage.is_some_and(|it| it.value.key_cert_sign() || it.value.crl_sign());
    if is_ca || signs { Err(BadPeer::NotALeaf) } else { Ok(()) }
}
