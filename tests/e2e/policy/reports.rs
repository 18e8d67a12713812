//! What is said of a refusal, of a policy that is only tried out, and of one that can't be.

use std::fs;

use lab::{Node, Pod, Slice};
use serde_json::Value;

use super::{Court, authorization, policy};
use crate::mesh::{SOON, controller, curl, logged, refused};

const ALICE: &str = "spiffe://cluster.local/ns/shop/sa/alice";

#[test]
fn a_refusal_is_counted_and_logged_with_its_policy() {
    let court = Court::start();
    court.decree(
        &authorization("closed", "action: DENY, rules: [{to: [{operation: {ports: ['8080']}}]}]"),
        &["shop/closed"],
    );
    for (server, node) in [(&court.near, 0), (&court.far, 1)] {
        let node = court.mesh.node(node);
        let address = format!("{}:8080", server.ip());
        for client in [court.client("alice"), court.client("mallory")] {
            refused(client, &format!("http://{address}/"));
            let source = format!("\"src.addr\":\"{}:", client.ip());
            let destination = format!("\"dst.addr\":\"{address}\"");
            let line = logged(&node, &[&source, &destination, "\"direction\":\"inbound\"", "policy-denied"]);
            let line: Value = serde_json::from_str(&line).expect("JSON");
            assert!(line["error"].as_str().is_some_and(|error| error.contains("shop/closed")), "{line}");
            let proven = (client.name() == "alice").then_some(ALICE);
            assert_eq!(line["src.identity"].as_str(), proven, "plaintext proves nothing: {line}");
        }
        let labels = |principal: &'static str| {
            [
                ("reporter", "destination"),
                ("response_flags", "DENY"),
                ("destination_app", server.name()),
                ("source_principal", principal),
            ]
        };
        assert_eq!(sum(&scrape(&node), "connections_failed", &labels(ALICE)), 1.0);
        assert_eq!(sum(&scrape(&node), "connections_failed", &labels("unknown")), 1.0);
    }
    // The client's node says it too, and where to look.
    let node = court.mesh.node(0);
    let outbound = |server: &Pod, code: &str| {
        let destination = format!("\"dst.addr\":\"{}:8080\"", server.ip());
        logged(&node, &[&destination, "\"direction\":\"outbound\"", code])
    };
    outbound(&court.near, "policy-denied");
    let line = outbound(&court.far, "refused-by-peer");
    assert!(line.contains("its policies do not allow it"), "{line}");
    for server in [&court.near, &court.far] {
        let labels = [
            ("reporter", "source"),
            ("response_flags", "DENY"),
            ("destination_app", server.name()),
            ("source_principal", ALICE),
        ];
        assert_eq!(sum(&scrape(&node), "connections_failed", &labels), 1.0, "to {}", server.name());
    }
}

#[test]
fn connections_are_counted_with_who_and_how_much() {
    let court = Court::start();
    let body = "x".repeat(1000);
    for server in [&court.near, &court.far] {
        let url = format!("http://{}:8080/", server.ip());
        let answered = curl(court.client("alice"), &["-d", &body, &url]);
        assert!(answered.success(), "{answered:?}");
    }
    for (server, node, reporters, secured) in [
        (&court.near, 0, ["source", "destination"].as_slice(), "unknown"),
        (&court.far, 0, ["source"].as_slice(), "mutual_tls"),
        (&court.far, 1, ["destination"].as_slice(), "mutual_tls"),
    ] {
        let node = court.mesh.node(node);
        for reporter in reporters {
            let destination = format!("spiffe://cluster.local/ns/shop/sa/{}", server.name());
            let labels = [
                ("reporter", *reporter),
                ("source_principal", ALICE),
                ("source_workload_namespace", "shop"),
                ("destination_principal", &destination),
                ("destination_app", server.name()),
                ("connection_security_policy", secured),
                ("response_flags", "-"),
            ];
            lab::wait_until("the end of the connection is counted", SOON, || {
                let scraped = scrape(&node);
                let [opened, closed, sent, received] =
                    ["connections_opened", "connections_closed", "sent_bytes", "received_bytes"]
                        .map(|name| sum(&scraped, name, &labels));
                if (opened, closed) == (1.0, 1.0) && received > 1000.0 && sent > 100.0 && sent < 1000.0 {
                    return Ok(());
                }
                Err(format!(
                    "{reporter}: {opened} opened, {closed} closed, {sent} bytes sent, {received} received"
                ))
            })
            .expect("counted once, with its bytes");
        }
    }
}

