//! Routes through waypoints by example: what they guard is never reached without one.

use model::address::OriginalDst;
use model::route::{Behind, Guarded, NoRoute, NotGuarded, Query, goes_around, guarded, reachable};
use model::service::Service;
use model::store::Update;
use model::workload::{ApplicationProtocol, ApplicationTunnel, Health, TunnelProtocol, Workload};

use crate::make::{
    WorkloadExt, gateway, gateway_at, identity, pod, service, service_name, text, uid, weighted,
};
use crate::world::{CART, World, cart, cart_service, world};

const WAYPOINT: &str = "infra/waypoint.infra.svc";

/// A waypoint of two instances at 10.0.1.1 and 10.0.1.2.
fn waypoint() -> Vec<Update> {
    let instance = |ip: &str| {
        let workload = pod(&format!("infra/waypoint-{ip}"), &[ip]).backs(WAYPOINT, &[]);
        Update::Workload(Workload { native_tunnel: true, ..workload })
    };
    let mut its_service = service(WAYPOINT, &["10.96.9.9"], &[(15008, Some(15008))]);
    its_service.subject_alt_names = vec![text("spiffe://cluster.local/ns/infra/sa/waypoint")];
    vec![instance("10.0.1.1"), instance("10.0.1.2"), Update::Service(its_service)]
}

fn guarded_service() -> Service {
    Service { waypoint: Some(gateway(WAYPOINT)), ..cart_service() }
}

fn guarded_world() -> World {
    let mut db = pod("shop/db", &["10.0.0.9"]);
    db.waypoint = Some(gateway(WAYPOINT));
    let more = [
        Update::Service(guarded_service()),
        Update::Workload(cart("shop/cart", &["10.0.0.2"])),
        Update::Workload(db),
    ];
    world(waypoint().into_iter().chain(more))
}

#[test]
fn a_waypoint_guards_services_and_workloads() {
    let mut world = guarded_world();
    world
        .check("10.96.0.1:80", "waypoint waypoint-10.0.1.1 of shop/cart.shop.svc or others: hbone 10.0.1.1:15008 for 10.96.0.1:80")
        .check("10.0.0.9:5432", "waypoint waypoint-10.0.1.1 or others: hbone 10.0.1.1:15008 for 10.0.0.9:5432")
        // The service's waypoint is not the workload's.
        .check("10.0.0.2:8080", "direct cart: hbone 10.0.0.2:15008 for 10.0.0.2:8080");
    let expected = [identity("infra", "waypoint-10.0.1.1"), identity("infra", "waypoint")];
    assert_eq!(world.target("10.96.0.1:80").identities, expected);
    world.exclude.push(uid("Kubernetes//Pod/infra/waypoint-10.0.1.1"));
    world.check(
        "10.96.0.1:80",
        "waypoint waypoint-10.0.1.2 of shop/cart.shop.svc: hbone 10.0.1.2:15008 for 10.96.0.1:80",
    );
}

#[test]
fn a_waypoint_is_not_sent_to_itself() {
    let mut world = guarded_world();
    world.source =
        (*world.mesh.workload(&uid("Kubernetes//Pod/infra/waypoint-10.0.1.2")).expect("known")).clone();
    world
        .check("10.96.0.1:80", "direct cart of shop/cart.shop.svc: hbone 10.0.0.2:15008 for 10.0.0.2:8080")
        .check("10.0.0.9:5432", "direct db: hbone 10.0.0.9:15008 for 10.0.0.9:5432");
}

/// Such an instance is reached through the proxy of its node, whose port the waypoint's service need not know.
#[test]
fn a_waypoint_behind_a_proxy() {
    let tunnel = ApplicationTunnel { protocol: ApplicationProtocol::Proxy, port: Some(15088) };
    let instance = pod("infra/waypoint", &["10.0.1.1"]).backs(WAYPOINT, &[]);
    let instance = Workload { application_tunnel: Some(tunnel), ..instance };
    world([
        Update::Workload(instance),
        Update::Service(service(WAYPOINT, &[], &[(80, Some(80))])),
        Update::Service(guarded_service()),
    ])
    .check("10.96.0.1:80", "waypoint waypoint of shop/cart.shop.svc: hbone 10.0.1.1:15008 for 10.96.0.1:80");
}

#[test]
fn a_waypoint_by_address() {
    let by = |addr: &str| {
        let service = Service { waypoint: Some(gateway_at("", addr)), ..cart_service() };
        world(waypoint().into_iter().chain([Update::Service(service)]))
    };
    by("10.96.9.9").check(
        "10.96.0.1:80",
        "waypoint waypoint-10.0.1.1 of shop/cart.shop.svc or others: hbone 10.0.1.1:15008 for 10.96.0.1:80",
    );
    let mut one = by("10.0.1.2");
    one.check(
        "10.96.0.1:80",
        "waypoint waypoint-10.0.1.2 of shop/cart.shop.svc: hbone 10.0.1.2:15008 for 10.96.0.1:80",
    );
    one.exclude.push(uid("Kubernetes//Pod/infra/waypoint-10.0.1.2"));
    one.check("10.96.0.1:80", "refused, waypoint /10.0.1.2 of service shop/cart.shop.svc: no endpoint");
    by("10.0.1.3")
        .check("10.96.0.1:80", "refused, waypoint /10.0.1.3 of service shop/cart.shop.svc: unknown");
}

