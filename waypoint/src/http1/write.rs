//! Heads as they are sent on: the fields that concern the next hop, in their order, with edits. No map is built: runs of
//! kept lines are copied as they are, and what frames the message is written anew, in one way only.

use std::io::Write;

use super::framing::Framing;
use super::head::{Field, Fields, Role};
use super::request::RequestHead;
use super::response::ResponseHead;
use crate::decide::{AnyRequest, AnyResponse, FieldEdits, RequestEdits};

/// Bytes of a head beside the fields that are sent on: its first line, what is added, what frames the body.
const BESIDE: usize = 512;

/// What the client is told about its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Persistence {
    /// It ends with this response.
    Close,
    /// It goes on, as HTTP/1.1 says by itself.
    Implied,
    /// It goes on, which a client of HTTP/1.0 has to be told.
    KeepAlive,
}

/// Appends the head of a request to `out`, as HTTP/1.1 in origin form.
pub(super) fn request(out: &mut Vec<u8>, request: &RequestHead, edits: &RequestEdits) {
    begin(out, request, edits);
    let fields = &request.fields;
    copy(out, fields, &edits.fields, |field| match field.role {
        Role::EndToEnd => true,
        Role::Expect => !request.is_old(),
        Role::Upgrade => request.upgrades(),
        Role::Coding | Role::Connection | Role::Hop | Role::Host | Role::Length | Role::Te => false,
    });
    let te = request.wants_trailers();
    if te {
        line(out, "te", b"trailers");
    }
    match (request.upgrades(), te) {
        (true, true) => line(out, "connection", b"upgrade, te"),
        (true, false) => line(out, "connection", b"upgrade"),
        (false, true) => line(out, "connection", b"te"),
        (false, false) => {}
    }
    end(out, request);
}

/// The head of a copy: nobody waits for what its server says meanwhile, or speaks with it afterwards.
pub(super) fn copied(request: &RequestHead, edits: &RequestEdits) -> Vec<u8> {
    let mut out = Vec::new();
    begin(&mut out, request, edits);
    copy(&mut out, &request.fields, &edits.fields, |field| field.role == Role::EndToEnd);
    line(&mut out, "connection", b"close");
    end(&mut out, request);
    out
}

/// The request line, and whom it is for.
fn begin(out: &mut Vec<u8>, request: &RequestHead, edits: &RequestEdits) {
    out.reserve(request.fields.size() + BESIDE);
    out.extend_from_slice(request.method().as_bytes());
    out.push(b' ');
    match &edits.target {
        Some(target) => out.extend_from_slice(target.as_str().as_bytes()),
        None if request.method() == "CONNECT" => out.extend_from_slice(request.authority().as_bytes()),
        None => {
            out.extend_from_slice(request.path().as_bytes());
            if let Some(query) = request.query() {
                out.push(b'?');
                out.extend_from_slice(query.as_bytes());
            }
        }
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    // First, as RFC 9110 asks, and in one form.
    let authority = edits.authority.as_ref().map_or(request.authority(), |authority| authority.as_str());
    line(out, "host", authority.as_bytes());
}

/// What frames the body, and the end of the head.
fn end(out: &mut Vec<u8>, request: &RequestHead) {
    match request.framing() {
        Framing::Chunked => line(out, "transfer-encoding", b"chunked"),
        Framing::Length(length) => content_length(out, length),
        // Who sends an empty body says so; servers refuse a POST without a length.
        Framing::None if request.fields.with(Role::Length).next().is_some() => content_length(out, 0),
        Framing::None | Framing::UntilClose => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// How a response is sent on, beside its own fields.
pub(super) struct Sending<'a> {
    pub(super) request: &'a RequestHead,
    pub(super) edits: &'a FieldEdits,
    pub(super) persistence: Persistence,
    /// The body is sent in chunks.
    pub(super) chunked: bool,
}

/// Appends the head of a response to `out`.
pub(super) fn response(out: &mut Vec<u8>, response: &ResponseHead, sending: &Sending<'_>) {
    let status = response.status();
    out.reserve(response.fields.size() + BESIDE);
    status_line(out, status, response.reason());
    let upgrades = matches!(status, 101 | 426);
    copy(out, &response.fields, sending.edits, |field| match field.role {
        Role::EndToEnd | Role::Expect | Role::Host | Role::Te => true,
        Role::Upgrade => upgrades,
        Role::Coding | Role::Connection | Role::Hop | Role::Length => false,
    });
    if sending.chunked {
        line(out, "transfer-encoding", b"chunked");
    } else if let Some(length) = response.length()
        && !matches!(status, 100..200 | 204)
        && !response.is_tunnel(sending.request)
    {
        content_length(out, length);
    }
    if upgrades {
        line(out, "connection", b"upgrade");
    }
    persistence(out, sending.persistence);
    out.extend_from_slice(b"\r\n");
}

/// Appends the head of an answer that nobody sent us.
pub(super) fn answer(
    out: &mut Vec<u8>,
    status: u16,
    fields: &FieldEdits,
    length: Option<u64>,
    how: Persistence,
) {
    let code = http::StatusCode::from_u16(status).ok();
    let reason = code.and_then(|code| code.canonical_reason()).unwrap_or_default();
    status_line(out, status, reason.as_bytes());
    add(out, fields);
    if let Some(length) = length {
        content_length(out, length);
    }
    persistence(out, how);
    out.extend_from_slice(b"\r\n");
}

fn status_line(out: &mut Vec<u8>, status: u16, reason: &[u8]) {
    let _ = write!(out, "HTTP/1.1 {status} ");
    out.extend_from_slice(reason);
    out.extend_from_slice(b"\r\n");
}

fn persistence(out: &mut Vec<u8>, persistence: Persistence) {
    match persistence {
        Persistence::Close => line(out, "connection", b"close"),
        Persistence::Implied => {}
        Persistence::KeepAlive => line(out, "connection", b"keep-alive"),
    }
}

fn content_length(out: &mut Vec<u8>, length: u64) {
    // Writing to a vector cannot fail.
    let _ = write!(out, "content-length: {length}\r\n");
}

fn line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// The lines of the fields that are kept, and those that are added.
fn copy(out: &mut Vec<u8>, fields: &Fields, edits: &FieldEdits, keep: impl Fn(&Field) -> bool) {
    let mut run = None;
    for (index, field) in fields.list().iter().enumerate() {
        let kept = keep(field) && !(edits.drops_any() && edits.drops(fields.slice(field.name)));
        match run {
            None if kept => run = Some(fields.line(index)),
            Some(start) if !kept => {
                out.extend_from_slice(fields.raw(start..fields.line(index)));
                run = None;
            }
            _ => {}
        }
    }
    if let Some(start) = run {
        out.extend_from_slice(fields.raw(start..fields.line(fields.list().len())));
    }
    add(out, edits);
}

fn add(out: &mut Vec<u8>, edits: &FieldEdits) {
    for (name, value) in edits.added() {
        line(out, name.as_str(), value.as_bytes());
    }
}

/// The size line of a chunk of `len` bytes, behind the end of the chunk before it.
pub(super) fn chunk(out: &mut Vec<u8>, len: usize, first: bool) {
    let _ = write!(out, "{}{len:x}\r\n", if first { "" } else { "\r\n" });
}

/// The end of a body in chunks.
pub(super) fn last_chunk(out: &mut Vec<u8>, first: bool) {
    chunk(out, 0, first);
    out.extend_from_slice(b"\r\n");
}
