//! Who is in the mesh, who takes an address over, and what is none of its business.

use std::net::{IpAddr, SocketAddr};

use lab::{Env, LabConfig, Pod, PodSpec, Protocol, ServicePort, ServiceSpec};

use crate::mesh::{AMBIENT, Mesh, SOON, comes_from, controller, get, refused, serve};

#[test]
fn labels_of_pods_and_namespaces_decide_who_is_in() {
    let mesh = Mesh::start();
    let place = |namespace: &str, node: usize, name: &str, label: Option<&str>| {
        let spec = PodSpec::new(namespace, name).label("app", name);
        let spec = match label {
            Some(value) => spec.label(AMBIENT, value),
            None => spec,
        };
        let pod = mesh.node(node).add_pod(spec).expect("a pod");
        serve(&pod, &["http"]);
        pod
    };
    let [in_by_namespace, out_by_label] =
        [None, Some("none")].map(|label| place("shop", 0, &name_of(label), label));
    let [out, in_by_label] = [None, Some("ambient")].map(|label| place("wild", 1, &name_of(label), label));
    mesh.enrol("shop", &[&in_by_namespace]);
    in_by_label.wait_for_state("enrolled", SOON).expect("enrolment");
    for pod in [&out_by_label, &out] {
        pod.wait_for_state("not wanted", SOON).expect("a verdict");
    }
    mesh.settled(&[&in_by_label]);
    for (client, server, sealed) in [
        (&in_by_namespace, &in_by_label, true),
        (&in_by_namespace, &out, false),
        (&out_by_label, &in_by_label, false),
        (&out_by_label, &out, false),
        (&in_by_label, &in_by_namespace, true),
    ] {
        let canary = format!("from-{}-to-{}", client.uid(), server.uid());
        let seen = mesh.lab.wire().watch(&canary);
        let answer = get(client, &format!("http://{}:8080/{canary}", server.ip()));
        assert!(comes_from(&answer, client), "{answer}");
        assert_eq!(
            seen.count().expect("a whole capture") == 0,
            sealed,
            "{} -> {}",
            client.name(),
            server.name()
        );
    }
}

fn name_of(label: Option<&str>) -> String {
    format!("label-{}", label.unwrap_or("absent"))
}

#[test]
fn a_ztunnel_that_asks_for_addresses_carries_the_same() {
    let changes = Env::from([("AIRGLOW_XDS_MODE".into(), "on-demand".into())]);
    let mesh = Mesh::start_with(LabConfig::default(), &changes);
    let (client, near, far) = (mesh.pod(0, "client"), mesh.pod(0, "near"), mesh.pod(1, "far"));
    let stranger = mesh.pod_in("wild", 1, "stranger");
    let services = [&near, &far, &stranger].map(|server| {
        serve(server, &["http", "--name", server.name()]);
        (server, mesh.service(server.namespace(), server.name(), 80, 8080))
    });
    mesh.lab.label_namespace("shop", AMBIENT, Some("ambient")).expect("a label");
    for pod in [&client, &near, &far] {
        pod.wait_for_state("enrolled", SOON).expect("enrolment");
    }
    until_proven(&mesh, 3);
    let canary = mesh.lab.wire().watch("canary-on-demand");
    for (server, service) in services {
        let word = if server.name() == "stranger" { "hello" } else { "canary-on-demand" };
        let mut urls = vec![format!("http://{}.{}/{word}", server.name(), server.namespace())];
        urls.extend(service.ips.iter().map(|ip| format!("http://{}/{word}", SocketAddr::new(*ip, 80))));
        urls.extend(server.ips().iter().map(|ip| format!("http://{}/{word}", SocketAddr::new(*ip, 8080))));
        for url in urls {
            let answer = get(&client, &url);
            assert!(comes_from(&answer, &client) && answer["name"] == server.name(), "{url}: {answer}");
        }
    }
    assert_eq!(canary.sightings().expect("a whole capture"), []);
    // Nobody is there, which the controller says too.
    refused(&client, "http://10.244.2.200:8080/");
}

/// Waits until the controller believes so many pods to be enrolled.
fn until_proven(mesh: &Mesh, number: usize) {
    lab::wait_until(&format!("{number} pods are proven"), SOON, || {
        let enrolments = controller(&mesh.lab, "/enrolments");
        let proven = enrolments.as_array().into_iter().flatten().filter(|pod| pod["proven"] == true).count();
        if proven == number { Ok(()) } else { Err(enrolments.to_string()) }
    })
    .expect("proofs");
}