#[test]
fn a_waypoint_that_cannot_be_used_is_not_bypassed() {
    let refused = |why: &str| {
        format!("refused, waypoint infra/waypoint.infra.svc of service shop/cart.shop.svc: {why}")
    };
    let with = |instances: Vec<Workload>, its_service: Option<Service>| {
        let known = [Update::Service(guarded_service()), Update::Workload(cart("shop/cart", &["10.0.0.2"]))];
        world(
            known
                .into_iter()
                .chain(instances.into_iter().map(Update::Workload))
                .chain(its_service.map(Update::Service)),
        )
    };
    let its_service = || Some(service(WAYPOINT, &[], &[(15008, Some(15008))]));
    let instance = || pod("infra/waypoint", &["10.0.1.1"]).backs(WAYPOINT, &[]);
    let vip = "10.96.0.1:80";
    with(vec![instance()], None).check(vip, &refused("unknown"));
    with(vec![], its_service()).check(vip, &refused("no endpoint"));
    with(vec![Workload { health: Health::Unhealthy, ..instance() }], its_service())
        .check(vip, &refused("no endpoint"));
    with(vec![Workload { tunnel: TunnelProtocol::None, ..instance() }], its_service())
        .check(vip, &refused("not hbone"));
    with(vec![Workload { network: text("net2"), ..instance() }], its_service())
        .check(vip, &refused("in network net2"));
    with(vec![instance()], Some(service(WAYPOINT, &[], &[(80, Some(80))])))
        .check(vip, &refused("no port 15008"));

    let away = Service { waypoint: Some(gateway_at("net2", "10.0.1.1")), ..cart_service() };
    world([Update::Service(away)])
        .check(vip, "refused, waypoint net2/10.0.1.1 of service shop/cart.shop.svc: in network net2");

    let mut db = pod("shop/db", &["10.0.0.9"]);
    db.waypoint = Some(gateway(WAYPOINT));
    let guarded = Guarded::Workload(db.uid.clone());
    let refused = world([Update::Workload(db)]).route("10.0.0.9:1").expect_err("refused");
    assert!(matches!(refused, NoRoute::WaypointUnavailable { guarded: found, .. } if found == guarded));
}

#[test]
fn several_waypoints_by_weight() {
    let canary = pod("infra/canary", &["10.0.2.1"]).backs("infra/canary.infra.svc", &[]);
    let canary_service = service("infra/canary.infra.svc", &[], &[(15008, Some(15008))]);
    let of = |weights: [u32; 2]| {
        let weighted_waypoints =
            vec![weighted(WAYPOINT, weights[0]), weighted("infra/canary.infra.svc", weights[1])];
        let guarded = Service { weighted_waypoints, ..guarded_service() };
        let more = [
            Update::Service(guarded),
            Update::Service(canary_service.clone()),
            Update::Workload(canary.clone()),
        ];
        world(waypoint().into_iter().chain(more))
    };
    let names = |weights, draw| {
        let mut world = of(weights);
        world.pick.draws = vec![draw];
        world.target("10.96.0.1:80").workload.name.to_string()
    };
    assert_eq!(names([3, 1], 0), "waypoint-10.0.1.1");
    assert_eq!(names([3, 1], 2), "waypoint-10.0.1.1");
    assert_eq!(names([3, 1], 3), "canary");
    assert_eq!(names([0, 1], 0), "canary");
    // Without weight, the plain one.
    assert_eq!(names([0, 0], 0), "waypoint-10.0.1.1");
    assert_eq!(names([u32::MAX, u32::MAX], 0), "waypoint-10.0.1.1");
}

#[test]
fn a_refusal_names_both_and_says_what_to_look_at() {
    let mut world = guarded_world();
    world.mesh.apply([Update::ServiceRemoved(service_name(WAYPOINT))]);
    let shown = world.route("10.96.0.1:80").expect_err("refused").to_string();
    assert!(shown.contains(WAYPOINT) && shown.contains(CART) && shown.contains("check"), "{shown}");
}

