//! Much at once: large transfers and many connections.

use std::time::Duration;

use lab::{Pod, Process, Program};

use super::{Scene, Server};
use crate::mesh::{SOON, serve};

const GIBIBYTE: &str = "1073741824";

/// A second or two on an idle machine; never a measurement.
const TRANSFERRED: Duration = Duration::from_secs(120);

#[test]
fn a_gibibyte_arrives_whole_in_both_directions() {
    let scene = Scene::start();
    for server in &scene.servers {
        transfer(&scene, server);
    }
    let stats = scene.check_wire();
    let carried = stats.pods_tcp_port(15008).payload;
    assert!(carried > 2 << 30, "both directions crossed the wire once: {carried} bytes");
}

#[test]
fn a_gibibyte_arrives_whole_through_a_tunnel_on_one_node() {
    let scene = Scene::start_tunnelled();
    transfer(&scene, &scene.servers[0]);
}

/// Both directions at the same time, each with its checksum.
fn transfer(scene: &Scene, server: &Server) {
    let sink = serve(&server.pod, &["sink", "--listen", "[::]:7001"]);
    let source = serve(&server.pod, &["source", "--listen", "[::]:7002", "--bytes", GIBIBYTE]);
    let there = format!("{}:7001", server.pod.ip());
    let back = format!("[{}]:7002", server.pod.ip6());
    let send: &[&str] = &["lab-app", "send", "--bytes", GIBIBYTE, "--to", &there];
    let receive: &[&str] = &["lab-app", "receive", "--bytes", GIBIBYTE, "--from", &back];
    for client in [send, receive].map(|words| scene.client.spawn(words).expect("a client")) {
        let output = client.wait(TRANSFERRED).expect("a transfer that ends");
        assert!(output.success(), "{}: {output:?}", server.name);
    }
    for process in [sink, source] {
        process.kill().expect("a server that ends");
    }
}

/// As many as a busy frontend holds to its backend.
const MANY: usize = 2000;

#[test]
fn two_thousand_connections_work_at_the_same_time() {
    let scene = Scene::start();
    let held: Vec<Process> = scene.servers.iter().map(|server| hold(&scene.client, server)).collect();
    for holder in held {
        check_held(&holder);
    }
    scene.check_wire();
}

#[test]
fn two_thousand_connections_work_through_a_tunnel_on_one_node() {
    let scene = Scene::start_tunnelled();
    check_held(&hold(&scene.client, &scene.servers[0]));
}

/// Opens them, and returns when each has been used.
fn hold(client: &Pod, server: &Server) -> Process {
    let to = format!("{}:9081", server.name);
    let holder = Program::new("lab-app").args(["hold", "--connections", &MANY.to_string(), "--to", &to]);
    let holder = client.spawn(holder).expect("a client");
    holder.wait_for_line(&format!("holding {MANY}"), SOON).expect("all of them work");
    holder
}

/// Each of them works still.
fn check_held(holder: &Process) {
    let output = holder.terminate().expect("an end in good order");
    let last: serde_json::Value =
        serde_json::from_str(output.stdout.lines().last().expect("a report")).expect("JSON");
    assert_eq!(last, serde_json::json!({"held": MANY, "errors": {}}), "{output:?}");
}
