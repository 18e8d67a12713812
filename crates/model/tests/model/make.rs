//! Short ways to make objects of the mesh for tests.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use model::Str;
use model::address::{AppAddr, ClientAddr, NetworkAddress};
use model::identity::Identity;
use model::policy::{Action, Clause, Connection, Match, Policy, PolicyName, PolicyScope, Rule, StringMatch};
use model::service::{
    AppProtocol, GatewayAddress, GatewayDestination, IpFamilies, LoadBalancing, PortMapping, Service,
    ServiceName, ServicePort, Vip, Visibility, WeightedWaypoint,
};
use model::workload::{Health, Locality, NetworkMode, TunnelProtocol, Workload, WorkloadType, WorkloadUid};

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an IP address")
}

pub(crate) fn addr(text: &str) -> SocketAddr {
    text.parse().expect("a socket address")
}

pub(crate) fn identity(namespace: &str, account: &str) -> Identity {
    Identity::new("cluster.local", namespace, account).expect("a valid identity")
}

pub(crate) fn uid(text: &str) -> WorkloadUid {
    WorkloadUid(text.into())
}

/// `namespace/hostname`.
pub(crate) fn service_name(text: &str) -> ServiceName {
    let (namespace, hostname) = text.split_once('/').expect("namespace/hostname");
    ServiceName { namespace: namespace.into(), hostname: hostname.into() }
}

/// `namespace/name`.
pub(crate) fn policy_name(text: &str) -> PolicyName {
    let (namespace, name) = text.split_once('/').expect("namespace/name");
    PolicyName { namespace: namespace.into(), name: name.into() }
}

/// A healthy HBONE pod `namespace/name` on node `n1` with these addresses.
pub(crate) fn pod(name: &str, addresses: &[&str]) -> Workload {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    Workload {
        uid: uid(&format!("Kubernetes//Pod/{namespace}/{name}")),
        name: name.into(),
        identity: identity(namespace, name),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        network: "".into(),
        tunnel: TunnelProtocol::Hbone,
        native_tunnel: false,
        node: "n1".into(),
        canonical_name: name.into(),
        canonical_revision: "latest".into(),
        workload_type: WorkloadType::Pod,
        workload_name: name.into(),
        cluster_id: "Kubernetes".into(),
        hostname: "".into(),
        services: BTreeMap::new(),
        authorization_policies: Vec::new(),
        health: Health::Healthy,
        locality: Locality { region: "r1".into(), zone: "z1".into(), subzone: "s1".into() },
        network_mode: NetworkMode::Standard,
        waypoint: None,
        network_gateway: None,
        application_tunnel: None,
        capacity: 1,
    }
}

/// What tests say of a workload beyond [`pod`].
pub(crate) trait WorkloadExt: Sized {
    /// Backs `namespace/hostname`, with its own port mappings.
    fn backs(self, service: &str, ports: &[(u16, u16)]) -> Self;
}

impl WorkloadExt for Workload {
    fn backs(mut self, service: &str, ports: &[(u16, u16)]) -> Self {
        let map = |&(service_port, target_port): &(u16, u16)| PortMapping { service_port, target_port };
        self.services.insert(service_name(service), ports.iter().map(map).collect());
        self
    }
}

/// The service `namespace/hostname` with these virtual addresses (`ip` or `ip/len`) and (port, target port) pairs.
pub(crate) fn service(name: &str, vips: &[&str], ports: &[(u16, Option<u16>)]) -> Service {
    let id = service_name(name);
    Service {
        name: id.hostname.split('.').next().expect("a hostname").into(),
        id,
        vips: vips.iter().map(|text| vip("", text)).collect(),
        ports: ports
            .iter()
            .map(|&(port, target_port)| ServicePort { port, target_port, protocol: AppProtocol::Unknown })
            .collect(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        weighted_waypoints: Vec::new(),
        load_balancing: LoadBalancing::default(),
        ip_families: IpFamilies::Automatic,
        canonical: true,
        ingress_use_waypoint: false,
        visibility: Visibility::Public,
    }
}

pub(crate) fn vip(network: &str, text: &str) -> Vip {
    let block = text.parse().unwrap_or_else(|_| ip(text).into());
    Vip { network: network.into(), block }
}

/// A gateway that is a service.
pub(crate) fn gateway(service: &str) -> GatewayAddress {
    GatewayAddress { destination: GatewayDestination::Service(service_name(service)), hbone_port: 15008 }
}

/// A gateway that is an address.
pub(crate) fn gateway_at(network: &str, text: &str) -> GatewayAddress {
    GatewayAddress {
        destination: GatewayDestination::Address(network_address(network, text)),
        hbone_port: 15008,
    }
}

pub(crate) fn weighted(service: &str, weight: u32) -> WeightedWaypoint {
    WeightedWaypoint { destination: gateway(service), weight }
}

pub(crate) fn network_address(network: &str, text: &str) -> NetworkAddress {
    NetworkAddress { network: network.into(), ip: ip(text) }
}

/// A policy of one rule with one clause of one match.
pub(crate) fn policy(name: &str, scope: PolicyScope, action: Action, m: Match) -> Policy {
    let rules = vec![Rule { clauses: vec![Clause { matches: vec![m] }] }];
    Policy { id: policy_name(name), scope, action, rules, dry_run: false }
}

pub(crate) fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

/// A connection from `10.0.0.1` to `10.0.0.2:port`.
pub(crate) fn connection(peer: Option<Identity>, port: u16) -> Connection {
    let app = SocketAddr::new(ip("10.0.0.2"), port);
    Connection { peer, client: ClientAddr(addr("10.0.0.1:40000")), app: AppAddr(app) }
}

pub(crate) fn text(text: &str) -> Str {
    text.into()
}