/// What an instance of the waypoint of [`guarded_world`] does with an authority.
fn asked(authority: &str) -> Result<String, NotGuarded> {
    let mut world = guarded_world();
    world.mesh.apply([
        Update::Service(service("shop/plain.shop.svc", &["10.96.0.7"], &[(80, Some(80))])),
        Update::Workload(pod("shop/plain", &["10.0.0.7"])),
    ]);
    let instance = world.mesh.workload(&uid("Kubernetes//Pod/infra/waypoint-10.0.1.2")).expect("known");
    let authority = authority.parse().expect("an authority");
    guarded(&world.mesh, &instance, "shop", &authority).map(|behind| match behind {
        Behind::Service(service, port, ip) => format!("{} {port} {ip:?}", service.id),
        Behind::Workload(workload, app) => format!("{} {app}", workload.name),
    })
}

#[test]
fn a_waypoint_carries_only_what_names_it() {
    assert_eq!(asked("10.96.0.1:80").unwrap(), "shop/cart.shop.svc 80 Some(10.96.0.1)");
    assert_eq!(asked("[::ffff:10.96.0.1]:80").unwrap(), "shop/cart.shop.svc 80 Some(10.96.0.1)");
    assert_eq!(asked("cart.shop.svc:80").unwrap(), "shop/cart.shop.svc 80 None");
    assert_eq!(asked("10.0.0.9:5432").unwrap(), "db 10.0.0.9:5432");

    let not_ours = |text: &str| matches!(asked(text), Err(NotGuarded::NotOurs(_)));
    assert!(not_ours("10.96.0.7:80") && not_ours("plain.shop.svc:80"), "a service without a waypoint");
    assert!(not_ours("10.0.0.7:80"), "a workload without a waypoint");
    assert!(not_ours("10.0.0.2:8080"), "the service's waypoint is not the workload's");
    assert!(not_ours("10.0.1.1:15008") && not_ours("10.96.9.9:15008"), "itself");
    assert_eq!(asked("10.96.0.1:81"), Err(NotGuarded::NoSuchPort(service_name("shop/cart.shop.svc"), 81)));
    for unknown in ["127.0.0.1:80", "169.254.169.254:80", "10.9.9.9:80"] {
        assert!(matches!(asked(unknown), Err(NotGuarded::UnknownAddress(_))), "{unknown}");
    }
    assert_eq!(asked("other.shop.svc:80"), Err(NotGuarded::UnknownName(text("other.shop.svc"))));
}

#[test]
fn a_waypoint_learns_every_endpoint_with_its_state() {
    let mut world = guarded_world();
    let mut sick = cart("shop/cart-sick", &["10.0.0.3"]);
    sick.health = Health::Unhealthy;
    world.mesh.apply([Update::Workload(sick)]);
    let source = world.mesh.workload(&uid("Kubernetes//Pod/infra/waypoint-10.0.1.2")).expect("known");
    let ask = |dst: &str| {
        let query =
            Query { source: &source, dst: OriginalDst(dst.parse().expect("an address")), exclude: &[] };
        let cart = world.mesh.service(&service_name("shop/cart.shop.svc")).expect("known");
        reachable(&world.mesh, &query, &cart)
    };
    let all = ask("10.96.0.1:80").unwrap();
    let shown: Vec<_> = all.iter().map(|one| (one.target.authority.as_str(), one.rank, one.up)).collect();
    assert_eq!(shown, [("10.0.0.2:8080", 0, true), ("10.0.0.3:8080", 0, false)]);
    assert!(matches!(ask("10.96.0.1:81"), Err(NoRoute::NoSuchPort { port: 81, .. })));
}

#[test]
fn only_a_waypoint_reaches_what_is_reached_through_waypoints_alone() {
    let mut world = guarded_world();
    world.mesh.apply([
        Update::Service(service("shop/plain.shop.svc", &["10.96.0.7"], &[(80, Some(80))])),
        Update::Service(Service {
            waypoint: Some(gateway("infra/other.infra.svc")),
            ..service("shop/via-other.shop.svc", &["10.96.0.8"], &[(80, Some(80))])
        }),
        Update::Workload(pod("infra/other-0", &["10.0.1.3"]).backs("infra/other.infra.svc", &[])),
    ]);
    let by = |name: &str| world.mesh.workload(&uid(&format!("Kubernetes//Pod/{name}"))).expect("known");
    let (instance, other, client) = (by("infra/waypoint-10.0.1.1"), by("infra/other-0"), by("shop/web"));
    let around = |local: &Workload, source: Option<&Workload>| goes_around(&world.mesh, local, source);

    let db = by("shop/db");
    assert!(!around(&db, Some(&instance)));
    assert!(around(&db, Some(&client)) && around(&db, Some(&other)) && around(&db, None));

    let behind_both = (*db).clone().backs("shop/via-other.shop.svc", &[]);
    assert!(!around(&behind_both, Some(&instance)) && !around(&behind_both, Some(&other)));
    assert!(around(&behind_both, Some(&client)));

    let also_plain = (*db).clone().backs("shop/plain.shop.svc", &[]);
    assert!(!around(&also_plain, Some(&client)), "a client of the plain service comes by itself");
    assert!(!around(&by("shop/cart"), Some(&client)), "only its service has a waypoint");
}