/// Answers each datagram with who sent it and what it said.
const UDP_SERVER: &str = r#"
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.bind(("::", 5000))
print("listening", flush=True)
while True:
    data, client = s.recvfrom(2000)
    s.sendto(f"{client[0].removeprefix('::ffff:')} said ".encode() + data, client)
"#;

const UDP_CLIENT: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(10)
s.connect((sys.argv[1], int(sys.argv[2])))
s.send(b"hello")
print(s.recv(2000).decode())
"#;

#[test]
fn datagrams_pass_as_without_a_mesh() {
    let mesh = Mesh::start();
    let client = mesh.pod(0, "client");
    for (node, name) in [(0, "near"), (1, "far")] {
        let server = mesh.pod(node, name);
        let mut spec = ServiceSpec::new("shop", name).selector("app", name);
        spec.ports.push(ServicePort {
            name: "udp".into(),
            port: 500,
            target: 5000.into(),
            protocol: Protocol::Udp,
        });
        let service = mesh.lab.add_service(spec).expect("a service");
        let python = server.spawn(["python3", "-c", UDP_SERVER]).expect("python3");
        python.wait_for_line("listening", SOON).expect("a server that listens");
        mesh.enrol("shop", &[&client, &server]);
        let by_address = server.ips().iter().map(|ip| (*ip, 5000));
        for (ip, port) in by_address.chain(service.ips.iter().map(|ip| (*ip, 500))) {
            let words = ["python3", "-c", UDP_CLIENT, &ip.to_string(), &u16::to_string(&port)];
            let output = client.run(words).expect("python3 ends");
            let own: &IpAddr =
                client.ips().iter().find(|own| own.is_ipv4() == ip.is_ipv4()).expect("both families");
            assert_eq!(output.stdout.trim_end(), format!("{own} said hello"), "{name} at {ip}: {output:?}");
        }
    }
}

#[test]
fn an_address_that_is_used_again_belongs_to_its_new_pod() {
    let mesh = Mesh::start();
    let (server, near) = (mesh.pod(1, "server"), mesh.pod(0, "near"));
    for pod in [&server, &near] {
        serve(pod, &["http", "--name", pod.name()]);
    }
    let friend_only = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, name: friend}\n\
                       spec: {rules: [{from: [{source: {serviceAccounts: [friend]}}]}]}\n";
    mesh.lab.apply_yaml("friend.yaml", friend_only).expect("a file");
    let urls = [&server, &near].map(|pod| format!("http://{}:8080/", pod.ip()));
    let place = |name: &str| -> Pod {
        let mut spec = PodSpec::new("shop", name).service_account(name);
        spec.host_number = Some(77);
        let pod = mesh.node(0).add_pod(spec).expect("a pod");
        serve(&pod, &["http", "--name", name]);
        pod
    };
    let friend = place("friend");
    mesh.enrol("shop", &[&server, &near, &friend]);
    for url in &urls {
        get(&friend, url);
    }
    friend.remove().expect("its end");
    let enemy = place("enemy");
    assert_eq!(enemy.ips(), friend.ips());
    mesh.enrol("shop", &[&enemy]);
    for url in &urls {
        refused(&enemy, url);
    }
    enemy.remove().expect("its end");
    let friend = place("friend");
    mesh.enrol("shop", &[&friend]);
    for url in &urls {
        assert!(comes_from(&get(&friend, url), &friend));
    }
}

#[test]
fn a_server_at_an_address_that_is_used_again_is_reached_as_who_it_is() {
    let mesh = Mesh::start();
    let clients = [mesh.pod(0, "near"), mesh.pod(1, "far")];
    let canary = mesh.lab.wire().watch("canary-of-successors");
    for name in ["first", "second", "third"] {
        let mut spec = PodSpec::new("shop", name).service_account(name);
        spec.host_number = Some(99);
        let pod = mesh.node(0).add_pod(spec).expect("a pod");
        serve(&pod, &["http", "--name", name]);
        mesh.enrol("shop", &[&pod, &clients[0], &clients[1]]);
        for client in &clients {
            for ip in pod.ips() {
                let answer =
                    get(client, &format!("http://{}/canary-of-successors", SocketAddr::new(*ip, 8080)));
                assert!(comes_from(&answer, client) && answer["name"] == name, "{answer}");
            }
        }
        pod.remove().expect("its end");
    }
    assert_eq!(canary.sightings().expect("a whole capture"), []);
}
