//! What is spoken on a stream: as its port declares it, and whether its first bytes agree.
//!
//! Reads nothing by itself.

use model::identity::Identity;
use model::route::Behind;
use model::service::AppProtocol;

use crate::rules::Book;

/// How an HTTP/2 connection begins (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Whether HTTP is declared, of whichever version the client speaks, by the port or by an HTTPRoute that names it. What declares
/// nothing is opaque, so that nobody whose server speaks first is kept waiting.
pub(crate) fn is_http(behind: &Behind, book: &Book, client: &Identity) -> bool {
    let Behind::Service(service, port, _) = behind else { return false };
    let declared = service.ports.iter().find(|declared| declared.port == *port);
    declared.is_some_and(|declared| match declared.protocol {
        AppProtocol::Http1 => true,
        AppProtocol::Unknown => book.of(&service.id).is_http(*port, Some(client)),
        AppProtocol::Grpc | AppProtocol::Http2 | AppProtocol::Tcp | AppProtocol::Tls => false,
    })
}

/// Whether a client speaks HTTP/2; `None` while its first bytes don't tell.
pub(crate) fn is_http2(said: &[u8]) -> Option<bool> {
    let common = said.len().min(PREFACE.len());
    let agrees = said[..common] == PREFACE[..common];
    (!agrees || common == PREFACE.len()).then_some(agrees)
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
}
