//! The end that dials: one tunnel over a connected byte stream, and CONNECT streams in it. Which peer is dialled, with
//! which certificate, and whether the one that answers is welcome, is the caller's decision.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use h2::{Reason, RecvStream};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};

use crate::frames::Guard;
use crate::io::{Control, TunnelIo, split};
use crate::keepalive::Keepalive;
use crate::limits::{ClientLimits, REMEMBERED_RESETS};
use crate::record_error::RecordError;
use crate::share::Share;
use crate::stream::{Place, Stream, StreamError};
use crate::tunnel::{HandshakeError, Pulse, TunnelError, handshake, tunnel_error};
use crate::windows::Windows;

/// Stands for "the peer's SETTINGS have not come yet" in the engine's stream limit. No peer can say it: theirs has
/// 32 bits, and `usize::MAX` means that they named none.
const UNKNOWN: usize = usize::MAX - 1;

/// A peer's certificates, leaf first.
pub type Chain = Vec<CertificateDer<'static>>;

/// How to be a TLS client towards one peer.
#[derive(Debug, Clone)]
pub struct ClientTls {
    /// Certificates, verifier, ALPN (`h2`): made outside, used as it is.
    pub config: Arc<rustls::ClientConfig>,
    /// The name that the configuration's verifier is asked about.
    pub server_name: ServerName<'static>,
}

/// Why there is no tunnel. The connection is closed in every case.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// TLS could not even start with this configuration.
    #[error("TLS configuration is not usable: {0}")]
    Config(#[source] rustls::Error),
    /// The connection or the TLS handshake failed; a rejected certificate is here too.
    #[error("handshake failed: {0}")]
    Handshake(#[source] RecordError),
    /// The peer speaks TLS, but not HTTP/2.
    #[error("the peer did not agree to speak HTTP/2 (ALPN h2): it is not an HBONE endpoint")]
    NotH2,
    /// The peer speaks HTTP/2 badly, or closed the tunnel at once.
    #[error("tunnel ended before it was usable: {0}")]
    Tunnel(#[source] TunnelError),
    /// No tunnel within the deadline.
    #[error("no tunnel within {0:?}: the peer accepted the connection but does not answer")]
    Timeout(std::time::Duration),
}

impl From<HandshakeError> for ConnectError {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::Records(error) => Self::Handshake(error),
            HandshakeError::NotH2 => Self::NotH2,
        }
    }
}

/// Makes a tunnel over `io`. Returns when the peer has accepted our certificate and named its limits, so a refusal is
/// an error here and not later, on a stream.
///
/// Nothing moves unless the [`Driver`] is polled. The caller checks who the peer is (the [`Chain`]) before it opens
/// streams.
pub async fn connect<Io>(
    io: Io,
    tls: ClientTls,
    limits: &ClientLimits,
) -> Result<(Opener, Driver, Chain), ConnectError>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let deadline = limits.tunnel.handshake;
    timeout(deadline, establish(io, tls, limits)).await.unwrap_or(Err(ConnectError::Timeout(deadline)))
}

async fn establish<Io>(
    io: Io,
    tls: ClientTls,
    limits: &ClientLimits,
) -> Result<(Opener, Driver, Chain), ConnectError>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let session =
        UnbufferedClientConnection::new(tls.config, tls.server_name).map_err(ConnectError::Config)?;
    let (records, chain) = handshake(io, session).await?;
    let now = Instant::now();
    let (io, control) = split(records, Guard::client(now));
    let windows = Windows::new(&limits.tunnel, now);
    let started = builder(limits, windows.first()).handshake::<_, Bytes>(io).await;
    let (send, mut connection) =
        started.map_err(|error| ConnectError::Tunnel(tunnel_error(&error, control.failure())))?;
    let tunnel = &limits.tunnel;
    let keepalive = Keepalive::new(tunnel.ping_interval, tunnel.ping_deadline, None, now);
    let pulse = Pulse::new(keepalive, connection.ping_pong());
    let status = Arc::new(Status::new(limits.max_streams));
    let share = windows.share().clone();
    let mut task = TunnelTask { connection, control, pulse, windows, status: status.clone() };
    poll_fn(|cx| match task.poll(cx) {
        Poll::Ready(Ok(())) => Poll::Ready(Err(TunnelError::Closed(Reason::NO_ERROR))),
        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        Poll::Pending if task.status.max_streams() == UNKNOWN => Poll::Pending,
        Poll::Pending => Poll::Ready(Ok(())),
    })
    .await
    .map_err(ConnectError::Tunnel)?;
    let opener = Opener { send, status: status.clone(), share };
    Ok((opener, Driver { task: Box::pin(poll_fn(move |cx| task.poll(cx))), status }, chain))
}

