//! A Kubernetes Service in, a mesh service out. Owns no endpoints: workloads name the services that they back.

use std::net::IpAddr;

use ipnet::IpNet;
use model::service::{
    Affinity, AppProtocol, HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, Scope, Service,
    ServiceName, ServicePort, Vip, Visibility,
};

use super::Config;
use super::attachment::{self, Attachment, Bound};
use super::cluster::{Cluster, Name, pods_of};
use super::finding::{Finding, Reason};
use super::workload;
use crate::source::objects::{self, Metadata, PortRef};

const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// What the mesh calls a Service.
pub(crate) fn service_name(config: &Config, (namespace, name): &Name) -> ServiceName {
    ServiceName {
        namespace: namespace.as_str().into(),
        hostname: format!("{name}.{namespace}.svc.{}", config.cluster_domain).into(),
    }
}

/// Whether a Service is one that can have endpoints.
pub(crate) fn has_endpoints(service: &objects::Service) -> bool {
    service.spec.kind.as_deref() != Some("ExternalName")
}

/// Whether a port or slice speaks TCP, the one protocol that the mesh carries.
pub(crate) fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol.eq_ignore_ascii_case("TCP"))
}

/// What a Service becomes.
#[derive(Default)]
pub(crate) struct Converted {
    pub(crate) service: Option<Service>,
    pub(crate) findings: Vec<Finding>,
    pub(crate) bound: Option<Bound>,
}

/// The mesh service, unless the object names something outside the cluster.
pub(crate) fn convert(config: &Config, cluster: &Cluster, object: &objects::Service) -> Converted {
    if !has_endpoints(object) {
        return Converted::default();
    }
    let spec = &object.spec;
    let (vips, mut findings) = vips(config, cluster, object);
    if spec.ports.iter().any(|port| !is_tcp(port.protocol.as_deref())) {
        findings
            .push(Finding::partial(Reason::UnsupportedValue, "the mesh carries TCP; other ports bypass it"));
    }
    let name = super::cluster::name_of(&object.metadata);
    let accounts = accounts(cluster, object);
    let Attachment { waypoint, weighted, bound } = attachment::of_service(config, cluster, object, accounts);
    let service = Service {
        id: service_name(config, &name),
        name: object.metadata.name.as_str().into(),
        vips,
        ports: spec.ports.iter().filter(|port| is_tcp(port.protocol.as_deref())).map(port).collect(),
        subject_alt_names: Vec::new(),
        waypoint,
        weighted_waypoints: weighted,
        load_balancing: load_balancing(cluster, object),
        ip_families: families(&spec.ip_families),
        canonical: true,
        ingress_use_waypoint: attachment::ingress_uses_waypoint(cluster, &object.metadata),
        visibility: Visibility::Public,
    };
    Converted { service: Some(service), findings, bound }
}

/// Whether a service is to have the waypoint that comes when it is needed.
pub(crate) fn is_automatic(config: &Config, cluster: &Cluster, object: &objects::Service) -> bool {
    attachment::is_automatic(config, cluster, object, accounts(cluster, object))
}

/// Why nobody does what routes and policies ask for at a service, where nobody does.
pub(crate) fn unguarded(config: &Config, cluster: &Cluster, name: &Name) -> Option<String> {
    // A name for something else is nothing that could be guarded.
    let object = cluster.services.get(name).filter(|object| has_endpoints(object))?;
    let Attachment { waypoint, bound, .. } =
        attachment::of_service(config, cluster, object, accounts(cluster, object));
    let unasked = || {
        format!(
            "no waypoint guards Service {}/{}, so that this is without effect; label the Service or its namespace \
             istio.io/use-waypoint, or the namespace airglow.dev/waypoint=auto",
            name.0, name.1
        )
    };
    waypoint.is_none().then(|| bound.map_or_else(unasked, |bound| bound.message))
}

/// What the pods behind a service run as, as far as it matters.
fn accounts<'a>(cluster: &'a Cluster, object: &'a objects::Service) -> Vec<&'a str> {
    let name = super::cluster::name_of(&object.metadata);
    let mut accounts = attachment::accounts(cluster, &name.0, &object.spec.selector);
    accounts.extend(referred_accounts(cluster, &name));
    accounts
}

/// What the pods run as to which the slices of a service without a selector refer.
fn referred_accounts<'a>(cluster: &'a Cluster, name: &Name) -> Vec<&'a str> {
    if !cluster.has_gateways_for_accounts(&name.0) {
        return Vec::new();
    }
    let referred = cluster.slices_for(name).flat_map(|slice| pods_of(slice));
    referred.filter_map(|pod| cluster.pods.get(&pod)).map(|pod| workload::account(pod)).collect()
}

