//! The head of a request: read strictly, kept as offsets into one buffer.

use std::mem::MaybeUninit;
use std::ops::Range;

use model::l7::Headers;

use super::framing::Framing;
use super::head::{self, Fields, Options, Role, Slots, Span};
use super::limits::FIELDS_MAX;
use super::refusal::Refusal;
use super::target::{self, Target};
use super::write;
use crate::decide::{AnyRequest, Copied, RequestEdits};

/// A request as it arrived, without its body.
#[derive(Debug)]
pub struct RequestHead {
    pub(super) fields: Fields,
    method: Span,
    target: Target,
    is_old: bool,
    options: Options,
    framing: Framing,
    upgrades: bool,
}

impl RequestHead {
    /// Reads the head that is at `range` of `bytes`.
    pub(super) fn parse(bytes: &[u8], range: Range<usize>) -> Result<Self, Refusal> {
        let head = &bytes[range];
        let mut slots: Slots<'_> = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let mut parsed = httparse::Request::new(&mut []);
        let status = parsed.parse_with_uninit_headers(head, &mut slots);
        let status = status.map_err(|error| head::refusal(error, head))?;
        let (Some(method), Some(path), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
            return Err(Refusal::StartLine);
        };
        if status != httparse::Status::Complete(head.len()) {
            // The end was found before; whoever sees another end would see another request behind it.
            return Err(Refusal::StartLine);
        }
        let request = Self {
            fields: Fields::new(head, parsed.headers),
            method: Span::of(head, method.as_bytes()),
            target: target::parse(head, method, path)?,
            is_old: minor == 0,
            options: Options::default(),
            framing: Framing::None,
            upgrades: false,
        };
        request.judged()
    }

    /// Applies the rules that concern several fields.
    fn judged(mut self) -> Result<Self, Refusal> {
        self.options = self.fields.connection()?;
        if !self.has_good_host() {
            return Err(Refusal::Host);
        }
        let length = self.fields.length()?;
        let chunked = self.fields.is_chunked()?;
        if chunked && length.is_some() {
            return Err(Refusal::CodingAndLength);
        }
        if chunked && self.is_old {
            return Err(Refusal::Coding);
        }
        if self.method() == "CONNECT" && (chunked || length.is_some()) {
            return Err(if chunked { Refusal::Coding } else { Refusal::Length });
        }
        self.framing = match length {
            _ if chunked => Framing::Chunked,
            None | Some(0) => Framing::None,
            Some(length) => Framing::Length(length),
        };
        self.upgrades = self.asks_to_upgrade();
        Ok(self)
    }

    /// There is one Host, and it is one; HTTP/1.0 does without.
    fn has_good_host(&self) -> bool {
        let mut hosts = self.fields.with(Role::Host);
        let host = hosts.next();
        hosts.next().is_none() && host.map_or(self.is_old, target::is_host)
    }

    /// An upgrade to HTTP/2 would carry requests past every decision, and one with a body has two things to send at
    /// once: both are forwarded as ordinary requests, which a server must expect.
    fn asks_to_upgrade(&self) -> bool {
        let mut protocols = self.fields.with(Role::Upgrade).peekable();
        self.options.upgrade
            && !self.is_old
            && self.framing == Framing::None
            && self.method() != "CONNECT"
            && protocols.peek().is_some()
            && protocols.all(|value| !head::lists(value, "h2c"))
    }

    /// The fields, as they arrived.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Whether it was sent as HTTP/1.0.
    pub fn is_old(&self) -> bool {
        self.is_old
    }

    /// Where its body ends.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Whether it asks for another protocol on this connection, and may.
    pub fn upgrades(&self) -> bool {
        self.upgrades
    }

    /// Whether the client waits for 100 (Continue) before it sends the body.
    pub fn expects_continue(&self) -> bool {
        !self.is_old
            && self.framing != Framing::None
            && self.fields.with(Role::Expect).any(|value| head::lists(value, "100-continue"))
    }

    /// Whether the client leaves the connection open for another request.
    pub(super) fn keeps_alive(&self) -> bool {
        !self.options.close && (!self.is_old || self.options.keep_alive)
    }

    pub(super) fn wants_trailers(&self) -> bool {
        self.fields.with(Role::Te).any(|value| head::lists(value, "trailers"))
    }
}

impl Headers for RequestHead {
    fn each<'a>(&'a self, name: &str, each: &mut dyn FnMut(&'a [u8])) {
        self.fields.all(name).for_each(each);
    }
}

impl AnyRequest for RequestHead {
    fn method(&self) -> &str {
        self.fields.text(self.method)
    }

    fn path(&self) -> &str {
        match self.fields.text(self.target.path) {
            "" if self.method() == "OPTIONS" => "*",
            "" if self.method() != "CONNECT" => "/",
            path => path,
        }
    }

    fn query(&self) -> Option<&str> {
        self.target.query.map(|query| self.fields.text(query))
    }

    // Of the target if it has one (RFC 9112, section 3.2.2), else of Host.
    fn authority(&self) -> &str {
        let host = self.fields.list().iter().find(|field| field.role == Role::Host).map(|field| field.value);
        self.target.authority.or(host).map_or("", |authority| self.fields.text(authority))
    }

    fn copied(&self, edits: &RequestEdits) -> Option<Copied> {
        let length = match self.framing {
            Framing::None => Some(0),
            Framing::Length(length) => Some(length),
            Framing::Chunked | Framing::UntilClose => None,
        };
        // What follows a CONNECT is no body.
        (self.method() != "CONNECT").then(|| Copied::Http1 { head: write::copied(self, edits), length })
    }
}