fn builder(limits: &ClientLimits, window: u32) -> Builder {
    let tunnel = &limits.tunnel;
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        // Nobody opens streams towards a client.
        .max_concurrent_streams(0)
        .initial_max_send_streams(UNKNOWN)
        .initial_window_size(window)
        .initial_connection_window_size(tunnel.tunnel_window(limits.max_streams))
        .max_frame_size(tunnel.frame)
        .max_header_list_size(tunnel.header_list)
        .max_send_buffer_size(tunnel.send_buffer)
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        // The engine counts these for life, which a long-lived tunnel would use up: the guard counts them by time.
        .max_local_error_reset_streams(None);
    builder
}

/// What the driver publishes about its tunnel.
struct Status {
    /// What we allow ourselves.
    own_max: usize,
    /// What the peer allows.
    peer_max: AtomicUsize,
    closing: AtomicBool,
}

impl Status {
    fn new(own_max: usize) -> Self {
        Status { own_max, peer_max: AtomicUsize::new(UNKNOWN), closing: AtomicBool::new(false) }
    }

    fn max_streams(&self) -> usize {
        match self.peer_max.load(Ordering::Relaxed) {
            UNKNOWN => UNKNOWN,
            max => max.min(self.own_max),
        }
    }
}

struct TunnelTask<Io>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    connection: Connection<TunnelIo<Io, UnbufferedClientConnection>, Bytes>,
    control: Control<Io, UnbufferedClientConnection>,
    pulse: Pulse,
    windows: Windows,
    status: Arc<Status>,
}

impl<Io> TunnelTask<Io>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        let result = self.poll_tunnel(cx);
        if result.is_ready() {
            self.status.closing.store(true, Ordering::Relaxed);
        }
        result
    }

    fn poll_tunnel(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        self.control.begin();
        let polled = Pin::new(&mut self.connection).poll(cx);
        self.windows.follow(cx, |window| self.connection.set_initial_window_size(window));
        let flushed = self.control.flush(cx);
        self.status.peer_max.store(self.connection.max_concurrent_send_streams(), Ordering::Relaxed);
        if let Poll::Ready(result) = polled {
            // The engine takes a cut connection for a closed one.
            let cut = self.control.failure().map_or(Ok(()), |error| Err(error.into()));
            return Poll::Ready(
                result.map_err(|error| tunnel_error(&error, self.control.failure())).and(cut),
            );
        }
        flushed?;
        let snapshot = self.control.snapshot();
        if snapshot.goaway_seen {
            self.status.closing.store(true, Ordering::Relaxed);
        }
        if let Some(abuse) = snapshot.abuse {
            return Poll::Ready(Err(TunnelError::Abuse(abuse)));
        }
        // The pool closes idle tunnels on this side, so the pulse has nothing but silence to report.
        self.pulse.poll(cx, snapshot.received, true).map(|_| Err(TunnelError::Silent))
    }
}

/// The task of a tunnel: spawn it, or poll it beside the streams. It ends when the peer closes the tunnel, when it
/// breaks, or when the last [`Opener`] and the last stream are gone.
#[must_use = "nothing moves unless the driver is polled"]
pub struct Driver {
    task: Pin<Box<dyn Future<Output = Result<(), TunnelError>> + Send>>,
    status: Arc<Status>,
}

impl Driver {
    /// Streams that may be open at once, by the peer's word and ours; it may change while the tunnel lives.
    pub fn max_streams(&self) -> usize {
        self.status.max_streams()
    }

    /// True once the peer takes no new streams or the tunnel has ended.
    pub fn is_closing(&self) -> bool {
        self.status.closing.load(Ordering::Relaxed)
    }
}

impl Future for Driver {
    type Output = Result<(), TunnelError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.task.as_mut().poll(cx)
    }
}

