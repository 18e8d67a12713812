//! Malformed workloads, services and enrolments are refused with the field and the value.

use api::{Invalid, InvalidField, Problem, decode, node, type_url, workload};
use model::store::Update;
use model::workload::WorkloadType;
use prost::Message;
use prost_types::Any;
use workload::address::Type;

fn address(kind: Option<Type>) -> Any {
    let message = workload::Address { r#type: kind };
    Any { type_url: type_url::ADDRESS.to_owned(), value: message.encode_to_vec() }
}

/// Decodes a workload that is complete but for what `edit` does to it.
fn workload_with(edit: impl FnOnce(&mut workload::Workload)) -> Result<Update, Invalid> {
    let mut workload = workload::Workload {
        uid: "Kubernetes//Pod/shop/cart-1".to_owned(),
        namespace: "shop".to_owned(),
        ..Default::default()
    };
    edit(&mut workload);
    decode::address(&address(Some(Type::Workload(workload))))
}

/// Decodes a service that is complete but for what `edit` does to it.
fn service_with(edit: impl FnOnce(&mut workload::Service)) -> Result<Update, Invalid> {
    let mut service =
        workload::Service { namespace: "shop".to_owned(), hostname: "cart".to_owned(), ..Default::default() };
    edit(&mut service);
    decode::address(&address(Some(Type::Service(service))))
}

#[track_caller]
fn check(result: Result<Update, Invalid>, field: &'static str, problem: Problem) {
    assert_eq!(result, Err(Invalid::Field(InvalidField { field, problem })));
}

fn port(service_port: u32, target_port: u32) -> workload::Port {
    workload::Port { service_port, target_port, app_protocol: 0 }
}

#[test]
fn workloads_are_refused_with_the_field() {
    check(workload_with(|w| w.uid.clear()), "uid", Problem::Missing);
    let no_namespace = model::identity::Identity::new("cluster.local", "", "default").expect_err("empty");
    check(workload_with(|w| w.namespace.clear()), "identity", Problem::Identity(no_namespace));
    let short = |w: &mut workload::Workload| w.addresses = vec![vec![10, 0, 0, 1], vec![10, 0, 0]];
    check(workload_with(short), "addresses", Problem::AddressLength { length: 3 });
    // A sidecar's own tunnel, which is known but can't be spoken, and numbers that are not known at all.
    check(workload_with(|w| w.tunnel_protocol = 2), "tunnel_protocol", Problem::Enum { number: 2 });
    check(workload_with(|w| w.tunnel_protocol = 3), "tunnel_protocol", Problem::Enum { number: 3 });
    check(workload_with(|w| w.status = -1), "status", Problem::Enum { number: -1 });
    check(workload_with(|w| w.network_mode = 2), "network_mode", Problem::Enum { number: 2 });
    let policy = |w: &mut workload::Workload| w.authorization_policies = vec!["deny".to_owned()];
    check(workload_with(policy), "authorization_policies", Problem::Name { value: "deny".to_owned() });
    let gateway = |w: &mut workload::Workload| w.waypoint = Some(workload::GatewayAddress::default());
    check(workload_with(gateway), "waypoint", Problem::Missing);
    let tunnel = |w: &mut workload::Workload| {
        w.application_tunnel = Some(workload::ApplicationTunnel { protocol: 0, port: 65_536 });
    };
    check(workload_with(tunnel), "application_tunnel", Problem::Port { value: 65_536 });
    let backs = |name: &str, port| {
        let list = workload::PortList { ports: vec![port] };
        let services = [(name.to_owned(), list)].into();
        move |w: &mut workload::Workload| w.services = services
    };
    let nameless = Problem::Name { value: "cart".to_owned() };
    check(workload_with(backs("cart", port(80, 8080))), "services", nameless);
    check(workload_with(backs("shop/cart", port(65_616, 80))), "services", Problem::Port { value: 65_616 });
    check(workload_with(backs("shop/cart", port(80, 65_616))), "services", Problem::Port { value: 65_616 });
}

#[test]
fn services_are_refused_with_the_field() {
    check(service_with(|s| s.namespace.clear()), "namespace", Problem::Missing);
    check(service_with(|s| s.hostname.clear()), "hostname", Problem::Missing);
    check(service_with(|s| s.ports = vec![port(0, 80)]), "ports", Problem::Port { value: 0 });
    check(service_with(|s| s.ports = vec![port(80, 70_000)]), "ports", Problem::Port { value: 70_000 });
    check(service_with(|s| s.ip_families = 4), "ip_families", Problem::Enum { number: 4 });
    check(service_with(|s| s.visibility = 2), "visibility", Problem::Enum { number: 2 });
    let balancing = |edit: fn(&mut workload::LoadBalancing)| {
        let mut balancing = workload::LoadBalancing::default();
        edit(&mut balancing);
        service_with(|s| s.load_balancing = Some(balancing))
    };
    check(balancing(|b| b.mode = 4), "load_balancing", Problem::Enum { number: 4 });
    check(balancing(|b| b.health_policy = 2), "load_balancing", Problem::Enum { number: 2 });
    check(balancing(|b| b.routing_preference = vec![7]), "load_balancing", Problem::Enum { number: 7 });
    check(balancing(|b| b.routing_preference = vec![0]), "load_balancing", Problem::Enum { number: 0 });
    let vip =
        |length| workload::NetworkAddress { network: String::new(), address: vec![10, 0, 0, 0], length };
    check(
        service_with(|s| s.addresses = vec![vip(Some(33))]),
        "addresses",
        Problem::PrefixLength { length: 33 },
    );
    let weighted =
        |s: &mut workload::Service| s.weighted_waypoints = vec![workload::WeightedWaypoint::default()];
    check(service_with(weighted), "weighted_waypoints", Problem::Missing);
    let block = workload::gateway_address::Destination::Address(vip(Some(8)));
    let gateway = workload::GatewayAddress { destination: Some(block), hbone_mtls_port: 15008 };
    check(service_with(|s| s.waypoint = Some(gateway)), "waypoint", Problem::PrefixLength { length: 8 });
}

#[test]
fn hints_of_a_newer_version_cost_nothing() {
    let Ok(Update::Workload(workload)) = workload_with(|w| w.workload_type = 9) else { panic!("accepted") };
    assert_eq!(workload.workload_type, WorkloadType::Pod);
    let newer = |s: &mut workload::Service| {
        s.ports = vec![workload::Port { service_port: 80, target_port: 0, app_protocol: 9 }];
    };
    let Ok(Update::Service(service)) = service_with(newer) else { panic!("accepted") };
    assert_eq!(service.ports[0].protocol, model::service::AppProtocol::Unknown);
    assert_eq!(service.ports[0].target_port, None);
}

#[test]
fn what_istio_leaves_out_has_its_meaning() {
    let gateway = workload::GatewayAddress {
        destination: Some(workload::gateway_address::Destination::Hostname(workload::NamespacedHostname {
            namespace: "shop".to_owned(),
            hostname: "waypoint".to_owned(),
        })),
        hbone_mtls_port: 0,
    };
    let Ok(Update::Workload(workload)) = workload_with(|w| w.waypoint = Some(gateway)) else {
        panic!("accepted")
    };
    assert_eq!(workload.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/default");
    assert_eq!(workload.capacity, 1);
    assert_eq!(workload.waypoint.map(|w| w.hbone_port), Some(15008));
}

#[test]
fn what_is_no_address_is_refused() {
    assert_eq!(decode::address(&address(None)), Err(Invalid::Empty { message: "istio.workload.Address" }));
    let other = Any { type_url: type_url::AUTHORIZATION.to_owned(), value: Vec::new() };
    let expected = Invalid::Type { expected: type_url::ADDRESS, got: type_url::AUTHORIZATION.to_owned() };
    assert_eq!(decode::address(&other), Err(expected));
    let garbage = Any { type_url: type_url::ADDRESS.to_owned(), value: vec![0xff] };
    assert!(matches!(decode::address(&garbage), Err(Invalid::Undecodable { .. })));
}

#[test]
fn enrolments_must_be_complete() {
    let complete = node::PodEnrolment {
        uid: "u1".to_owned(),
        namespace: "shop".to_owned(),
        name: "cart-1".to_owned(),
        service_account: "cart".to_owned(),
        addresses: vec![vec![10, 0, 0, 1]],
        enrol: true,
        reason: "namespace label".to_owned(),
        workload_uid: "Kubernetes//Pod/shop/cart-1".to_owned(),
        trust_domain: String::new(),
    };
    type Edit = fn(&mut node::PodEnrolment);
    let decode = |name: &str, edit: Edit| {
        let mut enrolment = complete.clone();
        edit(&mut enrolment);
        let body = Any { type_url: type_url::POD_ENROLMENT.to_owned(), value: enrolment.encode_to_vec() };
        decode::enrolment(name, &body).map_err(|e| e.to_string())
    };
    assert!(decode("u1", |_| ()).is_ok());
    let failures: [(&str, Edit, &str); 5] = [
        ("u2", |_| (), "\"u1\""),
        ("u1", |e| e.uid.clear(), "uid"),
        ("u1", |e| e.service_account.clear(), "service account"),
        ("u1", |e| e.workload_uid.clear(), "workload_uid"),
        ("u1", |e| e.addresses.push(vec![1]), "addresses"),
    ];
    for (name, edit, expected) in failures {
        let error = decode(name, edit).expect_err(expected);
        assert!(error.contains(expected), "{error:?} should mention {expected:?}");
    }
}
