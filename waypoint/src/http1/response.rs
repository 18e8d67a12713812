//! The head of a response: read strictly, kept as offsets into one buffer.

use std::mem::MaybeUninit;
use std::ops::Range;

use model::l7::Headers;

use super::framing::Framing;
use super::head::{self, Fields, Options, Slots, Span};
use super::limits::FIELDS_MAX;
use super::refusal::Refusal;
use super::request::RequestHead;
use crate::decide::{AnyRequest, AnyResponse};

/// A response as it arrived, without its body.
#[derive(Debug)]
pub struct ResponseHead {
    pub(super) fields: Fields,
    reason: Span,
    status: u16,
    is_old: bool,
    options: Options,
    length: Option<u64>,
    chunked: bool,
}

impl ResponseHead {
    /// Reads the head that is at `range` of `bytes`.
    pub(super) fn parse(bytes: &[u8], range: Range<usize>) -> Result<Self, Refusal> {
        let head = &bytes[range];
        let mut slots: Slots<'_> = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        let result = config.parse_response_with_uninit_headers(&mut parsed, head, &mut slots);
        let result = result.map_err(|error| head::refusal(error, head))?;
        let (Some(status), Some(minor)) = (parsed.code, parsed.version) else {
            return Err(Refusal::StartLine);
        };
        if result != httparse::Status::Complete(head.len()) || !(100..600).contains(&status) {
            return Err(Refusal::StartLine);
        }
        // httparse hands out an empty reason that is not a part of the head.
        let reason = parsed.reason.filter(|reason| !reason.is_empty());
        let mut fields = Fields::new(head, parsed.headers);
        let options = fields.connection()?;
        let (length, chunked) = (fields.length()?, fields.is_chunked()?);
        if chunked && length.is_some() {
            return Err(Refusal::CodingAndLength);
        }
        if chunked && minor == 0 {
            return Err(Refusal::Coding);
        }
        let reason = reason.map_or_else(Span::default, |reason| Span::of(head, reason.as_bytes()));
        Ok(Self { fields, reason, status, is_old: minor == 0, options, length, chunked })
    }

    /// The fields, as they arrived.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Where the body ends of a response to this request.
    pub fn framing(&self, request: &RequestHead) -> Framing {
        if request.method() == "HEAD"
            || matches!(self.status, 100..200 | 204 | 304)
            || self.is_tunnel(request)
        {
            return Framing::None;
        }
        match self.length {
            _ if self.chunked => Framing::Chunked,
            Some(0) => Framing::None,
            Some(length) => Framing::Length(length),
            None => Framing::UntilClose,
        }
    }

    /// Whether the connection carries something else from here on.
    pub fn is_tunnel(&self, request: &RequestHead) -> bool {
        self.status == 101 || (request.method() == "CONNECT" && (200..300).contains(&self.status))
    }

    /// Whether another response follows, to the same request.
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }

    pub(super) fn keeps_alive(&self) -> bool {
        !self.options.close && (!self.is_old || self.options.keep_alive)
    }

    pub(super) fn length(&self) -> Option<u64> {
        self.length
    }

    pub(super) fn is_chunked(&self) -> bool {
        self.chunked
    }

    pub(super) fn reason(&self) -> &[u8] {
        self.fields.slice(self.reason)
    }
}

impl Headers for ResponseHead {
    fn each<'a>(&'a self, name: &str, each: &mut dyn FnMut(&'a [u8])) {
        self.fields.all(name).for_each(each);
    }
}

impl AnyResponse for ResponseHead {
    fn status(&self) -> u16 {
        self.status
    }
}
