//! A pod in, a workload out: addresses, identity, owner, locality, services, policies, and how it is reached.
//!
//! Owns no enrolment verdict and no proof; it is told both.

use std::collections::BTreeMap;
use std::net::IpAddr;

use model::Str;
use model::identity::Identity;
use model::membership::is_native;
use model::policy::PolicyName;
use model::service::{PortMapping, ServiceName};
use model::workload::{Health, Locality, NetworkMode, TunnelProtocol, Workload, WorkloadType, WorkloadUid};

use super::Config;
use super::cluster::{Cluster, Name, name_of, selects, service_of, within};
use super::finding::{Finding, Reason};
use super::service::{has_endpoints, is_tcp, service_name};
use super::{attachment, authorization, peer_authentication, service_entry, waypoint, workload_entry};
use crate::source::objects::{EndpointSlice, Labels, Metadata, Pod, PortRef, Service, ServicePort};

const NETWORK: &str = "topology.istio.io/network";

/// What the mesh calls a pod.
pub(crate) fn uid(config: &Config, (namespace, name): &Name) -> WorkloadUid {
    // The empty piece is the API group of pods.
    WorkloadUid(format!("{}//Pod/{namespace}/{name}", config.cluster_id).into())
}

/// The service account that a pod runs as.
pub(crate) fn account(pod: &Pod) -> &str {
    match pod.spec.service_account_name.as_str() {
        "" => "default",
        named => named,
    }
}

/// Whether all containers of a pod have ended for good.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(pod.status.phase.as_str(), "Succeeded" | "Failed")
}

/// A pod's addresses, and those that are none.
pub(crate) fn addresses(pod: &Pod) -> (Vec<IpAddr>, Vec<&str>) {
    let listed: Vec<&str> = match pod.status.pod_ips.as_slice() {
        [] => vec![pod.status.pod_ip.as_str()],
        listed => listed.iter().map(|listed| listed.ip.as_str()).collect(),
    };
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for text in listed.into_iter().filter(|text| !text.is_empty()) {
        match text.parse::<IpAddr>() {
            Ok(ip) if !good.contains(&ip.to_canonical()) => good.push(ip.to_canonical()),
            Ok(_) => {}
            Err(_) => bad.push(text),
        }
    }
    (good, bad)
}

/// The workload of a pod that lives and has an address. `enrolled`: its node proved that it is, and it should be.
pub(crate) fn convert(
    config: &Config,
    cluster: &Cluster,
    pod: &Pod,
    enrolled: bool,
) -> (Option<Workload>, Vec<Finding>) {
    if is_terminal(pod) {
        return (None, Vec::new());
    }
    let metadata = &pod.metadata;
    let (addresses, bad) = addresses(pod);
    let mut findings: Vec<Finding> = (bad.iter())
        .map(|bad| {
            Finding::partial(Reason::Invalid, format!("pod IP {bad:?} is not an address; it is left out"))
        })
        .collect();
    if addresses.is_empty() {
        return (None, findings);
    }
    let identity = match Identity::new(config.trust_domain.clone(), metadata.namespace.as_str(), account(pod))
    {
        Ok(identity) => identity,
        Err(error) => {
            findings
                .push(Finding::refused(Reason::Invalid, format!("the pod can't have an identity: {error}")));
            return (None, findings);
        }
    };
    let owner = Owner::of(metadata);
    let native_tunnel = is_native(&metadata.labels) || waypoint::is_instance(cluster, metadata);
    let host_network = pod.spec.host_network;
    let workload = Workload {
        uid: uid(config, &name_of(metadata)),
        name: metadata.name.as_str().into(),
        identity,
        addresses,
        network: network(config, cluster, &metadata.labels),
        tunnel: if native_tunnel || enrolled { TunnelProtocol::Hbone } else { TunnelProtocol::None },
        native_tunnel,
        node: pod.spec.node_name.as_str().into(),
        canonical_name: first(&metadata.labels, &CANONICAL_NAME).unwrap_or(&owner.name).into(),
        canonical_revision: first(&metadata.labels, &CANONICAL_REVISION).unwrap_or("latest").into(),
        workload_type: owner.kind,
        workload_name: owner.name.as_str().into(),
        cluster_id: config.cluster_id.clone(),
        hostname: "".into(),
        services: services(config, cluster, pod),
        authorization_policies: policies(config, cluster, metadata),
        health: if is_ready(pod) { Health::Healthy } else { Health::Unhealthy },
        locality: locality(cluster, pod),
        network_mode: if host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard },
        waypoint: attachment::of_workload(config, cluster, metadata, account(pod)).waypoint,
        network_gateway: None,
        application_tunnel: None,
        capacity: 1,
    };
    (Some(workload), findings)
}

