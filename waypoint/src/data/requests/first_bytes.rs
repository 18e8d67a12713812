//! What a client's first bytes say: whether they begin a request of HTTP, and of which version.
//!
//! Reads nothing by itself.

use crate::http1::limits::EMPTY_LINES_MAX;

/// How an HTTP/2 connection begins (RFC 9113, section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of a method by which HTTP is recognised. The longest that is registered, UPDATEREDIRECTREF, has seventeen.
const METHOD_MAX: usize = 17;

/// What the first bytes of a client say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    /// Requests of HTTP, of either version.
    Http,
    /// Something else.
    Other,
}

/// Whether a client speaks HTTP/2; `None` while its first bytes don't tell.
pub(crate) fn is_http2(said: &[u8]) -> Option<bool> {
    let common = said.len().min(PREFACE.len());
    let agrees = said[..common] == PREFACE[..common];
    (!agrees || common == PREFACE.len()).then_some(agrees)
}

/// What a client's first bytes say; `None` while they don't tell. HTTP is a method in capitals, a space, and how a target begins;
/// as many empty lines before it are skipped as its parser skips. A few dozen bytes always tell.
pub(crate) fn first(said: &[u8]) -> Option<First> {
    let empty = said.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    if empty > 2 * usize::from(EMPTY_LINES_MAX) {
        return Some(First::Other);
    }
    let request = &said[empty..];
    let method = request.iter().take_while(|byte| byte.is_ascii_uppercase() || **byte == b'-').count();
    if method > METHOD_MAX {
        return Some(First::Other);
    }
    let (method, rest) = request.split_at(method);
    let target = match rest {
        [] => return None,
        [b' '] if !method.is_empty() => return None,
        [b' ', target @ ..] if !method.is_empty() => target,
        _ => return Some(First::Other),
    };
    // The only target that is a host alone is CONNECT's.
    let host = target[0].is_ascii_alphanumeric() || target[0] == b'[';
    let absolute = b"http";
    let common = target.len().min(absolute.len());
    let is_target = match target[0] {
        b'/' | b'*' => true,
        _ if method == b"CONNECT" => host,
        _ if target[..common].eq_ignore_ascii_case(&absolute[..common]) => {
            return (common == absolute.len()).then_some(First::Http);
        }
        _ => false,
    };
    Some(if is_target { First::Http } else { First::Other })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preface_is_told_from_requests_however_little_of_it_has_come() {
        for count in 0..PREFACE.len() {
            assert_eq!(is_http2(&PREFACE[..count]), None, "{count} bytes");
        }
        assert_eq!(is_http2(PREFACE), Some(true));
        assert_eq!(is_http2(&[PREFACE, b"\0\0"].concat()), Some(true));
        for request in ["GET / HTTP/1.1\r\n", "POST", "PRI /x HTTP/1.1", "X"] {
            assert_eq!(is_http2(request.as_bytes()), Some(false), "{request}");
        }
    }

    /// What the first bytes say however they come: told once, and never otherwise with more of them.
    fn told(said: &str) -> Option<First> {
        let each = (0..=said.len()).map(|count| first(&said.as_bytes()[..count]));
        each.fold(None, |before, now| {
            assert!(before.is_none() || before == now, "{said:?}: {before:?}, then {now:?}");
            now
        })
    }

    #[test]
    fn http_is_told_by_how_a_request_line_begins() {
        for said in [
            "GET / HTTP/1.1\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\n",
            "OPTIONS * HTTP/1.1\r\n",
            "GET http://web/ HTTP/1.1\r\n",
            "GET HTTP://web/ HTTP/1.1\r\n",
            "CONNECT web:443 HTTP/1.1\r\n",
            "CONNECT [::1]:443 HTTP/1.1\r\n",
            "VERSION-CONTROL /x HTTP/1.1\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            assert_eq!(told(said), Some(First::Http), "{said:?}");
        }
    }

    #[test]
    fn what_is_no_request_line_is_told_soon() {
        for said in [
            "SSH-2.0-OpenSSH_9\r\n",
            "EHLO mail.example\r\n",
            "PING\r\n",
            "*1\r\n$4\r\nPING\r\n",
            "CONNECT {\"verbose\":false}\r\n",
            "SET key value\r\n",
            "get / HTTP/1.1\r\n",
            "\r\n\r\n\r\nGET / HTTP/1.1\r\n",
            " / HTTP/1.1\r\n",
            "\x16\x03\x01",
            "\0\0\0\x08\x04\u{d2}\x16/",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        ] {
            assert_eq!(told(said), Some(First::Other), "{said:?}");
        }
        for said in ["", "\r\n", "GE", "GET ", "GET ht"] {
            assert_eq!(told(said), None, "{said:?}");
        }
    }
}
