//! Health probes: the node's own reach a pod as if there were no mesh, and nothing else passes for one.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use lab::{Node, Output, Pod, PodSpec, Process, Slice};
use serde_json::Value;

use crate::mesh::{Mesh, SOON, is_refusal, logged, serve, workload};

const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                      metadata: {namespace: istio-system, name: mesh}\nspec: {mtls: {mode: STRICT}}\n";

/// Where nobody listens.
const CLOSED: u16 = 9;

/// A port of the node that leads to the pod, as NodePort services have one.
const NODE_PORT: u16 = 30123;

struct Clinic {
    mesh: Mesh,
    patient: Pod,
    server: Process,
    /// In the same cgroup as pods, and in the node's network namespace.
    daemon: Pod,
    stranger: Pod,
    service: lab::Service,
}

impl Clinic {
    fn start() -> Self {
        let mesh = Mesh::start();
        let patient = mesh.pod(0, "patient");
        let service = mesh.service("shop", "patient", 80, 8080);
        let server = serve(&patient, &["http", "--name", "patient", "--log"]);
        let daemon = mesh.node(0).add_pod(PodSpec::new("wild", "daemon").host_network()).expect("a pod");
        let stranger = mesh.pod_in("wild", 0, "stranger");
        mesh.enrol("shop", &[&patient]);
        let clinic = Self { mesh, patient, server, daemon, stranger, service };
        clinic.open_node_port();
        clinic
    }

    fn node(&self) -> Node {
        self.mesh.node(0)
    }

    /// Connections from elsewhere to a port of the node go to the pod, with the node's address.
    fn open_node_port(&self) {
        let (v4, v6) = (self.patient.ip(), self.patient.ip6());
        let rules = format!(
            "table inet nodeport {{\n\
             chain pre {{ type nat hook prerouting priority -110\n\
             meta nfproto ipv4 tcp dport {NODE_PORT} dnat ip to {v4}:8080\n\
             meta nfproto ipv6 tcp dport {NODE_PORT} dnat ip6 to [{v6}]:8080\n}}\n\
             chain post {{ type nat hook postrouting priority 90\n\
             ct status dnat masquerade\n}}\n}}\n"
        );
        let nft =
            self.node().run(Slice::System, ["sh", "-c", "printf %s \"$0\" | nft -f -", &rules]).expect("nft");
        assert!(nft.success(), "{nft:?}");
    }

    fn be_strict(&self) {
        self.mesh.lab.apply_yaml("strict.yaml", STRICT).expect("a file");
        self.mesh.until_dumps("STRICT", |dump| {
            let named =
                workload(dump, &self.patient).map(|workload| workload["authorizationPolicies"].to_string());
            if named.as_ref().is_some_and(|named| named.contains("static_strict")) {
                Ok(())
            } else {
                Err(format!("{named:?}"))
            }
        });
    }

    /// How many connections the application has accepted so far.
    fn accepted(&self) -> usize {
        self.server.output().stdout.lines().filter(|line| line.contains("\"client\"")).count()
    }

    /// Both probes by every address, from the kubelet or another process of the node's own; returns what the application
    /// saw as their source.
    fn probe(&self, slice: Slice) -> Vec<IpAddr> {
        let mut sources = Vec::new();
        let mapped = self.patient.ips().iter().filter_map(|ip| match ip {
            IpAddr::V4(ip) => Some(IpAddr::from(ip.to_ipv6_mapped())),
            IpAddr::V6(_) => None,
        });
        for ip in self.patient.ips().iter().copied().chain(mapped) {
            let before = self.accepted();
            let http = self.node().run(slice, curl(&http(ip, 8080)).as_slice()).expect("curl ends");
            assert!(http.success(), "{slice:?} to {ip}: {http:?}");
            let answer: Value = serde_json::from_str(&http.stdout).expect("JSON");
            let seen: std::net::SocketAddr =
                answer["client"].as_str().and_then(|text| text.parse().ok()).expect("an address");
            sources.push(seen.ip());

            let tcp = |port| self.node().run(slice, tcp_probe(ip, port).as_slice()).expect("python3 ends");
            let open = tcp(8080);
            assert!(open.success(), "{slice:?} to {ip}: {open:?}");
            lab::wait_until("both probes at the application", SOON, || match self.accepted() - before {
                2 => Ok(()),
                number => Err(format!("{number} connections")),
            })
            .expect("the application itself accepts");
            // Who probes a closed port has to learn that it is closed, not that ztunnel is there.
            let closed = tcp(CLOSED);
            assert!(closed.stderr.contains("ConnectionRefusedError"), "{slice:?} to {ip}: {closed:?}");
        }
        sources
    }

