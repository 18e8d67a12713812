//! Every kind of application by every kind of address.

use std::fs;

use lab::Program;

use super::{APPS, FIRST_APP, HTTP, Scene, Server, call, clients_seen};
use crate::mesh::{SOON, comes_from, curl, get};

#[test]
fn every_protocol_works_by_every_address() {
    let scene = Scene::start();
    for server in &scene.servers {
        check_apps(&scene, server);
    }
    let stats = scene.check_wire();
    assert!(stats.pods_tcp_port(15008).payload > 10_000_000, "the far server was reached through tunnels");
}

#[test]
fn every_protocol_works_on_one_node_through_a_tunnel() {
    let scene = Scene::start_tunnelled();
    for server in &scene.servers {
        check_apps(&scene, server);
    }
    assert_eq!(scene.check_wire().pods_tcp.payload, 0, "nothing leaves the node");
}

fn check_apps(scene: &Scene, server: &Server) {
    for ((port, app), process) in (FIRST_APP..).zip(&APPS).zip(&server.processes[1..]) {
        let addresses = server.addresses(port, port + 1000);
        for address in &addresses {
            call(&scene.client, app, address);
        }
        for seen in clients_seen(process, addresses.len()) {
            assert!(scene.client.ips().contains(&seen), "{}'s {} saw a client {seen}", server.name, app.name);
        }
    }
}

#[test]
fn curl_and_web_servers_work_by_every_address() {
    for scene in [Scene::start(), Scene::start_tunnelled()] {
        let canary = "canary-of-the-web";
        let sightings = scene.mesh.lab.wire().watch(canary);
        for server in &scene.servers {
            check_own_server(&scene, server, canary);
            check_python(&scene, server, canary);
        }
        scene.check_wire();
        assert_eq!(sightings.count().expect("a whole capture"), 0);
    }
}

/// The lab's server says what it saw.
fn check_own_server(scene: &Scene, server: &Server, canary: &str) {
    for address in server.addresses(HTTP, 80) {
        let answer = get(&scene.client, &format!("http://{address}/{canary}"));
        assert!(comes_from(&answer, &scene.client), "{address}: {answer}");
        assert_eq!((&answer["name"], &answer["path"]), (&server.name.into(), &format!("/{canary}").into()));
    }
    // A body of some size, a status that is not 200, and several requests on one connection.
    let file = scene.mesh.lab.dir().join("body");
    let body: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    fs::write(&file, &body).expect("our own directory");
    let data = format!("@{}", file.display());
    let url = format!("http://{}/", server.name);
    let posted = curl(&scene.client, &["--data-binary", &data, &url, &url, &url]);
    let answers: Vec<serde_json::Value> =
        posted.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(answers.len(), 3, "{posted:?}");
    for answer in &answers {
        assert_eq!(answer["bytes"], body.len(), "{answer}");
        assert_eq!((&answer["sha256"], &answer["client"]), (&answers[0]["sha256"], &answers[0]["client"]));
    }
    let code = curl(&scene.client, &["-o", "/dev/null", "-w", "%{http_code}", &format!("{url}status/503")]);
    assert_eq!(code.stdout, "503", "{code:?}");
}

/// A server that others wrote.
fn check_python(scene: &Scene, server: &Server, canary: &str) {
    let directory = scene.mesh.lab.dir().join(format!("www-{}", server.name));
    fs::create_dir(&directory).expect("our own directory");
    let page = format!("{canary} ").repeat(50_000);
    fs::write(directory.join("page"), &page).expect("our own directory");
    let program =
        Program::new("python3").args(["-u", "-m", "http.server", "9999", "--bind", "::", "--directory"]);
    let python = server.pod.spawn(program.args([&directory])).expect("python3");
    python.wait_for_line("Serving HTTP", SOON).expect("a server that listens");
    for ip in server.pod.ips() {
        let host = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
        let got = curl(&scene.client, &[&format!("http://{host}:9999/page")]);
        assert!(got.success() && got.stdout == page, "{} from {ip}: {:?}", got.stdout.len(), got.stderr);
        let missing = curl(&scene.client, &["-f", &format!("http://{host}:9999/missing")]);
        assert_eq!(missing.code(), Some(22), "curl's word for a 404: {missing:?}");
    }
    for ip in scene.client.ips() {
        let line = python.wait_for_line(&format!("{ip} - - "), SOON).expect("a line of its log");
        assert!(line.contains("GET /page"), "{line}");
    }
}