/// What Prometheus would scrape.
fn scrape(node: &Node) -> String {
    let scraped = node.run(Slice::System, ["curl", "-sS", "-m", "10", "http://127.0.0.1:15020/metrics"]);
    let scraped = scraped.expect("curl ends");
    assert!(scraped.success(), "{scraped:?}");
    scraped.stdout
}

/// The sum of `istio_tcp_<name>_total`'s series that have these labels.
fn sum(scraped: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
    let series = scraped.lines().filter(|line| line.starts_with(&format!("istio_tcp_{name}_total{{")));
    let matching = series.filter(|line| labels.iter().all(|label| line.contains(label.as_str())));
    matching
        .map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number"))
        .sum()
}

#[test]
fn a_policy_that_is_tried_out_is_logged_and_not_enforced() {
    let court = Court::start();
    let spec = "selector: {matchLabels: {guarded: 'yes'}}, action: DENY, rules: [{from: [{source: {serviceAccounts: [alice]}}]}]";
    let tried = policy("AuthorizationPolicy", "shop/tried", spec)
        .replace("name: tried", "name: tried, annotations: {istio.io/dry-run: 'true'}");
    court.decree(&tried, &["shop/tried"]);
    court.check("a dry run", "alice bob carol mallory");
    for node in court.mesh.lab.nodes() {
        let line = logged(&node, &["a dry-run policy would refuse this connection"]);
        assert!(line.contains("shop/tried"), "{line}");
    }
    // Beside one that is enforced.
    court.decree(&(tried + &authorization("closed", "")), &["shop/tried", "shop/closed"]);
    court.check("an ALLOW without rules beside a dry run", "");
}

#[test]
fn a_policy_that_can_not_be_understood_is_reported_and_opens_nothing() {
    let court = Court::start();
    let lab = &court.mesh.lab;
    court.decree(
        &authorization("guard", "rules: [{from: [{source: {serviceAccounts: [alice]}}]}]"),
        &["shop/guard"],
    );
    court.check("a good policy", "alice");

    // The file breaks: what it said when it was good stays in force, and the file, the line and the fault are named.
    let broken = authorization("guard", "rules: [{from: [{source: {serviceAcounts: [bob]}}]}]");
    lab.apply_yaml("decree.yaml", &broken).expect("a file");
    let found = finding(&court, |findings| {
        let mut files = findings["files"].as_array().into_iter().flatten();
        files.find(|file| file["path"].as_str().is_some_and(|path| path.ends_with("decree.yaml"))).cloned()
    });
    assert!(
        found["line"].is_u64() && found["message"].as_str().is_some_and(|m| m.contains("serviceAcounts")),
        "{found}"
    );
    court.check("a good policy whose file broke", "alice");

    // Half of a policy: what can't be understood allows nothing, and is reported with the object.
    let half = authorization(
        "guard",
        "rules: [{to: [{operation: {ports: [http]}}]}, {from: [{source: {serviceAccounts: [bob]}}]}]",
    );
    court.decree(&half, &["shop/guard"]);
    let found = finding(&court, |findings| {
        let mut objects = findings["objects"].as_array().into_iter().flatten();
        objects.find(|found| found["object"]["name"] == "guard" && found["outcome"] == "Partial").cloned()
    });
    assert!(found["message"].as_str().is_some_and(|message| message.contains("rules[0]")), "{found}");
    lab::wait_until("half a policy is in force", SOON, || {
        let passed = curl(court.client("bob"), &[&format!("http://{}:8080/", court.far.ip())]);
        if passed.success() { Ok(()) } else { Err(format!("{passed:?}")) }
    })
    .expect("the half that can be understood");
    court.check("half a policy", "bob");

    // What node proxies can't enforce is refused and said so; it guards nothing, as if it were not there.
    let audit = authorization("audit", "action: AUDIT, rules: [{}]");
    lab.apply_yaml("audit.yaml", &audit).expect("a file");
    let found = finding(&court, |findings| {
        let mut objects = findings["objects"].as_array().into_iter().flatten();
        objects.find(|found| found["object"]["name"] == "audit").cloned()
    });
    assert_eq!((&found["outcome"], &found["reason"]), (&"Refused".into(), &"UnsupportedValue".into()));
    court.check("an AUDIT beside it", "bob");
}

/// Waits for what the controller has to say of an object or a file.
fn finding(court: &Court, look: impl Fn(&Value) -> Option<Value>) -> Value {
    let socket = court.mesh.lab.dir().join("controller/admin.sock");
    assert!(fs::exists(&socket).expect("our own directory"), "the controller's admin socket");
    lab::wait_until("a finding", SOON, || {
        let findings = controller(&court.mesh.lab, "/findings");
        look(&findings).ok_or_else(|| findings.to_string())
    })
    .expect("what is wrong is reported")
}
