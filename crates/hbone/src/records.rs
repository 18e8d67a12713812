//! TLS records over a byte stream, by rustls' unbuffered API: bytes are opened and sealed in buffers of ours, in
//! batches, and nothing is sent before `flush`. Owns the handshake, key updates, alerts and the detection of a cut
//! stream. Knows no HTTP/2, and makes no TLS decision: the configuration comes from outside.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::pki_types::CertificateDer;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::buffers::{Buffer, LARGE, SMALL, TUNNEL, Window};
use crate::record_error::RecordError;
use crate::session::Session;

/// The largest plaintext of one record (RFC 8446, section 5.1).
const RECORD: usize = 16 * 1024;
/// Room for one sealed record or a small flight before the buffer counts as full.
const HEADROOM: usize = 18 * 1024;

/// How far one turn of the session went.
enum Step {
    /// Something happened; there may be more.
    Progress,
    /// The handshake needs more bytes from the peer.
    Handshaking,
    /// Nothing more to open; application data may be sealed.
    Traffic,
    /// The peer said goodbye.
    Closed,
}

/// What a turn of the session may do with plaintext.
struct Turn<'a, 'b, 'c> {
    /// Where opened plaintext goes first; what does not fit is kept.
    into: Option<&'a mut ReadBuf<'b>>,
    /// Plaintext to seal as soon as the session allows it.
    seal: Option<&'c [u8]>,
}

/// The record layer of one tunnel.
pub(crate) struct Records<Io, S> {
    io: Io,
    session: S,
    /// Received, not yet opened.
    raw: Window,
    /// Opened, not yet taken.
    plain: Window,
    /// Given to `put`, not yet sealed: one record's worth.
    staged: Option<Buffer>,
    staged_len: usize,
    /// Sealed, not yet sent.
    sealed: Window,
    /// Why the peer hears us no more. What it said before it closed explains that better, so it is read first.
    deaf: Option<RecordError>,
    peer_closed: bool,
    said_goodbye: bool,
    received: u64,
}

impl<Io, S> Records<Io, S>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    S: Session,
{
    pub(crate) fn new(io: Io, session: S) -> Self {
        Records {
            io,
            session,
            raw: Window::default(),
            plain: Window::default(),
            staged: None,
            staged_len: 0,
            sealed: Window::default(),
            deaf: None,
            peer_closed: false,
            said_goodbye: false,
            received: 0,
        }
    }

    /// Runs the handshake. Plaintext that arrives together with the peer's last flight is kept for `next_plain`.
    /// Our own last flight may still be waiting for the first `flush`.
    pub(crate) fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RecordError>> {
        loop {
            let step = match self.turn(&mut Turn { into: None, seal: None }) {
                Ok(step) => step,
                Err(error) => {
                    self.flush_alert(cx);
                    return Poll::Ready(Err(RecordError::Tls(error)));
                }
            };
            match step {
                Step::Progress => {}
                Step::Traffic if !self.session.common().is_handshaking() => return Poll::Ready(Ok(())),
                Step::Closed => return Poll::Ready(Err(RecordError::Truncated)),
                Step::Handshaking | Step::Traffic => {
                    // Reading goes on although a flight is not fully sent yet: the peer may be waiting for us to read.
                    if let Poll::Ready(result) = self.flush(cx) {
                        result?;
                    }
                    if ready!(self.fill(cx))? == 0 {
                        return Poll::Ready(Err(RecordError::Truncated));
                    }
                }
            }
        }
    }

