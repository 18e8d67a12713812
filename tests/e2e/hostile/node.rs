//! The node's own doors: the node API and the admin socket, which are root's alone, and metrics and readiness, which pods can
//! reach over the network.

use std::fs;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use lab::Node;
use serde_json::{Value, json};

use crate::mesh::{SOON, admin, curl};
use crate::support::IN_VAIN;
use crate::support::arena::Arena;
use crate::support::attempt::{self, Outcome};
use crate::support::flood;

/// The user without privileges, by tradition.
const NOBODY: u32 = 65_534;

/// Sends bytes to a unix socket and reads what comes until the end, or until nothing comes any more.
fn converse(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).expect("a connection");
    stream.set_read_timeout(Some(IN_VAIN)).expect("set");
    // The other end may close in the middle of a flood.
    drop(stream.write_all(bytes));
    drop(stream.shutdown(std::net::Shutdown::Write));
    let mut said = Vec::new();
    drop(stream.read_to_end(&mut said));
    String::from_utf8_lossy(&said).into_owned()
}

fn list(node: &Node) -> Value {
    let said = converse(&node.run_dir().join("node.sock"), b"{\"list\":{}}\n");
    serde_json::from_str(said.trim()).unwrap_or_else(|error| panic!("{said:?}: {error}"))
}

#[test]
fn the_node_api_takes_nothing_but_good_commands_from_root() {
    let arena = Arena::new();
    let node = arena.insider.node();
    let socket = node.run_dir().join("node.sock");
    check_private(&socket);
    check_private(&node.run_dir().join("admin.sock"));
    let before = list(&node);
    let good = json!({
        "uid": arena.insider.uid(),
        "namespace": "shop",
        "name": "insider",
        "service_account": "insider",
        "netns": arena.insider.netns().path(),
        "addresses": arena.insider.ips(),
    });
    let add = |field: &str, value: Value| {
        let mut sandbox = good.clone();
        sandbox["uid"] = json!("0000-unknown");
        sandbox[field] = value;
        json!({"add": sandbox}).to_string()
    };
    let long = "a".repeat(200);
    let commands = [
        "garbage".to_owned(),
        "{}".to_owned(),
        "[]".to_owned(),
        "null".to_owned(),
        "{\"list\":{},\"delete\":{}}".to_owned(),
        "{\"list\":{\"all\":true}}".to_owned(),
        "{\"stop\":{}}".to_owned(),
        "{\"delete\":{}}".to_owned(),
        "{\"delete\":{\"uid\":7}}".to_owned(),
        "[".repeat(10_000),
        "{\"add\":".repeat(1_000),
        "GET / HTTP/1.1".to_owned(),
        add("uid", json!("")),
        add("uid", json!(long)),
        add("uid", json!("../../../../etc/cron.d/x")),
        add("uid", json!("a/b")),
        add("uid", json!("a\u{0}b")),
        add("name", json!("")),
        add("netns", json!("relative")),
        add("addresses", json!([])),
        add("addresses", json!(["127.0.0.1"])),
        add("addresses", json!(["0.0.0.0"])),
        add("addresses", json!(["224.0.0.1"])),
        add("addresses", json!(["not an address"])),
        add("addresses", json!(vec!["10.0.0.1"; 17])),
    ];
    for command in &commands {
        let said = converse(&socket, format!("{command}\n").as_bytes());
        assert!(said.contains("\"error\""), "{command:.400} was answered with {said:?}");
    }
    let said = converse(&socket, &[b'x'; 1 << 20]);
    assert!(said.is_empty() || said.contains("\"error\""), "{said:?}");
    assert_eq!(converse(&socket, &[0xff; 100]), converse(&socket, b"half a line"), "no line, no command");
    assert_eq!(list(&node), before, "nothing of it had an effect");

    // A door that is full of people who say nothing still opens.
    let silent: Vec<_> = (0..1000).filter_map(|_| UnixStream::connect(&socket).ok()).collect();
    assert_eq!(list(&node), before);
    drop(silent);
    arena.conclude();
}

