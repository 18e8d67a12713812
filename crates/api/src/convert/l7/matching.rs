//! Conditions of rules. One that can't be understood is not left out: its match says so.

use model::l7::{
    HeaderMatch, HeaderName, Host, Match, PathMatch, PathText, Pattern, QueryMatch, SniMatch, TextMatch,
};
use prost::Message;

use crate::invalid::{InvalidField, Problem};
use crate::l7 as wire;
use wire::r#match::Path;
use wire::string_match::Match as Text;

/// Reads what can be read of a match that was decoded from `body`.
pub(super) fn from_wire(wire: wire::Match, body: &[u8]) -> (Match, Option<InvalidField>) {
    let complete = wire.encoded_len() == body.len();
    let wire::Match { path: wire_path, headers, query, method, sni: name, unintelligible } = wire;
    let mut problem = None;
    let mut understood = |why: InvalidField| problem = Some(why);
    let path = path(wire_path).map_err(&mut understood).unwrap_or(PathMatch::Unintelligible);
    let headers = headers.into_iter().filter_map(|h| header_match(h).map_err(&mut understood).ok()).collect();
    let query = query.into_iter().filter_map(|q| query_match(q).map_err(&mut understood).ok()).collect();
    let sni = sni(&name).map_err(&mut understood).unwrap_or_default();
    let method = (!method.is_empty()).then(|| method.into());
    let unintelligible = unintelligible || !complete || problem.is_some();
    (Match { path, headers, query, method, sni, unintelligible }, problem)
}

pub(super) fn to_wire(m: &Match) -> wire::Match {
    let Match { path, headers, query, method, sni, unintelligible } = m;
    wire::Match {
        path: wire_path(path),
        headers: headers.iter().map(wire_header_match).collect(),
        query: query.iter().map(wire_query_match).collect(),
        method: super::optional(method.as_ref()),
        sni: match sni {
            Some(SniMatch::Exact(host)) => host.to_string(),
            Some(SniMatch::Below(host)) => format!("*.{host}"),
            None => String::new(),
        },
        unintelligible: *unintelligible,
    }
}

fn path(path: Option<Path>) -> Result<PathMatch, InvalidField> {
    const FIELD: &str = "matches.path";
    let text = |text: String| PathText::new(&text).map_err(|why| Problem::from(why).of(FIELD));
    Ok(match path.ok_or_else(|| Problem::Missing.of(FIELD))? {
        Path::Exact(exact) => PathMatch::Exact(text(exact)?),
        Path::Prefix(prefix) => PathMatch::Prefix(text(prefix)?),
        Path::Regex(regex) => PathMatch::Regex(pattern(&regex).map_err(|p| p.of(FIELD))?),
        Path::Grpc(wire::GrpcMethod { service, method }) => PathMatch::Grpc {
            service: service.map(text_match).transpose().map_err(|p| p.of(FIELD))?,
            method: method.map(text_match).transpose().map_err(|p| p.of(FIELD))?,
        },
    })
}

fn wire_path(path: &PathMatch) -> Option<Path> {
    Some(match path {
        PathMatch::Unintelligible => return None,
        PathMatch::Exact(path) => Path::Exact(path.to_string()),
        PathMatch::Prefix(path) => Path::Prefix(path.to_string()),
        PathMatch::Regex(pattern) => Path::Regex(pattern.as_str().to_owned()),
        PathMatch::Grpc { service, method } => Path::Grpc(wire::GrpcMethod {
            service: service.as_ref().map(wire_text),
            method: method.as_ref().map(wire_text),
        }),
    })
}

pub(super) fn header_match(
    wire::HeaderMatch { name, value }: wire::HeaderMatch,
) -> Result<HeaderMatch, InvalidField> {
    const FIELD: &str = "headers";
    Ok(HeaderMatch {
        name: HeaderName::new(&name).map_err(|why| Problem::from(why).of(FIELD))?,
        value: value.ok_or(Problem::Missing).and_then(text_match).map_err(|p| p.of(FIELD))?,
    })
}

pub(super) fn wire_header_match(HeaderMatch { name, value }: &HeaderMatch) -> wire::HeaderMatch {
    wire::HeaderMatch { name: name.to_string(), value: Some(wire_text(value)) }
}

fn query_match(wire::QueryMatch { name, value }: wire::QueryMatch) -> Result<QueryMatch, InvalidField> {
    let value = value.ok_or(Problem::Missing).and_then(text_match).map_err(|p| p.of("matches.query"))?;
    Ok(QueryMatch { name: name.into(), value })
}

fn wire_query_match(QueryMatch { name, value }: &QueryMatch) -> wire::QueryMatch {
    wire::QueryMatch { name: name.to_string(), value: Some(wire_text(value)) }
}

fn sni(name: &str) -> Result<Option<SniMatch>, InvalidField> {
    let host = |host| Host::new(host).map_err(|why| Problem::from(why).of("matches.sni"));
    Ok(match name.strip_prefix("*.") {
        None if name.is_empty() => None,
        None => Some(SniMatch::Exact(host(name)?)),
        Some(rest) => Some(SniMatch::Below(host(rest)?)),
    })
}

fn text_match(wire::StringMatch { r#match }: wire::StringMatch) -> Result<TextMatch, Problem> {
    Ok(match r#match.ok_or(Problem::Missing)? {
        Text::Exact(text) => TextMatch::Exact(text.into()),
        Text::Regex(regex) => TextMatch::Regex(pattern(&regex)?),
    })
}

fn wire_text(text: &TextMatch) -> wire::StringMatch {
    let text = match text {
        TextMatch::Exact(text) => Text::Exact(text.to_string()),
        TextMatch::Regex(pattern) => Text::Regex(pattern.as_str().to_owned()),
    };
    wire::StringMatch { r#match: Some(text) }
}

fn pattern(source: &str) -> Result<Pattern, Problem> {
    Ok(Pattern::new(source)?)
}
