//! Routes by example.

use model::route::{Load, NoRoute, Route};
use model::service::{Affinity, HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, Scope, Service};
use model::store::Update;
use model::workload::{Health, NetworkMode, TunnelProtocol, Workload};

use crate::make::{WorkloadExt, gateway, identity, pod, service, service_name, text, uid};
use crate::world::{CART, cart, cart_of, cart_service, world};

#[test]
fn unknown_addresses_are_left_alone() {
    world([])
        .check("192.0.2.1:443", "passthrough 192.0.2.1:443")
        .check("[::ffff:192.0.2.1]:443", "passthrough 192.0.2.1:443");
}

#[test]
fn a_workload_by_its_address() {
    let plain = Workload { tunnel: TunnelProtocol::None, ..pod("shop/db", &["10.0.0.9"]) };
    let down = Workload { health: Health::Unhealthy, ..pod("shop/down", &["10.0.0.8"]) };
    let native = Workload { native_tunnel: true, ..pod("shop/native", &["10.0.0.7"]) };
    world([cart("shop/cart", &["10.0.0.2", "fd00::2"]), plain, down, native].map(Update::Workload))
        .check("10.0.0.2:80", "direct cart: hbone 10.0.0.2:15008 for 10.0.0.2:80")
        .check("[fd00::2]:80", "direct cart: hbone [fd00::2]:15008 for [fd00::2]:80")
        .check("[::ffff:10.0.0.2]:80", "direct cart: hbone 10.0.0.2:15008 for 10.0.0.2:80")
        .check("10.0.0.9:5432", "direct db: plain 10.0.0.9:5432 for 10.0.0.9:5432")
        .check("10.0.0.8:80", "direct down: hbone 10.0.0.8:15008 for 10.0.0.8:80")
        .check("10.0.0.7:80", "direct native: hbone 10.0.0.7:15008 for 10.0.0.7:80");
}

#[test]
fn workloads_of_the_hosts_network_are_reached_as_endpoints_only() {
    let on_host = Workload {
        network_mode: NetworkMode::HostNetwork,
        tunnel: TunnelProtocol::None,
        ..cart("shop/agent", &["192.168.0.1"])
    };
    world(cart_of([on_host])).check("192.168.0.1:22", "passthrough 192.168.0.1:22").check(
        "10.96.0.1:80",
        "direct agent of shop/cart.shop.svc: plain 192.168.0.1:8080 for 192.168.0.1:8080",
    );
}

#[test]
fn an_endpoint_that_is_only_an_address_is_whoever_has_it() {
    let written = Workload {
        network_mode: NetworkMode::HostNetwork,
        tunnel: TunnelProtocol::None,
        ..cart("shop/written", &["10.0.0.9"])
    };
    let mut updates = cart_of([written]);
    updates.push(Update::Workload(pod("shop/db", &["10.0.0.9"])));
    world(updates)
        .check("10.96.0.1:80", "direct db of shop/cart.shop.svc: hbone 10.0.0.9:15008 for 10.0.0.9:8080");
}

#[test]
fn a_service_by_its_address() {
    world(cart_of([cart("shop/cart", &["10.0.0.2", "fd00::2"])]))
        .check("10.96.0.1:80", "direct cart of shop/cart.shop.svc: hbone 10.0.0.2:15008 for 10.0.0.2:8080")
        .check("[fd96::1]:80", "direct cart of shop/cart.shop.svc: hbone [fd00::2]:15008 for [fd00::2]:8080")
        .check("10.96.0.1:81", "refused, no port 81: shop/cart.shop.svc");
}

#[test]
fn an_address_that_is_both_is_the_services() {
    let squatter = pod("shop/squatter", &["10.96.0.1"]);
    let mut updates = cart_of([cart("shop/cart", &["10.0.0.2"])]);
    updates.push(Update::Workload(squatter));
    world(updates)
        .check("10.96.0.1:80", "direct cart of shop/cart.shop.svc: hbone 10.0.0.2:15008 for 10.0.0.2:8080");
}

#[test]
fn target_ports() {
    let mapped = pod("shop/mapped", &["10.0.0.2"]).backs(CART, &[(81, 9081), (80, 9080)]);
    world(cart_of([mapped]))
        .check("10.96.0.1:80", "direct mapped of shop/cart.shop.svc: hbone 10.0.0.2:15008 for 10.0.0.2:9080");
    // A named target port that only some endpoints have.
    let named = service(CART, &["10.96.0.1"], &[(80, None)]);
    let with = pod("shop/with", &["10.0.0.2"]).backs(CART, &[(80, 9080)]);
    let without = cart("shop/without", &["10.0.0.3"]);
    let mut world =
        world([Update::Service(named), Update::Workload(without.clone()), Update::Workload(with.clone())]);
    world.check("10.96.0.1:80", "direct with of shop/cart.shop.svc: hbone 10.0.0.2:15008 for 10.0.0.2:9080");
    world.mesh.apply([Update::WorkloadRemoved(with.uid)]);
    world.check("10.96.0.1:80", "refused, no port 80: shop/cart.shop.svc");
}

