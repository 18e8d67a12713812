//! What a route is attached to: which services, which of their ports, for whom, and why not. The rules are GAMMA's.

use std::collections::BTreeSet;

use model::l7::{Parent, Scope};

use super::described::{Described, GATEWAY_API, parent_gateway, parent_service};
use crate::index::Config;
use crate::index::cluster::{Cluster, Name};
use crate::index::service::{has_endpoints, is_tcp, service_name};
use crate::index::waypoint;
use crate::source::objects::{Key, Kind, Metadata, ParentRef, Service};

/// On one port of a service the first of these kinds that is there decides alone.
pub(crate) const PRECEDENCE: [Kind; 4] = [Kind::GRPCRoute, Kind::HTTPRoute, Kind::TLSRoute, Kind::TCPRoute];

/// The kinds that a kind displaces.
pub(crate) fn weaker_than(kind: Kind) -> impl Iterator<Item = Kind> {
    PRECEDENCE.into_iter().skip_while(move |other| *other != kind).skip(1)
}

/// Why an attachment is none.
pub(super) struct Refused {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// What became of an attachment.
pub(super) type Judged = Result<Parent, Refused>;

/// Each attachment that is ours to judge.
pub(super) fn judge<'a>(
    config: &Config,
    cluster: &Cluster,
    route: &Described<'a>,
) -> Vec<(&'a ParentRef, Judged)> {
    let judged = |parent: &'a ParentRef| {
        if let Some(service) = parent_service(parent, route.metadata) {
            let service = (service.namespace, service.name);
            return Some((parent, attach(config, cluster, route, parent, &service)));
        }
        if let Some(key) = parent_gateway(parent, route.metadata) {
            // Others' Gateways are theirs to judge.
            let gateway = cluster.gateways.get(&(key.namespace.clone(), key.name.clone()))?;
            let is_waypoint = waypoint::is_ours(cluster, gateway) && waypoint::listener(gateway).is_some();
            let message = format!(
                "{key} is a waypoint, which follows the routes of the Services that it guards; name a Service as the parent"
            );
            return is_waypoint.then_some((parent, Err(Refused { reason: "NoMatchingParent", message })));
        }
        // Nobody has such a kind: the group was forgotten.
        let is_meant = parent.kind.as_deref() == Some("Service")
            && matches!(parent.group.as_deref(), None | Some(GATEWAY_API));
        let message = format!("group {GATEWAY_API} has no kind Service; add `group: \"\"` to the parentRef");
        is_meant.then_some((parent, Err(Refused { reason: "NoMatchingParent", message })))
    };
    route.parent_refs.iter().filter_map(judged).collect()
}

fn attach(
    config: &Config,
    cluster: &Cluster,
    route: &Described<'_>,
    parent: &ParentRef,
    service: &Name,
) -> Judged {
    let ports = ports(cluster, parent, service)?;
    let own = &route.metadata.namespace;
    let stronger = PRECEDENCE.into_iter().take_while(|kind| *kind != route.kind);
    let mut left = ports.clone();
    let mut winner = None;
    for (key, taken) in stronger.flat_map(|kind| rivals(cluster, kind, own, service)) {
        let before = left.len();
        left.retain(|port| !taken.contains(port));
        winner = winner.or_else(|| (left.len() < before).then_some(key));
    }
    if let Some(winner) = winner.filter(|_| left.is_empty()) {
        let message = format!(
            "{winner} is attached to the same port, and its kind comes first; attach one of them to another port"
        );
        return Err(Refused { reason: "RouteReasonConflicted", message });
    }
    // A port that is named by its section is meant alone.
    let one = parent.port.or_else(|| parent.section_name.as_ref().and(ports.first().copied()));
    let scope = if *own == service.0 { Scope::Producer } else { Scope::Consumer };
    Ok(Parent { service: service_name(config, service), port: one, scope })
}

/// The routes of that kind and namespace that hold ports of the service, for the same clients, and which ports.
fn rivals<'a>(
    cluster: &'a Cluster,
    kind: Kind,
    namespace: &str,
    service: &Name,
) -> impl Iterator<Item = (&'a Key, BTreeSet<u16>)> {
    let keys = cluster.references().attached(service, kind).filter(move |key| key.namespace == namespace);
    keys.filter_map(move |key| {
        let route = Described::of(cluster.route(key)?)?;
        let is_it = |parent: &&ParentRef| {
            parent_service(parent, route.metadata).is_some_and(|it| (it.namespace, it.name) == *service)
        };
        let held =
            route.parent_refs.iter().filter(is_it).filter_map(|parent| ports(cluster, parent, service).ok());
        Some((key, held.flatten().collect()))
    })
}

/// The ports that an attachment is about.
fn ports(cluster: &Cluster, parent: &ParentRef, service: &Name) -> Result<BTreeSet<u16>, Refused> {
    let no_match = |message: String| Refused { reason: "NoMatchingParent", message };
    let (namespace, name) = service;
    let Some(object) = cluster.services.get(service) else {
        return Err(no_match(format!("there is no Service {namespace}/{name}")));
    };
    if !can_be_parent(object) {
        let message = format!(
            "Service {namespace}/{name} has no address of its own, so nothing that is sent to it can be told; attach the route \
             to a Service with a cluster IP"
        );
        return Err(Refused { reason: "UnsupportedValue", message });
    }
    let all = object.spec.ports.iter().filter(|port| is_tcp(port.protocol.as_deref()));
    let meant = all.filter(|port| {
        parent.port.is_none_or(|number| number == port.port)
            && parent.section_name.as_ref().is_none_or(|section| *section == port.name)
    });
    let meant: BTreeSet<u16> = meant.map(|port| port.port).collect();
    if meant.is_empty() {
        let which = match (&parent.section_name, parent.port) {
            (Some(section), _) => format!("TCP port {section:?}"),
            (None, Some(port)) => format!("TCP port {port}"),
            (None, None) => "TCP port".to_owned(),
        };
        return Err(no_match(format!("Service {namespace}/{name} has no {which}")));
    }
    Ok(meant)
}

/// Whether requests to a service can be told from others.
pub(crate) fn can_be_parent(service: &Service) -> bool {
    has_endpoints(service) && !is_headless(service)
}

fn is_headless(service: &Service) -> bool {
    service.spec.cluster_ip.as_deref() == Some("None")
        || service.spec.cluster_ips.iter().any(|ip| ip == "None")
}

/// Whether the route is attached to that service of its own will.
pub(super) fn is_parent(route: &[ParentRef], metadata: &Metadata, service: &Key) -> bool {
    route.iter().any(|parent| parent_service(parent, metadata).as_ref() == Some(service))
}
