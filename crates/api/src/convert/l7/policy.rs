//! Traffic policies. One that can't be understood is refused whole: a condition less would break more than was meant.

use model::identity::Identity;
use model::l7::{
    Abort, AbortAnswer, Client, Delay, Fault, Moment, Policy, PolicyName, PolicyTarget, RuleKey, Trigger,
};
use prost::Message;

use super::filter::{fraction, wire_fraction};
use super::matching::{header_match, wire_header_match};
use super::settings::{duration, millis, status};
use super::{balancing, route_kind, service_name, wire_route_kind, wire_service};
use crate::convert::{halves, required};
use crate::invalid::{Invalid, InvalidField, Problem};
use crate::l7 as wire;
use wire::abort::Answer;
use wire::client::Kind;
use wire::traffic_policy::Target;

/// Reads a policy from `body`, of which `wire` was decoded.
pub(crate) fn policy(wire: wire::TrafficPolicy, body: &[u8]) -> Result<Policy, Invalid> {
    if wire.encoded_len() != body.len() {
        return Err(Invalid::NotUnderstood { message: "airglow.l7.v1.TrafficPolicy" });
    }
    let wire::TrafficPolicy { namespace, name, created, fault: broken, target: about, balancing: chosen } =
        wire;
    Ok(Policy {
        name: PolicyName {
            namespace: required(namespace).map_err(|p| p.of("namespace"))?,
            name: required(name).map_err(|p| p.of("name"))?,
        },
        target: target(about)?,
        created: Moment(created),
        fault: broken.map(fault).transpose()?,
        balancing: chosen.map(balancing::from_wire).transpose()?,
    })
}

impl From<&Policy> for wire::TrafficPolicy {
    fn from(policy: &Policy) -> Self {
        let Policy {
            name: PolicyName { namespace, name },
            target,
            created: Moment(created),
            fault,
            balancing: chosen,
        } = policy;
        Self {
            namespace: namespace.to_string(),
            name: name.to_string(),
            target: Some(wire_target(target)),
            created: *created,
            fault: fault.as_ref().map(wire_fault),
            balancing: chosen.as_ref().map(balancing::to_wire),
        }
    }
}

/// The resource name of a policy: one for each of its targets.
pub(crate) fn name_of(Policy { name, target, .. }: &Policy) -> String {
    match target {
        PolicyTarget::Rule(key) => format!("{name}/{key}"),
        PolicyTarget::Route { kind, namespace, name: route } => format!("{name}/{kind}/{namespace}/{route}"),
        PolicyTarget::Service(service) => format!("{name}/Service/{service}"),
        PolicyTarget::Waypoint { namespace, name: gateway } => {
            format!("{name}/Gateway/{namespace}/{gateway}")
        }
    }
}

fn target(target: Option<Target>) -> Result<PolicyTarget, InvalidField> {
    const FIELD: &str = "target";
    let named = |text| required(text).map_err(|p| p.of(FIELD));
    Ok(match target.ok_or_else(|| Problem::Missing.of(FIELD))? {
        Target::Rule(wire::RuleTarget { route, index }) => {
            let wire::RouteTarget { kind, namespace, name } =
                route.ok_or_else(|| Problem::Missing.of(FIELD))?;
            let (kind, namespace, name) = (route_kind(kind)?, named(namespace)?, named(name)?);
            PolicyTarget::Rule(RuleKey { kind, namespace, name, index })
        }
        Target::Route(wire::RouteTarget { kind, namespace, name }) => {
            PolicyTarget::Route { kind: route_kind(kind)?, namespace: named(namespace)?, name: named(name)? }
        }
        Target::Service(service) => PolicyTarget::Service(service_name(Some(service), FIELD)?),
        Target::Waypoint(wire::GatewayTarget { namespace, name }) => {
            PolicyTarget::Waypoint { namespace: named(namespace)?, name: named(name)? }
        }
    })
}

fn wire_target(target: &PolicyTarget) -> Target {
    let route = |kind, namespace: &model::Str, name: &model::Str| wire::RouteTarget {
        kind: wire_route_kind(kind).into(),
        namespace: namespace.to_string(),
        name: name.to_string(),
    };
    match target {
        PolicyTarget::Rule(RuleKey { kind, namespace, name, index }) => {
            Target::Rule(wire::RuleTarget { route: Some(route(*kind, namespace, name)), index: *index })
        }
        PolicyTarget::Route { kind, namespace, name } => Target::Route(route(*kind, namespace, name)),
        PolicyTarget::Service(service) => Target::Service(wire_service(service)),
        PolicyTarget::Waypoint { namespace, name } => {
            Target::Waypoint(wire::GatewayTarget { namespace: namespace.to_string(), name: name.to_string() })
        }
    }
}

