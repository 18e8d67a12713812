//! Where the mesh ends, what its services lead to, and connections that end where they began.

use lab::{Env, LabConfig, OUTSIDE, Pod, PodSpec, Program, ServiceSpec, Slice};

use crate::mesh::{Mesh, SOON, client, comes_from, curl, get, logged, refused, serve, workload};

#[test]
fn a_pod_reaches_itself() {
    for path in ["direct", "tunnel"] {
        let changes = Env::from([("AIRGLOW_LOCAL_PATH".into(), path.into())]);
        let mesh = Mesh::start_with(LabConfig { nodes: 1, ..LabConfig::default() }, &changes);
        let pod = mesh.pod(0, "narcissus");
        let service = mesh.service("shop", "narcissus", 80, 8080);
        serve(&pod, &["http"]);
        mesh.enrol("shop", &[&pod]);
        // Its own name alone is its own address, by /etc/hosts.
        let mut urls = vec!["http://narcissus.shop/".to_owned()];
        urls.extend(service.ips.iter().map(|vip| url(*vip, 80)));
        urls.extend(pod.ips().iter().map(|ip| url(*ip, 8080)));
        for url in urls {
            let answer = get(&pod, &url);
            assert!(comes_from(&answer, &pod), "{path} {url}: {answer}");
        }
        for (host, seen) in [("127.0.0.1", "127.0.0.1:"), ("[::1]", "[::1]:")] {
            let answer = get(&pod, &format!("http://{host}:8080/"));
            assert!(answer["client"].as_str().is_some_and(|client| client.starts_with(seen)), "{answer}");
        }
    }
}

/// Two enrolled pods and two that are not, one of each on each node.
struct Border {
    mesh: Mesh,
    inside: [Pod; 2],
    strangers: [Pod; 2],
}

impl Border {
    fn start() -> Self {
        let mesh = Mesh::start();
        let inside = [0, 1].map(|node| mesh.pod(node, &format!("inside-{node}")));
        let strangers = [0, 1].map(|node| mesh.pod_in("wild", node, &format!("stranger-{node}")));
        for pod in inside.iter().chain(&strangers) {
            mesh.service(pod.namespace(), pod.name(), 80, 8080);
            serve(pod, &["http", "--name", pod.name()]);
        }
        mesh.enrol("shop", &[&inside[0], &inside[1]]);
        Self { mesh, inside, strangers }
    }

    /// Every pair of pods, by service and by address: it works, and the server sees who calls.
    fn check_all(&self, clients: &[Pod], servers: &[Pod]) {
        for (client, server) in
            clients.iter().flat_map(|client| servers.iter().map(move |server| (client, server)))
        {
            let mut urls =
                vec![format!("http://{}.{}/canary-of-the-border", server.name(), server.namespace())];
            urls.extend(server.ips().iter().map(|ip| url(*ip, 8080) + "canary-of-the-border"));
            for url in urls {
                let answer = get(client, &url);
                assert!(comes_from(&answer, client), "{} -> {url}: {answer}", client.name());
                assert_eq!(answer["name"], server.name());
            }
        }
    }
}

#[test]
fn enrolled_and_other_pods_reach_each_other_in_the_clear() {
    let border = Border::start();
    let canary = border.mesh.lab.wire().watch("canary-of-the-border");
    border.check_all(&border.inside, &border.inside);
    assert_eq!(canary.count().expect("a whole capture"), 0, "between enrolled pods nothing is in the clear");
    border.check_all(&border.strangers, &border.inside);
    let after_strangers = canary.count().expect("a whole capture");
    assert!(after_strangers > 0, "who is not in the mesh speaks in the clear");
    border.check_all(&border.inside, &border.strangers);
    assert!(canary.count().expect("a whole capture") > after_strangers, "and is spoken to in the clear");
}

#[test]
fn enrolled_pods_reach_nodes_and_the_outside() {
    let border = Border::start();
    let lab = &border.mesh.lab;
    let outside =
        lab.spawn_outside(Program::new("lab-app").args(["http", "--name", "outside"])).expect("a server");
    outside.wait_for_line("listening on", SOON).expect("a server that listens");
    lab.add_outside_name("api.example.com", &OUTSIDE.ips(true)).expect("a name");
    for client in &border.inside {
        for url in [
            url(OUTSIDE.v4.into(), 8080),
            url(OUTSIDE.v6.into(), 8080),
            "http://api.example.com:8080/".into(),
        ] {
            let answer = get(client, &url);
            assert!(comes_from(&answer, client) && answer["name"] == "outside", "{url}: {answer}");
        }
    }
    // A pod with hostNetwork is never enrolled, whatever its namespace says.
    let daemon = PodSpec::new("shop", "daemon").label("app", "daemon").host_network();
    let daemon = border.mesh.node(1).add_pod(daemon).expect("a pod");
    serve(&daemon, &["http", "--name", "daemon", "--listen", "[::]:8088"]);
    border.mesh.service("shop", "daemon", 80, 8088);
    border.mesh.until_dumps("the daemon is there", |dump| match workload(dump, &daemon) {
        Some(_) => Ok(()),
        None => Err("not yet".into()),
    });
    for client in &border.inside {
        let node = border.mesh.node(1);
        for url in node.ips().iter().map(|ip| url(*ip, 8088)).chain(["http://daemon/".into()]) {
            let answer = get(client, &url);
            assert!(comes_from(&answer, client) && answer["name"] == "daemon", "{url}: {answer}");
        }
    }
    // From outside the cluster and from a node into the mesh.
    for server in &border.inside {
        for ip in server.ips() {
            let url = url(*ip, 8080);
            let words = ["curl", "-sS", "-m", "10", &url];
            let from_outside = lab.run_outside(words.as_slice()).expect("curl ends");
            assert!(
                from_outside.success() && from_outside.stdout.contains(server.name()),
                "{from_outside:?}"
            );
            let from_node = border.mesh.node(0).run(Slice::System, words.as_slice()).expect("curl ends");
            assert!(from_node.success() && from_node.stdout.contains(server.name()), "{from_node:?}");
        }
    }
}

