//! `airglow.l7.v1` to and from `model::l7`: rules, traffic policies and the TLS towards backends.
//!
//! A rule of which something can't be understood is kept with what it matches and a refusal, so that its traffic is
//! answered with 500 and by no other rule. Only what says neither which rule it is nor whom it is about is refused whole.

mod backend_tls;
mod balancing;
mod filter;
mod matching;
mod policy;
mod settings;

pub(crate) use backend_tls::backend_tls;
pub(crate) use policy::{name_of, policy};

use model::Str;
use model::l7::{BackendTarget, Moment, Parent, RouteKind, Rule, RuleKey, Scope, Timeouts};
use model::service::ServiceName;
use prost::Message;

use self::settings::{backend, duration, millis, retry, session, wire_backend, wire_retry, wire_session};
use super::{known, optional_port, port, required};
use crate::invalid::{Invalid, InvalidField, Problem};
use crate::l7 as wire;
use crate::unknown;

/// A rule as it was received.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceivedRule {
    /// The rule; it has a refusal where there is a problem.
    pub rule: Rule,
    /// What of it this version does not understand. The caller rejects the resource, and applies the rule.
    pub problem: Option<Invalid>,
}

/// The field number of `Rule.matches`.
const MATCHES: u32 = 8;

/// Reads a rule from `body`, of which `wire` was decoded.
pub(crate) fn rule(wire: wire::Rule, body: &[u8]) -> Result<ReceivedRule, Invalid> {
    // What is not understood is not encoded again.
    let complete = wire.encoded_len() == body.len();
    let key = key(&wire)?;
    let wire::Rule {
        kind: _,
        namespace: _,
        name: _,
        index: _,
        section,
        parents,
        created,
        matches,
        filters,
        backends,
        request_timeout_ms,
        backend_request_timeout_ms,
        retry: wire_retry,
        session: wire_session,
        refusal,
    } = wire;
    let parents = parents.into_iter().map(parent).collect::<Result<_, _>>()?;
    let mut problem = (!complete).then_some(Invalid::NotUnderstood { message: "airglow.l7.v1.Rule" });
    let bodies = unknown::fields_of(body, MATCHES);
    let matches = matches.into_iter().zip(bodies).map(|(m, body)| {
        let (m, why) = matching::from_wire(m, body);
        keep(&mut problem, why);
        m
    });
    let matches = matches.collect();
    let filters = filters.into_iter().map(filter::from_wire).collect::<Result<_, _>>();
    let backends = backends.into_iter().map(backend).collect::<Result<_, _>>();
    let retry = wire_retry.map(retry).transpose();
    let session = wire_session.map(session).transpose();
    let mut read = Rule {
        key,
        name: (!section.is_empty()).then(|| section.into()),
        parents,
        created: Moment(created),
        matches,
        filters: or_default(filters, &mut problem),
        backends: or_default(backends, &mut problem),
        timeouts: Timeouts {
            request: request_timeout_ms.map(duration),
            backend_request: backend_request_timeout_ms.map(duration),
        },
        retry: or_default(retry, &mut problem),
        session: or_default(session, &mut problem),
        refusal: (!refusal.is_empty()).then(|| refusal.into()),
    };
    if let (Some(problem), None) = (&problem, &read.refusal) {
        read.refusal = Some(problem.to_string().into());
    }
    Ok(ReceivedRule { rule: read, problem })
}

/// Keeps the first problem.
fn keep(problem: &mut Option<Invalid>, why: Option<InvalidField>) {
    if problem.is_none() {
        *problem = why.map(Invalid::from);
    }
}

fn or_default<T: Default>(read: Result<T, InvalidField>, problem: &mut Option<Invalid>) -> T {
    read.unwrap_or_else(|why| {
        keep(problem, Some(why));
        T::default()
    })
}

fn key(wire: &wire::Rule) -> Result<RuleKey, InvalidField> {
    Ok(RuleKey {
        kind: route_kind(wire.kind)?,
        namespace: required(wire.namespace.clone()).map_err(|p| p.of("namespace"))?,
        name: required(wire.name.clone()).map_err(|p| p.of("name"))?,
        index: wire.index,
    })
}

