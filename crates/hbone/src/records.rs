//! TLS records over a byte stream, once rustls has made the keys: content is sealed and opened where it lies, in batches,
//! and nothing is sent before `flush`. Owns key updates, alerts and the detection of a cut stream (RFC 8446, sections 4.6,
//! 5 and 6). Knows no HTTP/2, and derives no keys.

use std::task::{Context, Poll, ready};

use rustls::kernel::KernelConnection;
use rustls::{
    AlertDescription, ContentType, Error, ExtractedSecrets, HandshakeType, InvalidMessage, PeerMisbehaved,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::protection::{CONTENT, HEAD, Protection, TAIL, whole};
use crate::record_error::RecordError;
use crate::session::Session;
use crate::wire::Wire;

/// Records without data that a peer may send in a row: tickets, key updates, empty ones. Each costs us work and brings
/// nothing; other TLS stacks end a connection at the same number.
const BARREN: u32 = 32;

/// The largest handshake message that is put together from several records; a ticket has a few hundred bytes.
const MESSAGE: usize = 64 * 1024;

/// A KeyUpdate that asks for none in return (section 4.6.3).
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// The record layer of one tunnel.
pub(crate) struct Records<Io, S: Session> {
    wire: Wire<Io>,
    keys: KernelConnection<S::Side>,
    seals: Protection,
    opens: Protection,
    /// Records that one key may seal, by its suite; the last is for the KeyUpdate.
    limit: u64,
    /// The last bytes of `wire.sealed`, of a record that still gathers content, its head's room included; or zero.
    gathering: usize,
    /// The first bytes of `wire.raw`, content of an opened record that is not taken yet, and what follows it there.
    opened: usize,
    behind: usize,
    /// A handshake message whose end has not arrived.
    message: Vec<u8>,
    /// See `BARREN`.
    barren: u32,
    /// The peer asked for a KeyUpdate.
    owes_update: bool,
    peer_closed: bool,
    said_goodbye: bool,
}

impl<Io, S> Records<Io, S>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    S: Session,
{
    pub(crate) fn new(
        wire: Wire<Io>,
        secrets: ExtractedSecrets,
        keys: KernelConnection<S::Side>,
    ) -> Result<Self, Error> {
        let suite = keys.negotiated_cipher_suite().tls13().ok_or(Error::HandshakeNotComplete)?;
        Ok(Records {
            wire,
            seals: Protection::new(&secrets.tx.1, secrets.tx.0)?,
            opens: Protection::new(&secrets.rx.1, secrets.rx.0)?,
            limit: suite.common.confidentiality_limit,
            keys,
            gathering: 0,
            opened: 0,
            behind: 0,
            message: Vec::new(),
            barren: 0,
            owes_update: false,
            peer_closed: false,
            said_goodbye: false,
        })
    }

    /// Reads from the socket once. Zero is the end of the stream.
    pub(crate) fn fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, RecordError>> {
        self.wire.fill(cx)
    }

    /// Moves opened content into `into`. Nothing added means: `fill` first (or see `peer_closed`).
    pub(crate) fn next_plain(&mut self, into: &mut ReadBuf<'_>) -> Result<usize, Error> {
        let before = into.filled().len();
        while into.remaining() > 0 && (self.opened > 0 || self.open()?) {
            let count = self.opened.min(into.remaining());
            into.put_slice(&self.wire.raw.filled()[..count]);
            self.wire.raw.consume(count);
            self.opened -= count;
            if self.opened == 0 {
                self.wire.raw.consume(std::mem::take(&mut self.behind));
            }
        }
        self.wire.raw.release();
        Ok(into.filled().len() - before)
    }

    /// Takes content; it gathers in full records, and is sent by `flush`.
    /// The caller keeps `pending` below 256 KiB, which is what the buffer has room for.
    pub(crate) fn put(&mut self, mut data: &[u8]) -> Result<(), Error> {
        while !data.is_empty() {
            if self.gathering == 0 {
                self.begin_record()?;
            }
            let count = data.len().min(HEAD + CONTENT - self.gathering);
            self.wire.sealed.push(&data[..count]);
            self.gathering += count;
            data = &data[count..];
            if self.gathering == HEAD + CONTENT {
                self.end_record(ContentType::ApplicationData)?;
            }
        }
        Ok(())
    }

    /// Bytes that wait to be sent.
    pub(crate) fn pending(&self) -> usize {
        self.wire.sealed.len()
    }

    /// Seals what has gathered and sends until everything is sent or the socket is full. To a peer that takes nothing any
    /// more everything counts as sent: `fill` knows the error.
    pub(crate) fn flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RecordError>> {
        loop {
            // While earlier records wait for the socket, later messages keep gathering in one record.
            ready!(self.wire.send(cx, self.gathering));
            if self.gathering > 0 {
                self.end_record(ContentType::ApplicationData).map_err(RecordError::Tls)?;
            } else if self.owes_update && !self.said_goodbye {
                self.update_keys().map_err(RecordError::Tls)?;
            } else {
                self.wire.sealed.release();
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Says goodbye, sends what waits, and closes our direction.
    pub(crate) fn shutdown(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RecordError>> {
        if !self.said_goodbye {
            self.say(AlertDescription::CloseNotify).map_err(RecordError::Tls)?;
        }
        ready!(self.flush(cx))?;
        match ready!(self.wire.close(cx)) {
            Err(error) if !self.peer_closed && !self.wire.is_deaf() => Poll::Ready(Err(error.into())),
            Ok(()) | Err(_) => Poll::Ready(Ok(())),
        }
    }

    /// After an error: sends the alert that explains it, as far as the socket takes it at once.
    pub(crate) fn flush_alert(&mut self, cx: &mut Context<'_>, error: &Error) {
        // The peer knows.
        if matches!(error, Error::AlertReceived(_)) {
            return;
        }
        let description = explained(error);
        if !self.said_goodbye && self.say(description).is_ok() {
            let _ = self.flush(cx);
        }
    }

    /// True when the peer closed its direction properly and everything before that was taken.
    pub(crate) fn peer_closed(&self) -> bool {
        self.peer_closed && self.opened == 0
    }

    /// Bytes read from the socket so far.
    pub(crate) fn received(&self) -> u64 {
        self.wire.received()
    }

    fn begin_record(&mut self) -> Result<(), Error> {
        if self.owes_update || self.seals.used() + 1 >= self.limit {
            self.update_keys()?;
        }
        self.wire.sealed.push(&[0; HEAD]);
        self.gathering = HEAD;
        Ok(())
    }

    fn end_record(&mut self, kind: ContentType) -> Result<(), Error> {
        self.wire.sealed.push(&[0; TAIL]);
        let record = std::mem::take(&mut self.gathering) + TAIL;
        let start = self.wire.sealed.len() - record;
        self.seals.seal(kind, &mut self.wire.sealed.filled()[start..])
    }

    /// A record of its own for a message of the protocol itself.
    fn seal_message(&mut self, kind: ContentType, content: &[u8]) -> Result<(), Error> {
        if self.gathering > 0 {
            self.end_record(ContentType::ApplicationData)?;
        }
        self.wire.sealed.push(&[0; HEAD]);
        self.wire.sealed.push(content);
        self.gathering = HEAD + content.len();
        self.end_record(kind)
    }

    /// Tells the peer that the next record has another key, and makes that key (section 4.6.3).
    fn update_keys(&mut self) -> Result<(), Error> {
        self.owes_update = false;
        self.seal_message(ContentType::Handshake, &KEY_UPDATE)?;
        let (sequence, secrets) = self.keys.update_tx_secret()?;
        self.seals = Protection::new(&secrets, sequence)?;
        Ok(())
    }

    /// The last record of ours. A goodbye is a warning, everything else is fatal (section 6).
    fn say(&mut self, description: AlertDescription) -> Result<(), Error> {
        self.said_goodbye = true;
        let level = if description == AlertDescription::CloseNotify { 1 } else { 2 };
        self.seal_message(ContentType::Alert, &[level, description.into()])
    }

    /// Opens records until one brings data. False when none has arrived in full, or none will.
    fn open(&mut self) -> Result<bool, Error> {
        while !self.peer_closed {
            let Some(sealed) = whole(self.wire.raw.filled())? else { return Ok(false) };
            let record = &mut self.wire.raw.filled()[..HEAD + sealed];
            let (kind, length) = self.opens.open(record)?;
            if kind != ContentType::Handshake && !self.message.is_empty() {
                return Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into());
            }
            if kind == ContentType::ApplicationData && length > 0 {
                self.wire.raw.consume(HEAD);
                (self.opened, self.behind, self.barren) = (length, sealed - length, 0);
                return Ok(true);
            }
            self.barren += 1;
            if self.barren > BARREN {
                return Err(PeerMisbehaved::TooManyEmptyFragments.into());
            }
            let content = &record[HEAD..HEAD + length];
            if kind == ContentType::Alert {
                self.peer_closed = closes(content)?;
            } else if kind == ContentType::Handshake && length > 0 {
                self.message.extend_from_slice(content);
                self.read_messages()?;
            } else if kind != ContentType::ApplicationData {
                return Err(InvalidMessage::UnexpectedMessage("a record of another type than data").into());
            }
            self.wire.raw.consume(HEAD + sealed);
        }
        // What follows a goodbye counts for nothing.
        self.wire.raw.consume(self.wire.raw.len());
        Ok(false)
    }

    /// What a peer may still say in handshake messages after the handshake.
    fn read_messages(&mut self) -> Result<(), Error> {
        while let [kind, a, b, c, rest @ ..] = &self.message[..] {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            if length > MESSAGE {
                return Err(InvalidMessage::HandshakePayloadTooLarge.into());
            }
            let Some(body) = rest.get(..length) else { return Ok(()) };
            let kind = HandshakeType::from(*kind);
            if kind == HandshakeType::KeyUpdate {
                self.owes_update |= match body {
                    [0] => false,
                    [1] => true,
                    _ => return Err(InvalidMessage::InvalidKeyUpdate.into()),
                };
                // What comes after it has the new key: it cannot be in the same record (section 5.1).
                if rest.len() > length {
                    return Err(PeerMisbehaved::KeyEpochWithPendingFragment.into());
                }
                let (sequence, secrets) = self.keys.update_rx_secret()?;
                self.opens = Protection::new(&secrets, sequence)?;
            } else if kind != HandshakeType::NewSessionTicket || !S::MAY_GET_TICKETS {
                let expect_types = vec![HandshakeType::NewSessionTicket, HandshakeType::KeyUpdate];
                return Err(Error::InappropriateHandshakeMessage { expect_types, got_type: kind });
            }
            // A ticket is dropped: we never resume a session.
            self.message.drain(..4 + length);
        }
        Ok(())
    }
}

/// True for a goodbye. Every other alert is an error, whatever level it claims (section 6), but for the one that says that
/// a goodbye will follow.
fn closes(alert: &[u8]) -> Result<bool, Error> {
    let [_, description] = alert else {
        return Err(InvalidMessage::MissingData("AlertMessagePayload").into());
    };
    let description = AlertDescription::from(*description);
    if matches!(description, AlertDescription::CloseNotify | AlertDescription::UserCanceled) {
        return Ok(description == AlertDescription::CloseNotify);
    }
    Err(Error::AlertReceived(description))
}

/// What a peer is told about its mistake.
fn explained(error: &Error) -> AlertDescription {
    if matches!(error, Error::DecryptError) {
        AlertDescription::BadRecordMac
    } else if matches!(error, Error::PeerSentOversizedRecord) {
        AlertDescription::RecordOverflow
    } else if matches!(
        error,
        Error::PeerMisbehaved(_)
            | Error::InappropriateHandshakeMessage { .. }
            | Error::InvalidMessage(InvalidMessage::UnexpectedMessage(_))
    ) {
        AlertDescription::UnexpectedMessage
    } else if matches!(error, Error::InvalidMessage(_)) {
        AlertDescription::DecodeError
    } else {
        AlertDescription::InternalError
    }
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
