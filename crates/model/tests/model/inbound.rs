//! What a tunnel may ask for, by example.

use std::net::IpAddr;

use model::address::AppAddr;
use model::route::{BadAuthority, inbound_authority};
use model::service::Visibility;
use model::store::{Mesh, Update};
use model::workload::{ApplicationProtocol, ApplicationTunnel, Workload};

use crate::make::{WorkloadExt, addr, gateway, gateway_at, ip, pod, service, service_name, text, weighted};

/// A dual-stack pod that backs three services, one of them of another namespace.
fn cart() -> Workload {
    pod("shop/cart", &["10.0.0.2", "fd00::2"])
        .backs("shop/cart.shop.svc", &[(82, 9082)])
        .backs("other/shared.example", &[])
        .backs("shop/shared.example", &[])
}

fn world(local: &Workload) -> Mesh {
    let mut mesh = Mesh::default();
    let mut private = service("other/shared.example", &[], &[(80, Some(1111))]);
    private.visibility = Visibility::Namespace;
    mesh.apply([
        Update::Workload(local.clone()),
        Update::Workload(pod("shop/web", &["10.0.0.3"])),
        Update::Service(service(
            "shop/cart.shop.svc",
            &["10.96.0.1"],
            &[(80, Some(8080)), (81, None), (82, Some(8082))],
        )),
        Update::Service(service("shop/shared.example", &[], &[(80, Some(2222))])),
        Update::Service(private),
        Update::Service(service("shop/web.shop.svc", &["10.96.0.2"], &[(80, Some(8080))])),
    ]);
    mesh
}

fn ask(mesh: &Mesh, local: &Workload, authority: &str) -> Result<AppAddr, BadAuthority> {
    inbound_authority(mesh, local, ip("10.0.0.2"), &authority.parse().expect("an authority"))
}

fn check(authority: &str, expected: Result<&str, BadAuthority>) {
    let local = cart();
    assert_eq!(
        ask(&world(&local), &local, authority),
        expected.map(|text| AppAddr(addr(text))),
        "{authority}"
    );
}

fn forbidden(text: &str) -> Result<&'static str, BadAuthority> {
    Err(BadAuthority::Forbidden(ip(text)))
}

#[test]
fn its_own_addresses() {
    check("10.0.0.2:8080", Ok("10.0.0.2:8080"));
    check("[fd00::2]:8080", Ok("[fd00::2]:8080"));
    check("[::ffff:10.0.0.2]:8080", Ok("10.0.0.2:8080"));
}

#[test]
fn nobody_elses() {
    for other in ["10.0.0.3", "10.96.0.1", "192.0.2.1", "fd00::3"] {
        let authority = std::net::SocketAddr::new(ip(other), 80).to_string();
        check(&authority, Err(BadAuthority::NotOwn(ip(other))));
    }
}

#[test]
fn no_address_that_means_something_else_to_every_reader() {
    check("127.0.0.1:80", forbidden("127.0.0.1"));
    check("127.8.8.8:80", forbidden("127.8.8.8"));
    check("0.0.0.0:80", forbidden("0.0.0.0"));
    check("169.254.169.254:80", forbidden("169.254.169.254"));
    check("224.0.0.1:80", forbidden("224.0.0.1"));
    check("255.255.255.255:80", forbidden("255.255.255.255"));
    check("[::1]:80", forbidden("::1"));
    check("[::]:80", forbidden("::"));
    check("[fe80::1]:80", forbidden("fe80::1"));
    check("[ff02::1]:80", forbidden("ff02::1"));
    check("[::ffff:127.0.0.1]:80", forbidden("127.0.0.1"));
}

#[test]
fn not_even_for_a_workload_that_claims_such_an_address() {
    let mut local = cart();
    local.addresses.push(ip("127.0.0.1"));
    let asked = ask(&world(&local), &local, "127.0.0.1:80");
    assert_eq!(asked, Err(BadAuthority::Forbidden(ip("127.0.0.1"))));
}

#[test]
fn never_a_port_of_the_proxy() {
    for port in [15001, 15006, 15008, 15053] {
        check(&format!("10.0.0.2:{port}"), Err(BadAuthority::ProxyPort(port)));
    }
    let local = pod("shop/cart", &["10.0.0.2"]).backs("shop/cart.shop.svc", &[(80, 15008)]);
    assert_eq!(ask(&world(&local), &local, "cart.shop.svc:80"), Err(BadAuthority::ProxyPort(15008)));
}