#[test]
fn a_service_without_usable_endpoints_is_refused_and_never_reached_another_way() {
    let down = Workload { health: Health::Unhealthy, ..cart("shop/cart", &["10.0.0.2"]) };
    let away = Workload { network: text("net2"), ..cart("shop/cart", &["10.0.0.2"]) };
    let closed = Workload { capacity: 0, ..cart("shop/cart", &["10.0.0.2"]) };
    world(cart_of([])).check("10.96.0.1:80", "refused, no endpoint: shop/cart.shop.svc");
    world(cart_of([down.clone()])).check("10.96.0.1:80", "refused, no endpoint: shop/cart.shop.svc");
    world(cart_of([closed])).check("10.96.0.1:80", "refused, no endpoint: shop/cart.shop.svc");
    world(cart_of([cart("shop/cart", &[])])).check("10.96.0.1:80", "refused, no address: shop/cart.shop.svc");
    world(cart_of([away, down])).check("10.96.0.1:80", "refused, no endpoint: shop/cart.shop.svc");
    let away = Workload { network: text("net2"), ..cart("shop/away", &["10.0.0.2"]) };
    world(cart_of([away, cart("shop/none", &[])]))
        .check("10.96.0.1:80", "refused, in network net2: shop/cart.shop.svc");
}

#[test]
fn endpoints_that_are_not_ready_on_request() {
    let down = Workload { health: Health::Unhealthy, ..cart("shop/cart", &["10.0.0.2"]) };
    let mut all = cart_service();
    all.load_balancing.health = HealthPolicy::AllowAll;
    world([Update::Workload(down), Update::Service(all)])
        .check("10.96.0.1:80", "direct cart of shop/cart.shop.svc: hbone 10.0.0.2:15008 for 10.0.0.2:8080");
}

#[test]
fn address_families() {
    let dual = || cart("shop/cart", &["10.0.0.2", "fd00::2"]);
    let of = |families, endpoint: Workload| {
        world([
            Update::Service(Service { ip_families: families, ..cart_service() }),
            Update::Workload(endpoint),
        ])
    };
    let v4 = "direct cart of shop/cart.shop.svc: hbone 10.0.0.2:15008 for 10.0.0.2:8080";
    let v6 = "direct cart of shop/cart.shop.svc: hbone [fd00::2]:15008 for [fd00::2]:8080";
    of(IpFamilies::Automatic, dual()).check("10.96.0.1:80", v4).check("[fd96::1]:80", v6);
    of(IpFamilies::Dual, dual()).check("10.96.0.1:80", v4).check("[fd96::1]:80", v6);
    of(IpFamilies::V6, dual()).check("10.96.0.1:80", v6);
    of(IpFamilies::V4, dual()).check("[fd96::1]:80", v4);
    of(IpFamilies::Automatic, cart("shop/cart", &["10.0.0.2"])).check("[fd96::1]:80", v4);
    of(IpFamilies::V6, cart("shop/cart", &["10.0.0.2"]))
        .check("[fd96::1]:80", "refused, no address: shop/cart.shop.svc");
}

#[test]
fn of_several_addresses_the_one_that_was_dialled() {
    let block = service("shop/block.example", &["10.0.5.0/24"], &[(80, Some(80))]);
    let endpoint = pod("shop/many", &["10.0.5.1", "10.0.5.2"]).backs("shop/block.example", &[]);
    world([Update::Service(block), Update::Workload(endpoint)])
        .check("10.0.5.2:80", "direct many of shop/block.example: hbone 10.0.5.2:15008 for 10.0.5.2:80")
        .check("10.0.5.3:80", "direct many of shop/block.example: hbone 10.0.5.1:15008 for 10.0.5.1:80");
}

#[test]
fn a_service_without_load_balancing_only_describes_an_address() {
    let mut open = service("shop/open.example", &["10.0.0.0/8"], &[(443, None)]);
    open.load_balancing.mode = LoadBalancingMode::Passthrough;
    let guarded = Service { waypoint: Some(gateway("shop/none")), ..open.clone() };
    world([Update::Service(open), Update::Workload(pod("shop/db", &["10.0.0.9"]))])
        .check("10.5.5.5:443", "passthrough 10.5.5.5:443")
        // It does not take an enrolled pod out of the mesh.
        .check("10.0.0.9:443", "direct db: hbone 10.0.0.9:15008 for 10.0.0.9:443");
    world([Update::Service(guarded)])
        .check("10.5.5.5:443", "refused, waypoint shop/none of service shop/open.example: unknown");
}

