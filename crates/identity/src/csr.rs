//! A fresh key and the request to have it certified (PKCS #10, RFC 2986).
//!
//! Keys are never reused: each request makes its own, and a renewed certificate has a new key.

use model::identity::Identity;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData, SanType};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A new P-256 key with a signing request for it.
pub struct KeyRequest {
    /// The request, PEM (`CERTIFICATE REQUEST`).
    pub csr_pem: String,
    /// The private key, PKCS #8. It never leaves this process.
    pub key: PrivateKeyDer<'static>,
    /// The public half, as a DER SubjectPublicKeyInfo: what the issued certificate must carry.
    pub public_key: Vec<u8>,
}

impl KeyRequest {
    /// A request for `identity`: empty subject, and therefore one critical URI name (RFC 5280 section 4.1.2.6).
    pub fn for_workload(identity: &Identity) -> Result<Self, rcgen::Error> {
        Self::new(vec![SanType::URI(identity.to_string().try_into()?)])
    }

    /// A request whose names the signer supplies: a signer of ours ignores the request's names in any case.
    pub(crate) fn unnamed() -> Result<Self, rcgen::Error> {
        Self::new(Vec::new())
    }

    fn new(names: Vec<SanType>) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        let csr_pem = params.serialize_request(&key)?.pem()?;
        let public_key = key.subject_public_key_info();
        Ok(Self { csr_pem, key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(), public_key })
    }
}
