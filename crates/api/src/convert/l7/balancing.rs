//! How a traffic policy says that endpoints are chosen.

use model::l7::{Balancing, CookieName, HashKey};

use super::filter::header_name;
use super::settings::{duration, millis};
use crate::convert::known;
use crate::invalid::{InvalidField, Problem};
use crate::l7 as wire;
use wire::Algorithm;
use wire::hash_key::Kind;

pub(super) fn from_wire(
    wire::Balancing { algorithm, key }: wire::Balancing,
) -> Result<Balancing, InvalidField> {
    const FIELD: &str = "balancing.algorithm";
    let key = || hash_key(key);
    Ok(match known(algorithm).map_err(|p| p.of(FIELD))? {
        Algorithm::Unspecified => return Err(Problem::Missing.of(FIELD)),
        Algorithm::LeastLoad => Balancing::LeastLoad,
        Algorithm::LeastRequest => Balancing::LeastRequest,
        Algorithm::Maglev => Balancing::Maglev(key()?),
        Algorithm::Random => Balancing::Random,
        Algorithm::RingHash => Balancing::RingHash(key()?),
        Algorithm::RoundRobin => Balancing::RoundRobin,
    })
}

pub(super) fn to_wire(balancing: &Balancing) -> wire::Balancing {
    let (algorithm, key) = match balancing {
        Balancing::LeastLoad => (Algorithm::LeastLoad, None),
        Balancing::LeastRequest => (Algorithm::LeastRequest, None),
        Balancing::Maglev(key) => (Algorithm::Maglev, Some(key)),
        Balancing::Random => (Algorithm::Random, None),
        Balancing::RingHash(key) => (Algorithm::RingHash, Some(key)),
        Balancing::RoundRobin => (Algorithm::RoundRobin, None),
    };
    wire::Balancing { algorithm: algorithm.into(), key: key.map(wire_hash_key) }
}

fn hash_key(key: Option<wire::HashKey>) -> Result<HashKey, InvalidField> {
    const FIELD: &str = "balancing.key";
    Ok(match key.and_then(|key| key.kind).ok_or_else(|| Problem::Missing.of(FIELD))? {
        Kind::Cookie(wire::HashCookie { name, ttl_ms }) => HashKey::Cookie {
            name: CookieName::new(&name).map_err(|why| Problem::from(why).of(FIELD))?,
            ttl: ttl_ms.map(duration),
        },
        Kind::Header(name) => HashKey::Header(header_name(&name)?),
        Kind::Source(_) => HashKey::Source,
    })
}

fn wire_hash_key(key: &HashKey) -> wire::HashKey {
    let kind = match key {
        HashKey::Cookie { name, ttl } => {
            Kind::Cookie(wire::HashCookie { name: name.to_string(), ttl_ms: ttl.map(millis) })
        }
        HashKey::Header(name) => Kind::Header(name.to_string()),
        HashKey::Source => Kind::Source(true),
    };
    wire::HashKey { kind: Some(kind) }
}
