//! Heads: where one ends in a stream of bytes, its fields as offsets into one buffer, and what each field is to a proxy.
//!
//! Owns what requests and responses have in common. Strict where RFC 9112 lets a recipient be lenient: what two programs
//! could read in two ways is refused.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::limits::{CONNECTION_OPTIONS_MAX, EMPTY_LINES_MAX, FIELDS_MAX, HEAD_BYTES_MAX, START_LINE_MAX};
use super::refusal::Refusal;

/// Where httparse puts what it finds.
pub(super) type Slots<'a> = [MaybeUninit<httparse::Header<'a>>; FIELDS_MAX];

/// Finds the end of a head. Each byte is looked at once, however the bytes are cut into reads.
#[derive(Debug, Default)]
pub(super) struct Finder {
    begin: usize,
    line: usize,
    seen: usize,
    empty: u8,
}

impl Finder {
    /// Finds a request: empty lines may stand before it.
    pub(super) fn request() -> Self {
        Self { empty: EMPTY_LINES_MAX, ..Self::default() }
    }

    /// Finds a response.
    pub(super) fn response() -> Self {
        Self::default()
    }

    /// The head within `bytes`, the same buffer as last time with more at its end.
    pub(super) fn find(&mut self, bytes: &[u8]) -> Result<Option<Range<usize>>, Refusal> {
        for at in memchr::memchr_iter(b'\n', &bytes[self.seen..]) {
            let at = self.seen + at;
            let first = self.line == self.begin;
            if first && at - self.begin > START_LINE_MAX {
                return Err(Refusal::TargetTooLong);
            }
            if at - self.begin >= HEAD_BYTES_MAX {
                return Err(Refusal::HeadTooLarge);
            }
            if at == 0 || bytes[at - 1] != b'\r' {
                return Err(Refusal::BareLineFeed);
            }
            if at > self.line + 1 {
                self.line = at + 1;
            } else if !first {
                return Ok(Some(self.begin..at + 1));
            } else if self.empty == 0 {
                return Err(Refusal::StartLine);
            } else {
                self.empty -= 1;
                self.begin = at + 1;
                self.line = at + 1;
            }
        }
        self.seen = bytes.len();
        let length = bytes.len() - self.begin;
        if self.line == self.begin && length > START_LINE_MAX {
            return Err(Refusal::TargetTooLong);
        }
        if length >= HEAD_BYTES_MAX { Err(Refusal::HeadTooLarge) } else { Ok(None) }
    }
}

/// A piece of a head's buffer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// `part` must lie within `whole`.
    pub(super) fn of(whole: &[u8], part: &[u8]) -> Self {
        let start = part.as_ptr() as usize - whole.as_ptr() as usize;
        Self::new(start, start + part.len())
    }

    pub(super) fn new(start: usize, end: usize) -> Self {
        debug_assert!(start <= end && end <= HEAD_BYTES_MAX, "a head is shorter than that");
        Self { start: start as u32, end: end as u32 }
    }

    pub(super) fn start(self) -> usize {
        self.start as usize
    }

    pub(super) fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// What a field is to a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Coding,
    Connection,
    /// Forwarded as it is.
    EndToEnd,
    Expect,
    /// Of this connection only: Keep-Alive, Proxy-Connection, HTTP2-Settings, and what Connection names.
    Hop,
    Host,
    Length,
    Te,
    Upgrade,
}

impl Role {
    fn of(name: &[u8]) -> Self {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match name.len() {
            2 if is("te") => Self::Te,
            4 if is("host") => Self::Host,
            6 if is("expect") => Self::Expect,
            7 if is("upgrade") => Self::Upgrade,
            10 if is("connection") => Self::Connection,
            10 if is("keep-alive") => Self::Hop,
            14 if is("content-length") => Self::Length,
            14 if is("http2-settings") => Self::Hop,
            16 if is("proxy-connection") => Self::Hop,
            17 if is("transfer-encoding") => Self::Coding,
            _ => Self::EndToEnd,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub(super) name: Span,
    pub(super) value: Span,
    pub(super) role: Role,
}

/// The fields of a head, and the buffer that everything of the head points into.
#[derive(Debug)]
pub struct Fields {
    bytes: Box<[u8]>,
    list: Vec<Field>,
}

/// What the Connection fields say.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Options {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
}

impl Fields {
    /// `parsed` must lie within `head`.
    pub(super) fn new(head: &[u8], parsed: &[httparse::Header<'_>]) -> Self {
        let field = |header: &httparse::Header<'_>| Field {
            name: Span::of(head, header.name.as_bytes()),
            value: Span::of(head, header.value),
            role: Role::of(header.name.as_bytes()),
        };
        Self { bytes: head.into(), list: parsed.iter().map(field).collect() }
    }

    /// Names as they were written, and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.list.iter().map(|field| (self.text(field.name), self.slice(field.value)))
    }

