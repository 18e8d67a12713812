//! Outbound: what is captured with which original destination, what stays untouched, and every way around it that an
//! application could try.

use ebpf::Node;

use crate::support::{App, Pod, Proxy, World, canonical};

/// The destinations answer to nobody: whoever greets is the proxy.
const VIP4: &str = "10.96.0.10:80";
const VIP6: &str = "[fd96::10]:80";
const VIP4_MAPPED: &str = "[::ffff:10.96.0.10]:80";

/// An enrolled pod. Dropped from the last field to the first.
struct Enrolled {
    _proxy: Proxy,
    _node: Node,
    pod: Pod,
    world: World,
}

impl Enrolled {
    fn new() -> Self {
        let world = World::new();
        let node = world.attach();
        let pod = world.pod();
        let proxy = Proxy::start(&pod.sandbox);
        node.prepare(&pod.sandbox).expect("prepared");
        node.capture(&pod.sandbox, proxy.fds()).expect("captured");
        Self { _proxy: proxy, _node: node, pod, world }
    }

    fn check_captured(app: &mut App, to: &str, options: &str) {
        let greeting = app.dial(to, options);
        let expected = format!("Outbound {} ", canonical(to));
        assert!(
            greeting.starts_with(&expected),
            "{to} with `{options}`: got `{greeting}`, want `{expected}...`"
        );
    }

    /// To its own application, past the proxy.
    fn check_untouched(app: &mut App, to: &str) {
        let greeting = app.dial(to, "");
        assert!(greeting.starts_with("app "), "{to}: got `{greeting}`");
    }
}

#[test]
fn destinations_are_captured_as_dialled() {
    let enrolled = Enrolled::new();
    let mut app = enrolled.pod.app();
    for to in [
        VIP4,
        VIP6,
        VIP4_MAPPED,
        "10.96.0.10:53",
        "[fd96::10]:53",
        "10.9.0.2:15008",
        "[::ffff:10.9.0.2]:8080",
    ] {
        Enrolled::check_captured(&mut app, to, "");
    }
}

#[test]
fn other_pods_of_the_node_are_captured_as_destinations() {
    let enrolled = Enrolled::new();
    let other = enrolled.world.pod();
    let mut server = other.app();
    server.must("listen [::]:80");
    let mut app = enrolled.pod.app();
    Enrolled::check_captured(&mut app, &format!("{}:80", other.v4), "");
    Enrolled::check_captured(&mut app, &format!("[{}]:80", other.v6), "");
}

#[test]
fn a_bound_source_stays_captured() {
    let enrolled = Enrolled::new();
    let mut app = enrolled.pod.app();
    let (v4, v6) = (enrolled.pod.v4, enrolled.pod.v6);
    Enrolled::check_captured(&mut app, VIP4, &format!("bind={v4}:5555"));
    Enrolled::check_captured(&mut app, VIP6, &format!("bind=[{v6}]:5555"));
}

#[test]
fn the_proxys_mark_exempts_nobody() {
    let enrolled = Enrolled::new();
    let mut app = enrolled.pod.app();
    for mark in [ebpf::MARK_PROXY, ebpf::MARK_CAPTURE, ebpf::MARK_RETURN, 1] {
        for to in [VIP4, VIP6, VIP4_MAPPED] {
            Enrolled::check_captured(&mut app, to, &format!("mark={mark}"));
        }
    }
}

#[test]
fn a_device_binding_is_cleared() {
    let enrolled = Enrolled::new();
    let mut app = enrolled.pod.app();
    for device in ["eth0", "lo"] {
        for to in [VIP4, VIP6, VIP4_MAPPED] {
            Enrolled::check_captured(&mut app, to, &format!("device={device}"));
        }
    }
}

/// Everything that would make the kernel look for another way once a connection stands.
const OTHER_WAYS: [&str; 5] = ["device=eth0", "device=lo", "index=eth0", "mark=0", "mark=1337"];

#[test]
fn a_captured_connection_cannot_be_led_away() {
    let enrolled = Enrolled::new();
    for mut app in [enrolled.pod.app(), enrolled.pod.unprivileged_app()] {
        for (to, options) in [(VIP4, ""), (VIP6, ""), (VIP4_MAPPED, ""), (VIP4, "mptcp"), (VIP6, "mptcp")] {
            Enrolled::check_captured(&mut app, to, options);
            for way in OTHER_WAYS {
                let answer = app.tell(&format!("reroute x {way}"));
                assert!(answer.starts_with("err "), "{to} {options} {way}: {answer}");
            }
            assert_eq!(app.must("say x still"), "Outbound still");
        }
    }
}

#[test]
fn a_connection_from_the_proxy_cannot_be_led_away() {
    let world = World::new();
    let node = world.attach();
    let pod = world.pod();
    let proxy = Proxy::relaying(&pod.sandbox);
    node.prepare(&pod.sandbox).expect("prepared");
    node.capture(&pod.sandbox, proxy.fds()).expect("captured");
    pod.app().must("listen [::]:8080");
    let (mut server, mut far) = (pod.app(), world.far_app());
    server.must("listen [::]:8081");
    for to in [format!("{}:8081", pod.v4), format!("[{}]:8081", pod.v6)] {
        assert!(far.dial(&to, "").starts_with("app "), "{to}");
        for way in OTHER_WAYS {
            assert_eq!(far.must(&format!("say x {way}")), "app EPERM", "{to} {way}");
        }
        assert_eq!(far.must("say x still"), "app still");
    }
}

