//! The conditions of a rule: which requests it is about.
//!
//! A condition that can't be understood is not left out, because the rule would then be about more than was meant: it marks
//! the match, and what is wrong is said.

use model::Str;
use model::l7::{
    HeaderMatch, HeaderName, Host, InvalidText, Match, PathMatch, PathText, Pattern, QueryMatch, SniMatch,
    TextMatch,
};

use crate::source::objects::{GrpcMatch, HttpMatch, MethodMatch, NamedMatch, Unknown, ValueMatch};

/// The methods that the API knows.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

const EXACT: &str = "Exact";
const REGULAR_EXPRESSION: &str = "RegularExpression";

/// A match of an HTTPRoute.
pub(super) fn http(found: &HttpMatch, wrong: &mut Vec<String>) -> Match {
    let before = wrong.len();
    let HttpMatch { path, headers, query_params, method, unknown } = found;
    let path = path.as_ref().map_or_else(|| Match::default().path, |found| http_path(found, wrong));
    let mut found = Match { path, headers: self::headers(headers, wrong), ..Match::default() };
    for parameter in query_params {
        // Of several of one name, the first counts.
        if found.query.iter().any(|other| *other.name == *parameter.name) {
            continue;
        }
        let value = text(parameter.kind.as_deref(), &parameter.value);
        let value = value.map(|value| QueryMatch { name: parameter.name.as_str().into(), value });
        found.query.extend(noted(value, wrong));
    }
    if let Some(method) = method {
        if !METHODS.contains(&method.as_str()) {
            wrong.push(format!("method {method:?} is none of {}", METHODS.join(", ")));
        }
        found.method = Some(method.as_str().into());
    }
    note_unknown(unknown, wrong);
    found.unintelligible = wrong.len() > before;
    found
}

/// A match of a GRPCRoute.
pub(super) fn grpc(found: &GrpcMatch, wrong: &mut Vec<String>) -> Match {
    let before = wrong.len();
    let GrpcMatch { method, headers, unknown } = found;
    let path = method.as_ref().map_or_else(every_call, |method| grpc_path(method, wrong));
    let mut found = Match { path, headers: self::headers(headers, wrong), ..Match::default() };
    note_unknown(unknown, wrong);
    found.unintelligible = wrong.len() > before;
    found
}

/// Every call of gRPC.
pub(super) fn every_call() -> PathMatch {
    PathMatch::Grpc { service: None, method: None }
}

/// The matches of a TLSRoute: one for each name; without names, every connection.
pub(super) fn names(hostnames: &[String], wrong: &mut Vec<String>) -> Vec<Match> {
    if hostnames.is_empty() {
        return vec![Match::default()];
    }
    let matches = hostnames.iter().map(|name| {
        let sni = match name.strip_prefix("*.") {
            Some(below) => Host::new(below).map(SniMatch::Below),
            None => Host::new(name).map(SniMatch::Exact),
        };
        let sni = noted(sni.map_err(|why| why.to_string()), wrong);
        Match { unintelligible: sni.is_none(), sni, ..Match::default() }
    });
    matches.collect()
}

fn http_path(ValueMatch { kind, value }: &ValueMatch, wrong: &mut Vec<String>) -> PathMatch {
    let value = value.as_deref().unwrap_or("/");
    let path = || PathText::new(value).map_err(said);
    let found = match kind.as_deref().unwrap_or("PathPrefix") {
        EXACT => path().map(PathMatch::Exact),
        "PathPrefix" => path().map(PathMatch::Prefix),
        REGULAR_EXPRESSION => Pattern::new(value).map(PathMatch::Regex).map_err(said),
        other => Err(format!("paths can't be compared by {other:?}")),
    };
    noted(found, wrong).unwrap_or(PathMatch::Unintelligible)
}

fn grpc_path(MethodMatch { kind, service, method }: &MethodMatch, wrong: &mut Vec<String>) -> PathMatch {
    let part = |part: &Option<String>| match part.as_deref() {
        None | Some("") => Ok(None),
        Some(value) => text(kind.as_deref(), value).map(Some),
    };
    let found = part(service).and_then(|service| Ok(PathMatch::Grpc { service, method: part(method)? }));
    noted(found, wrong).unwrap_or(PathMatch::Unintelligible)
}

fn headers(found: &[NamedMatch], wrong: &mut Vec<String>) -> Vec<HeaderMatch> {
    let mut headers: Vec<HeaderMatch> = Vec::new();
    for NamedMatch { kind, name, value } in found {
        let header = header(kind.as_deref(), name, value);
        // Of several of one name, the first counts.
        let new = noted(header, wrong).filter(|new| headers.iter().all(|other| other.name != new.name));
        headers.extend(new);
    }
    headers
}

/// A condition on a header.
pub(crate) fn header(kind: Option<&str>, name: &str, value: &str) -> Result<HeaderMatch, String> {
    Ok(HeaderMatch { name: HeaderName::new(name).map_err(said)?, value: text(kind, value)? })
}

fn text(kind: Option<&str>, value: &str) -> Result<TextMatch, String> {
    match kind.unwrap_or(EXACT) {
        EXACT => Ok(TextMatch::Exact(Str::from(value))),
        REGULAR_EXPRESSION => Pattern::new(value).map(TextMatch::Regex).map_err(said),
        other => Err(format!("values can't be compared by {other:?}; use {EXACT} or {REGULAR_EXPRESSION}")),
    }
}

fn note_unknown(Unknown(names): &Unknown, wrong: &mut Vec<String>) {
    wrong.extend(names.iter().map(|name| format!("condition {name:?} is not known")));
}

fn said(why: InvalidText) -> String {
    why.to_string()
}

fn noted<T>(found: Result<T, String>, wrong: &mut Vec<String>) -> Option<T> {
    found.map_err(|why| wrong.push(why)).ok()
}
