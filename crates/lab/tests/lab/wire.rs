//! The capture between nodes sees everything once, and knows when it does not.

use lab::{PodSpec, WireError};

use crate::{SOON, client, get, serve, with_client};

#[test]
fn plaintext_is_seen_between_nodes_and_not_within_one() {
    let (lab, client) = with_client();
    let near = lab.node(0).add_pod(PodSpec::new("shop", "near")).expect("a pod");
    let far = lab.node(1).add_pod(PodSpec::new("shop", "far")).expect("a pod");
    for pod in [&near, &far] {
        serve(pod, &["http"]);
    }
    let canary = lab.wire().watch("canary-4711");
    get(&client, &format!("http://{}:8080/canary-4711", near.ip()));
    assert_eq!(canary.sightings().expect("a complete capture"), [], "it never left the node");
    get(&client, &format!("http://{}:8080/canary-4711", far.ip()));
    let sightings = canary.sightings().expect("a complete capture");
    let senders: Vec<_> = sightings.iter().map(|sighting| sighting.node.as_str()).collect();
    assert_eq!(senders, ["n1", "n2"], "the request and the answer that quotes it, each once");
    assert_eq!((sightings[0].from.ip(), sightings[0].to.ip()), (client.ip(), far.ip()));
    get(&client, &format!("http://[{}]:8080/canary-4711", far.ip6()));
    assert_eq!(canary.count().expect("a complete capture"), 4, "IPv6 likewise");
    lab.wire().check_complete().expect("nothing lost");
}

#[test]
fn a_canary_cut_into_single_bytes_is_seen() {
    let (lab, sender) = with_client();
    let sink = lab.node(1).add_pod(PodSpec::new("shop", "sink")).expect("a pod");
    let server = sink.spawn(["python3", "-c", "import socket\ns = socket.create_server(('', 9000))\nprint('ready', flush=True)\nc, _ = s.accept()\nwhile c.recv(1): pass"]).expect("a server");
    server.wait_for_line("ready", SOON).expect("a server that listens");
    let canary = lab.wire().watch("canary-in-pieces");
    let script = format!(
        "import socket\ns = socket.create_connection(('{}', 9000))\ns.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\n\
         for b in b'xxcanary-in-piecesxx': s.send(bytes([b]))",
        sink.ip()
    );
    let sent = sender.run(["python3", "-c", &script]).expect("python3");
    assert!(sent.success(), "{sent:?}");
    assert_eq!(canary.count().expect("a complete capture"), 1);
}

#[test]
fn ports_are_counted_and_their_first_payload_is_noticed() {
    let (lab, sender) = with_client();
    let sink = lab.node(1).add_pod(PodSpec::new("shop", "sink")).expect("a pod");
    serve(&sink, &["sink", "--listen", "[::]:15008"]);
    let hbone = lab.wire().watch_port(15008);
    let unseen = hbone.wait(std::time::Duration::ZERO).expect_err("nothing was sent");
    assert!(matches!(unseen, WireError::Unseen { .. }), "{unseen}");
    let to = format!("{}:15008", sink.ip());
    client(&sender, &["send", "--to", &to, "--bytes", "1000000"]);
    let first = hbone.wait(SOON).expect("payload");
    let stats = lab.wire().stats().expect("a reader that keeps up");
    let traffic = stats.pods_tcp_port(15008);
    assert_eq!(traffic, stats.pods_tcp, "there was no other TCP between pods");
    assert_eq!(traffic.first, Some(first.at));
    assert!(traffic.payload >= 1_000_000, "{traffic:?}");
    assert_eq!(stats.pods_tcp_port(80).packets, 0);
}

/// Far more than any buffer: if the reader fell behind, this would say so.
#[test]
fn a_gigabyte_is_searched_whole() {
    let (lab, sender) = with_client();
    let sink = lab.node(1).add_pod(PodSpec::new("shop", "sink")).expect("a pod");
    serve(&sink, &["sink"]);
    let canary = lab.wire().watch("\"bytes\":1073741824");
    let to = format!("{}:8080", sink.ip());
    client(&sender, &["send", "--to", &to, "--bytes", "1073741824"]);
    assert_eq!(canary.count().expect("a complete capture"), 1, "the answer, which comes last");
}
