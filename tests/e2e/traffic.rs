//! Ordinary programs between enrolled pods, on two nodes and on one: what they do without a mesh they do within it.
//!
//! What each server saw of its clients is looked at, and between nodes that nothing but tunnels crossed.

mod apps;
mod edges;
mod members;
mod volume;

use lab::{Env, LabConfig, Pod, PodSpec, Process, ServiceSpec, WireStats};

use crate::mesh::{Mesh, SOON, client, serve};

/// A client, and servers of every kind in one pod each.
struct Scene {
    mesh: Mesh,
    client: Pod,
    servers: Vec<Server>,
}

/// A pod of servers behind two services: `<name>` with an address of its own, `<name>-each` without.
struct Server {
    pod: Pod,
    name: &'static str,
    vips: lab::Service,
    processes: Vec<Process>,
}

/// One kind of server and how its client is called.
struct App {
    name: &'static str,
    serve: &'static [&'static str],
    call: &'static [&'static str],
    /// What the client calls its server's address.
    to: &'static str,
}

/// The servers of a pod, in the order of their ports.
const APPS: [App; 8] = [
    App {
        name: "echo",
        serve: &["echo"],
        call: &["load", "--mode", "keep", "--requests", "50", "--connections", "1"],
        to: "--to",
    },
    // Speaks first.
    App { name: "banner", serve: &["banner"], call: &["greeted"], to: "--to" },
    // The client ends its direction first, and every byte of it is a packet.
    App { name: "sink", serve: &["sink"], call: &["send", "--bytes", "2000", "--chunk", "1"], to: "--to" },
    App { name: "bulk", serve: &["sink"], call: &["send", "--bytes", "5000000"], to: "--to" },
    // The server ends its direction first: as soon as it has sent, or before the client has.
    App {
        name: "source",
        serve: &["source", "--bytes", "5000000"],
        call: &["receive", "--bytes", "5000000"],
        to: "--from",
    },
    App { name: "early-fin", serve: &["early-fin"], call: &["late-send", "--bytes", "100000"], to: "--to" },
    App {
        name: "websocket",
        serve: &["websocket"],
        call: &["websocket-client", "--size", "70000"],
        to: "--to",
    },
    App { name: "grpc", serve: &["grpc"], call: &["grpc-client", "--size", "100000"], to: "--to" },
];

/// Where `APPS` listen, in their order.
const FIRST_APP: u16 = 8081;
const HTTP: u16 = 8080;

impl Scene {
    /// Servers on the other node (`far`) and on the client's own (`near`).
    fn start() -> Self {
        Self::with(&[], &[("near", 0), ("far", 1)])
    }

    /// Only the servers on the client's own node, reached through a tunnel all the same, as on a machine with one core.
    fn start_tunnelled() -> Self {
        Self::with(&[("AIRGLOW_LOCAL_PATH", "tunnel"), ("AIRGLOW_THREADS", "1")], &[("near", 0)])
    }

    fn with(changes: &[(&str, &str)], places: &[(&'static str, usize)]) -> Self {
        let changes: Env = changes.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let mesh = Mesh::start_with(LabConfig::default(), &changes);
        let client = mesh.pod(0, "client");
        let servers: Vec<Server> =
            places.iter().map(|(name, node)| Server::start(&mesh, *node, name)).collect();
        let pods: Vec<&Pod> = servers.iter().map(|server| &server.pod).chain([&client]).collect();
        mesh.enrol("shop", &pods);
        Self { mesh, client, servers }
    }

    /// Everything that pods of different nodes sent each other, and fails if any of it was outside of tunnels.
    fn check_wire(&self) -> WireStats {
        let wire = self.mesh.lab.wire();
        wire.check_complete().expect("a whole capture");
        let stats = wire.stats().expect("a whole capture");
        assert_eq!(
            stats.pods_tcp.payload,
            stats.pods_tcp_port(15008).payload,
            "all of it is in tunnels: {stats:?}"
        );
        assert_eq!(stats.pods_other.payload, 0, "nothing but TCP: {stats:?}");
        stats
    }
}

impl Server {
    fn start(mesh: &Mesh, node: usize, name: &'static str) -> Self {
        let ports = (FIRST_APP..).zip(&APPS);
        let mut spec = PodSpec::new("shop", name).service_account(name).label("app", name);
        // Ports by name, except HTTP's, which is by number.
        let mut whole = ServiceSpec::new("shop", name).selector("app", name).port("http", 80, HTTP);
        let mut each = ServiceSpec::new("shop", format!("{name}-each")).selector("app", name).headless();
        each = each.port("http", HTTP, HTTP);
        for (port, app) in ports {
            spec = spec.port(app.name, port);
            whole = whole.port(app.name, port + 1000, app.name);
            each = each.port(app.name, port, app.name);
        }
        let pod = mesh.node(node).add_pod(spec).expect("a pod");
        let vips = mesh.lab.add_service(whole).expect("a service");
        mesh.lab.add_service(each).expect("a headless service");
        let mut processes = vec![serve(&pod, &["http", "--name", name, "--log"])];
        processes.extend((FIRST_APP..).zip(&APPS).map(|(port, app)| {
            let listen = format!("[::]:{port}");
            serve(&pod, &[app.serve, &["--listen", &listen, "--log"]].concat())
        }));
        Self { pod, name, vips, processes }
    }

    /// Every way to address the server on `port`, which at its service is `service_port`.
    fn addresses(&self, port: u16, service_port: u16) -> Vec<String> {
        let host = |ip: &std::net::IpAddr| if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
        let name = self.name;
        let mut all =
            vec![format!("{name}:{service_port}"), format!("{name}.shop.svc.cluster.local:{service_port}")];
        all.extend(self.vips.ips.iter().map(|ip| format!("{}:{service_port}", host(ip))));
        all.push(format!("{name}-each:{port}"));
        all.extend(self.pod.ips().iter().map(|ip| format!("{}:{port}", host(ip))));
        all
    }
}

/// Waits until a server that logs has seen so many connections, and returns who they came from.
fn clients_seen(server: &Process, number: usize) -> Vec<std::net::IpAddr> {
    let seen = || -> Vec<std::net::IpAddr> {
        let output = server.output().stdout;
        let lines = output.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        // Lines with more than the address are about a connection's end.
        let accepted = lines.filter(|line| line.as_object().is_some_and(|fields| fields.len() == 1));
        let addresses =
            accepted.filter_map(|line| line["client"].as_str()?.parse::<std::net::SocketAddr>().ok());
        addresses.map(|address| address.ip()).collect()
    };
    lab::wait_until(&format!("{number} connections at `{}`", server.command()), SOON, || {
        let seen = seen();
        if seen.len() == number { Ok(seen) } else { Err(format!("{} connections", seen.len())) }
    })
    .expect("as many connections as clients made")
}

/// Calls an application as its client does.
fn call(pod: &Pod, app: &App, to: &str) {
    client(pod, &[app.call, &[app.to, to]].concat());
}