#[test]
fn what_was_tried_is_not_tried_again() {
    let endpoints = ["10.0.0.2", "10.0.0.3"].map(|ip| cart(&format!("shop/cart-{ip}"), &[ip]));
    let mut world = world(cart_of(endpoints.clone()));
    let line =
        |ip, more| format!("direct cart-{ip} of shop/cart.shop.svc{more}: hbone {ip}:15008 for {ip}:8080");
    world.check("10.96.0.1:80", &line("10.0.0.2", " or others"));
    world.exclude.push(endpoints[0].uid.clone());
    world.check("10.96.0.1:80", &line("10.0.0.3", ""));
    world.exclude.push(endpoints[1].uid.clone());
    world.check("10.96.0.1:80", "refused, no endpoint: shop/cart.shop.svc");
}

#[test]
fn who_may_answer() {
    let mut shared = cart_service();
    shared.subject_alt_names =
        ["spiffe://cluster.local/ns/shop/sa/extra", "spiffe://not an id", "extra.example"].map(text).to_vec();
    let mut world = world([Update::Service(shared), Update::Workload(cart("shop/cart", &["10.0.0.2"]))]);
    assert_eq!(
        world.target("10.96.0.1:80").identities,
        [identity("shop", "cart"), identity("shop", "extra")]
    );
    assert_eq!(world.target("10.0.0.2:80").identities, [identity("shop", "cart")]);
}

/// Which endpoints a service with this preference uses, by name, from `n1` in zone z1 of region r1.
fn check_locality(mode: LoadBalancingMode, preference: &[Scope], expected: &[&str]) {
    let near = |name: &str, node: &str, zone: &str, region: &str| {
        let mut workload = cart(&format!("shop/{name}"), &["10.0.0.9"]);
        workload.node = node.into();
        workload.locality.zone = zone.into();
        workload.locality.region = region.into();
        Update::Workload(workload)
    };
    let load_balancing = LoadBalancing { preference: preference.to_vec(), mode, ..LoadBalancing::default() };
    let mut world = world([
        near("node", "n1", "z1", "r1"),
        near("zone", "n2", "z1", "r1"),
        near("region", "n3", "z2", "r1"),
        near("far", "n4", "z3", "r2"),
        // The same zone's name in another region.
        near("odd", "n5", "z1", "r3"),
        Update::Service(Service { load_balancing, ..cart_service() }),
    ]);
    let mut used = Vec::new();
    for ticket in 0..5 {
        world.pick.draws = vec![ticket];
        match world.route("10.96.0.1:80") {
            Ok(route) => {
                let Route::Workload(target) = route else { panic!("not direct: {route:?}") };
                used.push(target.workload.name.to_string());
            }
            Err(refused) => assert!(matches!(refused, NoRoute::NoHealthyEndpoint(_)), "{refused}"),
        }
    }
    used.sort();
    used.dedup();
    assert_eq!(used, expected, "{mode:?} {preference:?}");
}

#[test]
fn localities() {
    use LoadBalancingMode::{Any, Failover, Strict};
    check_locality(Any, &[Scope::Node], &["far", "node", "odd", "region", "zone"]);
    check_locality(Failover, &[], &["far", "node", "odd", "region", "zone"]);
    check_locality(Failover, &[Scope::Region], &["node", "region", "zone"]);
    check_locality(Failover, &[Scope::Region, Scope::Zone], &["node", "zone"]);
    check_locality(
        Failover,
        &[Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node],
        &["node"],
    );
    check_locality(Failover, &[Scope::Zone], &["node", "odd", "zone"]);
    check_locality(Strict, &[Scope::Node], &["node"]);
    check_locality(Strict, &[Scope::Cluster, Scope::Zone], &["node", "odd", "zone"]);
    check_locality(Strict, &[], &["far", "node", "odd", "region", "zone"]);
}

#[test]
fn strict_refuses_where_failover_goes_on() {
    let elsewhere = Workload { node: text("n2"), ..cart("shop/cart", &["10.0.0.2"]) };
    let of = |mode| {
        let load_balancing =
            LoadBalancing { preference: vec![Scope::Node], mode, ..LoadBalancing::default() };
        world([
            Update::Workload(elsewhere.clone()),
            Update::Service(Service { load_balancing, ..cart_service() }),
        ])
    };
    of(LoadBalancingMode::Strict).check("10.96.0.1:80", "refused, no endpoint: shop/cart.shop.svc");
    of(LoadBalancingMode::Failover)
        .check("10.96.0.1:80", "direct cart of shop/cart.shop.svc: hbone 10.0.0.2:15008 for 10.0.0.2:8080");
}

