//! The first promise: label a namespace, and what crossed the wire in the clear is encrypted.

use lab::{Env, LabConfig};

use crate::mesh::{AMBIENT, Mesh, SOON, comes_from, get, serve};

#[test]
fn a_label_turns_plaintext_into_mutual_tls() {
    let mesh = Mesh::start();
    let (client, server) = (mesh.pod(0, "client"), mesh.pod(1, "server"));
    mesh.service("shop", "server", 80, 8080);
    serve(&server, &["http"]);
    let canary = "canary-of-first-light";
    let seen = mesh.lab.wire().watch(canary);
    let url = format!("http://server.shop/{canary}");

    get(&client, &url);
    assert!(
        seen.count().expect("a whole capture") > 0,
        "without the mesh the canary crosses the wire in the clear"
    );

    mesh.enrol("shop", &[&client, &server]);
    let before = seen.count().expect("a whole capture");
    for _ in 0..20 {
        let answer = get(&client, &url);
        assert!(comes_from(&answer, &client), "the server sees the client's own address: {answer}");
    }
    assert_eq!(seen.count().expect("a whole capture"), before, "no byte of the canary crosses the wire");
    let stats = mesh.lab.wire().stats().expect("a whole capture");
    assert!(stats.pods_tcp_port(15008).payload > 0, "the tunnel's port was used: {stats:?}");
}

#[test]
fn a_node_that_asks_for_what_it_needs_carries_the_same() {
    let on_demand = Env::from([("AIRGLOW_XDS_MODE".to_owned(), "on-demand".to_owned())]);
    let mesh = Mesh::start_with(LabConfig::default(), &on_demand);
    let (client, server) = (mesh.pod(0, "client"), mesh.pod(1, "server"));
    mesh.service("shop", "server", 80, 8080);
    serve(&server, &["http"]);
    mesh.lab.label_namespace("shop", AMBIENT, Some("ambient")).expect("a label");
    for pod in [&client, &server] {
        pod.wait_for_state("enrolled", SOON).expect("enrolment");
    }
    lab::wait_until("the first request goes through a tunnel", SOON, || {
        get(&client, "http://server.shop/");
        let stats = mesh.lab.wire().stats().map_err(|error| error.to_string())?;
        if stats.pods_tcp_port(15008).payload > 0 { Ok(()) } else { Err("no tunnel yet".to_owned()) }
    })
    .expect("a tunnel");
    let canary = "canary-of-asking";
    let seen = mesh.lab.wire().watch(canary);
    for _ in 0..20 {
        get(&client, &format!("http://server.shop/{canary}"));
    }
    assert_eq!(seen.count().expect("a whole capture"), 0, "no byte of the canary crosses the wire");
}
