//! From what a discovery response carries to updates of the store. Owns no session and no store.

use model::l7::{RouteKind, RuleKey};
use model::policy::{Policy, PolicyName};
use model::service::{Service, ServiceName};
use model::store::Update;
use model::workload::{Workload, WorkloadUid};
use prost::Message;
use prost_types::Any;

use crate::convert::enrolment::Enrolment;
use crate::convert::l7::ReceivedRule;
use crate::convert::{self, halves};
use crate::invalid::{Invalid, InvalidPolicy, InvalidRule};
use crate::workload::address;
use crate::{l7, node, security, type_url, unknown, workload};

/// Reads a resource of type [`type_url::ADDRESS`].
///
/// # Errors
/// When it is no workload or service that this version can act on. The caller rejects this one resource.
pub fn address(body: &Any) -> Result<Update, Invalid> {
    let address: workload::Address = message(body, type_url::ADDRESS, "istio.workload.Address")?;
    match address.r#type {
        Some(address::Type::Workload(workload)) => Ok(Update::Workload(Workload::try_from(workload)?)),
        Some(address::Type::Service(service)) => Ok(Update::Service(Service::try_from(service)?)),
        None => Err(Invalid::Empty { message: "istio.workload.Address" }),
    }
}

/// What the removal of the [`type_url::ADDRESS`] resource `name` means. A name of the form `namespace/hostname` can be a
/// service's or, from a control plane that names its workloads so, a workload's: removing what is not there does nothing.
#[must_use]
pub fn address_removed(name: &str) -> Vec<Update> {
    let workload = Update::WorkloadRemoved(WorkloadUid(name.into()));
    let service = halves(name).ok().map(|(namespace, hostname)| {
        Update::ServiceRemoved(ServiceName { namespace: namespace.into(), hostname: hostname.into() })
    });
    std::iter::once(workload).chain(service).collect()
}

/// Reads a resource of type [`type_url::AUTHORIZATION`] that was sent under `name`.
///
/// # Errors
/// When it can't be enforced as it is meant. The caller rejects this one resource *and* applies
/// [`InvalidPolicy::update`], because a DENY that is merely left out would allow more.
pub fn authorization(name: &str, body: &Any) -> Result<Update, InvalidPolicy> {
    match policy(name, body) {
        Ok(policy) => Ok(Update::Policy(policy)),
        Err(why) => Err(InvalidPolicy { name: policy_name(name).or_else(|| own_name(body)), why }),
    }
}

/// What a refused body calls itself, for when the name it was sent under is no policy's.
fn own_name(body: &Any) -> Option<PolicyName> {
    let wire = security::Authorization::decode(body.value.as_slice()).ok()?;
    policy_name(&format!("{}/{}", wire.namespace, wire.name))
}

fn policy(name: &str, body: &Any) -> Result<Policy, Invalid> {
    let wire: security::Authorization =
        message(body, type_url::AUTHORIZATION, "istio.security.Authorization")?;
    let own = format!("{}/{}", wire.namespace, wire.name);
    let mut policy = Policy::try_from(wire)?;
    unknown::mark(&mut policy, &body.value)?;
    // Its removal will come under the name it was sent with, and must find it.
    if own != name {
        return Err(Invalid::Name { sent: name.to_owned(), own });
    }
    Ok(policy)
}

/// What the removal of the [`type_url::AUTHORIZATION`] resource `name` means; `None` for a name that no policy has.
#[must_use]
pub fn authorization_removed(name: &str) -> Option<Update> {
    policy_name(name).map(Update::PolicyRemoved)
}

fn policy_name(name: &str) -> Option<PolicyName> {
    let (namespace, name) = halves(name).ok()?;
    Some(PolicyName { namespace: namespace.into(), name: name.into() })
}

