//! The client side: a lazy channel whose every new connection reads the roots again.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::client::{WantsClientCert, WebPkiServerVerifier};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, version};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint};

use crate::clock::{Clock, TlsTime};
use crate::tls::{ALPN, provider, sealed_client};

/// TCP and TLS together. A server further away than this is as good as down, and the next attempt may meet another
/// replica.
pub(super) const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// A silent connection is asked for a sign of life this often, so that a vanished peer is noticed within 40 s.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// How long the sign of life may take.
const PING_DEADLINE: Duration = Duration::from_secs(10);

/// The largest root file that is read; a bundle of a public web's roots has about 200 KiB.
const MAX_ROOTS: u64 = 4 << 20;

/// Where the roots that a server is verified with come from.
#[derive(Clone, Debug)]
pub enum Roots {
    /// A PEM file, read for each new connection: it changes when the root is rotated.
    File(PathBuf),
    /// PEM text.
    Pem(String),
}

impl Roots {
    /// All of them, as they are now.
    pub(super) fn store(&self) -> io::Result<RootCertStore> {
        match self {
            Self::File(path) => root_store(&read_roots(path)?)
                .map_err(|reason| io::Error::other(format!("{}: {reason}", path.display()))),
            Self::Pem(pem) => root_store(pem.as_bytes()).map_err(io::Error::other),
        }
    }
}

/// Which server to talk to: the control plane, or what a program reports to.
#[derive(Clone, Debug)]
pub struct Target {
    /// `https://host:port`.
    pub address: Uri,
    /// What its certificate is verified with.
    pub roots: Roots,
    /// The name that its certificate must carry, if that is not the host of `address`.
    pub server_name: Option<String>,
}

/// An address or name that cannot be dialled. Our configuration is at fault.
#[derive(Debug, thiserror::Error)]
pub enum BadTarget {
    /// Only TLS is spoken.
    #[error("{0} must be of the form https://host:port; there is no plaintext form of this channel")]
    NotHttps(Uri),
    /// No port.
    #[error("{0} lacks a port, as in https://host:15012")]
    NoPort(Uri),
    /// A name that no certificate can carry.
    #[error("{0:?} is neither a DNS name nor an address")]
    BadName(String),
}

/// A channel to `target`. It connects when it is first used, and again after each loss.
pub fn channel(target: Target, clock: Arc<dyn Clock>) -> Result<Channel, BadTarget> {
    let Target { address, roots, server_name } = target;
    let (host, name) = https(&address, server_name)?;
    let port = address.port_u16().ok_or_else(|| BadTarget::NoPort(address.clone()))?;
    let connector = Connector(Arc::new(Dial { host, port, name, roots, clock }));
    let endpoint = Endpoint::from(address)
        .connect_timeout(CONNECT_DEADLINE)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_DEADLINE)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(connector))
}

/// The host to dial and the name to verify.
pub(super) fn https(
    address: &Uri,
    server_name: Option<String>,
) -> Result<(String, ServerName<'static>), BadTarget> {
    let (Some("https"), Some(host)) = (address.scheme_str(), address.host()) else {
        return Err(BadTarget::NotHttps(address.clone()));
    };
    // An IPv6 address has brackets in a URI, and none in a socket call or a certificate.
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = server_name.unwrap_or_else(|| host.clone());
    let name = ServerName::try_from(name.clone()).map_err(|_| BadTarget::BadName(name))?;
    Ok((host, name))
}

#[derive(Clone)]
struct Connector(Arc<Dial>);

struct Dial {
    host: String,
    port: u16,
    name: ServerName<'static>,
    roots: Roots,
    clock: Arc<dyn Clock>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dial = self.0.clone();
        Box::pin(async move { dial.connect().await.map(TokioIo::new) })
    }
}

impl Dial {
    async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        let config = self.config()?;
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        let tls = TlsConnector::from(Arc::new(config)).connect(self.name.clone(), tcp).await?;
        match tls.get_ref().1.alpn_protocol() {
            Some(ALPN) => Ok(tls),
            Some(_) | None => Err(io::Error::other("the server does not speak HTTP/2")),
        }
    }

    fn config(&self) -> io::Result<ClientConfig> {
        Ok(sealed_client(verified_by(&self.roots, self.clock.clone())?.with_no_client_auth()))
    }
}

/// The beginning of every configuration for a server that published roots judge, and nothing else.
pub(super) fn verified_by(
    roots: &Roots,
    clock: Arc<dyn Clock>,
) -> io::Result<ConfigBuilder<ClientConfig, WantsClientCert>> {
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots.store()?), provider())
        .build()
        .map_err(io::Error::other)?;
    let config = ClientConfig::builder_with_details(provider(), Arc::new(TlsTime(clock)))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(io::Error::other)?;
    Ok(config.with_webpki_verifier(verifier))
}

fn read_roots(path: &Path) -> io::Result<Vec<u8>> {
    use io::Read;
    let explain = |error: io::Error| {
        io::Error::new(error.kind(), format!("the root file {} cannot be read: {error}", path.display()))
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(explain)?;
    file.take(MAX_ROOTS).read_to_end(&mut bytes).map_err(explain)?;
    Ok(bytes)
}

/// All roots of a PEM text; anything in it that is no usable root makes the whole unusable, because nobody would notice.
fn root_store(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(pem) {
        let root = root.map_err(|error| format!("not a PEM root certificate: {error}"))?;
        store.add(root).map_err(|error| format!("not a usable root certificate: {error}"))?;
    }
    if store.is_empty() { Err("no root certificate in it".to_owned()) } else { Ok(store) }
}
