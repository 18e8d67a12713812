//! The server side: a serving certificate that renews itself, and a stream of accepted TLS connections for tonic.
//!
//! Renewal needs no task: the connection that finds the certificate past half of its life has it renewed.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use futures_util::Stream;
use rustls::{ServerConfig, version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::certificate::from_timestamp;
use crate::clock::{Clock, TlsTime};
use crate::csr::KeyRequest;
use crate::peer::parse;
use crate::signer::{ServingName, SignError, Signer, Subject};
use crate::tls::{provider, sealed_server};

/// Handshakes at once. More clients than this wait in the listener's queue, where they cost nothing.
const MAX_HANDSHAKES: usize = 256;

/// A client that has not finished by then is slower than any real one, or is not trying.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// The pause after a failed accept. It fails when file descriptors run out, and trying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A control-plane server's certificate and TLS configuration, always fresh.
pub struct ServerTls {
    signer: Arc<dyn Signer>,
    names: Vec<ServingName>,
    clock: Arc<dyn Clock>,
    serving: ArcSwap<Serving>,
    renewing: Mutex<()>,
}

struct Serving {
    config: Arc<ServerConfig>,
    renew_at: SystemTime,
}

impl ServerTls {
    /// Has `signer` issue a first certificate for `names`, under which clients dial this server.
    pub async fn new(
        signer: Arc<dyn Signer>,
        names: Vec<ServingName>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, SignError> {
        let first = issue(&*signer, &names, &clock).await?;
        Ok(Arc::new(Self {
            signer,
            names,
            clock,
            serving: ArcSwap::from_pointee(first),
            renewing: Mutex::new(()),
        }))
    }

    /// The configuration for the next connection. Renews the certificate first if it is due; if that fails, the one
    /// in use stays in use, and the next connection tries again.
    pub async fn config(&self) -> Arc<ServerConfig> {
        if self.is_due() {
            // Whoever comes meanwhile uses the present certificate, which has half of its life left.
            if let Ok(_renewing) = self.renewing.try_lock() {
                match issue(&*self.signer, &self.names, &self.clock).await {
                    Ok(fresh) => self.serving.store(Arc::new(fresh)),
                    Err(error) => {
                        tracing::warn!(%error, "the control plane's serving certificate was not renewed")
                    }
                }
            }
        }
        self.serving.load().config.clone()
    }

    fn is_due(&self) -> bool {
        self.clock.now() >= self.serving.load().renew_at
    }
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").field("names", &self.names).finish_non_exhaustive()
    }
}

async fn issue(
    signer: &dyn Signer,
    names: &[ServingName],
    clock: &Arc<dyn Clock>,
) -> Result<Serving, SignError> {
    let request = KeyRequest::unnamed()?;
    let signed = signer.sign(request.csr_pem, Subject::Server(names.to_vec()), None).await?;
    let external = |error: rustls::Error| SignError::External(Box::new(error));
    let leaf = signed.chain.first().and_then(|leaf| parse(leaf).ok());
    let not_after =
        leaf.map_or(SystemTime::UNIX_EPOCH, |it| from_timestamp(it.validity().not_after.timestamp()));
    let config = ServerConfig::builder_with_details(provider(), Arc::new(TlsTime(clock.clone())))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(external)?
        .with_no_client_auth()
        .with_single_cert(signed.chain, request.key)
        .map_err(external)?;
    let now = clock.now();
    let life = not_after.duration_since(now).unwrap_or(Duration::ZERO);
    Ok(Serving { config: Arc::new(sealed_server(config)), renew_at: now + life / 2 })
}

/// Accepts TLS connections on `listener`, for `tonic::transport::Server::serve_with_incoming`.
///
/// Handshakes run beside each other, so that a slow client holds up nobody; failed ones are logged and dropped.
pub fn incoming(listener: TcpListener, tls: Arc<ServerTls>) -> Incoming {
    Incoming { listener, tls, handshakes: JoinSet::new(), pause: None }
}

/// The connections of one listener. Dropping it ends handshakes under way.
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    tls: Arc<ServerTls>,
    handshakes: JoinSet<Result<ControlStream, (SocketAddr, io::Error)>>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Stream for Incoming {
    type Item = io::Result<ControlStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match self.handshakes.poll_join_next(cx) {
                Poll::Ready(Some(Ok(Ok(stream)))) => return Poll::Ready(Some(Ok(stream))),
                Poll::Ready(Some(Ok(Err((peer, error))))) => {
                    tracing::debug!(%peer, %error, "a client's handshake failed");
                    continue;
                }
                Poll::Ready(Some(Err(error))) => {
                    tracing::error!(%error, "a handshake's task ended early");
                    continue;
                }
                Poll::Ready(None) | Poll::Pending => {}
            }
            if self.handshakes.len() >= MAX_HANDSHAKES {
                return Poll::Pending;
            }
            if let Some(pause) = &mut self.pause {
                std::task::ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match std::task::ready!(self.listener.poll_accept(cx)) {
                Ok((tcp, peer)) => {
                    let tls = self.tls.clone();
                    self.handshakes
                        .spawn(async move { accept(tcp, peer, &tls).await.map_err(|e| (peer, e)) });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    self.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

async fn accept(tcp: TcpStream, peer: SocketAddr, tls: &ServerTls) -> io::Result<ControlStream> {
    tcp.set_nodelay(true)?;
    let handshake = async { TlsAcceptor::from(tls.config().await).accept(tcp).await };
    let stream = timeout(HANDSHAKE_DEADLINE, handshake).await.map_err(|_| io::ErrorKind::TimedOut)??;
    Ok(ControlStream { stream, peer })
}

/// One accepted connection.
#[derive(Debug)]
pub struct ControlStream {
    stream: TlsStream<TcpStream>,
    peer: SocketAddr,
}

/// What a request's extensions say about the connection it came on.
#[derive(Clone, Copy, Debug)]
pub struct ControlPeer {
    /// Where the client dialled from.
    pub address: SocketAddr,
}

impl Connected for ControlStream {
    type ConnectInfo = ControlPeer;

    fn connect_info(&self) -> ControlPeer {
        ControlPeer { address: self.peer }
    }
}

impl AsyncRead for ControlStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for ControlStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
