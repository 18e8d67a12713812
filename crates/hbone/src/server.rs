//! The end that accepts: handshakes with a deadline, hands out well-formed CONNECT requests, answers the others itself,
//! and throws out peers that cost more than they use. Who may connect to what is the caller's decision.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{Method, Request, StatusCode};
use rustls::server::UnbufferedServerConnection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::client::Chain;
use crate::frames::{Abuse, Budget, Guard};
use crate::incoming::{InHand, Incoming, answer};
use crate::io::{Control, TunnelIo, split};
use crate::keepalive::Keepalive;
use crate::limits::{REMEMBERED_RESETS, ServerLimits};
use crate::record_error::RecordError;
use crate::tunnel::{Beat, GOODBYE, HandshakeError, Pulse, TunnelError, handshake, tunnel_error};
use crate::windows::Windows;

/// Streams that the peer has finished, but whose last bytes the application has not taken, must not keep new ones
/// out; but they must not pile up either. So many times the stream limit may be in the caller's hands.
const IN_HAND: usize = 2;

/// Where a CONNECT wants to go, as the peer wrote it.
pub use http::uri::Authority;

/// Why a connection did not become a tunnel. It is closed in every case.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// TLS could not even start with this configuration.
    #[error("TLS configuration is not usable: {0}")]
    Config(#[source] rustls::Error),
    /// The connection or the TLS handshake failed: no certificate, a wrong one, or not TLS at all.
    #[error("handshake failed: {0}")]
    Handshake(#[source] RecordError),
    /// The peer speaks TLS, but not HTTP/2.
    #[error("the peer did not offer HTTP/2 (ALPN h2)")]
    NotH2,
    /// The peer did not begin an HTTP/2 connection.
    #[error("tunnel ended before it was usable: {0}")]
    Tunnel(#[source] TunnelError),
    /// Not done within the deadline.
    #[error("no tunnel within {0:?}: the peer is too slow")]
    Timeout(Duration),
}

impl From<HandshakeError> for AcceptError {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::Records(error) => Self::Handshake(error),
            HandshakeError::NotH2 => Self::NotH2,
        }
    }
}

/// Makes a tunnel out of an accepted connection. The chain is what the peer proved itself with, leaf first; whether
/// it is required and trusted is for the configuration, whether it is welcome is for the caller.
pub async fn accept<Io>(
    io: Io,
    config: Arc<rustls::ServerConfig>,
    limits: &ServerLimits,
) -> Result<(ServerConnection<Io>, Chain), AcceptError>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let deadline = limits.tunnel.handshake;
    timeout(deadline, establish(io, config, limits)).await.unwrap_or(Err(AcceptError::Timeout(deadline)))
}

async fn establish<Io>(
    io: Io,
    config: Arc<rustls::ServerConfig>,
    limits: &ServerLimits,
) -> Result<(ServerConnection<Io>, Chain), AcceptError>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let session = UnbufferedServerConnection::new(config).map_err(AcceptError::Config)?;
    let (records, chain) = handshake(io, session).await?;
    let now = Instant::now();
    let (io, control) = split(records, Guard::server(now));
    let windows = Windows::new(&limits.tunnel, now);
    let mut preface = pin!(builder(limits, windows.first()).handshake::<_, Bytes>(io));
    let started = poll_fn(|cx| {
        control.begin();
        let polled = preface.as_mut().poll(cx);
        // A failed flush makes the engine's next read or write fail too, with a better explanation.
        let _ = control.flush(cx);
        polled
    });
    let mut connection =
        started.await.map_err(|error| AcceptError::Tunnel(tunnel_error(&error, control.failure())))?;
    let tunnel = &limits.tunnel;
    let keepalive = Keepalive::new(tunnel.ping_interval, tunnel.ping_deadline, Some(limits.idle), now);
    let pulse = Pulse::new(keepalive, connection.ping_pong());
    let cancelled =
        Budget::new(f64::from(limits.cancelled_burst), f64::from(limits.cancelled_per_second), now);
    let in_hand = InHand::new((limits.max_streams as usize).saturating_mul(IN_HAND));
    let phase = Phase::Open;
    Ok((ServerConnection { connection, control, pulse, cancelled, in_hand, windows, phase }, chain))
}

