//! From model objects to what a discovery response carries: a name, a body and the other names it may be asked for by.
//!
//! Equal objects give equal bytes. Owns no versions (`xds` hashes the bytes) and no session.

use std::net::IpAddr;

use model::Str;
use model::l7::Rule;
use model::policy::Policy;
use model::service::{Service, Vip};
use model::workload::{NetworkMode, Workload};
use prost::Message;
use prost_types::Any;

use crate::convert::enrolment::Enrolment;
use crate::convert::l7::name_of;
use crate::workload::address::Type;
use crate::{l7, node, security, type_url, workload};

/// A resource as discovery names and carries it.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// Its name, unique within its type.
    pub name: String,
    /// Other names it may be asked for by: `network/ip`, or `network/ip/length` for a block.
    pub aliases: Vec<String>,
    /// The message, with its type.
    pub body: Any,
}

/// A workload, as [`type_url::ADDRESS`].
#[must_use]
pub fn workload(workload: &Workload) -> Encoded {
    // A node's address belongs to no single workload, so it finds none.
    let own = workload.network_mode == NetworkMode::Standard;
    let addresses = workload.addresses.iter().filter(|_| own);
    Encoded {
        name: workload.uid.to_string(),
        aliases: addresses.map(|ip| alias(&workload.network, *ip)).collect(),
        body: address(Type::Workload(workload.into())),
    }
}

/// A service, as [`type_url::ADDRESS`].
#[must_use]
pub fn service(service: &Service) -> Encoded {
    Encoded {
        name: service.id.to_string(),
        aliases: service.vips.iter().map(vip_alias).collect(),
        body: address(Type::Service(service.into())),
    }
}

/// A policy, as [`type_url::AUTHORIZATION`].
#[must_use]
pub fn policy(policy: &Policy) -> Encoded {
    let message = security::Authorization::from(policy);
    Encoded { name: policy.id.to_string(), aliases: Vec::new(), body: any(type_url::AUTHORIZATION, &message) }
}

/// A verdict on a pod, as [`type_url::POD_ENROLMENT`].
#[must_use]
pub fn enrolment(enrolment: &Enrolment) -> Encoded {
    let message = node::PodEnrolment::from(enrolment);
    Encoded {
        name: enrolment.uid.to_string(),
        aliases: Vec::new(),
        body: any(type_url::POD_ENROLMENT, &message),
    }
}

/// A rule, as [`type_url::L7_RULE`].
#[must_use]
pub fn rule(rule: &Rule) -> Encoded {
    let message = l7::Rule::from(rule);
    Encoded { name: rule.key.to_string(), aliases: Vec::new(), body: any(type_url::L7_RULE, &message) }
}

/// A traffic policy, as [`type_url::L7_POLICY`].
#[must_use]
pub fn traffic_policy(policy: &model::l7::Policy) -> Encoded {
    let message = l7::TrafficPolicy::from(policy);
    Encoded { name: name_of(policy), aliases: Vec::new(), body: any(type_url::L7_POLICY, &message) }
}

/// The TLS towards a service's endpoints, as [`type_url::L7_BACKEND_TLS`].
#[must_use]
pub fn backend_tls(tls: &model::l7::BackendTls) -> Encoded {
    let message = l7::BackendTls::from(tls);
    Encoded {
        name: tls.service.to_string(),
        aliases: Vec::new(),
        body: any(type_url::L7_BACKEND_TLS, &message),
    }
}

fn address(kind: Type) -> Any {
    any(type_url::ADDRESS, &workload::Address { r#type: Some(kind) })
}

fn any(type_url: &str, message: &impl Message) -> Any {
    Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }
}

fn alias(network: &Str, ip: IpAddr) -> String {
    format!("{network}/{ip}")
}

fn vip_alias(Vip { network, block }: &Vip) -> String {
    if block.prefix_len() == block.max_prefix_len() {
        alias(network, block.addr())
    } else {
        format!("{network}/{block}")
    }
}
