//! Inbound: which listener gets a connection from where, what the application sees of a relayed one, and which
//! connections of the node pass as health probes.

use std::net::IpAddr;

use ebpf::Node;

use crate::support::{App, Pod, Proxy, World, ip};

struct Enrolled {
    _proxy: Proxy,
    node: Node,
    server: App,
    pod: Pod,
    world: World,
}

impl Enrolled {
    fn new() -> Self {
        Self::start(|pod| Proxy::start(&pod.sandbox))
    }

    fn relaying() -> Self {
        Self::start(|pod| Proxy::relaying(&pod.sandbox))
    }

    fn start(proxy: impl FnOnce(&Pod) -> Proxy) -> Self {
        let world = World::new();
        let node = world.attach();
        let pod = world.pod();
        let mut server = pod.app();
        server.must("listen [::]:8080");
        let proxy = proxy(&pod);
        node.prepare(&pod.sandbox).expect("prepared");
        node.capture(&pod.sandbox, proxy.fds()).expect("captured");
        Self { _proxy: proxy, node, server, pod, world }
    }

    /// The pod's address with a port, in every form that a client could dial.
    fn forms(&self, port: u16) -> [String; 3] {
        let Pod { v4, v6, .. } = self.pod;
        [format!("{v4}:{port}"), format!("[{v6}]:{port}"), format!("[::ffff:{v4}]:{port}")]
    }

    fn check(&self, client: &mut App, port: u16, expected: &str) {
        for to in self.forms(port) {
            let greeting = client.dial(&to, "");
            assert!(greeting.starts_with(expected), "{to}: got `{greeting}`, want `{expected}...`");
        }
    }
}

#[test]
fn other_pods_reach_the_listeners_by_port() {
    let enrolled = Enrolled::new();
    let mut client = enrolled.world.pod().app();
    enrolled.check(&mut client, 8080, "Plaintext ");
    enrolled.check(&mut client, 9999, "Plaintext ");
    enrolled.check(&mut client, 15001, "Plaintext ");
    enrolled.check(&mut client, 15008, "Hbone ");
}

#[test]
fn other_nodes_reach_the_listeners_by_port() {
    let enrolled = Enrolled::new();
    let mut client = enrolled.world.far_app();
    enrolled.check(&mut client, 8080, "Plaintext ");
    enrolled.check(&mut client, 15008, "Hbone ");
}

#[test]
fn the_listener_sees_both_real_addresses() {
    let enrolled = Enrolled::new();
    let other = enrolled.world.pod();
    let greeting = other.app().dial(format!("{}:8080", enrolled.pod.v4), "bind=0.0.0.0:4444");
    assert_eq!(greeting, format!("Plaintext {}:8080 {}:4444", enrolled.pod.v4, other.v4));
}

#[test]
fn an_enrolled_pod_reaches_another_through_both_proxies() {
    let enrolled = Enrolled::new();
    let client = enrolled.world.pod();
    let proxy = Proxy::start(&client.sandbox);
    enrolled.node.prepare(&client.sandbox).expect("prepared");
    enrolled.node.capture(&client.sandbox, proxy.fds()).expect("captured");
    // The proxies share the cgroup: what one opens in the client's namespace is not captured again.
    enrolled.check(&mut client.app(), 8080, "Outbound ");
    let mut proxy_of_client = enrolled.world.proxy_app(&client);
    enrolled.check(&mut proxy_of_client, 15008, "Hbone ");
}

#[test]
fn the_application_sees_the_clients_address() {
    let enrolled = Enrolled::relaying();
    let client = enrolled.world.pod();
    let mut app = client.app();
    assert!(
        app.dial(format!("{}:8080", enrolled.pod.v4), "")
            .starts_with(&format!("app [::ffff:{}]:", client.v4))
    );
    assert!(
        app.dial(format!("[{}]:8080", enrolled.pod.v6), "").starts_with(&format!("app [{}]:", client.v6))
    );
    assert_eq!(app.must("say x hello"), "app hello");
}

#[test]
fn a_closed_port_is_refused_at_once() {
    // The proxy's own connection to the application; the relay closes, and the client sees the end of the stream.
    let enrolled = Enrolled::new();
    for app in [format!("{}:81", enrolled.pod.v4), format!("[{}]:81", enrolled.pod.v6)] {
        let app: std::net::SocketAddr = app.parse().expect("an address");
        let client: IpAddr =
            if app.is_ipv4() { "10.4.0.77" } else { "fd04::77" }.parse().expect("an address");
        let socket = ebpf::socket::to_app(&enrolled.pod.sandbox.netns, client, app).expect("a socket");
        let error =
            socket.connect_timeout(&app.into(), crate::support::PATIENCE).expect_err("nobody listens");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{app}: {error}");
    }
}

#[test]
fn a_pod_that_reaches_itself_through_the_mesh_is_served() {
    let enrolled = Enrolled::new();
    for (own, to) in [
        (enrolled.pod.v4, format!("{}:8080", enrolled.pod.v4)),
        (enrolled.pod.v6, format!("[{}]:8080", enrolled.pod.v6)),
    ] {
        let to: std::net::SocketAddr = to.parse().expect("an address");
        let socket = ebpf::socket::to_app(&enrolled.pod.sandbox.netns, own, to).expect("a socket");
        socket.connect_timeout(&to.into(), crate::support::PATIENCE).expect("the application listens");
        let local = socket.local_addr().expect("an address").as_socket().expect("an address");
        assert_eq!(local.ip(), own);
    }
}

