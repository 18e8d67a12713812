//! The store by example: lookups whose order is a promise, and what a batch says it changed.

use model::policy::{Action, Match, PolicyScope};
use model::service::Visibility;
use model::store::{Changes, Mesh, Update};
use model::workload::{Health, NetworkMode, TunnelProtocol, Workload};

use crate::make::{
    WorkloadExt, ip, network_address, pod, policy, policy_name, service, service_name, text, uid, vip,
};

fn mesh(updates: impl IntoIterator<Item = Update>) -> Mesh {
    let mut mesh = Mesh::default();
    mesh.apply(updates);
    mesh
}

/// Which service a client of `namespace` means by `addr`.
fn check_vip(mesh: &Mesh, namespace: &str, addr: &str, expected: Option<&str>) {
    let found = mesh.service_by_vip("", ip(addr), namespace).map(|service| service.id.to_string());
    assert_eq!(found.as_deref(), expected, "{addr} from {namespace}");
}

#[test]
fn an_address_comes_before_a_block_and_a_long_block_before_a_short_one() {
    let mesh = mesh([
        Update::Service(service("a/exact", &["10.1.2.3"], &[])),
        Update::Service(service("a/short", &["10.0.0.0/8", "fd00::/16"], &[])),
        Update::Service(service("a/long", &["10.1.0.0/16", "fd00:1::/32"], &[])),
    ]);
    check_vip(&mesh, "x", "10.1.2.3", Some("a/exact"));
    check_vip(&mesh, "x", "10.1.2.4", Some("a/long"));
    check_vip(&mesh, "x", "10.2.0.0", Some("a/short"));
    check_vip(&mesh, "x", "11.0.0.0", None);
    check_vip(&mesh, "x", "fd00:1::1", Some("a/long"));
    check_vip(&mesh, "x", "fd00:2::1", Some("a/short"));
    check_vip(&mesh, "x", "::ffff:10.1.2.3", Some("a/exact"));
}

#[test]
fn the_clients_namespace_then_canonical_then_the_name() {
    let with = |name, canonical| {
        let mut service = service(name, &["10.1.2.3", "10.2.0.0/16"], &[]);
        service.canonical = canonical;
        Update::Service(service)
    };
    let mesh = mesh([with("c/s", false), with("b/s", true), with("d/s", true), with("a/s", false)]);
    for addr in ["10.1.2.3", "10.2.2.2"] {
        check_vip(&mesh, "a", addr, Some("a/s"));
        check_vip(&mesh, "c", addr, Some("c/s"));
        check_vip(&mesh, "x", addr, Some("b/s"));
    }
}

#[test]
fn the_clients_own_block_comes_before_a_longer_one_of_others() {
    let mesh = mesh([
        Update::Service(service("a/wide", &["10.0.0.0/8"], &[])),
        Update::Service(service("b/narrow", &["10.1.0.0/16"], &[])),
    ]);
    check_vip(&mesh, "a", "10.1.0.1", Some("a/wide"));
    check_vip(&mesh, "x", "10.1.0.1", Some("b/narrow"));
}

#[test]
fn a_private_service_is_there_for_its_namespace_only() {
    let mut private = service("a/private", &["10.1.2.3"], &[]);
    private.visibility = Visibility::Namespace;
    let wide = Update::Service(service("b/wide", &["10.0.0.0/8"], &[]));
    let mesh = mesh([Update::Service(private), wide]);
    check_vip(&mesh, "a", "10.1.2.3", Some("a/private"));
    check_vip(&mesh, "x", "10.1.2.3", Some("b/wide"));
}

#[test]
fn networks_are_apart() {
    let mut there = service("a/s", &[], &[]);
    there.vips = vec![vip("net2", "10.1.2.3"), vip("net2", "10.2.0.0/16")];
    let mesh = mesh([Update::Service(there)]);
    check_vip(&mesh, "a", "10.1.2.3", None);
    assert!(mesh.service_by_vip("net2", ip("10.1.2.3"), "a").is_some());
    assert!(mesh.service_by_vip("net2", ip("10.2.2.3"), "a").is_some());
}

#[test]
fn changing_endpoints_of_a_block_leaves_one_entry_and_no_stale_one() {
    let block = service("a/block", &["10.0.0.0/8", "10.0.0.0/8", "10.9.9.9/8"], &[(80, Some(80))]);
    let mut mesh = mesh([Update::Service(block.clone())]);
    for health in [Health::Unhealthy, Health::Healthy, Health::Unhealthy] {
        mesh.apply([Update::Workload(Workload {
            health,
            ..pod("a/p", &["10.1.0.1"]).backs("a/block", &[])
        })]);
        let endpoints: Vec<_> = mesh.endpoints(&block.id).map(|endpoint| endpoint.workload.health).collect();
        assert_eq!(endpoints, [health]);
    }
    mesh.apply([Update::ServiceRemoved(block.id)]);
    check_vip(&mesh, "a", "10.1.2.3", None);
}

#[test]
fn a_health_policy_that_changes_brings_endpoints_back() {
    let down = Workload { health: Health::Unhealthy, ..pod("a/p", &["10.1.0.1"]).backs("a/s", &[(80, 81)]) };
    let mesh = mesh([Update::Workload(down), Update::Service(service("a/s", &[], &[]))]);
    let name = service_name("a/s");
    let found: Vec<_> = mesh.endpoints(&name).map(|endpoint| endpoint.ports[0].target_port).collect();
    assert_eq!(found, [81], "not filtered when it is stored");
}

