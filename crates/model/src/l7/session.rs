//! Keeping the requests of a session at one endpoint (GEP-1619).
//!
//! The client carries a [`Session`]: a number that stands for an endpoint, and when it began. It is no secret and no
//! permission: whoever makes one up gets an endpoint that anybody may get, or is treated as new. Owns no endpoints.

use std::time::Duration;

use crate::l7::Moment;
use crate::l7::request::Headers;
use crate::l7::text::{CookieName, HeaderName, PathText};
use crate::service::ServiceName;
use crate::workload::WorkloadUid;

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

/// A session, as the client carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    /// Stands for backend and endpoint, without telling names or addresses.
    endpoint: u64,
    /// In seconds since 1970.
    since: u64,
}

const NANOS_PER_SECOND: u64 = 1_000_000_000;

impl Session {
    /// A session with an endpoint of a backend that begins at `now`.
    #[must_use]
    pub fn with(backend: &ServiceName, endpoint: &WorkloadUid, now: Moment) -> Self {
        Self { endpoint: number(backend, endpoint), since: now.0 / NANOS_PER_SECOND }
    }

    /// Whether it is with this endpoint of this backend.
    #[must_use]
    pub fn is_with(&self, backend: &ServiceName, endpoint: &WorkloadUid) -> bool {
        self.endpoint == number(backend, endpoint)
    }

    fn text(self) -> String {
        format!("{:016x}{:x}", self.endpoint, self.since)
    }

    fn read(text: &str) -> Option<Self> {
        let (endpoint, since) = text.split_at_checked(16)?;
        let number = |digits: &str| {
            let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
        };
        Some(Self { endpoint: number(endpoint)?, since: number(since)? })
    }
}

/// FNV-1a: the same in every replica and in every version, which the standard library's hashes do not promise.
fn number(ServiceName { namespace, hostname }: &ServiceName, endpoint: &WorkloadUid) -> u64 {
    let parts = [&**namespace, hostname, &*endpoint.0];
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl SessionPersistence {
    /// The session that a request belongs to, unless it is over at `now`.
    #[must_use]
    pub fn session(&self, headers: &dyn Headers, now: Moment) -> Option<Session> {
        let carried = match &self.carrier {
            SessionCarrier::Cookie { name, .. } => cookie(headers, name)?,
            SessionCarrier::Header(name) => headers.first(name.as_str())?,
        };
        let session = Session::read(carried)?;
        let age = Duration::from_secs((now.0 / NANOS_PER_SECOND).saturating_sub(session.since));
        self.absolute_timeout.is_none_or(|timeout| age < timeout).then_some(session)
    }

    /// The header field of the response that begins a session: its name and value.
    #[must_use]
    pub fn begin(&self, session: Session) -> (&str, String) {
        match &self.carrier {
            SessionCarrier::Header(name) => (name.as_str(), session.text()),
            SessionCarrier::Cookie { name, path, lifetime } => {
                let kept = match (lifetime, self.absolute_timeout) {
                    (Lifetime::Permanent, Some(timeout)) => format!("; Max-Age={}", timeout.as_secs()),
                    (Lifetime::Permanent | Lifetime::Session, _) => String::new(),
                };
                ("set-cookie", format!("{name}={}; Path={path}; HttpOnly{kept}", session.text()))
            }
        }
    }
}

/// The first cookie of this name (RFC 6265, section 5.4).
#[must_use]
pub fn cookie<'a>(headers: &'a dyn Headers, name: &CookieName) -> Option<&'a str> {
    let mut found = None;
    headers.each("cookie", &mut |line| {
        let pairs = std::str::from_utf8(line).unwrap_or_default().split(';');
        let mut values = pairs.filter_map(|pair| pair.trim().split_once('='));
        found = found.or_else(|| values.find(|(own, _)| *own == name.as_str()).map(|(_, value)| value));
    });
    found
}