fn builder(limits: &ServerLimits, window: u32) -> Builder {
    let tunnel = &limits.tunnel;
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(limits.max_streams)
        .initial_window_size(window)
        .initial_connection_window_size(tunnel.tunnel_window(limits.max_streams as usize))
        .max_frame_size(tunnel.frame)
        .max_header_list_size(tunnel.header_list)
        .max_send_buffer_size(tunnel.send_buffer)
        .max_pending_accept_reset_streams(limits.pending_resets)
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        // The engine counts these for life, which a long-lived tunnel would use up: the guard counts them by time.
        .max_local_error_reset_streams(None);
    builder
}

/// A request as the engine hands it out, with the means to answer it.
type Exchange = (Request<RecvStream>, SendResponse<Bytes>);

enum Phase {
    Open,
    /// We said that we take no new streams; those that were on their way are still served.
    Draining,
    /// The peer is being told why it is thrown out, until this time.
    Refusing(TunnelError, std::pin::Pin<Box<tokio::time::Sleep>>),
    Ended,
}

/// One accepted tunnel. It moves only while [`ServerConnection::next`] is awaited, streams included.
pub struct ServerConnection<Io = TcpStream>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    connection: Connection<TunnelIo<Io, UnbufferedServerConnection>, Bytes>,
    control: Control<Io, UnbufferedServerConnection>,
    pulse: Pulse,
    cancelled: Budget,
    in_hand: Arc<InHand>,
    windows: Windows,
    phase: Phase,
}