/// Who owns 10.0.0.1 when all of these claim it.
fn check_owner(workloads: Vec<Workload>, expected: Option<&str>) {
    let mesh = mesh(workloads.into_iter().map(Update::Workload));
    let owner =
        mesh.workload_by_address(&network_address("", "10.0.0.1")).map(|workload| workload.uid.to_string());
    assert_eq!(owner.as_deref(), expected);
}

#[test]
fn several_claims_to_one_address() {
    let named = |name: &str, tunnel| Workload { uid: uid(name), tunnel, ..pod("a/p", &["10.0.0.1"]) };
    let plain_pod = || named("c//Pod/a/z", TunnelProtocol::None);
    let entry = || named("c/networking.istio.io/WorkloadEntry/a/b", TunnelProtocol::Hbone);
    check_owner(vec![entry(), plain_pod()], Some("c//Pod/a/z"));
    check_owner(vec![plain_pod(), named("c//Pod/a/zz", TunnelProtocol::Hbone)], Some("c//Pod/a/zz"));
    check_owner(vec![plain_pod(), named("c//Pod/a/y", TunnelProtocol::None)], Some("c//Pod/a/y"));
    check_owner(vec![Workload { network_mode: NetworkMode::HostNetwork, ..plain_pod() }], None);
    check_owner(vec![Workload { network: text("net2"), ..plain_pod() }], None);
}

#[test]
fn an_address_that_moves_to_another_pod() {
    let mut mesh = mesh([Update::Workload(pod("a/old", &["10.0.0.1"]))]);
    mesh.apply([Update::Workload(pod("a/new", &["10.0.0.1"]))]);
    mesh.apply([Update::WorkloadRemoved(uid("Kubernetes//Pod/a/old"))]);
    let owner = mesh.workload_by_address(&network_address("", "10.0.0.1")).expect("an owner");
    assert_eq!(&*owner.name, "new");
}

#[test]
fn a_snapshot_does_not_change() {
    let mut mesh = mesh([
        Update::Workload(pod("a/p", &["10.0.0.1"])),
        Update::Service(service("a/s", &["10.9.0.1"], &[])),
    ]);
    let before = mesh.clone();
    mesh.apply([
        Update::WorkloadRemoved(uid("Kubernetes//Pod/a/p")),
        Update::ServiceRemoved(service_name("a/s")),
        Update::PolicyUnenforceable(policy_name("istio-system/x"), text("why")),
    ]);
    assert!(before.workload_by_address(&network_address("", "10.0.0.1")).is_some());
    check_vip(&before, "a", "10.9.0.1", Some("a/s"));
    assert_eq!(before.all_unenforceable().count(), 0);
    assert_eq!(mesh.all_workloads().count() + mesh.all_services().count(), 0);
}

/// What applying `updates` after `before` says it changed.
fn check_changes(before: &[Update], updates: &[Update], expected: &Changes) {
    let mut mesh = mesh(before.iter().cloned());
    assert_eq!(&mesh.apply(updates.iter().cloned()), expected, "{updates:#?}");
}

#[test]
fn changes_name_what_was_touched_and_nothing_else() {
    let plain = || pod("a/p", &["10.0.0.1"]).backs("a/s", &[]);
    let changed = |policies, services: &[&str]| Changes {
        policies,
        workloads: vec![plain().uid],
        services: services.iter().map(|name| service_name(name)).collect(),
    };
    let workload = Update::Workload(plain());
    check_changes(&[], &[], &Changes::default());
    check_changes(std::slice::from_ref(&workload), std::slice::from_ref(&workload), &Changes::default());
    check_changes(&[], &[Update::WorkloadRemoved(plain().uid)], &Changes::default());
    check_changes(&[], &[Update::ServiceRemoved(service_name("a/s"))], &Changes::default());
    check_changes(&[], &[Update::PolicyRemoved(policy_name("a/p"))], &Changes::default());
    assert!(Changes::default().is_empty());

    check_changes(&[], std::slice::from_ref(&workload), &changed(false, &["a/s"]));
    check_changes(
        std::slice::from_ref(&workload),
        &[Update::WorkloadRemoved(plain().uid)],
        &changed(false, &["a/s"]),
    );
    let moved = Update::Workload(pod("a/p", &["10.0.0.1"]).backs("a/t", &[]));
    check_changes(std::slice::from_ref(&workload), &[moved], &changed(false, &["a/s", "a/t"]));
    let named = Workload { authorization_policies: vec![policy_name("a/x")], ..plain() };
    // It may have been known before, under other policies, and have connections from then.
    check_changes(&[], &[Update::Workload(named.clone())], &changed(true, &["a/s"]));
    check_changes(&[workload], &[Update::Workload(named)], &changed(true, &["a/s"]));

    let definition = Update::Service(service("a/s", &["10.9.0.1"], &[]));
    let services = Changes { services: vec![service_name("a/s")], ..Changes::default() };
    check_changes(&[], std::slice::from_ref(&definition), &services);
    check_changes(std::slice::from_ref(&definition), std::slice::from_ref(&definition), &Changes::default());

    let rule = Update::Policy(policy("a/x", PolicyScope::Namespace, Action::Deny, Match::default()));
    let refused = |reason| Update::PolicyUnenforceable(policy_name("a/x"), text(reason));
    let policies = Changes { policies: true, ..Changes::default() };
    check_changes(&[], std::slice::from_ref(&rule), &policies);
    check_changes(std::slice::from_ref(&rule), std::slice::from_ref(&rule), &Changes::default());
    check_changes(&[rule], &[refused("why")], &policies);
    check_changes(&[refused("why")], &[refused("why")], &Changes::default());
    check_changes(&[refused("why")], &[refused("else")], &policies);
}
