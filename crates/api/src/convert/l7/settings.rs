//! Backends, retries and sessions of rules, and the units that they are written in.

use std::time::Duration;

use model::l7::{Backend, CookieName, Lifetime, PathText, Retry, SessionCarrier, SessionPersistence};

use super::filter::header_name;
use super::{filter, target, wire_target};
use crate::invalid::{InvalidField, Problem};
use crate::l7 as wire;
use wire::session_persistence::Carrier;

pub(super) fn duration(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Durations of the API have no parts of a millisecond (GEP-2257).
pub(super) fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

pub(super) fn backend(backend: wire::Backend) -> Result<Backend, InvalidField> {
    let wire::Backend { weight, target: to, filters } = backend;
    let filters = filters.into_iter().map(filter::from_wire).collect::<Result<_, _>>()?;
    Ok(Backend { weight, target: target(to)?, filters })
}

pub(super) fn wire_backend(Backend { weight, target, filters }: &Backend) -> wire::Backend {
    wire::Backend {
        weight: *weight,
        target: Some(wire_target(target)),
        filters: filters.iter().map(filter::to_wire).collect(),
    }
}

pub(super) fn retry(retry: wire::Retry) -> Result<Retry, InvalidField> {
    let wire::Retry { attempts, backoff_ms, statuses, grpc_codes } = retry;
    if attempts == 0 {
        return Err(Problem::Missing.of("retry.attempts"));
    }
    let status = |value: u32| status(value, 400..=599).map_err(|p| p.of("retry.statuses"));
    Ok(Retry {
        attempts,
        backoff: backoff_ms.map(duration),
        statuses: statuses.into_iter().map(status).collect::<Result<_, _>>()?,
        grpc_codes: grpc_codes.into_iter().collect(),
    })
}

pub(super) fn status(value: u32, allowed: std::ops::RangeInclusive<u16>) -> Result<u16, Problem> {
    let status = u16::try_from(value).ok().filter(|status| allowed.contains(status));
    status.ok_or(Problem::Status { value })
}

pub(super) fn wire_retry(Retry { attempts, backoff, statuses, grpc_codes }: &Retry) -> wire::Retry {
    wire::Retry {
        attempts: *attempts,
        backoff_ms: backoff.map(millis),
        statuses: statuses.iter().map(|status| u32::from(*status)).collect(),
        grpc_codes: grpc_codes.iter().copied().collect(),
    }
}

pub(super) fn session(session: wire::SessionPersistence) -> Result<SessionPersistence, InvalidField> {
    let wire::SessionPersistence { carrier, absolute_timeout_ms } = session;
    let carrier = match carrier.ok_or_else(|| Problem::Missing.of("session.carrier"))? {
        Carrier::Header(name) => SessionCarrier::Header(header_name(&name)?),
        Carrier::Cookie(wire::Cookie { name, path, permanent }) => SessionCarrier::Cookie {
            name: CookieName::new(&name).map_err(|why| Problem::from(why).of("session.cookie.name"))?,
            path: PathText::new(&path).map_err(|why| Problem::from(why).of("session.cookie.path"))?,
            lifetime: if permanent { Lifetime::Permanent } else { Lifetime::Session },
        },
    };
    Ok(SessionPersistence { carrier, absolute_timeout: absolute_timeout_ms.map(duration) })
}

pub(super) fn wire_session(session: &SessionPersistence) -> wire::SessionPersistence {
    let SessionPersistence { carrier, absolute_timeout } = session;
    let carrier = match carrier {
        SessionCarrier::Header(name) => Carrier::Header(name.to_string()),
        SessionCarrier::Cookie { name, path, lifetime } => Carrier::Cookie(wire::Cookie {
            name: name.to_string(),
            path: path.to_string(),
            permanent: *lifetime == Lifetime::Permanent,
        }),
    };
    wire::SessionPersistence { carrier: Some(carrier), absolute_timeout_ms: absolute_timeout.map(millis) }
}