#[test]
fn a_hostname_of_a_service_that_it_backs() {
    check("cart.shop.svc:80", Ok("10.0.0.2:8080"));
    check("CART.shop.svc:80", Ok("10.0.0.2:8080"));
    // Its own mapping comes before the service's.
    check("cart.shop.svc:82", Ok("10.0.0.2:9082"));
    let no_port = |port| BadAuthority::NoSuchPort { service: service_name("shop/cart.shop.svc"), port };
    check("cart.shop.svc:81", Err(no_port(81)));
    check("cart.shop.svc:8080", Err(no_port(8080)));
    // Of several services of that name, the one of its namespace.
    check("shared.example:80", Ok("10.0.0.2:2222"));
    check("web.shop.svc:80", Err(BadAuthority::NotBacked(text("web.shop.svc"))));
    check("nowhere.example:80", Err(BadAuthority::NotBacked(text("nowhere.example"))));
    check("localhost:80", Err(BadAuthority::NotBacked(text("localhost"))));
}

#[test]
fn the_tunnel_must_end_at_its_own_address() {
    let local = cart();
    let mesh = world(&local);
    let at = |local_ip: IpAddr| {
        inbound_authority(&mesh, &local, local_ip, &"cart.shop.svc:80".parse().expect("an authority"))
    };
    assert_eq!(at(ip("::ffff:10.0.0.2")), Ok(AppAddr(addr("10.0.0.2:8080"))));
    assert_eq!(at(ip("fd00::2")), Ok(AppAddr(addr("[fd00::2]:8080"))));
    assert_eq!(at(ip("10.0.0.3")), Err(BadAuthority::NotOwn(ip("10.0.0.3"))));
    assert_eq!(at(ip("127.0.0.1")), Err(BadAuthority::Forbidden(ip("127.0.0.1"))));
}

/// A waypoint that runs behind the proxy is asked for what it guards, by either of its spellings.
#[test]
fn a_waypoint_behind_the_proxy_answers_for_what_it_guards() {
    let mut local = pod("shop/waypoint", &["10.0.0.2"]).backs("shop/waypoint.shop.svc", &[]);
    local.application_tunnel =
        Some(ApplicationTunnel { protocol: ApplicationProtocol::Proxy, port: Some(15088) });
    let mut mesh = world(&local);
    let mut guarded = service("shop/web.shop.svc", &["10.96.0.2"], &[(80, Some(8080))]);
    guarded.waypoint = Some(gateway("shop/waypoint.shop.svc"));
    let mut canary = service("shop/canary.shop.svc", &["10.96.0.3"], &[(80, Some(8080))]);
    canary.weighted_waypoints =
        vec![weighted("shop/else.shop.svc", 1), weighted("shop/waypoint.shop.svc", 0)];
    let mut by_address = pod("shop/db", &["10.0.0.9"]);
    by_address.waypoint = Some(gateway_at("", "10.0.0.2"));
    let updates = [Update::Service(guarded), Update::Service(canary), Update::Workload(by_address)];
    mesh.apply(updates);

    let answer = Ok(AppAddr(addr("10.0.0.2:15088")));
    for authority in ["10.96.0.2:80", "10.96.0.3:80", "10.0.0.9:5432", "10.0.0.2:80"] {
        assert_eq!(ask(&mesh, &local, authority), answer, "{authority}");
    }
    for other in ["10.96.0.1", "10.0.0.3", "192.0.2.1"] {
        assert_eq!(
            ask(&mesh, &local, &format!("{other}:80")),
            Err(BadAuthority::NotOwn(ip(other))),
            "{other}"
        );
    }
    assert_eq!(ask(&mesh, &local, "169.254.169.254:80"), Err(BadAuthority::Forbidden(ip("169.254.169.254"))));

    // The same pod without an application tunnel answers for itself only.
    let plain = Workload { application_tunnel: None, ..local };
    assert_eq!(ask(&mesh, &plain, "10.96.0.2:80"), Err(BadAuthority::NotOwn(ip("10.96.0.2"))));
}

#[test]
fn a_refusal_says_what_and_where_to_look() {
    let local = cart();
    let refused = ask(&world(&local), &local, "cart.shop.svc:81").expect_err("refused").to_string();
    assert!(
        refused.contains("shop/cart.shop.svc") && refused.contains("81") && refused.contains("check"),
        "{refused}"
    );
}
