//! How an endpoint of a service is chosen, where somebody says so. Owns no endpoints and no choice.

use std::time::Duration;

use crate::l7::text::{CookieName, HeaderName};

/// How an endpoint of a service is chosen for a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub enum Balancing {
    /// The better of two that are drawn, by latency and requests in flight.
    #[default]
    LeastLoad,
    /// The better of two that are drawn, by requests in flight.
    LeastRequest,
    /// By a hash, in a table: an endpoint more or less moves few keys.
    Maglev(HashKey),
    /// Any.
    Random,
    /// By a hash, on a ring: an endpoint more or less moves only its own keys.
    RingHash(HashKey),
    /// One after the other.
    RoundRobin,
}

/// What of a request is hashed. A request without it goes to any endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HashKey {
    /// The value of a cookie, which is set when the client has none.
    Cookie {
        /// Its name.
        name: CookieName,
        /// How long the client keeps it; `None`: for its session.
        ttl: Option<Duration>,
    },
    /// The value of a header field.
    Header(HeaderName),
    /// The client's address.
    Source,
}