impl From<&Rule> for wire::Rule {
    fn from(rule: &Rule) -> Self {
        let Rule {
            key: RuleKey { kind, namespace, name, index },
            name: section,
            parents,
            created: Moment(created),
            matches,
            filters,
            backends,
            timeouts: Timeouts { request, backend_request },
            retry,
            session,
            refusal,
        } = rule;
        Self {
            kind: wire_route_kind(*kind).into(),
            namespace: namespace.to_string(),
            name: name.to_string(),
            index: *index,
            section: optional(section.as_ref()),
            parents: parents.iter().map(wire_parent).collect(),
            created: *created,
            matches: matches.iter().map(matching::to_wire).collect(),
            filters: filters.iter().map(filter::to_wire).collect(),
            backends: backends.iter().map(wire_backend).collect(),
            request_timeout_ms: request.map(millis),
            backend_request_timeout_ms: backend_request.map(millis),
            retry: retry.as_ref().map(wire_retry),
            session: session.as_ref().map(wire_session),
            refusal: optional(refusal.as_ref()),
        }
    }
}

/// Where nothing is the empty string.
fn optional(text: Option<&Str>) -> String {
    text.map(ToString::to_string).unwrap_or_default()
}

fn route_kind(number: i32) -> Result<RouteKind, InvalidField> {
    match known(number).map_err(|p| p.of("kind"))? {
        wire::RouteKind::Grpc => Ok(RouteKind::Grpc),
        wire::RouteKind::Http => Ok(RouteKind::Http),
        wire::RouteKind::Tls => Ok(RouteKind::Tls),
        wire::RouteKind::Tcp => Ok(RouteKind::Tcp),
        wire::RouteKind::Unspecified => Err(Problem::Missing.of("kind")),
    }
}

fn wire_route_kind(kind: RouteKind) -> wire::RouteKind {
    match kind {
        RouteKind::Grpc => wire::RouteKind::Grpc,
        RouteKind::Http => wire::RouteKind::Http,
        RouteKind::Tls => wire::RouteKind::Tls,
        RouteKind::Tcp => wire::RouteKind::Tcp,
    }
}

fn parent(wire::Parent { service, port, consumer }: wire::Parent) -> Result<Parent, InvalidField> {
    Ok(Parent {
        service: service_name(service, "parents.service")?,
        port: optional_port(port).map_err(|p| p.of("parents.port"))?,
        scope: if consumer { Scope::Consumer } else { Scope::Producer },
    })
}

fn wire_parent(Parent { service, port, scope }: &Parent) -> wire::Parent {
    wire::Parent {
        service: Some(wire_service(service)),
        port: port.unwrap_or_default().into(),
        consumer: *scope == Scope::Consumer,
    }
}

fn service_name(service: Option<wire::Service>, field: &'static str) -> Result<ServiceName, InvalidField> {
    let wire::Service { namespace, hostname } = service.ok_or_else(|| Problem::Missing.of(field))?;
    let named = |text| required(text).map_err(|p| p.of(field));
    Ok(ServiceName { namespace: named(namespace)?, hostname: named(hostname)? })
}

fn wire_service(ServiceName { namespace, hostname }: &ServiceName) -> wire::Service {
    wire::Service { namespace: namespace.to_string(), hostname: hostname.to_string() }
}

fn target(target: Option<wire::Target>) -> Result<BackendTarget, InvalidField> {
    const FIELD: &str = "target";
    match target.and_then(|target| target.kind).ok_or_else(|| Problem::Missing.of(FIELD))? {
        wire::target::Kind::Invalid(reason) => Ok(BackendTarget::Invalid(reason.into())),
        wire::target::Kind::Service(wire::ServicePort { name, port: number }) => Ok(BackendTarget::Service {
            name: service_name(name, FIELD)?,
            port: port(number).map_err(|p| p.of(FIELD))?,
        }),
    }
}

fn wire_target(target: &BackendTarget) -> wire::Target {
    let kind = match target {
        BackendTarget::Invalid(reason) => wire::target::Kind::Invalid(reason.to_string()),
        BackendTarget::Service { name, port } => wire::target::Kind::Service(wire::ServicePort {
            name: Some(wire_service(name)),
            port: (*port).into(),
        }),
    };
    wire::Target { kind: Some(kind) }
}
