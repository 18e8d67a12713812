//! How an endpoint is chosen for a request: as a policy says, else by load.
//!
//! Chooses none.

use std::time::Duration;

use http::HeaderValue;
use http::header::SET_COOKIE;
use model::l7::{self, Balancing, CookieName, HashKey, Headers};

use crate::balance::Strategy;
use crate::data::upstream::choice::{How, LEAST_LOAD, client};
use crate::decide::AnyRequest;
use crate::rules::Way;
use crate::telemetry::Facts;

/// How an endpoint is chosen for a request. One without what a policy hashes goes to any; a cookie it is given.
pub(super) fn of(way: &mut Way, request: &dyn AnyRequest, facts: &Facts) -> How {
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
