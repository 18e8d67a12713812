//! An EndpointSlice in, workloads for its endpoints that are no pods out. Owns no pods: those are workloads already.

use model::Str;
use model::identity::Identity;
use model::workload::{Health, Locality, NetworkMode, TunnelProtocol, Workload, WorkloadType, WorkloadUid};

use super::Config;
use super::cluster::{Cluster, service_of};
use super::finding::{Finding, Reason};
use super::service::{has_endpoints, service_name};
use super::workload::sliced_ports;
use crate::source::objects::{Endpoint, EndpointSlice};

/// One workload per endpoint that refers to no pod.
pub(crate) fn convert(
    config: &Config,
    cluster: &Cluster,
    slice: &EndpointSlice,
) -> (Vec<Workload>, Vec<Finding>) {
    let mut findings = Vec::new();
    let Some(name) = service_of(slice) else {
        let message = "no label kubernetes.io/service-name says which service these endpoints back; add it";
        return (Vec::new(), vec![Finding::refused(Reason::Incomplete, message)]);
    };
    let Some(service) = cluster.services.get(&name).filter(|service| has_endpoints(service)) else {
        let message = format!("there is no service {} in namespace {} with endpoints", name.1, name.0);
        return (Vec::new(), vec![Finding::refused(Reason::Incomplete, message)]);
    };
    if slice.address_type == "FQDN" {
        let message = "endpoints given by DNS name are not supported; give addresses";
        return (Vec::new(), vec![Finding::refused(Reason::UnsupportedValue, message)]);
    }
    let ports = sliced_ports(service, slice);
    let mut workloads: Vec<Workload> = Vec::new();
    for endpoint in slice.endpoints.iter().filter(|endpoint| !is_pod(endpoint)) {
        for text in &endpoint.addresses {
            let Ok(ip) = text.parse::<std::net::IpAddr>() else {
                let message = format!("endpoint {text:?} is not an address; it is left out");
                findings.push(Finding::partial(Reason::Invalid, message));
                continue;
            };
            let Some(mut workload) = bare(config, cluster, slice, &ip.to_canonical().to_string()) else {
                let message =
                    "the endpoints can't have an identity: the namespace's name is no SPIFFE path segment";
                return (Vec::new(), vec![Finding::refused(Reason::Invalid, message)]);
            };
            if workloads.iter().any(|other| other.uid == workload.uid) {
                continue;
            }
            workload.addresses = vec![ip.to_canonical()];
            workload.node = endpoint.node_name.as_str().into();
            workload.health = match endpoint.conditions.ready {
                Some(false) => Health::Unhealthy,
                Some(true) | None => Health::Healthy,
            };
            workload.services = [(service_name(config, &name), ports.clone())].into();
            workloads.push(workload);
        }
    }
    (workloads, findings)
}

fn is_pod(endpoint: &Endpoint) -> bool {
    endpoint.target_ref.as_ref().is_some_and(|target| target.kind == "Pod")
}

/// What all endpoints of a slice have in common. They prove no identity: nothing is ever tunnelled to them.
fn bare(config: &Config, cluster: &Cluster, slice: &EndpointSlice, ip: &str) -> Option<Workload> {
    let metadata = &slice.metadata;
    let group = "discovery.k8s.io/EndpointSlice";
    let name: Str = metadata.name.as_str().into();
    Some(Workload {
        uid: WorkloadUid(
            format!("{}/{group}/{}/{}/{ip}", config.cluster_id, metadata.namespace, metadata.name).into(),
        ),
        name: name.clone(),
        identity: Identity::new(config.trust_domain.clone(), metadata.namespace.as_str(), "default").ok()?,
        addresses: Vec::new(),
        network: config.network_of_mesh(cluster).into(),
        tunnel: TunnelProtocol::None,
        native_tunnel: false,
        node: "".into(),
        canonical_name: name.clone(),
        canonical_revision: "latest".into(),
        workload_type: WorkloadType::Pod,
        workload_name: name,
        cluster_id: config.cluster_id.clone(),
        hostname: "".into(),
        services: [].into(),
        authorization_policies: Vec::new(),
        health: Health::Healthy,
        locality: Locality::default(),
        // The address may well be a node's: it says nothing about who is behind it.
        network_mode: NetworkMode::HostNetwork,
        waypoint: None,
        network_gateway: None,
        application_tunnel: None,
        capacity: 1,
    })
}
