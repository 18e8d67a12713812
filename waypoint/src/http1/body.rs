//! Bodies: walks over their bytes as they arrive and says what each run of bytes is. Forwards nothing, holds nothing, and
//! gives the same answer however the bytes are cut.

use super::framing::Framing;
use super::limits::{CHUNK_DIGITS_MAX, EXTENSION_BYTES_MAX, TRAILER_BYTES_MAX, TRAILERS_MAX};
use super::refusal::Refusal;
use crate::decide::is_framing;

/// What a run of bytes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Part of the framing that nobody needs: chunk extensions. Not forwarded, so that nobody disagrees about them.
    Dropped,
    /// Chunk sizes, line ends, trailers.
    Framing,
    /// What the body is about.
    Payload,
}

/// Bytes of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) kind: Kind,
    pub(super) len: usize,
}

/// One body, as far as it has been walked over.
#[derive(Debug)]
pub(super) struct Body {
    state: State,
    extensions: usize,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Data(u64),
    /// CR, then LF, are missing after a chunk.
    DataCr,
    DataLf,
    Done,
    Extension(u64),
    Length(u64),
    Size {
        value: u64,
        digits: u8,
    },
    /// LF is missing after a size.
    SizeLf(u64),
    Trailers,
    UntilClose,
}

const SIZE: State = State::Size { value: 0, digits: 0 };

impl Body {
    pub(super) fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Chunked => SIZE,
            Framing::Length(length) => State::Length(length),
            Framing::None => State::Done,
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, extensions: 0 }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// The stream has ended; whether the body may end so.
    pub(super) fn end(&mut self) -> bool {
        if matches!(self.state, State::UntilClose) {
            self.state = State::Done;
        }
        self.is_done()
    }

    /// The next run at the beginning of `bytes`; `None` when more bytes are needed, or the body is done.
    pub(super) fn next(&mut self, bytes: &[u8]) -> Result<Option<Run>, Refusal> {
        let Some(first) = bytes.first().copied() else { return Ok(None) };
        let run = |kind, len| Ok(Some(Run { kind, len }));
        match self.state {
            State::Done => Ok(None),
            State::UntilClose => run(Kind::Payload, bytes.len()),
            State::Length(left) => {
                let len = at_most(bytes, left);
                let left = left - len as u64;
                self.state = if left == 0 { State::Done } else { State::Length(left) };
                run(Kind::Payload, len)
            }
            State::Data(left) => {
                let len = at_most(bytes, left);
                let left = left - len as u64;
                self.state = if left == 0 { State::DataCr } else { State::Data(left) };
                run(Kind::Payload, len)
            }
            State::DataCr => self.expect(first == b'\r', State::DataLf),
            State::DataLf => self.expect(first == b'\n', SIZE),
            State::SizeLf(0) => self.expect(first == b'\n', State::Trailers),
            State::SizeLf(size) => self.expect(first == b'\n', State::Data(size)),
            State::Size { value, digits } => self.size(bytes, value, digits),
            State::Extension(size) => self.extension(bytes, size),
            State::Trailers => self.trailers(bytes),
        }
    }

    fn expect(&mut self, found: bool, next: State) -> Result<Option<Run>, Refusal> {
        if !found {
            return Err(Refusal::Chunk);
        }
        self.state = next;
        Ok(Some(Run { kind: Kind::Framing, len: 1 }))
    }

    fn size(&mut self, bytes: &[u8], mut value: u64, mut digits: u8) -> Result<Option<Run>, Refusal> {
        let mut len = 0;
        for byte in bytes {
            let Some(digit) = char::from(*byte).to_digit(16) else { break };
            if digits == CHUNK_DIGITS_MAX {
                return Err(Refusal::Chunk);
            }
            value = value << 4 | u64::from(digit);
            digits += 1;
            len += 1;
        }
        self.state = match bytes.get(len) {
            None => State::Size { value, digits },
            Some(_) if digits == 0 => return Err(Refusal::Chunk),
            Some(b'\r') => {
                len += 1;
                State::SizeLf(value)
            }
            Some(b';') => State::Extension(value),
            Some(_) => return Err(Refusal::Chunk),
        };
        if len == 0 {
            return self.next(bytes);
        }
        Ok(Some(Run { kind: Kind::Framing, len }))
    }

    fn extension(&mut self, bytes: &[u8], size: u64) -> Result<Option<Run>, Refusal> {
        let len = bytes.iter().position(|byte| *byte != b'\t' && byte.is_ascii_control());
        if let Some(len) = len
            && bytes[len] != b'\r'
        {
            return Err(Refusal::ChunkExtension);
        }
        if len == Some(0) {
            self.state = State::SizeLf(size);
            return Ok(Some(Run { kind: Kind::Framing, len: 1 }));
        }
        let len = len.unwrap_or(bytes.len());
        self.extensions += len;
        if self.extensions > EXTENSION_BYTES_MAX {
            return Err(Refusal::ChunkExtension);
        }
        Ok(Some(Run { kind: Kind::Dropped, len }))
    }

    fn trailers(&mut self, bytes: &[u8]) -> Result<Option<Run>, Refusal> {
        let Some(len) = trailers_end(bytes)? else { return Ok(None) };
        check_trailers(&bytes[..len])?;
        self.state = State::Done;
        Ok(Some(Run { kind: Kind::Framing, len }))
    }
}

fn at_most(bytes: &[u8], left: u64) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len())
}

/// Where the trailer section at the beginning of `bytes` ends, its empty line included.
fn trailers_end(bytes: &[u8]) -> Result<Option<usize>, Refusal> {
    let bytes = &bytes[..bytes.len().min(TRAILER_BYTES_MAX)];
    let mut line = 0;
    for at in memchr::memchr_iter(b'\n', bytes) {
        if at == 0 || bytes[at - 1] != b'\r' {
            return Err(Refusal::BareLineFeed);
        }
        if at == line + 1 {
            return Ok(Some(at + 1));
        }
        line = at + 1;
    }
    if bytes.len() == TRAILER_BYTES_MAX { Err(Refusal::TrailersTooLarge) } else { Ok(None) }
}

/// Fields that say how to read or where to send a message come too late in a trailer (RFC 9110, section 6.5.1).
fn check_trailers(section: &[u8]) -> Result<(), Refusal> {
    if section == b"\r\n" {
        return Ok(());
    }
    let mut slots = [httparse::EMPTY_HEADER; TRAILERS_MAX];
    match httparse::parse_headers(section, &mut slots) {
        Ok(httparse::Status::Complete((len, fields))) if len == section.len() => {
            if fields.iter().any(|field| is_framing(field.name)) { Err(Refusal::Trailers) } else { Ok(()) }
        }
        _ => Err(Refusal::Trailers),
    }
}