    /// Reads from the socket once. Zero is the end of the stream. A peer that stopped listening to us is heard out; then
    /// that is the error.
    pub(crate) fn fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, RecordError>> {
        let spare = self.raw.spare(LARGE.min(TUNNEL - self.raw.len()));
        if spare.is_empty() {
            // Cannot happen while rustls bounds a handshake message to 64 KiB; never loop on it if that changes.
            return Poll::Ready(Err(RecordError::Tls(rustls::Error::PeerSentOversizedRecord)));
        }
        let room = spare.len().min(LARGE);
        let mut buf = ReadBuf::new(&mut spare[..room]);
        match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
            Poll::Pending => {
                self.raw.release();
                Poll::Pending
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.deaf.clone().unwrap_or(error.into()))),
            Poll::Ready(Ok(())) => {
                let count = buf.filled().len();
                self.raw.grow(count);
                self.received += count as u64;
                match &self.deaf {
                    Some(error) if count == 0 => Poll::Ready(Err(error.clone())),
                    _ => Poll::Ready(Ok(count)),
                }
            }
        }
    }

    /// Moves opened plaintext into `into`. Nothing added means: `fill` first (or see `peer_closed`).
    pub(crate) fn next_plain(&mut self, into: &mut ReadBuf<'_>) -> Result<usize, rustls::Error> {
        let before = into.filled().len();
        if self.plain.len() > 0 {
            let count = self.plain.len().min(into.remaining());
            into.put_slice(&self.plain.filled()[..count]);
            self.plain.consume(count);
        }
        while into.remaining() > 0 && !self.peer_closed && self.raw.len() > 0 {
            match self.turn(&mut Turn { into: Some(into), seal: None })? {
                Step::Progress => {}
                Step::Handshaking | Step::Traffic | Step::Closed => break,
            }
        }
        self.plain.release();
        Ok(into.filled().len() - before)
    }

    /// Takes plaintext; it is sealed in full records, and sent by `flush`.
    /// The caller keeps `pending` below 256 KiB, which is what the buffer has room for.
    pub(crate) fn put(&mut self, mut data: &[u8]) -> Result<(), rustls::Error> {
        while !data.is_empty() {
            if self.staged_len == 0 && data.len() >= RECORD {
                let (record, rest) = data.split_at(RECORD);
                self.seal(record)?;
                data = rest;
                continue;
            }
            let staged = self.staged.get_or_insert_with(|| Buffer::with_room(SMALL));
            let count = data.len().min(RECORD - self.staged_len);
            staged.as_mut()[self.staged_len..self.staged_len + count].copy_from_slice(&data[..count]);
            self.staged_len += count;
            data = &data[count..];
            if self.staged_len == RECORD {
                self.seal_staged()?;
            }
        }
        Ok(())
    }

    /// Bytes that wait to be sent.
    pub(crate) fn pending(&self) -> usize {
        self.sealed.len() + self.staged_len
    }

    /// Seals what is staged and sends until everything is sent or the socket is full. To a peer that takes nothing any
    /// more everything counts as sent: `fill` knows the error.
    pub(crate) fn flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RecordError>> {
        loop {
            // While earlier records wait for the socket, later messages keep gathering in one record.
            if self.staged_len > 0 && (self.sealed.len() == 0 || self.staged_len == RECORD) {
                self.seal_staged().map_err(RecordError::Tls)?;
            }
            if self.sealed.len() == 0 {
                self.sealed.release();
                return Poll::Ready(Ok(()));
            }
            if self.deaf.is_some() {
                self.sealed.consume(self.sealed.len());
                continue;
            }
            match ready!(Pin::new(&mut self.io).poll_write(cx, self.sealed.filled())) {
                Ok(count) if count > 0 => self.sealed.consume(count),
                Ok(_) => self.deaf = Some(io::Error::from(io::ErrorKind::WriteZero).into()),
                Err(error) => self.deaf = Some(error.into()),
            }
        }
    }

    /// Says goodbye, sends what waits, and closes our direction.
    pub(crate) fn shutdown(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RecordError>> {
        if !self.said_goodbye {
            self.said_goodbye = true;
            self.seal_staged().map_err(RecordError::Tls)?;
            self.seal_goodbye();
        }
        ready!(self.flush(cx))?;
        match ready!(Pin::new(&mut self.io).poll_shutdown(cx)) {
            Err(error) if !self.peer_closed && self.deaf.is_none() => Poll::Ready(Err(error.into())),
            Ok(()) | Err(_) => Poll::Ready(Ok(())),
        }
    }

    /// After an error: sends the alert that explains it, as far as the socket takes it at once.
    pub(crate) fn flush_alert(&mut self, cx: &mut Context<'_>) {
        // A failed session still hands out what it queued; asking it once more would open the bad record again.
        while self.session.common().wants_write() {
            if self.turn(&mut Turn { into: None, seal: None }).is_err() {
                break;
            }
        }
        let _ = self.flush(cx);
    }

    /// True when the peer closed its direction properly and everything before that was taken.
    pub(crate) fn peer_closed(&self) -> bool {
        self.peer_closed && self.plain.len() == 0
    }

    /// Bytes read from the socket so far.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// The peer's certificates, leaf first.
    pub(crate) fn peer_certificates(&self) -> Vec<CertificateDer<'static>> {
        self.session.common().peer_certificates().map(<[_]>::to_vec).unwrap_or_default()
    }

    /// The application protocol both sides agreed on.
    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        self.session.common().alpn_protocol()
    }

    fn seal_staged(&mut self) -> Result<(), rustls::Error> {
        let Some(staged) = self.staged.take() else { return Ok(()) };
        let len = std::mem::take(&mut self.staged_len);
        self.seal(&staged.as_ref()[..len])
    }

    fn seal(&mut self, data: &[u8]) -> Result<(), rustls::Error> {
        let mut turn = Turn { into: None, seal: Some(data) };
        while turn.seal.is_some() {
            match self.turn(&mut turn)? {
                Step::Progress | Step::Traffic => {}
                Step::Handshaking => return Err(rustls::Error::HandshakeNotComplete),
                // Both sides have said goodbye: there is nobody to send to.
                Step::Closed => return Ok(()),
            }
        }
        Ok(())
    }

    fn seal_goodbye(&mut self) {
        // Only `WriteTraffic` can say goodbye; a session that is not there has nobody to say it to.
        for _ in 0..8 {
            let Self { session, raw, sealed, .. } = self;
            let UnbufferedStatus { discard, state } = session.process(raw.filled());
            let done = match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    if let Ok(count) = traffic.queue_close_notify(sealed.spare(HEADROOM)) {
                        sealed.grow(count);
                    }
                    true
                }
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while traffic.next_record().is_some() {}
                    false
                }
                Ok(ConnectionState::TransmitTlsData(transmit)) => {
                    transmit.done();
                    false
                }
                Ok(ConnectionState::PeerClosed) => false,
                Ok(_) | Err(_) => true,
            };
            raw.consume(discard);
            if done {
                return;
            }
        }
    }

    /// Advances the session by one state.
    fn turn(&mut self, turn: &mut Turn<'_, '_, '_>) -> Result<Step, rustls::Error> {
        let Self { session, raw, plain, sealed, peer_closed, .. } = self;
        let UnbufferedStatus { mut discard, state } = session.process(raw.filled());
        let step = match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    deliver(record.payload, turn.into.as_deref_mut(), plain);
                }
                Ok(Step::Progress)
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(sealed, |room| match data.encode(room) {
                    Ok(count) => Ok(count),
                    Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
                        Err(required_size)
                    }
                    Err(EncodeError::AlreadyEncoded) => Ok(0),
                })?;
                Ok(Step::Progress)
            }
            Ok(ConnectionState::TransmitTlsData(transmit)) => {
                // It is in `sealed`, in order: sending it is `flush`'s business.
                transmit.done();
                Ok(Step::Progress)
            }
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                if let Some(data) = turn.seal.take() {
                    encode(sealed, |room| match traffic.encrypt(data, room) {
                        Ok(count) => Ok(count),
                        Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size })) => {
                            Err(required_size)
                        }
                        Err(EncryptError::EncryptExhausted) => Err(usize::MAX),
                    })?;
                }
                Ok(Step::Traffic)
            }
            Ok(ConnectionState::BlockedHandshake) => Ok(Step::Handshaking),
            Ok(ConnectionState::PeerClosed) => {
                *peer_closed = true;
                // After the peer's goodbye we may still send: go on to the next state.
                Ok(Step::Progress)
            }
            Ok(ConnectionState::Closed) => {
                *peer_closed = true;
                Ok(Step::Closed)
            }
            // Early data is never enabled by our configurations, and a state that we do not know cannot be acted on.
            Ok(_) => Err(rustls::Error::General("unexpected TLS state".into())),
            Err(error) => Err(error),
        };
        raw.consume(discard);
        step
    }
}

/// Hands plaintext to the reader; what it has no room for is kept.
fn deliver(payload: &[u8], into: Option<&mut ReadBuf<'_>>, plain: &mut Window) {
    let taken = match into {
        Some(into) if plain.len() == 0 => {
            let count = payload.len().min(into.remaining());
            into.put_slice(&payload[..count]);
            count
        }
        Some(_) | None => 0,
    };
    if taken < payload.len() {
        plain.push(&payload[taken..]);
    }
}

/// Lets `write` append to `sealed`; `write` answers with what it wrote or what it needs.
fn encode(
    sealed: &mut Window,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, usize>,
) -> Result<(), rustls::Error> {
    match write(sealed.spare(HEADROOM)) {
        Ok(count) => {
            sealed.grow(count);
            Ok(())
        }
        Err(usize::MAX) => Err(rustls::Error::EncryptError),
        Err(required) => {
            let room = sealed.spare(required);
            let count = write(room).map_err(|_| rustls::Error::General("no room for a TLS flight".into()))?;
            sealed.grow(count);
            Ok(())
        }
    }
}
