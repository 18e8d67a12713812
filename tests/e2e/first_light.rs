//! The first promise: label a namespace, and what crossed the wire in the clear is encrypted.

use crate::mesh::{Mesh, comes_from, get, serve};

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