#[test]
fn a_client_stays_with_an_endpoint_while_it_is_there() {
    let names = ["a", "b", "c", "d"];
    let sticky = LoadBalancing { affinity: Affinity::Client, ..LoadBalancing::default() };
    let chosen = |endpoints: &[&str], client: usize| {
        let endpoints = endpoints.iter().map(|name| cart(&format!("shop/{name}"), &["10.0.0.2"]));
        let service = Service { load_balancing: sticky.clone(), ..cart_service() };
        let mut world =
            world(endpoints.map(Update::Workload).chain([Update::Service(service)]).collect::<Vec<_>>());
        world.source.uid = uid(&format!("Kubernetes//Pod/shop/client-{client}"));
        let first = world.target("10.96.0.1:80").workload.name.to_string();
        for draw in 0..4 {
            world.pick.draws = vec![draw];
            assert_eq!(*first, *world.target("10.96.0.1:80").workload.name, "whatever is drawn");
        }
        first
    };
    let clients: Vec<usize> = (0..200).collect();
    let before: Vec<String> = clients.iter().map(|client| chosen(&names, *client)).collect();
    for name in names {
        let share = before.iter().filter(|chosen| *chosen == name).count();
        assert!((25..75).contains(&share), "{name} has {share} of 200 clients");
    }
    for (client, before) in clients.iter().zip(&before) {
        let after = chosen(&names[1..], *client);
        assert!(after == *before || before == "a", "client {client} goes from {before} to {after}");
    }
}

/// Which of two endpoints is taken when the first draw hits the first.
fn check_load(first: (u32, Load), second: (u32, Load), expected: &str) {
    let endpoint =
        |name: &str, capacity| Workload { capacity, ..cart(&format!("shop/{name}"), &["10.0.0.2"]) };
    let mut world = world(cart_of([endpoint("a", first.0), endpoint("b", second.0)]));
    world.pick.loads.insert(uid("Kubernetes//Pod/shop/a"), first.1);
    world.pick.loads.insert(uid("Kubernetes//Pod/shop/b"), second.1);
    assert_eq!(&*world.target("10.96.0.1:80").workload.name, expected, "{first:?} {second:?}");
}

#[test]
fn the_less_busy_of_two() {
    let busy = |outstanding| Load { outstanding, recent_failures: 0 };
    let failed = |recent_failures| Load { outstanding: 0, recent_failures };
    check_load((1, busy(0)), (1, busy(0)), "a");
    check_load((1, busy(1)), (1, busy(0)), "b");
    check_load((1, busy(1)), (1, busy(2)), "a");
    check_load((1, failed(1)), (1, busy(10)), "b");
    check_load((1, failed(1)), (1, busy(100)), "a");
    // Per unit of capacity.
    check_load((4, busy(4)), (1, busy(1)), "a");
    check_load((4, busy(5)), (1, busy(1)), "b");
    check_load(
        (u32::MAX, Load { outstanding: u32::MAX, recent_failures: u32::MAX }),
        (u32::MAX, busy(0)),
        "b",
    );
}

#[test]
fn shares_follow_capacity() {
    let endpoint =
        |name: &str, capacity| Workload { capacity, ..cart(&format!("shop/{name}"), &["10.0.0.2"]) };
    let mut world = world(cart_of([endpoint("a", 3), endpoint("b", 1)]));
    let names: Vec<String> = (0..4)
        .map(|ticket| {
            world.pick.draws = vec![ticket];
            world.target("10.96.0.1:80").workload.name.to_string()
        })
        .collect();
    assert_eq!(names, ["a", "a", "a", "b"]);
}

#[test]
fn a_pod_may_be_its_own_services_endpoint() {
    let mut world =
        world([Update::Service(cart_service()), Update::Workload(cart("shop/web", &["10.0.0.1"]))]);
    world.check("10.96.0.1:80", "direct web of shop/cart.shop.svc: hbone 10.0.0.1:15008 for 10.0.0.1:8080");
}

#[test]
fn a_private_service_is_not_there_for_others() {
    let private = Service { visibility: model::service::Visibility::Namespace, ..cart_service() };
    let mut world = world([Update::Service(private), Update::Workload(cart("shop/cart", &["10.0.0.2"]))]);
    world.check("10.96.0.1:80", "direct cart of shop/cart.shop.svc: hbone 10.0.0.2:15008 for 10.0.0.2:8080");
    world.source = pod("other/client", &["10.0.0.5"]);
    world.check("10.96.0.1:80", "passthrough 10.96.0.1:80");
}

#[test]
fn refusals_say_what_to_look_at() {
    let refusals = [
        NoRoute::NoAddress(service_name(CART)),
        NoRoute::NoHealthyEndpoint(service_name(CART)),
        NoRoute::NoSuchPort { service: service_name(CART), port: 81 },
        NoRoute::OtherNetwork { destination: service_name(CART), network: text("net2") },
    ];
    for refusal in refusals {
        let shown = refusal.to_string();
        assert!(shown.contains(CART) && shown.contains("check"), "{shown}");
    }
}
