//! Workloads and services for tests. Decides nothing about what is right.

use std::collections::BTreeMap;
use std::error::Error;

use model::identity::Identity;
use model::l7::{
    Backend, BackendTarget, Match, Moment, Parent, PathMatch, PathText, RouteKind, Rule, RuleKey, Scope,
    Timeouts,
};
use model::service::{
    AppProtocol, GatewayAddress, GatewayDestination, LoadBalancing, PortMapping, Service, ServiceName,
    ServicePort, Vip,
};
use model::workload::{TunnelProtocol, Workload, WorkloadUid};
use xds::{Connection, Connector, Demand, Rejection, Resource, Sink};

/// A discovery client that reaches nobody, and the way to ask it. Where it is dropped whoever asks hears so at once, else nothing.
pub(crate) fn nobody() -> (impl Sized, Demand) {
    struct Nobody;
    impl Connector for Nobody {
        async fn connect(&mut self) -> Result<Connection, Box<dyn Error + Send + Sync>> {
            Err("nobody is there".into())
        }
    }
    impl Sink for Nobody {
        fn apply(&mut self, _: &str, _: Vec<Resource>, _: Vec<String>) -> Vec<Rejection> {
            Vec::new()
        }
        fn synced(&mut self, _: &str) {}
    }
    let node = xds::Node { id: String::new(), metadata: BTreeMap::new() };
    xds::Client::new(xds::client::Config::new(node, Vec::new()), Nobody, Nobody)
}

/// `spiffe://cluster.local/ns/shop/sa/<account>`.
pub(crate) fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "shop", account).expect("tests name valid accounts")
}

/// `shop/<name>.shop.svc.cluster.local`.
pub(crate) fn service_name(name: &str) -> ServiceName {
    ServiceName { namespace: "shop".into(), hostname: format!("{name}.shop.svc.cluster.local").into() }
}

/// A pod of the mesh in `shop`, which runs as `account`, has this address and backs this service.
pub(crate) fn pod(name: &str, account: &str, address: &str, service: &str) -> Workload {
    let none = || "".into();
    Workload {
        uid: WorkloadUid(format!("Kubernetes//Pod/shop/{name}").into()),
        name: name.into(),
        identity: identity(account),
        addresses: vec![address.parse().expect("tests name valid addresses")],
        network: none(),
        tunnel: TunnelProtocol::Hbone,
        native_tunnel: false,
        node: none(),
        canonical_name: name.into(),
        canonical_revision: "latest".into(),
        workload_type: Default::default(),
        workload_name: name.into(),
        cluster_id: "Kubernetes".into(),
        hostname: none(),
        services: BTreeMap::from([(service_name(service), Vec::<PortMapping>::new())]),
        authorization_policies: Vec::new(),
        health: Default::default(),
        locality: Default::default(),
        network_mode: Default::default(),
        waypoint: None,
        network_gateway: None,
        application_tunnel: None,
        capacity: 1,
    }
}

/// A service of `shop` at this address that serves port 80 at its endpoints' 8080, behind the waypoint `waypoint` if it is `guarded`.
pub(crate) fn service(name: &str, vip: &str, guarded: bool) -> Service {
    let destination = GatewayDestination::Service(service_name("waypoint"));
    Service {
        id: service_name(name),
        name: name.into(),
        vips: vec![Vip { network: "".into(), block: format!("{vip}/32").parse().expect("an address") }],
        ports: vec![ServicePort { port: 80, target_port: Some(8080), protocol: AppProtocol::Unknown }],
        subject_alt_names: Vec::new(),
        waypoint: guarded.then_some(GatewayAddress { destination, hbone_port: 15008 }),
        weighted_waypoints: Vec::new(),
        load_balancing: LoadBalancing::default(),
        ip_families: Default::default(),
        canonical: true,
        ingress_use_waypoint: false,
        visibility: Default::default(),
    }
}

/// The rule number `index` of the HTTPRoute `shop/split`, about port 80 of `web`: what lies below `prefix` goes to port 80 of these
/// services by these weights.
pub(crate) fn rule(index: u32, prefix: &str, backends: &[(&str, u32)]) -> Rule {
    let path = PathMatch::Prefix(PathText::new(prefix).expect("a path"));
    let backend = |(name, weight): &(&str, u32)| Backend {
        weight: *weight,
        target: BackendTarget::Service { name: service_name(name), port: 80 },
        filters: Vec::new(),
    };
    Rule {
        key: RuleKey { kind: RouteKind::Http, namespace: "shop".into(), name: "split".into(), index },
        name: None,
        parents: vec![Parent { service: service_name("web"), port: Some(80), scope: Scope::Producer }],
        created: Moment(1),
        matches: vec![Match { path, ..Match::default() }],
        filters: Vec::new(),
        backends: backends.iter().map(backend).collect(),
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
        refusal: None,
    }
}