fn network(config: &Config, cluster: &Cluster, labels: &Labels) -> Str {
    match labels.get(NETWORK) {
        Some(own) => own.as_str().into(),
        None => config.network_of_mesh(cluster).into(),
    }
}

pub(crate) const CANONICAL_NAME: [&str; 3] =
    ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
pub(crate) const CANONICAL_REVISION: [&str; 3] =
    ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];

pub(crate) fn first<'a>(labels: &'a Labels, keys: &[&str]) -> Option<&'a str> {
    keys.iter().find_map(|key| labels.get(*key)).map(String::as_str)
}

/// Whether a pod takes connections.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let ready =
        pod.status.conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == "True");
    ready && pod.metadata.deletion_timestamp.is_none()
}

/// What a user would call the workload: the Deployment rather than one of its pods.
struct Owner {
    kind: WorkloadType,
    name: String,
}

impl Owner {
    fn of(metadata: &Metadata) -> Self {
        let Some(owner) = metadata.owner_references.iter().find(|owner| owner.controller == Some(true))
        else {
            return Self { kind: WorkloadType::Pod, name: metadata.name.clone() };
        };
        match owner.kind.as_str() {
            "ReplicaSet" => match metadata.labels.get("pod-template-hash").and_then(|hash| {
                owner.name.strip_suffix(hash.as_str())?.strip_suffix('-').filter(|name| !name.is_empty())
            }) {
                Some(deployment) => Self { kind: WorkloadType::Deployment, name: deployment.to_owned() },
                None => Self { kind: WorkloadType::Pod, name: owner.name.clone() },
            },
            "Job" => match cron_job(&owner.name) {
                Some(cron_job) => Self { kind: WorkloadType::CronJob, name: cron_job.to_owned() },
                None => Self { kind: WorkloadType::Job, name: owner.name.clone() },
            },
            _ => Self { kind: WorkloadType::Pod, name: owner.name.clone() },
        }
    }
}

/// A CronJob names its Jobs after itself and the scheduled minute (8 digits) or, long ago, second (10 digits).
fn cron_job(job: &str) -> Option<&str> {
    let (name, time) = job.rsplit_once('-')?;
    let is_time = (8..=10).contains(&time.len()) && time.bytes().all(|byte| byte.is_ascii_digit());
    (is_time && !name.is_empty()).then_some(name)
}

/// The pod's own word (`istio-locality`, with dots where a label can't have slashes), else its node's.
fn locality(cluster: &Cluster, pod: &Pod) -> Locality {
    if let Some(own) = pod.metadata.labels.get("istio-locality") {
        return match own.contains('/') {
            true => workload_entry::locality(own),
            false => workload_entry::locality(&own.replacen('.', "/", 2)),
        };
    }
    let Some(labels) = cluster.node_labels(&pod.spec.node_name) else { return Locality::default() };
    let of = |key| Str::from(labels.get(key).map(String::as_str).unwrap_or_default());
    Locality {
        region: of("topology.kubernetes.io/region"),
        zone: of("topology.kubernetes.io/zone"),
        subzone: of("topology.istio.io/subzone"),
    }
}

