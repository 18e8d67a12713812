//! How an endpoint is chosen for a request: as a policy says, else by load.
//!
//! Chooses none.

use std::time::Duration;

use http::HeaderValue;
use http::header::SET_COOKIE;
use model::l7::{self, Balancing, CookieName, HashKey, Headers, Session};
use twox_hash::XxHash64;

use crate::balance::Strategy;
use crate::decide::AnyRequest;
use crate::rules::Way;
use crate::telemetry::Facts;

/// How an endpoint is chosen where nobody says so.
pub(crate) const LEAST_LOAD: How = How { strategy: Strategy::PeakEwma, hash: None, session: None };

/// How an endpoint is chosen. A hash stands above the service's own affinity.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    pub(crate) strategy: Strategy,
    pub(crate) hash: Option<u64>,
    /// Before anything else, the endpoint of this session.
    pub(crate) session: Option<Session>,
}

impl How {
    /// By the hash of these bytes.
    pub(crate) fn by(bytes: &[u8]) -> Self {
        Self { strategy: Strategy::Hash, hash: Some(XxHash64::oneshot(0, bytes)), session: None }
    }
}

/// How an endpoint is chosen for a request. One without what a policy hashes goes to any; a cookie it is given.
pub(crate) fn of(way: &mut Way, request: &dyn AnyRequest, facts: &Facts) -> How {
    How { session: way.session, ..by_policy(way, request, facts) }
}

fn by_policy(way: &mut Way, request: &dyn AnyRequest, facts: &Facts) -> How {
    let fields: &dyn Headers = request;
    let strategy = match way.balancing.take() {
        None => return LEAST_LOAD,
        Some(Balancing::LeastLoad) => Strategy::PeakEwma,
        Some(Balancing::LeastRequest) => Strategy::LeastRequest,
        Some(Balancing::Random) => Strategy::Random,
        Some(Balancing::RoundRobin) => Strategy::RoundRobin,
        // One table serves both: what either promises is that few keys move.
        Some(Balancing::Maglev(key) | Balancing::RingHash(key)) => match key {
            HashKey::Cookie { name, ttl } => match l7::cookie(fields, &name) {
                Some(value) => return How::by(value.as_bytes()),
                None => return given(&name, ttl, way),
            },
            HashKey::Header(name) => match fields.joined(name.as_str()) {
                Some(value) => return How::by(&value),
                None => Strategy::Random,
            },
            HashKey::Source => return How::by(client(facts).as_bytes()),
        },
    };
    How { strategy, hash: None, session: None }
}

/// By a cookie that the client is told to keep from now on.
fn given(name: &CookieName, ttl: Option<Duration>, way: &mut Way) -> How {
    let value = format!("{:016x}", fastrand::u64(..));
    let age = ttl.map(|ttl| format!("; Max-Age={}", ttl.as_secs())).unwrap_or_default();
    if let Ok(field) = HeaderValue::from_str(&format!("{name}={value}; Path=/; HttpOnly{age}")) {
        way.tell(SET_COOKIE, field);
    }
    How::by(value.as_bytes())
}

/// What a client is known by, from whichever port it connects. Not its workload, which may be known a moment later only.
pub(crate) fn client(facts: &Facts) -> String {
    facts.client.0.ip().to_string()
}
