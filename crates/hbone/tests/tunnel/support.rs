//! What the tunnel tests share: certificates, a serving end that behaves like a node proxy, a dialling end, and
//! waiting for a condition. Decides nothing about what is right.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hbone::{
    ClientLimits, ClientTls, Connect, ConnectError, DialError, Driver, Incoming, OpenError, Opener, Pool,
    Received, ServerConnection, ServerLimits, Stream, StreamError,
};
use http::HeaderMap;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// Both ends' configurations under one authority, and a client's that another authority signed.
#[derive(Clone)]
pub(crate) struct Pki {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) stranger: Arc<ClientConfig>,
    pub(crate) no_alpn: Arc<ClientConfig>,
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn leaf(ca: &CertifiedIssuer<'static, KeyPair>) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(vec!["peer.test".into()]).unwrap().signed_by(&key, ca).unwrap();
    (vec![cert.der().clone()], PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))
}

fn client(
    roots: &Arc<RootCertStore>,
    ca: &CertifiedIssuer<'static, KeyPair>,
    alpn: &[&[u8]],
) -> Arc<ClientConfig> {
    let (chain, key) = leaf(ca);
    let mut config = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_root_certificates(roots.clone())
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.enable_secret_extraction = true;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

impl Pki {
    pub(crate) fn new() -> Pki {
        let (ca, other) = (authority(), authority());
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let roots = Arc::new(roots);
        let (chain, key) = leaf(&ca);
        let mut server = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_client_cert_verifier(WebPkiClientVerifier::builder(roots.clone()).build().unwrap())
            .with_single_cert(chain, key)
            .unwrap();
        server.enable_secret_extraction = true;
        server.alpn_protocols = vec![b"h2".to_vec()];
        Pki {
            server: Arc::new(server),
            client: client(&roots, &ca, &[b"h2"]),
            stranger: client(&roots, &other, &[b"h2"]),
            no_alpn: client(&roots, &ca, &[]),
        }
    }

    pub(crate) fn tls(&self) -> ClientTls {
        ClientTls { config: self.client.clone(), server_name: ServerName::try_from("peer.test").unwrap() }
    }
}

/// What takes longer will not come. A machine with forty tasks per core has been seen to need more than a minute for
/// what takes a second by itself.
pub(crate) const IN_VAIN: Duration = Duration::from_secs(300);

/// Fails the test with `what` if `future` does not come.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(IN_VAIN, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {IN_VAIN:?} in vain: {what}"),
    }
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    soon(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// Two ends of a loopback connection.
pub(crate) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    (dialled, accepted)
}

/// Serves one tunnel: every request is given to `handle` in a task of its own.
pub(crate) async fn serve<Io, H, F>(
    io: Io,
    pki: &Pki,
    limits: &ServerLimits,
    handle: H,
) -> Option<hbone::TunnelError>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Incoming) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let (connection, _) = hbone::accept(io, pki.server.clone(), limits).await.ok()?;
    serve_connection(connection, handle).await
}

/// See [`serve`].
pub(crate) async fn serve_connection<Io, H, F>(
    mut connection: ServerConnection<Io>,
    handle: H,
) -> Option<hbone::TunnelError>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Incoming) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    while let Some(next) = connection.next().await {
        match next {
            Ok(incoming) => drop(tokio::spawn(handle(incoming))),
            Err(error) => return Some(error),
        }
    }
    None
}

/// Like a node proxy: connects to the address that the authority names, and relays.
pub(crate) async fn proxy(incoming: Incoming) {
    let address: SocketAddr = incoming.authority.as_str().parse().unwrap();
    match TcpStream::connect(address).await {
        Ok(tcp) => {
            if let Ok(stream) = incoming.accept(HeaderMap::new()) {
                let _ = hbone::relay(tcp, stream, &hbone::Counters::default()).await;
            }
        }
        Err(_) => incoming.refuse(http::StatusCode::SERVICE_UNAVAILABLE),
    }
}

/// Sends back what arrives, and ends when it ends.
pub(crate) async fn echo(incoming: Incoming) {
    if let Ok(mut stream) = incoming.accept(HeaderMap::new()) {
        while let Ok(Some(batch)) = recv(&mut stream).await {
            for chunk in batch {
                if send(&mut stream, chunk).await.is_err() {
                    return;
                }
            }
        }
        let _ = stream.finish();
        // The end leaves before the stream is dropped, because it is queued before.
    }
}

