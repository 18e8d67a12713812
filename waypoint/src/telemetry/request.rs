//! What is said of one request when it is over.

use std::borrow::Cow;
use std::fmt::{self, Display};
use std::sync::Arc;
use std::time::SystemTime;

use daemon::access::{self, AccessLog, Words};
use model::l7::{Headers, Rule};

use super::Facts;
use super::cause::{Done, Ended};
use crate::decide::{AnyRequest, Record, is_grpc};
use crate::spans::Trace;

/// Bytes of a text of the client's that a line shows: enough to know it again. Whole, heads of 64 KiB would fill the log.
const SHOWN_MAX: usize = 512;

/// What ties the lines of one request together.
pub(crate) const REQUEST_ID: &str = "x-request-id";

/// The last status of gRPC. What servers make up beyond it counts as UNKNOWN, as clients take it.
const GRPC_STATUS_MAX: u32 = 16;
const GRPC_UNKNOWN: u32 = 2;

/// A request that is over.
pub(crate) struct Told<'a> {
    /// Who asked whom.
    pub(crate) facts: &'a Facts,
    /// The request, unless it was none.
    pub(crate) request: Option<&'a dyn AnyRequest>,
    /// `HTTP/1.1`, for one.
    pub(crate) protocol: &'static str,
    /// The rule that decided.
    pub(crate) rule: Option<&'a Arc<Rule>>,
    /// What happened.
    pub(crate) record: &'a Record,
    /// What the server said of a gRPC call.
    pub(crate) grpc_status: Option<u32>,
    /// What we did about it.
    pub(crate) done: Done,
    /// The `x-request-id` that we gave it, if it had none.
    pub(crate) given_id: Option<&'a str>,
    /// The trace that it belongs to.
    pub(crate) trace: Option<&'a Trace>,
}

impl<'a> Told<'a> {
    /// The request's fields.
    pub(crate) fn fields(&self) -> Option<&'a dyn Headers> {
        self.request.map(|request| request as &dyn Headers)
    }

    /// The status of a gRPC call; UNKNOWN where there is none that clients would know.
    pub(crate) fn grpc_status(&self) -> Option<u32> {
        let is_call = self.request.is_some_and(is_grpc);
        is_call.then(|| self.grpc_status.filter(|status| *status <= GRPC_STATUS_MAX).unwrap_or(GRPC_UNKNOWN))
    }

    /// The method.
    pub(crate) fn method(&self) -> Option<Cow<'a, str>> {
        bounded(self.request.map(|request| request.method()))
    }

    /// What the request is known by.
    pub(crate) fn request_id(&self) -> Option<Cow<'a, str>> {
        bounded(self.fields().and_then(|fields| fields.first(REQUEST_ID)).or(self.given_id))
    }

    /// Scheme, authority, path and query.
    pub(crate) fn url(&self) -> Option<impl Display + use<'a>> {
        self.request.map(Url)
    }

    /// Writes its line.
    pub(super) fn log(&self, access: &AccessLog, ended: &Ended, route: &Words) {
        if !access.is_on() {
            return;
        }
        let Self { facts, record, .. } = self;
        let (method, id) = (self.method(), self.request_id());
        let authority = bounded(self.request.map(|request| request.authority()));
        let path = self.request.map(|request| beginning(request.path()));
        let query = self.request.and_then(|request| request.query()).map(beginning);
        let parts = [path.as_deref().unwrap_or_default(), "?", query.as_deref().unwrap_or_default()];
        let parts = if query.is_some() { &parts[..] } else { &parts[..1] };
        let trace = self.trace.map(|trace| format_args!("{:032x}", trace.id).to_string());
        access.record_request(&access::Request {
            at: SystemTime::now(),
            source: facts.client.0,
            destination: facts.app.map(|app| app.0),
            hbone_address: Some(&facts.authority).filter(|text| !text.is_empty()).map(|text| text as _),
            route,
            method: method.as_deref(),
            authority: authority.as_deref(),
            path: path.is_some().then_some(parts),
            protocol: self.protocol,
            status: record.status.unwrap_or(0),
            grpc_status: self.grpc_status(),
            flags: &ended.flags,
            code: ended.code,
            attempts: record.attempts,
            bytes_sent: record.response_bytes,
            bytes_received: record.request_bytes,
            duration: record.ended.duration_since(record.began),
            responded: record.responded.map(|at| at.duration_since(record.began)),
            request_id: id.as_deref(),
            trace_id: trace.as_deref(),
        });
    }
}

/// An identifier for a request that has none: a UUID of version 4.
pub(crate) fn new_id() -> String {
    let random = fastrand::u128(..) & !(0xf000_c000 << 48) | (0x4000_8000 << 48);
    let mut id = String::with_capacity(36);
    for (index, byte) in random.to_be_bytes().into_iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            id.push('-');
        }
        // Without the detours of `fmt`: most requests need one.
        id.extend([byte >> 4, byte & 0xf].map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])));
    }
    id
}

fn bounded(text: Option<&str>) -> Option<Cow<'_, str>> {
    text.filter(|text| !text.is_empty()).map(beginning)
}

/// The beginning of a text, and whether there is more.
fn beginning(text: &str) -> Cow<'_, str> {
    if text.len() <= SHOWN_MAX {
        return text.into();
    }
    format!("{}…", &text[..text.floor_char_boundary(SHOWN_MAX)]).into()
}

/// Path and query.
struct Path<'a>(&'a dyn AnyRequest);

impl Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&beginning(self.0.path()))?;
        if let Some(query) = self.0.query() {
            f.write_str("?")?;
            f.write_str(&beginning(query))?;
        }
        Ok(())
    }
}

/// Where it is.
struct Url<'a>(&'a dyn AnyRequest);

impl Display for Url<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", beginning(self.0.authority()), Path(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_uuid_and_a_new_one_each_time() {
        let id = new_id();
        let lengths: Vec<_> = id.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12], "{id}");
        assert_eq!(id.as_bytes()[14], b'4', "{id}");
        assert!(b"89ab".contains(&id.as_bytes()[19]), "{id}");
        assert_ne!(id, new_id());
    }
}