#[test]
fn other_connections_may_be_led_anywhere() {
    let enrolled = Enrolled::new();
    let mut far = enrolled.world.far_app();
    far.must("listen [::]:80");
    let mut app = enrolled.pod.app();
    app.must("listen [::]:8080");
    Enrolled::check_untouched(&mut app, "127.0.0.1:8080");
    app.must("reroute x device=lo");
    app.must("reroute x mark=7");
    let mut stranger = enrolled.world.pod().app();
    Enrolled::check_untouched(&mut stranger, "10.9.0.2:80");
    for way in ["device=eth0", "mark=1338", "mark=0"] {
        stranger.must(&format!("reroute x {way}"));
    }
}

#[test]
fn a_device_binding_that_cannot_be_cleared_is_refused() {
    let enrolled = Enrolled::new();
    let mut app = enrolled.pod.unprivileged_app();
    for to in [VIP4, VIP6, VIP4_MAPPED] {
        assert_eq!(app.dial(to, "device=eth0"), "err ECONNREFUSED", "{to}");
        Enrolled::check_captured(&mut app, to, "");
    }
}

#[test]
fn a_unicast_interface_changes_nothing() {
    let enrolled = Enrolled::new();
    Enrolled::check_captured(&mut enrolled.pod.app(), VIP4, "unicast-if=eth0");
}

#[test]
fn multipath_tcp_is_captured() {
    let enrolled = Enrolled::new();
    let mut app = enrolled.pod.app();
    for to in [VIP4, VIP6, VIP4_MAPPED] {
        Enrolled::check_captured(&mut app, to, "mptcp");
    }
}

#[test]
fn tcp_fast_open_is_captured() {
    let enrolled = Enrolled::new();
    let mut app = enrolled.pod.app();
    for to in [VIP4, VIP6] {
        Enrolled::check_captured(&mut app, to, "fastopen-connect");
        Enrolled::check_captured(&mut app, to, "fastopen-send");
    }
}

#[test]
fn link_local_destinations_are_refused() {
    let enrolled = Enrolled::new();
    let mut app = enrolled.pod.app();
    let scope = enrolled
        .pod
        .sandbox
        .netns
        .run(|| nix::net::if_::if_nametoindex("eth0"))
        .expect("entered")
        .expect("eth0");
    assert_eq!(app.tell(&format!("connect x [fe80::1%{scope}]:80")), "err ECONNREFUSED");
}

#[test]
fn the_pod_reaches_itself_untouched() {
    let enrolled = Enrolled::new();
    let mut app = enrolled.pod.app();
    app.must("listen [::]:8080");
    let (v4, v6) = (enrolled.pod.v4, enrolled.pod.v6);
    let own = [format!("{v4}:8080"), format!("[{v6}]:8080"), format!("[::ffff:{v4}]:8080")];
    let loopback = ["127.0.0.1:8080", "127.1.2.3:8080", "[::1]:8080", "[::ffff:127.0.0.1]:8080"];
    for to in own.iter().map(String::as_str).chain(loopback) {
        Enrolled::check_untouched(&mut app, to);
    }
}

#[test]
fn port_forwarding_reaches_the_pod_untouched() {
    let enrolled = Enrolled::new();
    let mut app = enrolled.pod.app();
    app.must("listen [::]:8080");
    let mut visitor = enrolled.world.visitor(&enrolled.pod);
    for to in ["127.0.0.1:8080", "[::1]:8080"] {
        Enrolled::check_untouched(&mut visitor, to);
    }
}

#[test]
fn the_proxy_itself_is_not_captured() {
    let enrolled = Enrolled::new();
    let mut far = enrolled.world.far_app();
    far.must("listen [::]:80");
    let mut proxy = enrolled.world.proxy_app(&enrolled.pod);
    for to in ["10.9.0.2:80", "[fd09::2]:80", "[::ffff:10.9.0.2]:80"] {
        Enrolled::check_untouched(&mut proxy, to);
    }
}

#[test]
fn a_pod_that_is_not_enrolled_is_not_captured() {
    let enrolled = Enrolled::new();
    let mut far = enrolled.world.far_app();
    far.must("listen [::]:80");
    let other = enrolled.world.pod();
    let mut app = other.app();
    for to in ["10.9.0.2:80", "[fd09::2]:80"] {
        Enrolled::check_untouched(&mut app, to);
    }
}

#[test]
fn a_family_without_an_address_is_refused() {
    let world = World::new();
    let node = world.attach();
    let mut pod = world.pod();
    // The pod has an IPv6 address that nobody told us of: nothing would bring its packets back.
    pod.sandbox.addresses.retain(std::net::IpAddr::is_ipv4);
    let proxy = Proxy::start(&pod.sandbox);
    node.prepare(&pod.sandbox).expect("prepared");
    node.capture(&pod.sandbox, proxy.fds()).expect("captured");
    let mut app = pod.app();
    Enrolled::check_captured(&mut app, VIP4, "");
    assert_eq!(app.dial(VIP6, ""), "err ENETUNREACH");
}

#[test]
fn several_addresses_of_a_family_are_the_pods_own() {
    let world = World::new();
    let node = world.attach();
    let mut pod = world.pod();
    crate::support::ip(&pod.sandbox.netns, "addr add 10.4.9.9/16 dev eth0");
    pod.sandbox.addresses.push("10.4.9.9".parse().expect("an address"));
    let proxy = Proxy::start(&pod.sandbox);
    node.prepare(&pod.sandbox).expect("prepared");
    node.capture(&pod.sandbox, proxy.fds()).expect("captured");
    let mut app = pod.app();
    app.must("listen [::]:8080");
    Enrolled::check_untouched(&mut app, "10.4.9.9:8080");
    Enrolled::check_captured(&mut app, VIP4, "bind=10.4.9.9:0");
}