    /// The values of a field, whatever the case of its name.
    pub fn all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        let is_named = move |field: &&Field| self.slice(field.name).eq_ignore_ascii_case(name.as_bytes());
        self.list.iter().filter(is_named).map(|field| self.slice(field.value))
    }

    /// The first value of a field.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.all(name).next()
    }

    /// Bytes of the head that they are of.
    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn list(&self) -> &[Field] {
        &self.list
    }

    pub(super) fn slice(&self, span: Span) -> &[u8] {
        &self.bytes[span.range()]
    }

    /// Of a span that is known to be ASCII: a name, a method, a target.
    pub(super) fn text(&self, span: Span) -> &str {
        std::str::from_utf8(self.slice(span)).expect("the parser let ASCII pass only")
    }

    /// Where a field's line begins; for the index behind the last field, where the empty line does.
    pub(super) fn line(&self, index: usize) -> usize {
        self.list.get(index).map_or(self.bytes.len() - 2, |field| field.name.start())
    }

    pub(super) fn raw(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }

    pub(super) fn with(&self, role: Role) -> impl Iterator<Item = &[u8]> {
        self.list.iter().filter(move |field| field.role == role).map(|field| self.slice(field.value))
    }

    /// Reads Connection, and marks the fields that it names: they are of this connection.
    pub(super) fn connection(&mut self) -> Result<Options, Refusal> {
        let mut options = Options::default();
        let mut count = 0;
        for index in 0..self.list.len() {
            let Field { role: Role::Connection, value, .. } = self.list[index] else { continue };
            let mut rest = value.range();
            while !rest.is_empty() {
                let length = memchr::memchr(b',', &self.bytes[rest.clone()]).unwrap_or(rest.len());
                count += 1;
                if count > CONNECTION_OPTIONS_MAX {
                    return Err(Refusal::Connection);
                }
                self.obey(trimmed(&self.bytes, rest.start..rest.start + length), &mut options)?;
                rest.start = rest.end.min(rest.start + length + 1);
            }
        }
        Ok(options)
    }

    fn obey(&mut self, option: Range<usize>, options: &mut Options) -> Result<(), Refusal> {
        let name = &self.bytes[option];
        if !name.iter().all(|byte| is_token(*byte)) {
            return Err(Refusal::Connection);
        }
        if name.eq_ignore_ascii_case(b"close") {
            options.close = true;
        } else if name.eq_ignore_ascii_case(b"keep-alive") {
            options.keep_alive = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            options.upgrade = true;
        } else {
            for field in &mut self.list {
                if field.role == Role::EndToEnd && name.eq_ignore_ascii_case(&self.bytes[field.name.range()])
                {
                    field.role = Role::Hop;
                }
            }
        }
        Ok(())
    }

    /// The only Content-Length, if there is one.
    pub(super) fn length(&self) -> Result<Option<u64>, Refusal> {
        let mut values = self.with(Role::Length);
        let Some(value) = values.next() else { return Ok(None) };
        // Eighteen digits are an exabyte, and no arithmetic on them overflows.
        let fits = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
        if !fits || values.next().is_some() {
            return Err(Refusal::Length);
        }
        Ok(Some(value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'))))
    }

    /// Whether the body is chunked. Nothing but one `chunked` is understood.
    pub(super) fn is_chunked(&self) -> Result<bool, Refusal> {
        let mut values = self.with(Role::Coding);
        let Some(value) = values.next() else { return Ok(false) };
        if values.next().is_some() {
            return Err(Refusal::Coding);
        }
        if value.eq_ignore_ascii_case(b"chunked") {
            return Ok(true);
        }
        let mut codings = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        let last = codings.next_back().unwrap_or_default();
        let chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
        let known = chunked(last) && !codings.any(chunked);
        Err(if known { Refusal::CodingUnknown } else { Refusal::Coding })
    }
}

/// Whether a comma-separated list has this entry.
pub(super) fn lists(value: &[u8], entry: &str) -> bool {
    value.split(|byte| *byte == b',').any(|found| found.trim_ascii().eq_ignore_ascii_case(entry.as_bytes()))
}

/// What httparse found wrong, in our words. It does not say where, so the head is searched again.
pub(super) fn refusal(error: httparse::Error, head: &[u8]) -> Refusal {
    match error {
        httparse::Error::HeaderName => {
            let mut lines = head.split(|byte| *byte == b'\n').skip(1);
            let folded = lines.any(|line| line.starts_with(b" ") || line.starts_with(b"\t"));
            if folded { Refusal::Folded } else { Refusal::FieldName }
        }
        httparse::Error::HeaderValue => Refusal::FieldValue,
        httparse::Error::TooManyHeaders => Refusal::FieldsTooMany,
        httparse::Error::NewLine | httparse::Error::Status | httparse::Error::Token => Refusal::StartLine,
        httparse::Error::Version => {
            let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
            if names_another_version(line) { Refusal::Version } else { Refusal::StartLine }
        }
    }
}

/// Whether `HTTP/<digit>.<digit>`, and none that we know, stands at the beginning or the end of the line.
fn names_another_version(line: &[u8]) -> bool {
    let mut words = line.split(|byte| *byte == b' ');
    let versions = [words.next(), words.next_back()];
    versions.iter().flatten().any(|word| {
        let number = word.strip_prefix(b"HTTP/").unwrap_or_default();
        matches!(number, [major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit())
            && number != b"1.0"
            && number != b"1.1"
    })
}

pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn trimmed(bytes: &[u8], range: Range<usize>) -> Range<usize> {
    let kept = bytes[range].trim_ascii();
    Span::of(bytes, kept).range()
}
