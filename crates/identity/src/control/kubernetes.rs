//! TLS to a Kubernetes API server, as a connector for an HTTP client. The API server's certificate is judged by the roots
//! that the cluster publishes, and by nothing else.
//!
//! Knows no API: `controller` does. There is no plaintext form of it, and no way to skip the check of the certificate.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::Service;

use super::client::{BadTarget, CONNECT_DEADLINE, Roots, https, verified_by};
use crate::clock::Clock;
use crate::tls::sealed_client;

/// A watch says nothing for minutes when nothing happens; the system asks a silent peer for a sign of life this often, so
/// that one which has vanished is noticed within half a minute.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// How long between questions that were not answered.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Questions without an answer before the connection counts as lost.
const KEEPALIVE_QUESTIONS: u32 = 3;

/// How long what was sent may go unacknowledged: keepalive does not ask while something is under way, and the system by itself
/// waits a quarter of an hour.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// Each watch has a connection of its own, which a lost packet of another one does not hold up.
const ALPN_HTTP1: &[u8] = b"http/1.1";

/// Which API server to talk to.
#[derive(Clone, Debug)]
pub struct ApiServer {
    /// `https://host:port`; port 443 when it names none.
    pub address: Uri,
    /// What its certificate is verified with.
    pub roots: Roots,
    /// The name that its certificate must carry, if that is not the host of `address`.
    pub server_name: Option<String>,
    /// A certificate to present, for whoever has no token.
    pub client: Option<ClientPem>,
}

/// A client certificate with its key, as PEM text.
#[derive(Clone)]
pub struct ClientPem {
    /// The leaf first.
    pub chain: Vec<u8>,
    /// PKCS#8, PKCS#1 or SEC1.
    pub key: Vec<u8>,
}

impl std::fmt::Debug for ClientPem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientPem").finish_non_exhaustive()
    }
}

/// Connects to one API server, whatever the request's URI says. Clones share the settings.
#[derive(Clone)]
pub struct ApiConnector(Arc<Dial>);

struct Dial {
    host: String,
    port: u16,
    name: ServerName<'static>,
    roots: Roots,
    client: Option<ClientPem>,
    clock: Arc<dyn Clock>,
}

impl ApiConnector {
    /// A connector to `server`.
    ///
    /// # Errors
    /// When its address is not one that TLS can be spoken with.
    pub fn new(server: ApiServer, clock: Arc<dyn Clock>) -> Result<Self, BadTarget> {
        let ApiServer { address, roots, server_name, client } = server;
        let (host, name) = https(&address, server_name)?;
        let port = address.port_u16().unwrap_or(443);
        Ok(Self(Arc::new(Dial { host, port, name, roots, client, clock })))
    }
}

impl Service<Uri> for ApiConnector {
    type Response = ApiStream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<ApiStream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dial = self.0.clone();
        Box::pin(async move {
            let connected = timeout(CONNECT_DEADLINE, dial.connect()).await;
            connected
                .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time")))
        })
    }
}

impl Dial {
    async fn connect(&self) -> io::Result<ApiStream> {
        // Made for each connection: the file with the roots changes when the cluster rotates them.
        let config = self.config()?;
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_QUESTIONS);
        SockRef::from(&tcp).set_tcp_keepalive(&keepalive)?;
        SockRef::from(&tcp).set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
        let tls = TlsConnector::from(Arc::new(config)).connect(self.name.clone(), tcp).await?;
        Ok(ApiStream(TokioIo::new(tls)))
    }

    fn config(&self) -> io::Result<ClientConfig> {
        let config = verified_by(&self.roots, self.clock.clone())?;
        let config = match &self.client {
            None => config.with_no_client_auth(),
            Some(ClientPem { chain, key }) => {
                let bad = |what: &str, error: &dyn std::fmt::Display| {
                    io::Error::other(format!("the client {what} cannot be used: {error}"))
                };
                let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
                    .collect::<Result<_, _>>()
                    .map_err(|error| bad("certificate", &error))?;
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| bad("key", &error))?;
                config.with_client_auth_cert(chain, key).map_err(|error| bad("certificate", &error))?
            }
        };
        let mut config = sealed_client(config);
        config.alpn_protocols = vec![ALPN_HTTP1.to_vec()];
        Ok(config)
    }
}

/// A connection to an API server.
pub struct ApiStream(TokioIo<TlsStream<TcpStream>>);

impl Connection for ApiStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for ApiStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for ApiStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
