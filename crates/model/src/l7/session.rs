//! Keeping the requests of a session at one endpoint (GEP-1619).

use std::time::Duration;

use crate::l7::text::{CookieName, HeaderName, PathText};

/// That the requests of a session stay at one endpoint. A session that has one keeps it whatever the weights say.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionPersistence {
    /// What carries the session.
    pub carrier: SessionCarrier,
    /// When a session ends, however much it is used.
    pub absolute_timeout: Option<Duration>,
}

/// What carries a session between requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SessionCarrier {
    /// A cookie, which browsers return by themselves.
    Cookie {
        /// Its name.
        name: CookieName,
        /// For which paths it is returned.
        path: PathText,
        /// How long it is kept.
        lifetime: Lifetime,
    },
    /// A header field, which the client returns by itself.
    Header(HeaderName),
}

/// How long a browser keeps a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lifetime {
    /// As long as the absolute timeout, across restarts of the browser.
    Permanent,
    /// Until it ends.
    Session,
}
