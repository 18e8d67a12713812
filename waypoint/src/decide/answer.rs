//! Responses of our own, and how they are told to who made a gRPC call.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue};
use model::l7::Headers;

use super::AnyRequest;
use super::edits::FieldEdits;

/// What a gRPC call has come to.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Codes of gRPC.
mod code {
    pub(super) const UNKNOWN: u32 = 2;
    pub(super) const DEADLINE_EXCEEDED: u32 = 4;
    pub(super) const PERMISSION_DENIED: u32 = 7;
    pub(super) const UNIMPLEMENTED: u32 = 12;
    pub(super) const INTERNAL: u32 = 13;
    pub(super) const UNAVAILABLE: u32 = 14;
    pub(super) const UNAUTHENTICATED: u32 = 16;
}

/// A response of our own.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// 200 to 599.
    pub status: u16,
    /// What a gRPC call is told instead; `None`: what the status says.
    pub grpc: Option<u32>,
    /// Fields beside those that frame it.
    pub fields: FieldEdits,
    /// All of it; kept small by whoever makes it.
    pub body: Bytes,
    /// The connection ends with it, where it carries one request at a time.
    pub close: bool,
}

impl Answer {
    /// A status alone.
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// That it took too long.
    pub fn late() -> Self {
        Self { grpc: Some(code::DEADLINE_EXCEEDED), ..Self::status(504) }
    }

    /// That what is configured can't be carried out.
    pub fn impossible() -> Self {
        Self { grpc: Some(code::UNAVAILABLE), ..Self::status(500) }
    }

    /// The same for a gRPC call: nothing but a head, which says what it has come to.
    #[must_use]
    pub fn for_grpc(self) -> Self {
        let code = self.grpc.unwrap_or_else(|| grpc(self.status));
        let mut fields = self.fields;
        fields.set(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        fields.set(GRPC_STATUS, HeaderValue::from(code));
        fields.set(GRPC_MESSAGE, HeaderValue::from_static(message(self.status)));
        Self { status: 200, grpc: Some(code), fields, body: Bytes::new(), close: self.close }
    }
}

/// Whether a request is a gRPC call. What is spoken to browsers (grpc-web) is HTTP like any other.
pub fn is_grpc(request: &dyn AnyRequest) -> bool {
    let fields: &dyn Headers = request;
    let kind = fields.first("content-type").and_then(|kind| kind.strip_prefix("application/grpc"));
    kind.is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']))
}

/// What a status of HTTP means to a gRPC call (gRPC's own mapping).
fn grpc(status: u16) -> u32 {
    match status {
        400 => code::INTERNAL,
        401 => code::UNAUTHENTICATED,
        403 => code::PERMISSION_DENIED,
        404 => code::UNIMPLEMENTED,
        429 | 502..=504 => code::UNAVAILABLE,
        _ => code::UNKNOWN,
    }
}

fn message(status: u16) -> &'static str {
    match status {
        200 => "fault injected on purpose",
        403 => "denied by a policy",
        404 => "no rule matches",
        500 => "the rule can not be carried out",
        502 => "the answer breaks the protocol",
        503 => "no endpoint answers",
        504 => "no answer in time",
        _ => "answered by the waypoint",
    }
}