/// The services that select the pod, and those without a selector whose slices refer to it. Equal addresses prove nothing.
fn services(config: &Config, cluster: &Cluster, pod: &Pod) -> BTreeMap<ServiceName, Vec<PortMapping>> {
    let metadata = &pod.metadata;
    let selecting = within(&cluster.services, &metadata.namespace).filter(|(_, service)| {
        has_endpoints(service)
            && !service.spec.selector.is_empty()
            && selects(&service.spec.selector, &metadata.labels)
    });
    let mut services: BTreeMap<_, _> = selecting
        .map(|(name, service)| {
            (service_name(config, name), ports_of(service, |port| container_port(pod, port)))
        })
        .collect();
    let entries = service_entry::selecting(config, cluster, &metadata.namespace, &metadata.labels);
    let own = |port: &str| container_port(pod, port);
    services.extend(entries.map(|(id, entry)| (id, service_entry::ports(entry, own))));
    for slice in cluster.slices_naming(&name_of(metadata)).filter(|slice| refers_to(slice, metadata)) {
        let Some(name) = service_of(slice) else { continue };
        let Some(service) = cluster.services.get(&name) else { continue };
        if has_endpoints(service) && service.spec.selector.is_empty() {
            let ports = services.entry(service_name(config, &name)).or_default();
            ports.extend(sliced_ports(service, slice));
            ports.sort_unstable();
            ports.dedup();
        }
    }
    services
}

/// A hand-written reference may leave the uid out; one that names another pod's uid is about a pod that is gone.
fn refers_to(slice: &EndpointSlice, pod: &Metadata) -> bool {
    let of = |uid: &str| uid.is_empty() || uid == pod.uid;
    (slice.endpoints.iter().filter_map(|endpoint| endpoint.target_ref.as_ref()))
        .any(|target| target.kind == "Pod" && target.name == pod.name && of(&target.uid))
}

/// Where a workload that a service selects serves its ports. `named`: the workload's own port of that name.
pub(crate) fn ports_of(service: &Service, named: impl Fn(&str) -> Option<u16>) -> Vec<PortMapping> {
    let tcp = service.spec.ports.iter().filter(|port| is_tcp(port.protocol.as_deref()));
    tcp.filter_map(|port| {
        let target_port = match &port.target_port {
            None => port.port,
            Some(PortRef::Number(number)) => *number,
            Some(PortRef::Name(name)) => named(name)?,
        };
        Some(PortMapping { service_port: port.port, target_port })
    })
    .collect()
}

fn container_port(pod: &Pod, name: &str) -> Option<u16> {
    let sidecars = pod
        .spec
        .init_containers
        .iter()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    (pod.spec.containers.iter().chain(sidecars))
        .flat_map(|container| &container.ports)
        .find(|port| port.name == name && is_tcp(port.protocol.as_deref()))
        .map(|port| port.container_port)
}

/// Where the endpoints of a slice serve the ports of its service.
pub(crate) fn sliced_ports(service: &Service, slice: &EndpointSlice) -> Vec<PortMapping> {
    let tcp = service.spec.ports.iter().filter(|port| is_tcp(port.protocol.as_deref()));
    tcp.filter_map(|port| {
        let target_port = if slice.ports.is_empty() {
            unsliced_port(port)
        } else {
            let of = |name: &str| name == port.name;
            let served =
                slice.ports.iter().find(|served| is_tcp(served.protocol.as_deref()) && of(&served.name))?;
            served.port.unwrap_or_else(|| unsliced_port(port))
        };
        Some(PortMapping { service_port: port.port, target_port })
    })
    .collect()
}

fn unsliced_port(port: &ServicePort) -> u16 {
    match &port.target_port {
        Some(PortRef::Number(number)) => *number,
        Some(PortRef::Name(_)) | None => port.port,
    }
}

/// The policies attached to a workload by selector, in the order of their names.
fn policies(config: &Config, cluster: &Cluster, metadata: &Metadata) -> Vec<PolicyName> {
    let root = config.root_namespace.as_str();
    let mut policies = Vec::new();
    let own = (metadata.namespace != root).then_some(metadata.namespace.as_str());
    for namespace in [Some(root), own].into_iter().flatten() {
        let selecting = within(&cluster.authorizations, namespace).filter(|(_, policy)| {
            let selector = authorization::selector(policy);
            selector.is_some_and(|selector| selects(selector, &metadata.labels))
                && authorization::is_enforced(policy)
        });
        policies.extend(selecting.map(|(_, policy)| authorization::id(policy)));
    }
    policies.sort();
    policies.extend(peer_authentication::attached(cluster, root, &metadata.namespace, &metadata.labels));
    policies
}