/// What does not fit what the controller says is captured and refused, and served again when it fits.
#[test]
fn a_pod_that_is_announced_as_somebody_else_is_refused() {
    let arena = Arena::new();
    let node = arena.insider.node();
    let socket = node.run_dir().join("node.sock");
    let announce = |field: &str, value: Value| {
        let mut sandbox = json!({
            "uid": arena.insider.uid(),
            "namespace": "shop",
            "name": "insider",
            "service_account": "insider",
            "netns": arena.insider.netns().path(),
            "addresses": arena.insider.ips(),
        });
        sandbox[field] = value;
        let said = converse(&socket, format!("{}\n", json!({"add": sandbox})).as_bytes());
        serde_json::from_str::<Value>(said.trim()).unwrap_or_else(|error| panic!("{said:?}: {error}"))
    };
    let to = arena.at(8080);
    let changes = [
        ("namespace", json!("bank")),
        ("name", json!("client")),
        ("service_account", json!("client")),
        ("addresses", json!([arena.client.ip()])),
        ("addresses", json!([arena.insider.ip()])),
    ];
    for (field, value) in changes {
        let said = announce(field, value.clone());
        let outcome = attempt::outcome(&attempt::start(&arena.insider, to, "canary", ""));
        assert!(matches!(outcome, Outcome::Refused(_)), "{field} {value}: {said}, and then {outcome:?}");
    }
    announce("name", json!("insider"));
    lab::wait_until("the pod is itself again", SOON, || {
        match attempt::outcome(&attempt::start(&arena.insider, to, "canary", "")) {
            Outcome::Answered => Ok(()),
            other @ (Outcome::Refused(_) | Outcome::Silent) => Err(format!("{other:?}")),
        }
    })
    .expect("served");
    arena.conclude();
}

/// Neither by the mode of the file nor, were that changed, by who asks.
fn check_private(socket: &Path) {
    let metadata = fs::metadata(socket).expect("a socket");
    assert_eq!((metadata.mode() & 0o777, metadata.uid()), (0o600, 0), "{}", socket.display());
    let ask = || {
        let output = Command::new("curl")
            .args(["-sS", "-m", "5", "--unix-socket"])
            .arg(socket)
            .arg("http://x/config_dump")
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .expect("curl runs");
        assert!(!output.status.success(), "{}: {output:?}", socket.display());
    };
    ask();
    if socket.ends_with("node.sock") {
        let opened = |mode| fs::set_permissions(socket, fs::Permissions::from_mode(mode)).expect("a mode");
        opened(0o666);
        ask();
        opened(0o600);
    }
}

#[test]
fn metrics_and_readiness_stay_up_under_attack() {
    let arena = Arena::new();
    let node = arena.server.node();
    for port in [15020, 15021] {
        let to = SocketAddr::new(node.ips()[0], port);
        let mut slow = flood::connect(&arena.stranger, to, 500);
        flood::write(&mut slow, b"GET / HTTP/1.1\r\nHost: x\r\nX: ");
        let silent = flood::connect(&arena.stranger, to, 500);
        flood::connect_and_reset(&arena.stranger, to, 1000);
        for request in bad_requests() {
            let said = exchange(&arena, to, &request);
            assert!(
                said.is_empty() || said.starts_with("HTTP/1.1 4") || said.starts_with("HTTP/1.0 4"),
                "{} on {port} was answered with {said:?}",
                String::from_utf8_lossy(&request[..request.len().min(60)])
            );
        }
        let good = if port == 15020 { "/metrics" } else { "/healthz/ready" };
        let output = curl(&arena.stranger, &["-f", &format!("http://{to}{good}")]);
        assert!(output.success() && !output.stdout.is_empty(), "{good}: {output:?}");
        slow.extend(silent);
        flood::until_closed("silent and slow clients", slow, SOON, |_| {});
    }
    assert_ne!(admin(&node, "/debug"), Value::Null);
    arena.conclude();
}

fn exchange(arena: &Arena, to: SocketAddr, request: &[u8]) -> String {
    let connected = arena.stranger.netns().run(|| TcpStream::connect_timeout(&to, SOON));
    let mut stream = connected.expect("entered").expect("a connection");
    stream.set_read_timeout(Some(IN_VAIN)).expect("set");
    drop(stream.write_all(request));
    drop(stream.shutdown(std::net::Shutdown::Write));
    let mut said = Vec::new();
    drop(BufReader::new(&mut stream).read_to_end(&mut said));
    String::from_utf8_lossy(&said).into_owned()
}

fn bad_requests() -> Vec<Vec<u8>> {
    let head = |line: &str| format!("{line}\r\nHost: x\r\nConnection: close\r\n\r\n").into_bytes();
    vec![
        vec![0x55; 100_000],
        vec![0x16, 3, 1, 2, 0, 1],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        head("GET /../../etc/passwd HTTP/1.1"),
        head("GET /config_dump HTTP/1.1"),
        head("GET /quitquitquit HTTP/1.1"),
        head("POST /quitquitquit HTTP/1.1"),
        head("POST /logging?level=trace HTTP/1.1"),
        head("POST /metrics HTTP/1.1"),
        head("DELETE /metrics HTTP/1.1"),
        head("CONNECT 127.0.0.1:22 HTTP/1.1"),
        head(&format!("GET /{} HTTP/1.1", "a".repeat(70_000))),
        format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(1000)).into_bytes(),
        b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\nConnection: close\r\n\r\n"
            .to_vec(),
        b"POST /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"
            .to_vec(),
    ]
}
