//! TrafficPolicies in; per target what waypoints do, and what is said about it, out.
//!
//! Each setting of a target is taken from one policy: the oldest that has it, and among those the first by name. Which target
//! counts for a request (the narrowest that has the setting) is the waypoint's to say. A policy that can't be understood
//! has no effect: none of its settings keeps anybody out.

use model::l7::{
    Abort, AbortAnswer, Balancing, Client, CookieName, Delay, Fault, HashKey, HeaderName, Moment, Policy,
    PolicyName, PolicyTarget, RuleKey, Trigger, duration,
};

use super::Config;
use super::cluster::{Cluster, name_of, within};
use super::routes::{self, Described, GATEWAY_API, Refusal, created, moment, route_kind};
use super::service::{service_name, unguarded};
use super::statements::{Attachment, Condition, reference};
use crate::source::objects::{
    self, FaultClient, FaultFraction, FaultHeader, FaultMatch, HeaderMatchType, Key, Kind, TrafficPolicy,
    TrafficTarget,
};

/// The codes of gRPC that say that something failed, from 1.
const GRPC_STATUSES: [&str; 16] = [
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// What a policy says, whatever it is attached to.
#[derive(Clone)]
struct Settings {
    fault: Option<Fault>,
    balancing: Option<Balancing>,
}

/// What waypoints are told, and what there is to say of each attachment.
pub(crate) fn convert(
    config: &Config,
    cluster: &Cluster,
    policy: &TrafficPolicy,
) -> (Vec<Policy>, Vec<Attachment>) {
    let settings = settings(policy);
    let mut told: Vec<Policy> = Vec::new();
    let mut said = Vec::new();
    for found in &policy.spec.target_refs {
        let condition = match attach(config, cluster, policy, found, &settings) {
            Ok((new, remark)) => {
                // Named twice is told once.
                told.extend((told.iter().all(|other| other.target != new.target)).then_some(new));
                Condition::is("Accepted", "Accepted", remark)
            }
            Err((reason, message)) => Condition::not("Accepted", reason, message),
        };
        let TrafficTarget { group, kind, name, section_name } = found;
        let to = reference(group, kind, name, section_name.as_deref());
        said.push(Attachment { to, conditions: vec![condition] });
    }
    (told, said)
}

/// The objects that a policy is attached to, there or not.
pub(crate) fn targets(policy: &TrafficPolicy) -> impl Iterator<Item = Key> {
    policy.spec.target_refs.iter().filter_map(|target| key(policy, target))
}

fn key(policy: &TrafficPolicy, TrafficTarget { group, kind, name, .. }: &TrafficTarget) -> Option<Key> {
    let kinds = match group.as_str() {
        "" | "core" => &[Kind::Service][..],
        GATEWAY_API => &[Kind::Gateway, Kind::GRPCRoute, Kind::HTTPRoute, Kind::TCPRoute, Kind::TLSRoute],
        _ => &[],
    };
    let kind = *kinds.iter().find(|known| known.to_string() == *kind)?;
    Some(Key { kind, namespace: policy.metadata.namespace.clone(), name: name.clone() })
}

fn attach(
    config: &Config,
    cluster: &Cluster,
    policy: &TrafficPolicy,
    found: &TrafficTarget,
    settings: &Result<Settings, Refusal>,
) -> Result<(Policy, String), (&'static str, String)> {
    let target = target(config, cluster, policy, found)?;
    let Settings { mut fault, mut balancing } =
        settings.clone().map_err(|refusal| ("Invalid", refusal.message))?;
    let mut lost = Vec::new();
    let winner = |has: fn(&Settings) -> bool| winner(cluster, policy, found, has);
    if let Some(winner) = fault.as_ref().and_then(|_| winner(|it| it.fault.is_some())) {
        (fault, _) = (None, lost.push(format!("fault is taken from {winner}, which is older")));
    }
    if let Some(winner) = balancing.as_ref().and_then(|_| winner(|it| it.balancing.is_some())) {
        (balancing, _) = (None, lost.push(format!("balancing is taken from {winner}, which is older")));
    }
    let nothing_left = fault.is_none() && balancing.is_none();
    if nothing_left {
        return Err(("Conflicted", lost.join("; ")));
    }
    let service = key(policy, found).filter(|key| key.kind == Kind::Service);
    let unguarded = service.and_then(|it| unguarded(config, cluster, &(it.namespace, it.name)));
    let remark = if lost.is_empty() { "attached to its target".to_owned() } else { lost.join("; ") };
    let remark = routes::joined(&remark, unguarded);
    let (namespace, name) = name_of(&policy.metadata);
    let name = PolicyName { namespace: namespace.into(), name: name.into() };
    Ok((Policy { name, target, created: created(&policy.metadata), fault, balancing }, remark))
}

/// The policy that comes first, if another one with the same target and a setting like that does.
fn winner(
    cluster: &Cluster,
    policy: &TrafficPolicy,
    target: &TrafficTarget,
    has: fn(&Settings) -> bool,
) -> Option<Key> {
    let rank = |policy: &TrafficPolicy| (created(&policy.metadata), name_of(&policy.metadata));
    let own = rank(policy);
    let rivals = within(&cluster.traffic, &policy.metadata.namespace).filter(|(_, rival)| {
        rival.spec.target_refs.contains(target)
            && rank(rival) < own
            && settings(rival).is_ok_and(|settings| has(&settings))
    });
    let (_, first) = rivals.min_by_key(|(_, rival)| rank(rival))?;
    let (namespace, name) = name_of(&first.metadata);
    Some(Key { kind: Kind::TrafficPolicy, namespace, name })
}

fn target(
    config: &Config,
    cluster: &Cluster,
    policy: &TrafficPolicy,
    found: &TrafficTarget,
) -> Result<PolicyTarget, (&'static str, String)> {
    let TrafficTarget { group, kind, section_name, .. } = found;
    let Some(key) = key(policy, found) else {
        let message =
            format!("{kind:?} of group {group:?} can't be a target; name a Service, a route or a Gateway");
        return Err(("Invalid", message));
    };
    let absent = || ("TargetNotFound", format!("there is no {key}"));
    let name = (key.namespace.clone(), key.name.clone());
    let whole = |target: PolicyTarget| match section_name {
        None => Ok(target),
        Some(_) => Err(("Invalid", format!("{key} has no rules; leave sectionName out"))),
    };
    if key.kind == Kind::Service {
        cluster.services.get(&name).ok_or_else(absent)?;
        return whole(PolicyTarget::Service(service_name(config, &name)));
    }
    let there = (key.kind == Kind::Gateway).then(|| cluster.gateways.get(&name));
    let (namespace, name) = (key.namespace.as_str().into(), key.name.as_str().into());
    if let Some(gateway) = there {
        gateway.ok_or_else(absent)?;
        return whole(PolicyTarget::Waypoint { namespace, name });
    }
    let route = cluster.route(&key).and_then(Described::of).ok_or_else(absent)?;
    let kind = route_kind(key.kind);
    let Some(section) = section_name else { return Ok(PolicyTarget::Route { kind, namespace, name }) };
    let rule = (0..).zip(&route.rules).find(|(_, rule)| rule.name == Some(section));
    let (index, _) =
        rule.ok_or_else(|| ("TargetNotFound", format!("{key} has no rule that is named {section:?}")))?;
    Ok(PolicyTarget::Rule(RuleKey { kind, namespace, name, index }))
}

fn settings(policy: &TrafficPolicy) -> Result<Settings, Refusal> {
    let spec = &policy.spec;
    let settings = Settings {
        fault: spec.fault.as_ref().map(|found| fault(found, &policy.metadata.namespace)).transpose()?,
        balancing: spec.balancing.as_ref().map(balancing).transpose()?,
    };
    if settings.fault.is_none() && settings.balancing.is_none() {
        return Err(Refusal::unsupported("it sets nothing; add fault or balancing"));
    }
    Ok(settings)
}

fn fault(found: &objects::Fault, namespace: &str) -> Result<Fault, Refusal> {
    let objects::Fault { until, matches, delay, abort } = found;
    if delay.is_none() && abort.is_none() {
        return Err(Refusal::unsupported("fault does nothing; add delay or abort"));
    }
    Ok(Fault {
        until: moment(until).filter(|until| *until < Moment(u64::MAX)).ok_or_else(|| {
            Refusal::unsupported(format!(
                "fault.until {until:?} is no time; write one as 2026-12-01T18:00:00Z"
            ))
        })?,
        triggers: matches.iter().map(|found| trigger(found, namespace)).collect::<Result<_, _>>()?,
        delay: delay.as_ref().map(self::delay).transpose()?,
        abort: abort.as_ref().map(self::abort).transpose()?,
    })
}

fn trigger(FaultMatch { headers, clients }: &FaultMatch, namespace: &str) -> Result<Trigger, Refusal> {
    if headers.is_empty() && clients.is_empty() {
        return Err(Refusal::unsupported(
            "a match of fault has no condition; leave matches out to mean every request",
        ));
    }
    let header = |FaultHeader { kind, name, value }: &FaultHeader| {
        let kind = match kind {
            HeaderMatchType::Exact => "Exact",
            HeaderMatchType::RegularExpression => "RegularExpression",
        };
        routes::header(Some(kind), name, value).map_err(Refusal::unsupported)
    };
    let client = |FaultClient { namespace: of, service_account }: &FaultClient| {
        let namespace = of.as_deref().unwrap_or(namespace).into();
        match service_account {
            None => Client::Namespace(namespace),
            Some(name) => Client::ServiceAccount { namespace, name: name.as_str().into() },
        }
    };
    Ok(Trigger {
        headers: headers.iter().map(header).collect::<Result<_, _>>()?,
        clients: clients.iter().map(client).collect(),
    })
}

fn share(percent: Option<u32>, fraction: Option<FaultFraction>) -> Result<model::l7::Fraction, Refusal> {
    routes::share(percent, fraction.map(|it| (it.numerator, it.denominator)))
}

fn delay(found: &objects::Delay) -> Result<Delay, Refusal> {
    let share = share(found.percent, found.fraction)?;
    Ok(Delay { share, duration: duration(&found.duration)? })
}

fn abort(found: &objects::Abort) -> Result<Abort, Refusal> {
    let objects::Abort { http_status, grpc_status, reset, percent, fraction } = found;
    let answer = match (http_status, grpc_status, reset) {
        (Some(status @ 200..=599), None, None) => AbortAnswer::Http(*status),
        (None, Some(name), None) => {
            let code = (1..).zip(GRPC_STATUSES).find(|(_, known)| known == name).map(|(code, _)| code);
            AbortAnswer::Grpc(code.ok_or_else(|| {
                Refusal::unsupported(format!("grpcStatus {name:?} is none of {}", GRPC_STATUSES.join(", ")))
            })?)
        }
        (None, None, Some(true)) => AbortAnswer::Reset,
        _ => {
            let message = "abort needs one of httpStatus (200 to 599), grpcStatus and `reset: true`";
            return Err(Refusal::unsupported(message));
        }
    };
    Ok(Abort { share: share(*percent, *fraction)?, answer })
}

fn balancing(found: &objects::Balancing) -> Result<Balancing, Refusal> {
    use objects::Algorithm;
    let hashes = matches!(found.algorithm, Algorithm::RingHash | Algorithm::Maglev);
    let key = match (&found.hash, hashes) {
        (None, false) => None,
        (Some(found), true) => Some(hash_key(found)?),
        (Some(_), false) => {
            return Err(Refusal::unsupported(
                "balancing.hash is for RingHash and Maglev; take it out or use one of them",
            ));
        }
        (None, true) => {
            return Err(Refusal::unsupported(
                "RingHash and Maglev need balancing.hash, which says what is hashed",
            ));
        }
    };
    Ok(match (found.algorithm, key) {
        (Algorithm::RingHash, Some(key)) => Balancing::RingHash(key),
        (Algorithm::Maglev, Some(key)) => Balancing::Maglev(key),
        (Algorithm::LeastRequest, _) => Balancing::LeastRequest,
        (Algorithm::Random, _) => Balancing::Random,
        (Algorithm::RoundRobin, _) => Balancing::RoundRobin,
        (Algorithm::LeastLoad | Algorithm::RingHash | Algorithm::Maglev, _) => Balancing::LeastLoad,
    })
}

fn hash_key(found: &objects::HashKey) -> Result<HashKey, Refusal> {
    match (&found.header, &found.cookie, found.source) {
        (Some(name), None, None) => Ok(HashKey::Header(HeaderName::new(name)?)),
        (None, Some(cookie), None) => {
            let ttl = cookie.ttl.as_deref().map(duration).transpose()?;
            Ok(HashKey::Cookie { name: CookieName::new(&cookie.name)?, ttl })
        }
        (None, None, Some(true)) => Ok(HashKey::Source),
        _ => Err(Refusal::unsupported("balancing.hash needs one of header, cookie and `source: true`")),
    }
}
