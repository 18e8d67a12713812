//! The TLS handshake of a tunnel, by rustls' unbuffered API. Owns the flights and the alerts that end it. It hands rustls one
//! record at a time, so that what the peer sends after the handshake stays untouched for the record layer, and makes no
//! TLS decision: the configuration comes from outside.

use std::task::{Context, Poll, ready};

use rustls::ContentType;
use rustls::unbuffered::{ConnectionState, EncodeError, InsufficientSizeError, UnbufferedStatus};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::client::Chain;
use crate::protection::{HEAD, SEALED};
use crate::record_error::RecordError;
use crate::records::Records;
use crate::session::Session;
use crate::wire::Wire;

/// Room for a small flight; rustls says when it needs more.
const FLIGHT: usize = 18 * 1024;

/// How far one turn of the session went.
enum Step {
    /// Something happened; there may be more.
    Progress,
    /// More is needed from the peer.
    Blocked,
    /// Both sides are sure of each other.
    Done,
}

/// A handshake under way.
pub(crate) struct Handshake<Io, S> {
    wire: Wire<Io>,
    session: S,
    /// How much of what was received rustls may see: whole records.
    fed: usize,
}

impl<Io, S> Handshake<Io, S>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    S: Session,
{
    pub(crate) fn new(io: Io, session: S) -> Self {
        Handshake { wire: Wire::new(io), session, fed: 0 }
    }

    /// Runs the handshake. Our last flight may still be waiting for the first `flush` of the records.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RecordError>> {
        loop {
            match self.turn() {
                Ok(Step::Progress) => {}
                Ok(Step::Done) => return Poll::Ready(Ok(())),
                Ok(Step::Blocked) if self.feed() => {}
                Ok(Step::Blocked) => {
                    // Reading goes on although a flight is not fully sent yet: the peer may be waiting for us to read.
                    let _ = self.wire.send(cx, 0);
                    if ready!(self.wire.fill(cx))? == 0 {
                        return Poll::Ready(Err(RecordError::Truncated));
                    }
                }
                Err(error) => {
                    self.send_alert(cx);
                    return Poll::Ready(Err(RecordError::Tls(error)));
                }
            }
        }
    }

    /// The application protocol both sides agreed on.
    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        self.session.common().alpn_protocol()
    }

    /// After the handshake: the record layer goes on with the session's keys. Beside it, who the peer has proven to be.
    pub(crate) fn finish(self) -> Result<(Records<Io, S>, Chain), RecordError> {
        let chain = self.session.common().peer_certificates().map(<[_]>::to_vec).unwrap_or_default();
        let (secrets, keys) = self.session.into_keys().map_err(RecordError::Tls)?;
        let records = Records::new(self.wire, secrets, keys).map_err(RecordError::Tls)?;
        Ok((records, chain))
    }

    /// Lets rustls see one record more. False when none has arrived in full. What is no record at all it sees at
    /// once: it knows what to answer.
    fn feed(&mut self) -> bool {
        let (length, rest) = (self.wire.raw.len(), &self.wire.raw.filled()[self.fed..]);
        let [kind, _, _, high, low, body @ ..] = rest else { return false };
        let claimed = usize::from(*high) << 8 | usize::from(*low);
        if matches!(ContentType::from(*kind), ContentType::Unknown(_)) || claimed > SEALED {
            self.fed = length;
        } else if body.len() >= claimed {
            self.fed += HEAD + claimed;
        } else {
            return false;
        }
        true
    }

    /// A failed session still hands out the alert that it queued; asking it once more would open the bad record again.
    fn send_alert(&mut self, cx: &mut Context<'_>) {
        while self.session.common().wants_write() {
            if self.turn().is_err() {
                break;
            }
        }
        let _ = self.wire.send(cx, 0);
    }

    /// Advances the session by one state.
    fn turn(&mut self) -> Result<Step, rustls::Error> {
        let Self { wire, session, fed } = self;
        let UnbufferedStatus { discard, state } = session.process(&mut wire.raw.filled()[..*fed]);
        let mut done = false;
        let step = match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                let mut room = FLIGHT;
                loop {
                    match data.encode(wire.sealed.spare(room)) {
                        Ok(count) => break wire.sealed.grow(count),
                        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size }))
                            if room < required_size =>
                        {
                            room = required_size;
                        }
                        Err(_) => return Err(rustls::Error::General("no room for a TLS flight".into())),
                    }
                }
                Ok(Step::Progress)
            }
            Ok(ConnectionState::TransmitTlsData(transmit)) => {
                // It is in `sealed`, in order: sending it is `send`'s business.
                transmit.done();
                Ok(Step::Progress)
            }
            Ok(ConnectionState::WriteTraffic(_)) => {
                done = true;
                Ok(Step::Blocked)
            }
            Ok(ConnectionState::BlockedHandshake) => Ok(Step::Blocked),
            // A goodbye in the middle of a handshake; the end of the stream follows.
            Ok(ConnectionState::PeerClosed) => Ok(Step::Progress),
            Ok(ConnectionState::Closed) => Ok(Step::Blocked),
            // Nobody gets to send data before the handshake ends, and a state that we do not know cannot be acted on.
            Ok(_) => Err(rustls::Error::General("unexpected TLS state".into())),
            Err(error) => Err(error),
        };
        wire.raw.consume(discard);
        *fed -= discard;
        if done && !session.common().is_handshaking() { Ok(Step::Done) } else { step }
    }
}