#[test]
fn what_nobody_serves_is_refused_at_once() {
    let border = Border::start();
    let [client, far] = &border.inside;
    let far_service = "http://inside-1.shop";
    for ip in [client.ip(), client.ip6()] {
        assert_eq!(curl(client, &[&url(ip, 9)]).code(), Some(7), "the kernel's own answer");
    }
    for pod in border.inside[1..].iter().chain(&border.strangers) {
        for ip in pod.ips() {
            refused(client, &url(*ip, 9));
        }
    }
    let at = format!("dst.addr={}:9", far.ip());
    logged(&border.mesh.node(0), &[&at, "code=\"refused-by-peer\"", "503"]);
    logged(&border.mesh.node(1), &[&at, "code=\"connect-failed\"", "refused"]);
    // A port that the service does not have.
    refused(client, &format!("{far_service}:81/"));
    logged(&border.mesh.node(0), &["code=\"no-route\"", "serves no port 81"]);
    // A service that nobody stands behind.
    let spec = ServiceSpec::new("shop", "empty").selector("app", "nobody").port("http", 80, 8080);
    border.mesh.lab.add_service(spec).expect("a service");
    border.mesh.until_dumps("the service is there", |dump| {
        let mut all = dump["services"].as_array().into_iter().flatten();
        if all.any(|service| service["name"] == "empty") { Ok(()) } else { Err("not yet".into()) }
    });
    refused(client, "http://empty/");
    logged(&border.mesh.node(0), &["code=\"no-route\"", "empty.shop.svc.cluster.local has no endpoint"]);
}

#[test]
fn a_service_leads_to_its_ready_pods_and_to_their_own_ports() {
    let mesh = Mesh::start();
    let client = mesh.pod(0, "client");
    // The port of this name differs from pod to pod.
    let place = |name: &str, node: usize, port: u16| {
        let spec = PodSpec::new("shop", name).label("app", "web").port("http", port);
        let pod = mesh.node(node).add_pod(spec).expect("a pod");
        serve(&pod, &["http", "--name", name, "--listen", &format!("[::]:{port}")]);
        pod
    };
    let pods = [place("a", 0, 8001), place("b", 1, 8002), place("c", 1, 8003)];
    let spec = ServiceSpec::new("shop", "web")
        .selector("app", "web")
        .port("http", 80, "http")
        .port("more", 81, 8001);
    mesh.lab.add_service(spec).expect("a service");
    mesh.enrol("shop", &[&client, &pods[0], &pods[1], &pods[2]]);
    let [a, b, c] = &pods;

    assert_eq!(answered_by(&client, "web:80"), ["a", "b", "c"]);
    c.set_ready(false).expect("a change");
    until_health(&mesh, c, "Unhealthy");
    assert_eq!(answered_by(&client, "web:80"), ["a", "b"]);
    b.start_deletion().expect("a change");
    until_health(&mesh, b, "Unhealthy");
    assert_eq!(answered_by(&client, "web:80"), ["a"]);
    // Where one of several endpoints does not serve the port, another does.
    c.set_ready(true).expect("a change");
    until_health(&mesh, c, "Healthy");
    assert_eq!(answered_by(&client, "web:80"), ["a", "c"]);
    assert_eq!(answered_by(&client, "web:81"), ["a"]);
    for pod in [a, c] {
        pod.set_ready(false).expect("a change");
        until_health(&mesh, pod, "Unhealthy");
    }
    refused(&client, "http://web/");
}

fn until_health(mesh: &Mesh, pod: &Pod, health: &str) {
    mesh.until_dumps(&format!("{} is {health}", pod.name()), |dump| {
        match workload(dump, pod).map(|workload| &workload["status"]) {
            Some(status) if status == health => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

/// The names of those who answered at least one of sixty connections, none of which may fail.
fn answered_by(from: &Pod, to: &str) -> Vec<String> {
    let args =
        ["load", "--mode", "new", "--protocol", "http", "--requests", "60", "--connections", "4", "--to", to];
    let report = client(from, &args);
    assert_eq!((&report["succeeded"], &report["failed"]), (&60.into(), &0.into()), "{report}");
    report["answered_by"].as_object().expect("a map").keys().cloned().collect()
}

#[test]
fn a_mesh_without_ipv6_works() {
    let mesh = Mesh::start_with(LabConfig { ipv6: false, ..LabConfig::default() }, &Env::new());
    let (client, near, far) = (mesh.pod(0, "client"), mesh.pod(0, "near"), mesh.pod(1, "far"));
    for server in [&near, &far] {
        mesh.service("shop", server.name(), 80, 8080);
        serve(server, &["http", "--listen", "0.0.0.0:8080"]);
    }
    let canary = mesh.lab.wire().watch("canary-of-one-family");
    mesh.enrol("shop", &[&client, &near, &far]);
    for server in [&near, &far] {
        let answer = get(&client, &format!("http://{}/canary-of-one-family", server.name()));
        assert!(comes_from(&answer, &client), "{answer}");
    }
    assert_eq!(canary.count().expect("a whole capture"), 0);
}

fn url(ip: std::net::IpAddr, port: u16) -> String {
    format!("http://{}/", std::net::SocketAddr::new(ip, port))
}