#[test]
fn probes_of_the_node_reach_the_application() {
    let enrolled = Enrolled::new();
    let mut kubelet = enrolled.world.host_app();
    enrolled.check(&mut kubelet, 8080, "app ");
}

#[test]
fn probes_of_closed_ports_are_refused() {
    let enrolled = Enrolled::new();
    let mut kubelet = enrolled.world.host_app();
    for to in enrolled.forms(81) {
        assert_eq!(kubelet.dial(&to, ""), "err ECONNREFUSED", "{to}");
    }
}

#[test]
fn probes_leave_no_trace() {
    let enrolled = Enrolled::new();
    let mut kubelet = enrolled.world.host_app();
    for to in enrolled.forms(8080) {
        kubelet.dial(&to, "");
        assert_eq!(enrolled.node.probes_in_flight().expect("readable"), 1, "{to}");
        kubelet.must("close x");
        crate::support::wait_for("the probe's entry to go", || {
            enrolled.node.probes_in_flight().expect("readable") == 0
        });
    }
}

#[test]
fn a_host_network_pod_is_no_prober() {
    let enrolled = Enrolled::new();
    let mut pod = enrolled.world.host_network_pod();
    enrolled.check(&mut pod, 8080, "Plaintext ");
}

#[test]
fn only_kubelet_probes_when_it_is_named() {
    let enrolled = Enrolled::new();
    let mut config = enrolled.world.config();
    config.kubelet = Some(enrolled.world.cgroup.join("system"));
    Node::attach(&config).expect("attached again");
    enrolled.check(&mut enrolled.world.host_app(), 8080, "app ");
    let elsewhere = enrolled.world.cgroup.join("proxy2");
    enrolled.check(&mut App::start(&enrolled.world.host, &elsewhere), 8080, "Plaintext ");
}

#[test]
fn the_nodes_address_alone_does_not_make_a_probe() {
    let enrolled = Enrolled::new();
    let attacker = enrolled.world.pod();
    for setting in ["all/accept_local", "pods/accept_local"] {
        let write = || std::fs::write(format!("/proc/sys/net/ipv4/conf/{setting}"), "1");
        enrolled.world.host.run(write).expect("entered").expect("a sysctl");
    }
    // Both pods hang on one bridge: the forged packet arrives at the victim without passing the node.
    ip(&attacker.sandbox.netns, "addr add 10.4.0.1/32 dev lo");
    ip(&attacker.sandbox.netns, "addr add fd04::1/128 dev lo nodad");
    for (to, from) in [(enrolled.pod.v4, "10.4.0.1:0"), (enrolled.pod.v6, "[fd04::1]:0")] {
        let to = std::net::SocketAddr::new(to, 8080);
        let route = if to.is_ipv4() { "-4" } else { "-6" };
        // The answers go back to the attacker, as they would if it had taken the address over.
        let mac = ip(&attacker.sandbox.netns, "-br link show eth0")
            .split_whitespace()
            .nth(2)
            .expect("a MAC")
            .to_owned();
        let node = from.trim_end_matches(":0").trim_matches(['[', ']']);
        ip(
            &enrolled.pod.sandbox.netns,
            &format!("{route} neigh replace {node} lladdr {mac} dev eth0 nud permanent"),
        );
        let greeting = attacker.app().dial(to, &format!("bind={from}"));
        assert!(
            greeting.starts_with(&format!("Plaintext {to} {}", from.trim_end_matches('0'))),
            "{to}: `{greeting}`"
        );
    }
}

#[test]
fn forwarded_traffic_with_the_nodes_address_is_no_probe() {
    let enrolled = Enrolled::new();
    // NodePort: another machine's connection, rewritten by the node to its own address.
    let rules = "table ip agbpf { chain pre { type nat hook prerouting priority dstnat; ip daddr 10.9.0.1 tcp dport 30123 dnat to POD:8080; }; chain post { type nat hook postrouting priority srcnat; ip daddr POD masquerade; }; }"
        .replace("POD", &enrolled.pod.v4.to_string());
    nft(&enrolled.world, &rules);
    let greeting = enrolled.world.far_app().dial("10.9.0.1:30123", "");
    assert!(greeting.starts_with(&format!("Plaintext {}:8080 10.4.0.1:", enrolled.pod.v4)), "`{greeting}`");
}

#[test]
fn a_service_address_dialled_by_the_node_is_no_probe() {
    let enrolled = Enrolled::new();
    let rules = "table ip agbpf { chain out { type nat hook output priority -100; ip daddr 10.96.0.10 dnat to POD; }; }"
        .replace("POD", &enrolled.pod.v4.to_string());
    nft(&enrolled.world, &rules);
    ip(&enrolled.world.host, "route add 10.96.0.0/16 dev pods");
    let greeting = enrolled.world.host_app().dial("10.96.0.10:8080", "");
    assert!(greeting.starts_with(&format!("Plaintext {}:8080 10.4.0.1:", enrolled.pod.v4)), "`{greeting}`");
}

#[test]
fn the_pod_itself_passes_in_any_state() {
    let mut enrolled = Enrolled::new();
    for to in enrolled.forms(8080) {
        let greeting = enrolled.server.dial(&to, "");
        assert!(greeting.starts_with("app "), "{to}: `{greeting}`");
    }
}

fn nft(world: &World, rules: &str) {
    crate::support::run(&world.host, "nft", rules);
}
