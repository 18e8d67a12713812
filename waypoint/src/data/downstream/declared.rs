//! What is spoken on a stream, as its port and its routes declare it.
//!
//! Reads no byte of it.

use model::identity::Identity;
use model::l7::RouteKind;
use model::route::Behind;
use model::service::AppProtocol;

use crate::rules::Book;

/// What is spoken, before a byte has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    /// Bytes that are nobody's business; routes of connections are about them.
    Bytes,
    /// HTTP, of whichever version the client speaks.
    Http,
    /// TLS, whose routes go by the name that the client asks for.
    Tls,
    /// Whatever the first bytes say.
    Undeclared,
}

/// What a stream carries, as its port and its routes say. A route of connections is an L4 rule whatever the port declares; a
/// route of requests can't make HTTP of what is declared as something else.
pub(crate) fn declared(behind: &Behind, book: &Book, client: &Identity) -> Spoken {
    let Behind::Service(service, port, _) = behind else { return Spoken::Bytes };
    let known = book.of(&service.id);
    match known.routes(*port).kind(Some(client)) {
        Some(RouteKind::Tls) => return Spoken::Tls,
        Some(RouteKind::Tcp) => return Spoken::Bytes,
        Some(RouteKind::Grpc | RouteKind::Http) | None => {}
    }
    let declared = service.ports.iter().find(|declared| declared.port == *port);
    match declared.map(|declared| declared.protocol) {
        Some(AppProtocol::Grpc | AppProtocol::Http1 | AppProtocol::Http2) => Spoken::Http,
        // Whoever names the port in a route of requests says that HTTP is spoken there.
        Some(AppProtocol::Unknown) if known.is_http(*port, Some(client)) => Spoken::Http,
        Some(AppProtocol::Unknown) => Spoken::Undeclared,
        Some(AppProtocol::Tcp | AppProtocol::Tls) | None => Spoken::Bytes,
    }
}
