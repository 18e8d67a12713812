//! Makes certificates: a root for an authority, a leaf for a key that somebody proved to have.
//!
//! What a leaf says is decided here and by the caller; of a request, only the public key and the proof are read.

use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA};
use x509_parser::prelude::FromDer;

use super::root::Root;
use crate::certificate::from_timestamp;
use crate::peer::parse;
use crate::signer::{ServingName, SignError, Subject};

/// Certificates are valid from this long ago: clocks of machines that work differ by less.
const CLOCK_SKEW: Duration = Duration::from_secs(120);

/// The largest signing request that is parsed. One with an RSA-8192 key and a long name has about 4 KiB.
const MAX_CSR: usize = 16 * 1024;

/// Random bytes of a serial number: more than the 64 bits that RFC 5280's readers expect, below its limit of 20 bytes.
const SERIAL_LENGTH: usize = 16;

/// A new self-signed root with its own key. Each has a name of its own, so that chains of two roots never mix.
pub(super) fn root(trust_domain: &str, now: SystemTime, ttl: Duration) -> Result<Root, rcgen::Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let serial = serial()?;
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, trust_domain);
    name.push(DnType::CommonName, format!("Airglow root {}", &hex(serial.as_ref())[..8]));
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.serial_number = Some(serial);
    params.not_before = OffsetDateTime::from(now - CLOCK_SKEW);
    params.not_after = OffsetDateTime::from(now + ttl);
    // It signs leaves and nothing else: an intermediate below it would have been made by somebody else.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    Ok(Root { certificate: certificate.into(), key_pem: key.serialize_pem().into(), above: None })
}

/// The public key of a request whose signature proves that the asker has the private one.
pub(super) fn checked_key(csr_pem: &str) -> Result<SubjectPublicKeyInfo, SignError> {
    if csr_pem.len() > MAX_CSR {
        return Err(SignError::BadRequest("it is larger than 16 KiB"));
    }
    let block = pem::parse(csr_pem).map_err(|_| SignError::BadRequest("it is not PEM"))?;
    if !matches!(block.tag(), "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") {
        return Err(SignError::BadRequest("the PEM block is not a certificate request"));
    }
    let Ok(([], csr)) = X509CertificationRequest::from_der(block.contents()) else {
        return Err(SignError::BadRequest("it is not a DER certificate request"));
    };
    let algorithm = &csr.signature_algorithm.algorithm;
    if *algorithm == OID_PKCS1_SHA1WITHRSA || *algorithm == OID_SHA1_WITH_RSA {
        return Err(SignError::BadRequest("it is signed with SHA-1"));
    }
    csr.verify_signature().map_err(|_| SignError::BadRequest("its signature does not match its key"))?;
    SubjectPublicKeyInfo::from_der(csr.certification_request_info.subject_pki.raw)
        .map_err(|_| SignError::BadRequest("its kind of key is not supported; use P-256"))
}

/// A leaf for `key`, signed by `root`, for both sides of TLS. It never outlives its root.
pub(super) fn leaf(
    root: &Root,
    key: &SubjectPublicKeyInfo,
    subject: &Subject,
    now: SystemTime,
    ttl: Duration,
) -> Result<CertificateDer<'static>, SignError> {
    let root_end = root.not_after();
    if root_end <= now {
        return Err(SignError::RootExpired);
    }
    let mut params = CertificateParams::default();
    // An empty subject makes the names critical (RFC 5280 section 4.1.2.6): nobody may skip them.
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names(subject)?;
    params.serial_number = Some(serial()?);
    params.not_before = OffsetDateTime::from(now - CLOCK_SKEW);
    params.not_after = OffsetDateTime::from((now + ttl).min(root_end));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let root_key = KeyPair::from_pem(root.key_pem.reveal())?;
    let issuer = Issuer::from_ca_cert_der(&root.certificate, root_key)?;
    Ok(params.signed_by(key, &issuer)?.into())
}

fn names(subject: &Subject) -> Result<Vec<SanType>, SignError> {
    let ia5 = |text: &str| Ia5String::try_from(text).map_err(|_| SignError::BadName(text.to_owned()));
    match subject {
        Subject::Workload(identity) => Ok(vec![SanType::URI(ia5(&identity.to_string())?)]),
        Subject::Server(names) => names
            .iter()
            .map(|name| match name {
                ServingName::Dns(name) => Ok(SanType::DnsName(ia5(name)?)),
                ServingName::Ip(ip) => Ok(SanType::IpAddress(*ip)),
            })
            .collect(),
    }
}

/// When a certificate ends; the epoch if it cannot be read, so that it counts as expired.
pub(super) fn not_after(certificate: &CertificateDer<'_>) -> SystemTime {
    validity(certificate).map_or(SystemTime::UNIX_EPOCH, |(_, end)| end)
}

/// When a certificate begins and ends.
pub(super) fn validity(certificate: &CertificateDer<'_>) -> Option<(SystemTime, SystemTime)> {
    let parsed = parse(certificate).ok()?;
    let validity = parsed.validity();
    Some((from_timestamp(validity.not_before.timestamp()), from_timestamp(validity.not_after.timestamp())))
}

/// Random, positive, and therefore unpredictable to whoever asks for certificates.
fn serial() -> Result<SerialNumber, rcgen::Error> {
    let mut bytes = [0; SERIAL_LENGTH];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| rcgen::Error::RingUnspecified)?;
    // The first byte keeps its length and its sign whatever was drawn.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