fn fault(wire::Fault { triggers, delay, abort, until }: wire::Fault) -> Result<Fault, InvalidField> {
    Ok(Fault {
        triggers: triggers.into_iter().map(trigger).collect::<Result<_, _>>()?,
        delay: delay.map(self::delay).transpose()?,
        abort: abort.map(self::abort).transpose()?,
        until: Moment(until),
    })
}

fn wire_fault(Fault { triggers, delay, abort, until: Moment(until) }: &Fault) -> wire::Fault {
    wire::Fault {
        triggers: triggers.iter().map(wire_trigger).collect(),
        delay: delay.as_ref().map(|Delay { share, duration }| wire::Delay {
            share: Some(wire_fraction(*share)),
            duration_ms: millis(*duration),
        }),
        abort: abort.as_ref().map(wire_abort),
        until: *until,
    }
}

fn delay(wire::Delay { share, duration_ms }: wire::Delay) -> Result<Delay, InvalidField> {
    Ok(Delay { share: fraction(share)?, duration: duration(duration_ms) })
}

/// The last of gRPC's status codes (grpc.github.io/grpc/core/md_doc_statuscodes.html).
const LAST_GRPC_CODE: u32 = 16;

fn abort(wire::Abort { share, answer }: wire::Abort) -> Result<Abort, InvalidField> {
    const FIELD: &str = "fault.abort";
    let answer = match answer.ok_or_else(|| Problem::Missing.of(FIELD))? {
        Answer::Grpc(code) if code <= LAST_GRPC_CODE => AbortAnswer::Grpc(code),
        Answer::Grpc(value) => return Err(Problem::Status { value }.of(FIELD)),
        Answer::Http(value) => AbortAnswer::Http(status(value, 200..=599).map_err(|p| p.of(FIELD))?),
        Answer::Reset(_) => AbortAnswer::Reset,
    };
    Ok(Abort { share: fraction(share)?, answer })
}

fn wire_abort(Abort { share, answer }: &Abort) -> wire::Abort {
    let answer = match answer {
        AbortAnswer::Grpc(code) => Answer::Grpc(*code),
        AbortAnswer::Http(status) => Answer::Http((*status).into()),
        AbortAnswer::Reset => Answer::Reset(true),
    };
    wire::Abort { share: Some(wire_fraction(*share)), answer: Some(answer) }
}

fn trigger(wire::Trigger { headers, clients }: wire::Trigger) -> Result<Trigger, InvalidField> {
    if headers.is_empty() && clients.is_empty() {
        return Err(Problem::Missing.of("fault.triggers"));
    }
    Ok(Trigger {
        headers: headers.into_iter().map(header_match).collect::<Result<_, _>>()?,
        clients: clients.into_iter().map(client).collect::<Result<_, _>>()?,
    })
}

fn wire_trigger(Trigger { headers, clients }: &Trigger) -> wire::Trigger {
    wire::Trigger {
        headers: headers.iter().map(wire_header_match).collect(),
        clients: clients.iter().map(wire_client).collect(),
    }
}

fn client(wire::Client { kind }: wire::Client) -> Result<Client, InvalidField> {
    const FIELD: &str = "fault.triggers.clients";
    Ok(match kind.ok_or_else(|| Problem::Missing.of(FIELD))? {
        Kind::Identity(id) => {
            Client::Identity(id.parse::<Identity>().map_err(|why| Problem::Identity(why).of(FIELD))?)
        }
        Kind::Namespace(namespace) => Client::Namespace(required(namespace).map_err(|p| p.of(FIELD))?),
        Kind::ServiceAccount(account) => {
            let (namespace, name) = halves(&account).map_err(|p| p.of(FIELD))?;
            Client::ServiceAccount { namespace: namespace.into(), name: name.into() }
        }
    })
}

fn wire_client(client: &Client) -> wire::Client {
    let kind = match client {
        Client::Identity(id) => Kind::Identity(id.to_string()),
        Client::Namespace(namespace) => Kind::Namespace(namespace.to_string()),
        Client::ServiceAccount { namespace, name } => Kind::ServiceAccount(format!("{namespace}/{name}")),
    };
    wire::Client { kind: Some(kind) }
}
