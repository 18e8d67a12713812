//! Heads of requests and responses: judged once, then read by whoever decides, and written for the next hop.

use http::header::{CONTENT_LENGTH, HOST};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, Method, Request, Uri, Version, request, response};
use model::l7::Headers;

use super::limits::{FIELDS_MAX, TRAILERS_MAX};
use super::refusal::Refusal;
use crate::decide::{AnyRequest, AnyResponse, Copied, GRPC_STATUS, RequestEdits, is_framing};
use crate::http1::{is_host, is_target};

/// Part of the upgrade from HTTP/1.1, and of no use to the next hop.
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// A request as it arrived, without its body.
#[derive(Debug)]
pub struct RequestHead {
    method: Method,
    uri: Uri,
    fields: HeaderMap,
    authority: Authority,
}

impl RequestHead {
    /// Applies the rules that the engine does not.
    pub(super) fn judge(parts: request::Parts) -> Result<Self, Refusal> {
        let request::Parts { method, uri, headers: fields, .. } = parts;
        if fields.len() > FIELDS_MAX {
            return Err(Refusal::FieldsTooMany);
        }
        if fields.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
            return Err(Refusal::Length);
        }
        if !has_target(&method, &uri) {
            return Err(Refusal::Target);
        }
        let authority = authority(&uri, &fields).ok_or(Refusal::Authority)?;
        if method == Method::CONNECT && authority.port_u16().is_none() {
            return Err(Refusal::Authority);
        }
        Ok(Self { method, uri, fields, authority })
    }

    /// The request as it is sent on.
    pub(super) fn outgoing(&self, edits: &RequestEdits) -> Option<Request<()>> {
        let authority = edits.authority.as_ref().unwrap_or(&self.authority);
        let mut uri = http::uri::Parts::default();
        uri.authority = Some(authority.clone());
        if self.method != Method::CONNECT {
            let own = || self.uri.path_and_query().cloned();
            let root = || PathAndQuery::from_static("/");
            uri.path_and_query = Some(edits.target.clone().or_else(own).unwrap_or_else(root));
            uri.scheme = Some(self.uri.scheme().cloned().unwrap_or(Scheme::HTTP));
        }
        let mut request = Request::new(());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = Uri::from_parts(uri).ok()?;
        *request.version_mut() = Version::HTTP_2;
        let mut fields = self.fields.clone();
        fields.remove(HOST);
        fields.remove(HTTP2_SETTINGS);
        edits.fields.apply(&mut fields);
        *request.headers_mut() = fields;
        Some(request)
    }
}

/// The server as a whole may be asked for its options; everything else has a path.
fn has_target(method: &Method, uri: &Uri) -> bool {
    let fine = |text: &str| text.bytes().all(is_target);
    match uri.path() {
        _ if *method == Method::CONNECT => uri.path_and_query().is_none(),
        "*" => *method == Method::OPTIONS && uri.query().is_none(),
        path => path.starts_with('/') && fine(path) && uri.query().is_none_or(fine),
    }
}

/// Whom the request is for: `:authority`, which `Host` may repeat, or `Host` alone (RFC 9113, section 8.3.1).
fn authority(uri: &Uri, fields: &HeaderMap) -> Option<Authority> {
    let mut hosts = fields.get_all(HOST).iter();
    let host = hosts.next().map(http::HeaderValue::as_bytes);
    let is_one = hosts.next().is_none();
    let authority = match (uri.authority(), host) {
        (Some(authority), None) => authority.clone(),
        (Some(authority), Some(host)) if authority.as_str().as_bytes().eq_ignore_ascii_case(host) => {
            authority.clone()
        }
        (None, Some(host)) => Authority::try_from(host).ok()?,
        (Some(_), Some(_)) | (None, None) => return None,
    };
    (is_one && !authority.host().is_empty() && is_host(authority.as_str().as_bytes())).then_some(authority)
}

fn each<'a>(fields: &'a HeaderMap, name: &str, each: &mut dyn FnMut(&'a [u8])) {
    fields.get_all(name).iter().for_each(|value| each(value.as_bytes()));
}

impl Headers for RequestHead {
    fn each<'a>(&'a self, name: &str, with: &mut dyn FnMut(&'a [u8])) {
        each(&self.fields, name, with);
    }
}

impl AnyRequest for RequestHead {
    fn method(&self) -> &str {
        self.method.as_str()
    }

    fn path(&self) -> &str {
        if self.method == Method::CONNECT { "" } else { self.uri.path() }
    }

    fn query(&self) -> Option<&str> {
        self.uri.query()
    }

    fn authority(&self) -> &str {
        self.authority.as_str()
    }

    fn copied(&self, edits: &RequestEdits) -> Option<Copied> {
        // What follows a CONNECT is no body.
        let request = (self.method != Method::CONNECT).then(|| self.outgoing(edits));
        request.flatten().map(Copied::Http2)
    }
}

/// A response as it arrived, without its body.
#[derive(Debug)]
pub struct ResponseHead {
    pub(super) parts: response::Parts,
    /// Nothing follows.
    pub(super) over: bool,
}

impl ResponseHead {
    /// Applies the rules that the engine does not.
    pub(super) fn judge(parts: response::Parts, over: bool) -> Result<Self, Refusal> {
        if parts.headers.len() > FIELDS_MAX {
            return Err(Refusal::FieldsTooMany);
        }
        if parts.headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
            return Err(Refusal::Length);
        }
        Ok(Self { parts, over })
    }
}

impl Headers for ResponseHead {
    fn each<'a>(&'a self, name: &str, with: &mut dyn FnMut(&'a [u8])) {
        each(&self.parts.headers, name, with);
    }
}

impl AnyResponse for ResponseHead {
    fn status(&self) -> u16 {
        self.parts.status.as_u16()
    }

    fn grpc_status(&self) -> Option<u32> {
        if self.over { grpc_status(&self.parts.headers) } else { None }
    }
}

/// What a gRPC server says of a call, at its end.
pub(super) fn grpc_status(fields: &HeaderMap) -> Option<u32> {
    fields.get(GRPC_STATUS)?.to_str().ok()?.trim().parse().ok()
}

/// Fields that say how to read or where to send a message come too late in a trailer (RFC 9110, section 6.5.1).
pub(super) fn are_trailers(fields: &HeaderMap) -> bool {
    fields.len() <= TRAILERS_MAX && !fields.keys().any(|name| is_framing(name.as_str()))
}