/// Reads a resource of type [`type_url::POD_ENROLMENT`] that was sent under `name`.
///
/// # Errors
/// When it is not a complete verdict on the pod of that uid. The caller rejects this one resource.
pub fn enrolment(name: &str, body: &Any) -> Result<Enrolment, Invalid> {
    let wire: node::PodEnrolment = message(body, type_url::POD_ENROLMENT, "airglow.node.v1.PodEnrolment")?;
    let enrolment = Enrolment::try_from(wire)?;
    if &*enrolment.uid != name {
        return Err(Invalid::Name { sent: name.to_owned(), own: enrolment.uid.to_string() });
    }
    Ok(enrolment)
}

/// Reads a resource of type [`type_url::L7_RULE`] that was sent under `name`.
///
/// # Errors
/// When it does not say which rule it is, or whom it is about. The caller rejects this one resource, and refuses what the
/// rule of that key matched until now, if there is one.
pub fn rule(name: &str, body: &Any) -> Result<ReceivedRule, InvalidRule> {
    let read = || {
        let wire: l7::Rule = message(body, type_url::L7_RULE, "airglow.l7.v1.Rule")?;
        let received = convert::l7::rule(wire, &body.value)?;
        let own = received.rule.key.to_string();
        if own == name { Ok(received) } else { Err(Invalid::Name { sent: name.to_owned(), own }) }
    };
    read().map_err(|why| InvalidRule { key: rule_removed(name), why })
}

/// What the removal of the [`type_url::L7_RULE`] resource `name` is about; `None` for a name that no rule has.
#[must_use]
pub fn rule_removed(name: &str) -> Option<RuleKey> {
    let parts: Vec<&str> = name.split('/').collect();
    let [kind, namespace, name, index] = parts[..] else { return None };
    let kinds = [RouteKind::Grpc, RouteKind::Http, RouteKind::Tls, RouteKind::Tcp];
    let kind = kinds.into_iter().find(|known| known.to_string() == kind)?;
    Some(RuleKey { kind, namespace: namespace.into(), name: name.into(), index: index.parse().ok()? })
}

/// Reads a resource of type [`type_url::L7_POLICY`] that was sent under `name`. Its removal comes under the same name.
///
/// # Errors
/// When it can't be carried out as it is meant. The caller rejects this one resource.
pub fn traffic_policy(name: &str, body: &Any) -> Result<model::l7::Policy, Invalid> {
    let wire: l7::TrafficPolicy = message(body, type_url::L7_POLICY, "airglow.l7.v1.TrafficPolicy")?;
    let policy = convert::l7::policy(wire, &body.value)?;
    let own = convert::l7::name_of(&policy);
    if own == name { Ok(policy) } else { Err(Invalid::Name { sent: name.to_owned(), own }) }
}

/// Reads a resource of type [`type_url::L7_BACKEND_TLS`] that was sent under `name`, a service's.
///
/// # Errors
/// When it can't be carried out as it is meant. The caller rejects this one resource *and* refuses what goes to the endpoints of
/// [`service_named`], because plaintext was not meant.
pub fn backend_tls(name: &str, body: &Any) -> Result<model::l7::BackendTls, Invalid> {
    let wire: l7::BackendTls = message(body, type_url::L7_BACKEND_TLS, "airglow.l7.v1.BackendTls")?;
    let tls = convert::l7::backend_tls(wire, &body.value)?;
    let own = tls.service.to_string();
    if own == name { Ok(tls) } else { Err(Invalid::Name { sent: name.to_owned(), own }) }
}

/// The service that a resource of type [`type_url::L7_BACKEND_TLS`] is about; `None` for a name that no service has.
#[must_use]
pub fn service_named(name: &str) -> Option<ServiceName> {
    let (namespace, hostname) = halves(name).ok()?;
    Some(ServiceName { namespace: namespace.into(), hostname: hostname.into() })
}

fn message<M: Message + Default>(
    body: &Any,
    expected: &'static str,
    message: &'static str,
) -> Result<M, Invalid> {
    if body.type_url != expected {
        return Err(Invalid::Type { expected, got: body.type_url.clone() });
    }
    M::decode(body.value.as_slice()).map_err(|why| Invalid::Undecodable { message, why })
}