impl<Io> ServerConnection<Io>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    /// The next request, or `None` when the tunnel has ended by agreement. After an error only `None` follows.
    /// Cancel-safe: dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Incoming, TunnelError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// See [`ServerConnection::next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Incoming, TunnelError>>> {
        loop {
            match &self.phase {
                Phase::Ended => return Poll::Ready(None),
                Phase::Refusing(..) => return self.poll_refusing(cx),
                Phase::Open | Phase::Draining => {}
            }
            match self.poll_engine(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    if let Some(incoming) = self.admit(request, respond) {
                        return Poll::Ready(Some(Ok(incoming)));
                    }
                }
                Poll::Ready(Some(Err(error))) => return self.end(Some(error)),
                Poll::Ready(None) => return self.end(None),
                Poll::Pending => match self.poll_health(cx) {
                    Poll::Ready(Health::Changed) => {}
                    Poll::Ready(Health::Gone(error)) => return self.end(Some(error)),
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }

    /// Tells the peer to open no new streams. Keep calling [`ServerConnection::next`]: requests that were on their
    /// way are still handed out, open streams go on, and `None` comes after the last one.
    pub fn drain(&mut self) {
        if matches!(self.phase, Phase::Open) {
            self.phase = Phase::Draining;
            self.connection.graceful_shutdown();
        }
    }

    fn poll_engine(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Exchange, TunnelError>>> {
        self.in_hand.register(cx.waker());
        self.control.begin();
        let polled = if self.in_hand.is_full() {
            self.connection.poll_closed(cx).map(|result| result.err().map(Err))
        } else {
            self.connection.poll_accept(cx)
        };
        self.windows.follow(cx, |window| self.connection.set_initial_window_size(window));
        let flushed = self.control.flush(cx);
        match polled {
            // It took its leave, and then closed the socket without the last word of TLS, as peers in the field do.
            Poll::Ready(Some(Err(_))) if self.control.snapshot().goaway_seen && self.in_hand.is_empty() => {
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                Poll::Ready(Some(Err(tunnel_error(&error, self.control.failure()))))
            }
            Poll::Ready(Some(Ok(request))) => Poll::Ready(Some(Ok(request))),
            // The engine takes a cut connection for a closed one; with streams in it that makes a difference.
            Poll::Ready(None) if self.in_hand.is_empty() => Poll::Ready(None),
            Poll::Ready(None) => Poll::Ready(self.control.failure().map(|error| Err(error.into()))),
            Poll::Pending => match flushed {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Some(Err(error.into()))),
            },
        }
    }

    /// Hands out a request that a tunnel can serve; answers the others.
    fn admit(&mut self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Option<Incoming> {
        let (head, recv) = request.into_parts();
        let authority = match well_formed(&head) {
            Ok(authority) => authority,
            Err(reason) => {
                tracing::debug!(reason, method = %head.method, "refused a request that is not a CONNECT to somewhere");
                answer(&mut respond, StatusCode::BAD_REQUEST);
                return None;
            }
        };
        self.pulse.touch();
        let said = (authority, head.headers);
        let mut incoming = Incoming::new(said, (recv, respond), self.windows.share().credit(), &self.in_hand);
        // Nobody waits for an answer, so nobody should work for one. Dropped, it counts as cancelled.
        if incoming.is_cancelled() { None } else { Some(incoming) }
    }

    fn poll_health(&mut self, cx: &mut Context<'_>) -> Poll<Health> {
        let snapshot = self.control.snapshot();
        let cancelled = self.in_hand.take_cancelled();
        let too_many = cancelled > 0 && !self.cancelled.spend(f64::from(cancelled), Instant::now());
        if let Some(abuse) = snapshot.abuse.or(too_many.then_some(Abuse::CancelledStreams)) {
            self.refuse(TunnelError::Abuse(abuse), Reason::ENHANCE_YOUR_CALM);
            return Poll::Ready(Health::Changed);
        }
        match self.pulse.poll(cx, snapshot.received, self.connection.has_streams()) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Beat::Silent) => Poll::Ready(Health::Gone(TunnelError::Silent)),
            Poll::Ready(Beat::Idle) => {
                match self.phase {
                    Phase::Open => self.drain(),
                    // It was told, and did not go.
                    Phase::Draining | Phase::Refusing(..) | Phase::Ended => {
                        self.refuse(TunnelError::Idle, Reason::NO_ERROR);
                    }
                }
                Poll::Ready(Health::Changed)
            }
        }
    }

    fn refuse(&mut self, error: TunnelError, reason: Reason) {
        self.connection.abrupt_shutdown(reason);
        self.phase = Phase::Refusing(error, Box::pin(tokio::time::sleep(GOODBYE)));
    }

    fn poll_refusing(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Incoming, TunnelError>>> {
        self.control.begin();
        let closed = self.connection.poll_closed(cx).is_ready();
        let failed = self.control.flush(cx).is_err();
        let Phase::Refusing(error, deadline) = &mut self.phase else { return Poll::Pending };
        if closed || failed || deadline.as_mut().poll(cx).is_ready() {
            let error = error.clone();
            return self.end(Some(error));
        }
        Poll::Pending
    }

    fn end(&mut self, error: Option<TunnelError>) -> Poll<Option<Result<Incoming, TunnelError>>> {
        self.phase = Phase::Ended;
        Poll::Ready(error.map(Err))
    }
}

enum Health {
    /// The phase changed: look again.
    Changed,
    Gone(TunnelError),
}

/// The authority of a CONNECT that can be served, or what is wrong with it.
fn well_formed(head: &http::request::Parts) -> Result<Authority, &'static str> {
    if head.method != Method::CONNECT {
        return Err("the method is not CONNECT");
    }
    if head.extensions.get::<h2::ext::Protocol>().is_some() {
        return Err("extended CONNECT");
    }
    match head.uri.authority() {
        None => Err("no authority"),
        // Names that a parser further on may read differently are not passed on.
        Some(authority) if authority.as_str().contains('@') => Err("user information in the authority"),
        Some(authority) => Ok(authority.clone()),
    }
}