    /// Connections that look like a probe and are none, by what they are and where they come from.
    fn impostors(&self) -> Vec<(String, Output)> {
        let mut all = Vec::new();
        let patients = self.patient.ips();
        let (node, other) = (self.node(), self.mesh.node(1));
        for (ip, vip) in patients.iter().zip(&self.service.ips) {
            let words = curl(&http(*ip, 8080));
            let in_kubepods = node.run(Slice::Kubepods, words.as_slice()).expect("curl ends");
            all.push((format!("the node's namespace, a pod's cgroup, {ip}"), in_kubepods));
            all.push((
                format!("a pod with hostNetwork, {ip}"),
                self.daemon.run(words.as_slice()).expect("curl ends"),
            ));
            all.push((
                format!("a pod beside it, {ip}"),
                self.stranger.run(words.as_slice()).expect("curl ends"),
            ));
            for slice in [Slice::Kubelet, Slice::System] {
                let elsewhere = other.run(slice, words.as_slice()).expect("curl ends");
                all.push((format!("another node, {slice:?}, {ip}"), elsewhere));
            }
            // Translated on its way: it was not the pod that the kubelet meant.
            let by_service = node.run(Slice::Kubelet, curl(&http(*vip, 80)).as_slice()).expect("curl ends");
            all.push((format!("the kubelet by the service, {vip}"), by_service));
        }
        for ip in node.ips() {
            let words = curl(&http(ip, NODE_PORT));
            let forwarded = other.run(Slice::System, words.as_slice()).expect("curl ends");
            all.push((format!("another node by a port of the node, {ip}"), forwarded));
            let outside = self.mesh.lab.run_outside(words.as_slice()).expect("curl ends");
            all.push((format!("the outside by a port of the node, {ip}"), outside));
        }
        all
    }
}

fn http(ip: IpAddr, port: u16) -> String {
    format!("http://{}/", std::net::SocketAddr::new(ip, port))
}

fn curl(url: &str) -> [String; 5] {
    ["curl", "-sS", "-m", "10", url].map(str::to_owned)
}

fn tcp_probe(ip: IpAddr, port: u16) -> [String; 5] {
    let script = "import socket, sys\nsocket.create_connection((sys.argv[1], int(sys.argv[2])), 10).close()";
    ["python3", "-c", script, &ip.to_string(), &port.to_string()].map(str::to_owned)
}

#[test]
fn probes_of_the_node_reach_a_strict_pod_and_nothing_else_does() {
    let clinic = Clinic::start();
    // Without STRICT all of them arrive, so it is not their way that fails below.
    let sources = clinic.probe(Slice::Kubelet);
    for (who, output) in clinic.impostors() {
        assert!(output.success() && output.stdout.contains("patient"), "{who}: {output:?}");
    }
    clinic.be_strict();
    for slice in [Slice::Kubelet, Slice::System] {
        assert_eq!(clinic.probe(slice), sources, "{slice:?}: the application sees the node as before");
    }
    let before = clinic.accepted();
    for (who, output) in clinic.impostors() {
        assert!(output.code().is_some_and(is_refusal), "{who} is not refused: {output:?}");
    }
    assert_eq!(clinic.accepted(), before, "the application hears nothing of impostors");
    logged(
        &clinic.node(),
        &[&format!("src.addr={}", clinic.stranger.ip()), "code=\"policy-denied\"", "static_strict"],
    );
    logged(&clinic.node(), &[&format!("src.addr={}", sources[0]), "code=\"policy-denied\"", "static_strict"]);
}

#[test]
fn a_policy_that_allows_nobody_does_not_fail_probes() {
    let clinic = Clinic::start();
    let nobody = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, name: nobody}\nspec: {}\n";
    clinic.mesh.lab.apply_yaml("nobody.yaml", nobody).expect("a file");
    lab::wait_until("a stranger is refused", SOON, || {
        let output =
            clinic.stranger.run(curl(&http(clinic.patient.ip(), 8080)).as_slice()).expect("curl ends");
        if output.code().is_some_and(is_refusal) { Ok(()) } else { Err(format!("{output:?}")) }
    })
    .expect("a policy in force");
    clinic.probe(Slice::Kubelet);
}

#[test]
fn probes_do_not_need_a_ztunnel() {
    let clinic = Clinic::start();
    clinic.be_strict();
    clinic.node().kill_ztunnel().expect("an end");
    clinic.probe(Slice::Kubelet);
    let before = clinic.accepted();
    for (who, output) in clinic.impostors() {
        assert!(output.code().is_some_and(is_refusal), "{who} is not refused: {output:?}");
    }
    assert_eq!(clinic.accepted(), before);
}

/// Long enough for a packet within this machine, were one to arrive.
const SILENCE: Duration = Duration::from_secs(2);

#[test]
fn a_pod_that_spoofs_the_nodes_address_is_not_heard() {
    let clinic = Clinic::start();
    let sources = clinic.probe(Slice::Kubelet);
    clinic.be_strict();
    let before = clinic.accepted();
    // The address that the node probes from, and the one that other machines know it by.
    let spoofed: BTreeSet<IpAddr> = sources.into_iter().chain(clinic.node().ips()).collect();
    let mut attempts = Vec::new();
    for address in spoofed {
        let flags = if address.is_ipv6() { " nodad" } else { "" };
        let own = format!("ip addr add {address} dev lo{flags}");
        let added = clinic.stranger.run(["sh", "-c", &own]).expect("ip ends");
        assert!(added.success(), "{added:?}");
        let patient =
            clinic.patient.ips().iter().find(|ip| ip.is_ipv4() == address.is_ipv4()).expect("both families");
        let (url, from, within) = (http(*patient, 8080), address.to_string(), SILENCE.as_secs().to_string());
        let words = ["curl", "-sS", "-m", &within, "--interface", &from, &url];
        attempts.push((from.clone(), clinic.stranger.spawn(words).expect("curl")));
    }
    for (from, attempt) in attempts {
        let output = attempt.wait(SOON).expect("curl ends");
        assert!(!output.success(), "{from}: {output:?}");
    }
    assert_eq!(clinic.accepted(), before, "the application hears nothing of impostors");
    clinic.probe(Slice::Kubelet);
}