fn vips(config: &Config, cluster: &Cluster, object: &objects::Service) -> (Vec<Vip>, Vec<Finding>) {
    let spec = &object.spec;
    let listed: Vec<&String> = match spec.cluster_ips.as_slice() {
        [] => spec.cluster_ip.iter().collect(),
        listed => listed.iter().collect(),
    };
    let network = config.network_of_mesh(cluster);
    let mut findings = Vec::new();
    let mut vips = Vec::new();
    for text in listed.into_iter().filter(|text| !text.is_empty() && *text != "None") {
        match text.parse::<IpAddr>() {
            Ok(ip) => {
                vips.push(Vip { network: network.as_str().into(), block: IpNet::from(ip.to_canonical()) })
            }
            Err(_) => findings.push(Finding::partial(
                Reason::Invalid,
                format!("cluster IP {text:?} is not an address; it is left out"),
            )),
        }
    }
    (vips, findings)
}

fn port(port: &objects::ServicePort) -> ServicePort {
    let target_port = match &port.target_port {
        None => Some(port.port),
        Some(PortRef::Number(number)) => Some(*number),
        // Only the pods know what they call so.
        Some(PortRef::Name(_)) => None,
    };
    ServicePort { port: port.port, target_port, protocol: protocol(port) }
}

/// `appProtocol`, or else what the port's name begins with, as Istio reads them.
fn protocol(port: &objects::ServicePort) -> AppProtocol {
    let word = match &port.app_protocol {
        Some(declared) => declared.as_str(),
        None => port.name.split('-').next().unwrap_or_default(),
    };
    protocol_of(word)
}

/// What is spoken, by any of the words for it.
pub(crate) fn protocol_of(word: &str) -> AppProtocol {
    match word.to_ascii_lowercase().as_str() {
        "http" | "kubernetes.io/ws" => AppProtocol::Http1,
        "http2" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" | "grpc-web" => AppProtocol::Grpc,
        "tcp" | "mongo" | "mysql" | "redis" => AppProtocol::Tcp,
        "https" | "tls" | "kubernetes.io/wss" => AppProtocol::Tls,
        _ => AppProtocol::Unknown,
    }
}

fn families(listed: &[String]) -> IpFamilies {
    match listed {
        [one] if one == "IPv4" => IpFamilies::V4,
        [one] if one == "IPv6" => IpFamilies::V6,
        [_, _] => IpFamilies::Dual,
        _ => IpFamilies::Automatic,
    }
}

fn load_balancing(cluster: &Cluster, object: &objects::Service) -> LoadBalancing {
    let health = match object.spec.publish_not_ready_addresses {
        true => HealthPolicy::AllowAll,
        false => HealthPolicy::OnlyHealthy,
    };
    let affinity = match object.spec.session_affinity.as_deref() {
        Some("ClientIP") => Affinity::Client,
        _ => Affinity::None,
    };
    if object.spec.internal_traffic_policy.as_deref() == Some("Local") {
        return LoadBalancing {
            preference: vec![Scope::Node],
            mode: LoadBalancingMode::Strict,
            health,
            affinity,
        };
    }
    let declared = object.spec.traffic_distribution.as_deref();
    LoadBalancing { health, affinity, ..balancing(cluster, &object.metadata, declared) }
}

/// How near endpoints are to be: as is declared, or else as annotations say.
pub(crate) fn balancing(cluster: &Cluster, metadata: &Metadata, declared: Option<&str>) -> LoadBalancing {
    let (mode, preference) = match distribution(cluster, metadata, declared) {
        Distribution::Any => (LoadBalancingMode::Any, Vec::new()),
        Distribution::Zone => (LoadBalancingMode::Failover, vec![Scope::Network, Scope::Region, Scope::Zone]),
        Distribution::Node => {
            let scopes = vec![Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node];
            (LoadBalancingMode::Failover, scopes)
        }
    };
    LoadBalancing { preference, mode, ..LoadBalancing::default() }
}

enum Distribution {
    Any,
    Node,
    Zone,
}

/// The service's field, else its annotation, else its namespace's. A word that is not known ends the search.
fn distribution(cluster: &Cluster, metadata: &Metadata, declared: Option<&str>) -> Distribution {
    let namespace = cluster.namespace(&metadata.namespace);
    let annotated = |metadata: &'_ Metadata| metadata.annotations.get(TRAFFIC_DISTRIBUTION).cloned();
    let said = (declared.map(str::to_owned))
        .or_else(|| annotated(metadata))
        .or_else(|| namespace.and_then(annotated));
    match said.map(|word| word.to_ascii_lowercase()).as_deref() {
        Some("preferclose" | "prefersamezone") => Distribution::Zone,
        Some("prefersamenode") => Distribution::Node,
        _ => Distribution::Any,
    }
}
