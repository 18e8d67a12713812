//! Certificates of the mesh's own authority for whoever takes part in the bench without asking for one: the load, and the other proxy.
//!
//! Written as files before the controller opens the authority.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use identity::authority::{Authority, AuthorityConfig};
use identity::{Certificate, KeyRequest, Signed, SystemClock, TrustDomains, peer_identity};
use model::identity::Identity;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// The trust domain of a lab.
pub(crate) const TRUST_DOMAIN: &str = "cluster.local";

/// Files of one certificate, in its directory.
pub(crate) const CHAIN: &str = "chain.pem";
pub(crate) const KEY: &str = "key.pem";
pub(crate) const ROOTS: &str = "roots.pem";
const PUBLIC_KEY: &str = "public-key.der";

/// Opens the authority in `state` and certifies these service accounts of `namespace`, each in a directory of its name below `into`.
pub(crate) fn issue(state: &Path, into: &Path, namespace: &str, accounts: &[&str]) -> anyhow::Result<()> {
    let authority =
        Authority::open_or_create(state, AuthorityConfig::new(TRUST_DOMAIN), Arc::new(SystemClock))
            .context("open the authority")?;
    for account in accounts {
        let identity = Identity::new(TRUST_DOMAIN, namespace, *account)?;
        let request = KeyRequest::for_workload(&identity)?;
        let signed = authority.sign(&request.csr_pem, &identity, None)?;
        write(&into.join(account), &request, &signed).with_context(|| format!("keep {identity}"))?;
    }
    Ok(())
}

/// Reads one that [`issue`] has written.
pub(crate) fn read(dir: &Path) -> anyhow::Result<Certificate> {
    let path = |name: &str| -> PathBuf { dir.join(name) };
    let certificates = |name: &str| -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let found = CertificateDer::pem_file_iter(path(name)).with_context(|| format!("read {name}"))?;
        Ok(found.collect::<Result<_, _>>()?)
    };
    let signed = Signed { chain: certificates(CHAIN)?, roots: certificates(ROOTS)? };
    let key = PrivateKeyDer::from_pem_file(path(KEY)).context("read the key")?;
    let request = KeyRequest { csr_pem: String::new(), key, public_key: fs::read(path(PUBLIC_KEY))? };
    let identity = peer_identity(&signed.chain)?;
    let trusted = TrustDomains::new(TRUST_DOMAIN.into(), Arc::from([]));
    Ok(Certificate::new(identity, request, signed, trusted, Arc::new(SystemClock))?)
}

fn write(dir: &Path, request: &KeyRequest, signed: &Signed) -> anyhow::Result<()> {
    fs::create_dir_all(dir)?;
    let pem = |tag: &str, der: &[u8]| pem::encode(&pem::Pem::new(tag, der));
    let all = |certificates: &[CertificateDer<'_>]| -> String {
        certificates.iter().map(|der| pem("CERTIFICATE", der)).collect()
    };
    fs::write(dir.join(CHAIN), all(&signed.chain))?;
    fs::write(dir.join(ROOTS), all(&signed.roots))?;
    fs::write(dir.join(KEY), pem("PRIVATE KEY", request.key.secret_der()))?;
    fs::write(dir.join(PUBLIC_KEY), &request.public_key)?;
    Ok(())
}
