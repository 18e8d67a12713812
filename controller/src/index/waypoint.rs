//! A Gateway as a waypoint: whose class it has, where it is, what it guards, whom it admits, and which pods are it.
//!
//! Owns no wish to be guarded; that is in `attachment`.

use std::net::IpAddr;

use model::Str;
use model::address::{HBONE_PORT, NetworkAddress};
use model::service::{GatewayAddress, GatewayDestination, ServiceName};

use super::Config;
use super::cluster::{Cluster, Name, name_of, selects};
use super::service::service_name;
use crate::source::objects::{Expression, Gateway, LabelSelector, Labels, Listener, Metadata, Reach};

/// What our classes name as their controller.
pub const CONTROLLER: &str = "airglow.dev/waypoint-controller";

/// Our classes, which count also where no object describes them. One that somebody else describes is that one's.
pub const CLASSES: [&str; 2] = ["airglow-waypoint", "istio-waypoint"];

/// The label by which a pod or Service says which Gateway it is made for.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// The annotation by which a Gateway says which service account's workloads it guards.
const FOR_SERVICE_ACCOUNT: &str = "istio.io/for-service-account";

/// The label by which a Gateway, or else its class, says what it guards.
const WAYPOINT_FOR: &str = "istio.io/waypoint-for";

/// The label by which a pod or Service says which controller makes it.
pub const MANAGED: &str = "gateway.istio.io/managed";
const MANAGED_BY: [&str; 2] = ["istio.io-mesh-controller", "istio.io-eastwest-controller"];

/// What a waypoint listens for.
const PROTOCOL: &str = "HBONE";

/// What a waypoint guards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Guards {
    /// What is dialled by the address of a service.
    pub(crate) services: bool,
    /// What is dialled by its own address.
    pub(crate) workloads: bool,
}

/// Whether a Gateway is for this controller to make.
pub(crate) fn is_ours(cluster: &Cluster, gateway: &Gateway) -> bool {
    let class = gateway.spec.gateway_class_name.as_str();
    match cluster.class(class) {
        Some(object) => object.spec.controller_name == CONTROLLER,
        None => CLASSES.contains(&class),
    }
}

/// The listener that makes a Gateway a waypoint; without one it is something else.
pub(crate) fn listener(gateway: &Gateway) -> Option<&Listener> {
    gateway.spec.listeners.iter().find(|listener| listener.protocol == PROTOCOL)
}

/// Where a waypoint is: what its status says, else the Service of its name.
pub(crate) fn location(config: &Config, cluster: &Cluster, gateway: &Gateway) -> GatewayAddress {
    let addresses = &gateway.status.addresses;
    // A name stands for every instance, in every network; an address may be one of two of the same Service.
    let hostname = addresses.iter().find(|address| address.kind == "Hostname");
    let ip = addresses.iter().find_map(|address| address.value.parse::<IpAddr>().ok());
    let destination = match (hostname, ip) {
        (Some(hostname), _) => GatewayDestination::Service(ServiceName {
            namespace: gateway.metadata.namespace.as_str().into(),
            hostname: hostname.value.as_str().into(),
        }),
        (None, Some(ip)) => GatewayDestination::Address(NetworkAddress {
            network: config.network_of_mesh(cluster).into(),
            ip: ip.to_canonical(),
        }),
        (None, None) => return expected(config, &name_of(&gateway.metadata)),
    };
    let port = listener(gateway).map_or(HBONE_PORT, |listener| listener.port);
    GatewayAddress { destination, hbone_port: port }
}

/// Where a waypoint would be of which nothing but the name is known. If it is not there, nothing is reached by it.
pub(crate) fn expected(config: &Config, name: &Name) -> GatewayAddress {
    GatewayAddress {
        destination: GatewayDestination::Service(service_name(config, name)),
        hbone_port: HBONE_PORT,
    }
}

