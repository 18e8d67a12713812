//! What both ends of a tunnel do alike: the handshake of the record layer, the engine's settings, the end of a tunnel
//! and its cause, and the timer that keeps it honest.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong, Reason};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::client::Chain;
use crate::frames::Abuse;
use crate::handshake::Handshake;
use crate::keepalive::{Keepalive, Tick};
use crate::record_error::RecordError;
use crate::records::Records;
use crate::session::Session;

/// The application protocol of a tunnel.
const ALPN: &[u8] = b"h2";

/// How long a peer that is told to go may take to go.
pub(crate) const GOODBYE: Duration = Duration::from_secs(2);

/// Why a tunnel ended, other than by agreement.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TunnelError {
    /// We closed it, because the peer was attacking us or is badly broken.
    #[error("tunnel closed: {0}")]
    Abuse(Abuse),
    /// We closed it, because the peer broke the HTTP/2 protocol.
    #[error("tunnel closed: the peer broke the HTTP/2 protocol ({0})")]
    Broken(Reason),
    /// The peer closed it with this reason.
    #[error("the peer closed the tunnel: {0}")]
    Closed(Reason),
    /// We closed it, because nobody used it and the peer ignored our goodbye.
    #[error("tunnel closed: no stream for too long, and the peer did not take its leave")]
    Idle,
    /// The connection under it failed.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The peer did not answer a PING: it vanished, or the path to it did.
    #[error("the peer did not answer a PING in time; is the path to it interrupted?")]
    Silent,
}

/// The engine's error, or rather what caused it.
pub(crate) fn tunnel_error(error: &h2::Error, cause: Option<RecordError>) -> TunnelError {
    if let Some(cause) = cause {
        return cause.into();
    }
    match error.reason() {
        Some(reason) if error.is_remote() => TunnelError::Closed(reason),
        Some(reason) => TunnelError::Broken(reason),
        None => RecordError::Truncated.into(),
    }
}

/// Why no tunnel came about, below HTTP/2.
pub(crate) enum HandshakeError {
    Records(RecordError),
    NotH2,
}

/// Runs the TLS handshake. Answers with what goes on from there, and who the peer has proven to be.
pub(crate) async fn handshake<Io, S>(io: Io, session: S) -> Result<(Records<Io, S>, Chain), HandshakeError>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    S: Session,
{
    let mut handshake = Handshake::new(io, session);
    poll_fn(|cx| handshake.poll(cx)).await.map_err(HandshakeError::Records)?;
    if handshake.alpn() != Some(ALPN) {
        return Err(HandshakeError::NotH2);
    }
    handshake.finish().map_err(HandshakeError::Records)
}

/// The timer of a tunnel and its PING.
pub(crate) struct Pulse {
    keepalive: Keepalive,
    timer: Pin<Box<Sleep>>,
    ping: Option<PingPong>,
}

/// What the pulse found.
pub(crate) enum Beat {
    /// Nobody used the tunnel for its idle time.
    Idle,
    /// The peer is gone.
    Silent,
}

impl Pulse {
    pub(crate) fn new(keepalive: Keepalive, ping: Option<PingPong>) -> Self {
        let timer = Box::pin(sleep_until(keepalive.first()));
        Pulse { keepalive, timer, ping }
    }

    /// Somebody uses the tunnel, maybe only until before the next look.
    pub(crate) fn touch(&mut self) {
        self.keepalive.touch();
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, received: u64, busy: bool) -> Poll<Beat> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let again = match self.keepalive.tick(Instant::now(), received, busy) {
                Tick::Wait(at) => at,
                Tick::Ping(at) => {
                    self.send_ping(cx);
                    at
                }
                Tick::Idle => {
                    // Asked again later, in case the owner's goodbye is not heard.
                    self.timer.as_mut().reset(Instant::now() + GOODBYE);
                    return Poll::Ready(Beat::Idle);
                }
                Tick::Dead => return Poll::Ready(Beat::Silent),
            };
            self.timer.as_mut().reset(again);
        }
    }

    fn send_ping(&mut self, cx: &mut Context<'_>) {
        let Some(ping) = &mut self.ping else { return };
        // The engine allows one PING at a time and wants its answer fetched before the next.
        let _ = ping.poll_pong(cx);
        // It refuses while the last one is unanswered: then that one serves.
        let _ = ping.send_ping(Ping::opaque());
    }
}
