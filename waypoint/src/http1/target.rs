//! Request targets and hosts: the four forms of RFC 9112, section 3.2, and what may stand in a Host.
//!
//! Decodes and normalises nothing: whoever decides and whoever is forwarded to see the same bytes.

use super::head::Span;
use super::refusal::Refusal;

/// Where a request goes, as pieces of its head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Target {
    /// Host and port, if the target has them.
    pub(super) authority: Option<Span>,
    /// Empty where the target has none (`http://host`).
    pub(super) path: Span,
    /// What follows the question mark.
    pub(super) query: Option<Span>,
}

/// Reads the target of a request with this method; both lie within `head`.
pub(super) fn parse(head: &[u8], method: &str, target: &str) -> Result<Target, Refusal> {
    let text = target.as_bytes();
    match text {
        _ if method == "CONNECT" => {
            let (name, port) = target.rsplit_once(':').ok_or(Refusal::Target)?;
            let has_port = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            if name.is_empty() || !has_port || !is_host(text) {
                return Err(Refusal::Target);
            }
            Ok(Target { authority: Some(Span::of(head, text)), ..Target::default() })
        }
        b"*" if method == "OPTIONS" => Ok(Target { path: Span::of(head, text), ..Target::default() }),
        [b'/', ..] => path_and_query(head, text),
        _ => {
            let (scheme, rest) = target.split_once("://").ok_or(Refusal::Target)?;
            if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
                return Err(Refusal::Target);
            }
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            let (authority, rest) = rest.as_bytes().split_at(end);
            if authority.is_empty() || authority.starts_with(b":") || !is_host(authority) {
                return Err(Refusal::Target);
            }
            let authority = Some(Span::of(head, authority));
            Ok(Target { authority, ..path_and_query(head, rest)? })
        }
    }
}

fn path_and_query(head: &[u8], text: &[u8]) -> Result<Target, Refusal> {
    if !text.iter().all(|byte| is_target(*byte)) {
        return Err(Refusal::Target);
    }
    let mark = memchr::memchr(b'?', text);
    let (path, query) = text.split_at(mark.unwrap_or(text.len()));
    let query = mark.map(|_| Span::of(head, &query[1..]));
    Ok(Target { authority: None, path: Span::of(head, path), query })
}

/// What URIs are made of (RFC 3986), and what clients send without encoding it and servers take: `"[]\^{|}`. No `#`:
/// a fragment is never sent, and who cuts it off and who does not see two paths.
pub(crate) fn is_target(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"#<>`".contains(&byte)
}

/// Whether this may stand in Host: `uri-host [":" port]`, also empty. Neither commas nor percent signs, though RFC 3986 allows
/// them: the first come from joined fields, and who decodes the second and who does not see two hosts.
pub(crate) fn is_host(value: &[u8]) -> bool {
    let (name, rest) = if value.starts_with(b"[") {
        let end = memchr::memchr(b']', value).unwrap_or(0);
        let (name, rest) = value.split_at(end + usize::from(end > 0));
        let literal = name.get(1..name.len().saturating_sub(1)).unwrap_or_default();
        if std::str::from_utf8(literal)
            .ok()
            .and_then(|text| text.parse::<std::net::Ipv6Addr>().ok())
            .is_none()
        {
            return false;
        }
        (&b""[..], rest)
    } else {
        value.split_at(memchr::memchr(b':', value).unwrap_or(value.len()))
    };
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=".contains(byte);
    name.iter().all(allowed) && (rest.is_empty() || is_port(&rest[1..], rest[0]))
}

/// A colon may stand without a port.
fn is_port(digits: &[u8], colon: u8) -> bool {
    let number = digits.iter().try_fold(0_u32, |sum, digit| {
        digit.is_ascii_digit().then(|| (sum * 10 + u32::from(digit - b'0')).min(u32::from(u16::MAX) + 1))
    });
    colon == b':' && number.is_some_and(|number| number <= u32::from(u16::MAX))
}
