//! The lab's own program does what tests will rely on, where nothing disturbs it.

use std::time::Duration;

use lab::{PodSpec, ProcessError, Signal};
use serde_json::{Value, json};

use crate::{SOON, app, client, get, serve, with_client};

#[test]
fn every_server_satisfies_its_client() {
    let (lab, from) = with_client();
    let pod = lab.node(1).add_pod(PodSpec::new("shop", "servers")).expect("a pod");
    let cases: [(&[&str], &[&str]); 7] = [
        (&["sink"], &["send", "--bytes", "3000000", "--to"]),
        (&["sink"], &["send", "--bytes", "500", "--chunk", "1", "--to"]),
        (&["source", "--bytes", "3000000"], &["receive", "--bytes", "3000000", "--from"]),
        (&["early-fin"], &["late-send", "--bytes", "300000", "--to"]),
        (&["banner"], &["greeted", "--to"]),
        (&["websocket"], &["websocket-client", "--size", "70000", "--to"]),
        (&["grpc"], &["grpc-client", "--size", "70000", "--to"]),
    ];
    for (server, args) in cases {
        let server = serve(&pod, server);
        for ip in pod.ips() {
            let to = std::net::SocketAddr::new(*ip, 8080).to_string();
            assert_eq!(client(&from, &[args, &[&to]].concat())["ok"], true);
        }
        server.kill().expect("its end");
    }
}

#[test]
fn a_checking_client_notices_what_is_wrong() {
    let (lab, from) = with_client();
    let pod = lab.node(1).add_pod(PodSpec::new("shop", "servers")).expect("a pod");
    serve(&pod, &["source", "--bytes", "1000"]);
    let address = format!("{}:8080", pod.ip());
    let cases: [&[&str]; 5] = [
        &["receive", "--bytes", "1001", "--from"],
        &["send", "--bytes", "10", "--to"],
        &["greeted", "--to"],
        &["websocket-client", "--to"],
        &["grpc-client", "--to"],
    ];
    for args in cases {
        let output = from.run(app(&[args, &[&address]].concat())).expect("a client that ends");
        assert_eq!(output.code(), Some(1), "{args:?}: {output:?}");
    }
}

#[test]
fn the_http_server_says_what_it_saw() {
    let (lab, from) = with_client();
    let pod = lab.node(1).add_pod(PodSpec::new("shop", "web")).expect("a pod");
    let server = serve(&pod, &["http", "--name", "web-7", "--log"]);
    let seen = get(&from, &format!("http://{}:8080/a?b=c", pod.ip()));
    assert_eq!(
        (&seen["name"], &seen["path"], &seen["method"]),
        (&json!("web-7"), &json!("/a?b=c"), &json!("GET"))
    );
    assert!(seen["client"].as_str().expect("an address").starts_with(&format!("{}:", from.ip())), "{seen}");
    server.wait_for_line(&format!("{{\"client\":\"{}:", from.ip()), SOON).expect("a line for the connection");
    let url = format!("http://{}:8080/status/503", pod.ip());
    let output = from.run(["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", &url]).expect("curl");
    assert_eq!(output.stdout, "503");
}

fn report(process: &lab::Process) -> Value {
    process.signal(Signal::SIGTERM).expect("a signal");
    let output = process.wait(SOON).expect("an end");
    serde_json::from_str(output.stdout.lines().last().unwrap_or_default())
        .unwrap_or_else(|_| panic!("{output:?}"))
}

#[test]
fn load_is_accounted_for() {
    let (lab, from) = with_client();
    let pod = lab.node(1).add_pod(PodSpec::new("shop", "web")).expect("a pod");
    let server = serve(&pod, &["http", "--name", "web"]);
    let to = format!("{}:8080", pod.ip());
    let load = |mode: &str| {
        app(&[
            "load",
            "--protocol",
            "http",
            "--to",
            &to,
            "--mode",
            mode,
            "--connections",
            "4",
            "--requests",
            "400",
        ])
    };
    for (mode, connections) in [("keep", 4), ("new", 400)] {
        let output = from.run(load(mode)).expect("an end");
        let report: Value =
            serde_json::from_str(output.stdout.lines().last().unwrap_or_default()).expect("a report");
        assert_eq!(report["succeeded"], 400, "{report}");
        assert_eq!(report["connections"], connections, "{report}");
        assert_eq!(report["answered_by"], json!({"web": 400}), "{report}");
    }
    let endless = from
        .spawn(app(&["load", "--protocol", "http", "--to", &to, "--mode", "keep", "--interval-ms", "1"]))
        .expect("a client");
    endless.wait_for_line("working", SOON).expect("a client that works");
    server.kill().expect("its end");
    lab::wait_until("an error of the load", SOON, || {
        // The kernel refuses connections once the server is gone.
        let refused = from.run(["curl", "-s", "-m", "5", &format!("http://{to}/")]).expect("curl");
        if refused.code() == Some(7) { Ok(()) } else { Err(format!("{refused:?}")) }
    })
    .expect("a server that is gone");
    let report = report(&endless);
    assert!(report["failed"].as_u64().expect("a number") > 0, "{report}");
    let errors = report["errors"].to_string();
    assert!(errors.contains("on a kept connection") || errors.contains("connect to"), "{report}");
}

#[test]
fn two_thousand_connections_are_held() {
    let (lab, from) = with_client();
    let pod = lab.node(1).add_pod(PodSpec::new("shop", "web")).expect("a pod");
    serve(&pod, &["echo"]);
    let holder = from
        .spawn(app(&["hold", "--connections", "2000", "--to", &format!("{}:8080", pod.ip())]))
        .expect("a client");
    holder.wait_for_line("holding 2000", SOON).expect("all of them");
    assert_eq!(report(&holder), json!({"held": 2000, "errors": {}}));
}

#[test]
fn a_line_is_found_when_it_is_whole() {
    let (_lab, pod) = with_client();
    let script = "printf 'half a line'; echo printed >&2; exec tail -f /dev/null";
    let writer = pod.spawn(["sh", "-c", script]).expect("a shell");
    writer.wait_for_line("printed", SOON).expect("a whole line");
    let half = writer.wait_for_line("half", Duration::from_millis(50));
    assert!(matches!(half, Err(ProcessError::Deadline { .. })), "more of it may come: {half:?}");
    writer.kill().expect("its end");
    assert_eq!(writer.wait_for_line("half", SOON).expect("no more will come"), "half a line");
}