/// Everything that has arrived, or `None` at the end. It counts as consumed.
pub(crate) async fn recv(stream: &mut Stream) -> Result<Option<Vec<Bytes>>, StreamError> {
    let mut batch = Vec::new();
    match std::future::poll_fn(|cx| stream.poll_recv(cx, &mut batch)).await? {
        Received::Data(count) => {
            stream.consumed(count);
            Ok(Some(batch))
        }
        Received::End => Ok(None),
    }
}

/// Everything until the end.
pub(crate) async fn recv_all(stream: &mut Stream) -> Result<Vec<u8>, StreamError> {
    let mut all = Vec::new();
    while let Some(batch) = recv(stream).await? {
        batch.iter().for_each(|chunk| all.extend_from_slice(chunk));
    }
    Ok(all)
}

/// Sends all of it, as the window allows.
pub(crate) async fn send(stream: &mut Stream, mut bytes: Bytes) -> Result<(), StreamError> {
    while !bytes.is_empty() {
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx, bytes.len())).await?;
        stream.send(bytes.split_to(room))?;
    }
    Ok(())
}

/// Dials over `io` and runs the driver in a task.
pub(crate) async fn dial<Io>(io: Io, pki: &Pki, limits: &ClientLimits) -> Result<Opener, ConnectError>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (opener, driver, _) = hbone::connect(io, pki.tls(), limits).await?;
    tokio::spawn(driver);
    Ok(opener)
}

/// A request for this authority.
pub(crate) fn to(authority: impl ToString) -> Connect {
    Connect { authority: authority.to_string(), ..Connect::default() }
}

/// A tunnel in memory, served by `handle`, with default limits.
pub(crate) async fn tunnel<H, F>(pki: &Pki, handle: H) -> Opener
where
    H: Fn(Incoming) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (near, far) = tokio::io::duplex(64 * 1024);
    let served = pki.clone();
    tokio::spawn(async move { serve(far, &served, &ServerLimits::default(), handle).await });
    soon("tunnel", dial(near, pki, &ClientLimits::default())).await.unwrap()
}

/// A proxy on a loopback port, as pools dial it.
pub(crate) async fn listen<H, F>(pki: &Pki, limits: ServerLimits, handle: H) -> SocketAddr
where
    H: Fn(Incoming) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let pki = pki.clone();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            hbone::socket::prepare(&tcp).unwrap();
            let (pki, limits, handle) = (pki.clone(), limits.clone(), handle.clone());
            tokio::spawn(async move { serve(tcp, &pki, &limits, handle).await });
        }
    });
    address
}

/// Opens through a pool keyed by the proxy's address.
pub(crate) async fn open(
    pool: &Pool<SocketAddr>,
    pki: &Pki,
    proxy: SocketAddr,
    request: Connect,
) -> Result<Stream, OpenError> {
    let tls = pki.tls();
    pool.open(&proxy, request, move || dial_address(proxy, tls.clone())).await
}

pub(crate) async fn dial_address(proxy: SocketAddr, tls: ClientTls) -> Result<(Opener, Driver), DialError> {
    let tcp = TcpStream::connect(proxy).await?;
    hbone::socket::prepare(&tcp)?;
    let (opener, driver, _) = hbone::connect(tcp, tls, &ClientLimits::default()).await?;
    Ok((opener, driver))
}

/// Checked bytes that differ by position.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A sum that depends on every byte and its place.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(17, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
}

/// Sends `len` bytes through an echoing tunnel and checks what comes back.
pub(crate) async fn echo_once(opener: &Opener, len: usize) {
    let sent = pattern(len as u64, len);
    let mut stream = opener.open(to("10.0.0.1:80")).await.unwrap();
    let mut got = Vec::new();
    let mut rest = Bytes::from(sent.clone());
    while !rest.is_empty() {
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx, rest.len())).await.unwrap().min(50_000);
        stream.send(rest.split_to(room)).unwrap();
        let batch = recv(&mut stream).await.unwrap().unwrap();
        batch.iter().for_each(|chunk| got.extend_from_slice(chunk));
    }
    stream.finish().unwrap();
    got.extend(recv_all(&mut stream).await.unwrap());
    assert!(got == sent, "{} of {len} bytes came back", got.len());
}
