//! The keys of a cluster: one authority, the API server's certificate, the one that it shows to kubelets, and the key that
//! service account tokens are signed with. Made anew for every run and gone with it.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};

use crate::error::{LabError, cannot};

/// Names that clients inside and outside the cluster know the API server by.
const API_SERVER_NAMES: [&str; 5] = [
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// Writes `ca`, `apiserver` and `kubelet-client` (`.crt` and `.key`), and `sa.key` with `sa.pub`, to `dir`.
pub(crate) fn write(dir: &Path, api_server: &[IpAddr]) -> Result<(), LabError> {
    let made = make(api_server)
        .map_err(|error| cannot("make the cluster's certificates")(io::Error::other(error.to_string())))?;
    fs::create_dir_all(dir).map_err(cannot(format!("create {}", dir.display())))?;
    for (name, pem) in made {
        let path = dir.join(name);
        let mut options = fs::OpenOptions::new();
        let written = options.write(true).create_new(true).mode(0o600).open(&path);
        written
            .and_then(|mut file| io::Write::write_all(&mut file, pem.as_bytes()))
            .map_err(cannot(format!("write {}", path.display())))?;
    }
    Ok(())
}

type Issuer = CertifiedIssuer<'static, KeyPair>;
type Files = Vec<(&'static str, String)>;

fn make(api_server: &[IpAddr]) -> Result<Files, rcgen::Error> {
    let ca = authority()?;
    let mut names: Vec<String> = API_SERVER_NAMES.map(str::to_owned).to_vec();
    names.extend(api_server.iter().map(ToString::to_string));
    let server = leaf(&ca, ("kube-apiserver", None), names, ExtendedKeyUsagePurpose::ServerAuth)?;
    // The group is what kubelets ask the API server about before they let its exec and logs in.
    let name = ("kube-apiserver-kubelet-client", Some("system:masters"));
    let client = leaf(&ca, name, Vec::new(), ExtendedKeyUsagePurpose::ClientAuth)?;
    let tokens = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    Ok(vec![
        ("ca.crt", ca.pem()),
        ("ca.key", ca.key().serialize_pem()),
        ("apiserver.crt", server.0),
        ("apiserver.key", server.1),
        ("kubelet-client.crt", client.0),
        ("kubelet-client.key", client.1),
        ("sa.key", tokens.serialize_pem()),
        ("sa.pub", tokens.public_key_pem()),
    ])
}

fn authority() -> Result<Issuer, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("lab", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}

fn leaf(
    ca: &Issuer,
    (name, group): (&str, Option<&str>),
    names: Vec<String>,
    usage: ExtendedKeyUsagePurpose,
) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = named(name, group);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    Ok((params.signed_by(&key, ca)?.pem(), key.serialize_pem()))
}

fn named(name: &str, group: Option<&str>) -> DistinguishedName {
    let mut full = DistinguishedName::new();
    full.push(DnType::CommonName, name);
    if let Some(group) = group {
        full.push(DnType::OrganizationName, group);
    }
    full
}
