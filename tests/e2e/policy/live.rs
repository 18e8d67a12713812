//! A policy that arrives ends what it forbids, and nothing else.

use std::time::{Instant, SystemTime};

use lab::{Pod, Process, Program};
use serde_json::{Value, json};

use super::{Court, authorization, policy};
use crate::mesh::{SOON, serve};

/// Connects to an echo server, says so once the connection works, and waits for its end without a word of its own.
const IDLE_CLIENT: &str = r#"
import socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
s.sendall(b"hello")
assert s.recv(5) == b"hello"
print("open\n", end="", flush=True)
s.settimeout(None)
try:
    how = "data" if s.recv(1) else "end"
except OSError as error:
    how = type(error).__name__
print(f"over {how} {time.time()}\n", end="", flush=True)
"#;

const ECHO: u16 = 7000;
const SOURCE: u16 = 7001;

/// Connections of one client: idle ones to both servers by both families, and a busy one to the far server.
struct Connections<'a> {
    client: &'a Pod,
    idle: Vec<Process>,
    /// Receives as fast as it can.
    busy: Process,
    /// A few more that check at the end that they work.
    held: Process,
}

impl<'a> Connections<'a> {
    fn open(court: &Court, client: &'a Pod) -> Self {
        let python = |ip: std::net::IpAddr| {
            let words = ["python3", "-c", IDLE_CLIENT, &ip.to_string(), &ECHO.to_string()];
            client.spawn(words).expect("python3")
        };
        let ends = [&court.near, &court.far];
        let idle: Vec<Process> = ends.iter().flat_map(|pod| pod.ips()).map(|ip| python(*ip)).collect();
        let from = format!("{}:{SOURCE}", court.far.ip());
        let args = ["receive", "--bytes", "1", "--from", &from];
        let busy = client.spawn(Program::new("lab-app").args(args)).expect("a client");
        let to = format!("{}:{ECHO}", court.far.ip());
        let held = Program::new("lab-app").args(["hold", "--connections", "3", "--to", &to]);
        let held = client.spawn(held).expect("a client");
        for process in &idle {
            process.wait_for_line("open", SOON).expect("a connection");
        }
        held.wait_for_line("holding", SOON).expect("connections");
        Self { client, idle, busy, held }
    }

    /// Every connection is reset; returns when, the last of them.
    fn expect_cut(self) -> f64 {
        let name = self.client.name();
        let mut last = 0.0_f64;
        for process in &self.idle {
            let line = process.wait_for_line("over", SOON).expect("an end");
            let words: Vec<&str> = line.split(' ').collect();
            assert_eq!(
                words[1], "ConnectionResetError",
                "{name}: an end must not look like the server's: {line}"
            );
            last = last.max(words[2].parse().expect("a time"));
        }
        let output = self.busy.wait(SOON).expect("an end");
        assert!(output.stderr.contains("reset by peer"), "{name}: {output:?}");
        let report = report(&self.held);
        assert_ne!(report["errors"], json!({}), "{name}: {report}");
        last
    }

    /// Every connection works still; ends them.
    fn expect_alive(self) {
        let name = self.client.name();
        assert_eq!(report(&self.held), json!({"held": 3, "errors": {}}), "{name}");
        for process in self.idle.iter().chain([&self.busy]) {
            assert!(process.is_running(), "{name}: {:?}", process.output());
            process.kill().expect("an end");
        }
    }
}

fn report(holder: &Process) -> Value {
    let output = holder.terminate().expect("an end");
    serde_json::from_str(output.stdout.lines().last().unwrap_or_default()).expect("a report")
}

#[test]
fn a_policy_that_arrives_cuts_what_it_forbids_and_nothing_else() {
    let court = Court::start();
    let mut servers = Vec::new();
    for pod in [&court.near, &court.far] {
        servers.push(serve(pod, &["echo", "--listen", &format!("[::]:{ECHO}")]));
        // More than any test waits for.
        servers.push(serve(
            pod,
            &["source", "--listen", &format!("[::]:{SOURCE}"), "--bytes", "1000000000000000"],
        ));
    }
    let deny = |condition: &str| {
        authorization("new", &format!("action: DENY, rules: [{{from: [{{source: {{{condition}}}}}]}}]"))
    };
    let strict = policy("PeerAuthentication", "shop/new", "mtls: {mode: STRICT}");
    let of_namespace = |spec: &str| policy("AuthorizationPolicy", "shop/new", spec);
    for (case, yaml, cut) in [
        ("a DENY", deny("serviceAccounts: [alice]"), "alice"),
        ("a DENY by address", deny("ipBlocks: [$mallory, $carol]"), "carol mallory"),
        (
            "an ALLOW for others",
            authorization("new", "rules: [{from: [{source: {namespaces: [shop]}}]}]"),
            "carol mallory",
        ),
        ("STRICT", strict, "mallory"),
        (
            "a DENY for the namespace",
            of_namespace("action: DENY, rules: [{from: [{source: {serviceAccounts: [bob]}}]}]"),
            "bob",
        ),
        ("the namespace closed", of_namespace(""), "alice bob carol mallory"),
    ] {
        let connections: Vec<Connections<'_>> =
            court.clients.iter().map(|client| Connections::open(&court, client)).collect();
        let (applied, started) = (SystemTime::now(), Instant::now());
        court.mesh.lab.apply_yaml("decree.yaml", &court.filled(&yaml)).expect("a file");
        let (doomed, spared): (Vec<_>, Vec<_>) = connections
            .into_iter()
            .partition(|connections| cut.split(' ').any(|name| name == connections.client.name()));
        let last = doomed.into_iter().map(Connections::expect_cut).fold(0.0_f64, f64::max);
        let applied = applied.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs_f64();
        // The promise is a second; this is for people to look at, not a measurement.
        println!(
            "{case}: idle connections were cut {:.0} ms after the file changed",
            (last - applied) * 1000.0
        );
        spared.into_iter().for_each(Connections::expect_alive);
        assert!(started.elapsed() < SOON, "{case}");
        court.mesh.lab.delete_yaml("decree.yaml").expect("our own file");
        court.until_guarded_by(&[]);
        court.until_in_force(&[]);
    }
    // The applications were not told that their clients had finished.
    for server in servers.iter().step_by(2) {
        server.wait_for_line("reset by peer", SOON).expect("a complaint of the server");
    }
}

#[test]
fn a_label_that_brings_a_pod_under_a_policy_cuts_what_it_forbids() {
    let court = Court::start();
    for pod in [&court.near, &court.far] {
        serve(pod, &["echo", "--listen", &format!("[::]:{ECHO}")]);
        serve(pod, &["source", "--listen", &format!("[::]:{SOURCE}"), "--bytes", "1000000000000000"]);
    }
    let rules = "rules: [{from: [{source: {serviceAccounts: [alice]}}]}]";
    let vault = policy(
        "AuthorizationPolicy",
        "shop/vault",
        &format!("selector: {{matchLabels: {{vault: 'yes'}}}}, {rules}"),
    );
    court.mesh.lab.apply_yaml("vault.yaml", &vault).expect("a file");
    court.until_known("shop/vault");
    let [alice, bob] = ["alice", "bob"].map(|name| Connections::open(&court, court.client(name)));
    for pod in [&court.near, &court.far] {
        pod.label("vault", Some("yes")).expect("a label");
    }
    bob.expect_cut();
    alice.expect_alive();
    court.until_guarded_by(&["shop/vault"]);
    court.check("the vault's policy", "alice");
}