/// A CONNECT request.
#[derive(Debug, Clone, Default)]
pub struct Connect {
    /// Where to: `ip:port`, `[ip]:port` or `name:port`.
    pub authority: String,
    /// `baggage`, `forwarded`, `traceparent` and whatever else the caller wants to say.
    pub headers: HeaderMap,
    /// Bytes to send along without waiting for the answer, one round trip early. Only what the peer's first window
    /// takes leaves at once. If the answer is a refusal the peer drops them; the caller still has its clone.
    pub early: Bytes,
}

/// Why a stream was not opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// The authority or a header cannot be sent.
    #[error("cannot ask for {0:?}: not a valid CONNECT authority, or a header that HTTP/2 forbids")]
    BadRequest(String),
    /// No tunnel.
    #[error("no tunnel: {0}")]
    Dial(#[from] crate::pool::DialError),
    /// The pool was closed.
    #[error("the pool is closed: its owner is shutting down")]
    PoolClosed,
    /// The peer answered, and not with 200.
    #[error("the peer refused the stream with status {0}")]
    Refused(StatusCode),
    /// The stream broke before it was answered; the peer may have acted on it.
    #[error("the stream broke before it was answered: {0}")]
    Stream(#[from] StreamError),
    /// More streams wait for a tunnel to this peer than the limit allows.
    #[error("{0} streams wait for a tunnel to this peer already; is it overloaded?")]
    TooManyWaiting(usize),
    /// The peer certainly did not act on the request: it can be repeated elsewhere.
    #[error("the tunnel was closing: the request was not processed")]
    Unprocessed,
}

/// Opens streams in one tunnel. Clones share the tunnel, which closes when the last one and the last stream are gone.
#[derive(Clone)]
pub struct Opener {
    send: SendRequest<Bytes>,
    status: Arc<Status>,
    share: Share,
}

impl Opener {
    /// See [`Driver::max_streams`].
    pub fn max_streams(&self) -> usize {
        self.status.max_streams()
    }

    /// See [`Driver::is_closing`].
    pub fn is_closing(&self) -> bool {
        self.status.closing.load(Ordering::Relaxed)
    }

    /// Opens a stream and waits for the answer. Dropping the future cancels the stream.
    pub async fn open(&self, connect: Connect) -> Result<Stream, OpenError> {
        self.open_in_place(connect, None).await
    }

    pub(crate) async fn open_in_place(
        &self,
        connect: Connect,
        place: Option<Place>,
    ) -> Result<Stream, OpenError> {
        let Connect { authority, headers, early } = connect;
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = headers;
        *request.uri_mut() =
            authority_form(&authority).ok_or_else(|| OpenError::BadRequest(authority.clone()))?;
        let mut sender = self.send.clone();
        let (answer, mut send) =
            sender.send_request(request, false).map_err(|error| not_sent(&error, authority))?;
        if !early.is_empty() {
            // A stream that broke this early is reported by its answer.
            let _ = send.send_data(early, false);
        }
        let (head, recv) = accepted(answer.await)?;
        let stream = Stream::new(send, recv, self.share.credit()).with_headers(head.headers);
        Ok(match place {
            Some(place) => stream.with_place(place),
            None => stream,
        })
    }
}

/// The URI of a CONNECT: an authority and nothing else.
fn authority_form(authority: &str) -> Option<Uri> {
    let uri: Uri = authority.parse().ok()?;
    (uri.scheme().is_none() && uri.path_and_query().is_none() && uri.authority().is_some()).then_some(uri)
}

fn not_sent(error: &h2::Error, authority: String) -> OpenError {
    // A user error means that this request cannot be sent; anything else that the tunnel takes no request at all.
    let tunnel_is_over = error.is_io() || error.is_go_away() || error.is_reset();
    if tunnel_is_over { OpenError::Unprocessed } else { OpenError::BadRequest(authority) }
}

fn accepted(
    answer: Result<Response<RecvStream>, h2::Error>,
) -> Result<(http::response::Parts, RecvStream), OpenError> {
    match answer {
        Ok(response) if response.status() == StatusCode::OK => Ok(response.into_parts()),
        // Another 2xx promises something that we did not ask for.
        Ok(response) => Err(OpenError::Refused(response.status())),
        Err(error) if error.is_remote() && error.is_go_away() => Err(OpenError::Unprocessed),
        Err(error) if error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM) => {
            Err(OpenError::Unprocessed)
        }
        Err(error) => Err(OpenError::Stream(error.into())),
    }
}