/// Where nothing is, for what must not reach a waypoint and must not be reached without one.
pub(crate) fn nowhere((namespace, name): &Name) -> GatewayAddress {
    // Nobody can have a name below `invalid` (RFC 6761); this one says in a refusal what is wrong.
    let hostname = format!("{name}.not-attached.invalid");
    let service = ServiceName { namespace: namespace.as_str().into(), hostname: hostname.into() };
    GatewayAddress { destination: GatewayDestination::Service(service), hbone_port: HBONE_PORT }
}

/// What a waypoint guards: as it says, else as its class says, else services; one for an account, everything of that account.
pub(crate) fn guards(cluster: &Cluster, gateway: &Gateway) -> Guards {
    let class = cluster.class(&gateway.spec.gateway_class_name);
    let said = (gateway.metadata.labels.get(WAYPOINT_FOR))
        .or_else(|| class.and_then(|class| class.metadata.labels.get(WAYPOINT_FOR)));
    match said.map(String::as_str) {
        Some("all") => Guards { services: true, workloads: true },
        Some("none") => Guards { services: false, workloads: false },
        Some("workload") => Guards { services: false, workloads: true },
        Some("service") => Guards { services: true, workloads: false },
        // A word that is not known changes nothing.
        Some(_) | None => Guards { services: true, workloads: account(&gateway.metadata).is_some() },
    }
}

/// The service account of its namespace whose workloads a Gateway guards, if it says so.
pub(crate) fn account(gateway: &Metadata) -> Option<&str> {
    gateway.annotations.get(FOR_SERVICE_ACCOUNT).map(String::as_str).filter(|account| !account.is_empty())
}

/// Whether a waypoint admits what is in a namespace.
pub(crate) fn admits(cluster: &Cluster, gateway: &Gateway, namespace: &str) -> bool {
    let Some(listener) = listener(gateway) else { return false };
    let allowed = &listener.allowed_routes.namespaces;
    match allowed.from {
        Reach::All => true,
        Reach::None => false,
        Reach::Same => namespace == gateway.metadata.namespace,
        Reach::Selector => {
            let labels = cluster.namespace(namespace).map(|metadata| &metadata.labels);
            let selector = allowed.selector.as_ref();
            selector.zip(labels).is_some_and(|(selector, labels)| is_selected(selector, labels))
        }
    }
}

/// Whether a pod or a Service is part of a waypoint or of a gateway between networks: it is never guarded itself.
pub(crate) fn is_instance(cluster: &Cluster, metadata: &Metadata) -> bool {
    let managed = metadata.labels.get(MANAGED);
    managed.is_some_and(|managed| MANAGED_BY.contains(&managed.as_str()))
        || of(cluster, metadata).is_some_and(|gateway| listener(gateway).is_some())
}

/// The Gateway that a pod or a Service says that it is made for.
fn of<'a>(cluster: &'a Cluster, metadata: &Metadata) -> Option<&'a Gateway> {
    let gateway = metadata.labels.get(GATEWAY_NAME)?;
    cluster.gateways.get(&(metadata.namespace.clone(), gateway.clone())).map(|gateway| &**gateway)
}

/// What services call the waypoint that a pod is part of: the place where its Gateway is, and the one where it would be.
pub(crate) fn names(config: &Config, cluster: &Cluster, pod: &Metadata) -> Vec<Str> {
    let Some(gateway) = pod.labels.get(GATEWAY_NAME) else { return Vec::new() };
    let name = (pod.namespace.clone(), gateway.clone());
    let found = cluster.gateways.get(&name).map(|gateway| location(config, cluster, gateway));
    let mut names: Vec<Str> = found
        .into_iter()
        .chain([expected(config, &name)])
        .map(|at| at.destination.to_string().into())
        .collect();
    names.dedup();
    names
}

fn is_selected(selector: &LabelSelector, labels: &Labels) -> bool {
    let meets = |Expression { key, operator, values }: &Expression| {
        let value = labels.get(key);
        match operator.as_str() {
            "In" => value.is_some_and(|value| values.contains(value)),
            "NotIn" => value.is_none_or(|value| !values.contains(value)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            // Not an operator of Kubernetes: nothing is admitted by what is not understood.
            _ => false,
        }
    };
    selects(&selector.match_labels, labels) && selector.match_expressions.iter().all(meets)
}
