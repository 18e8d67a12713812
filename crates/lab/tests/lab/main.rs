//! What the lab promises to everything that is built on it, without a mesh. Needs root, and fails without.

mod apps;
mod cluster;
mod removal;
mod wire;

use std::time::Duration;

use lab::{Lab, LabConfig, Pod, PodSpec, Process, Program};
use serde_json::Value;

/// For things that take milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(20);

fn start(config: LabConfig) -> Lab {
    Lab::start(config).expect("a lab (root is needed)")
}

/// Two nodes and a client pod on the first.
fn with_client() -> (Lab, Pod) {
    let lab = start(LabConfig::default());
    let client = lab.node(0).add_pod(PodSpec::new("shop", "client")).expect("a pod");
    (lab, client)
}

/// Starts the lab's own program in server mode and waits until it listens.
fn serve(pod: &Pod, args: &[&str]) -> Process {
    let server = pod.spawn(app(args)).expect("a server");
    server.wait_for_line("listening on", SOON).expect("a server that listens");
    server
}

fn app(args: &[&str]) -> Program {
    Program::new("lab-app").args(args)
}

/// Runs a client to its end, which must be good, and returns what it printed last.
fn client(pod: &Pod, args: &[&str]) -> Value {
    let output = pod.run(app(args)).expect("a client that ends");
    assert!(output.success(), "{} {args:?}: {output:?}", pod.name());
    let last = output.stdout.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{args:?} printed {last:?}: {error}"))
}

/// What an HTTP server of ours answered to curl.
fn get(pod: &Pod, url: &str) -> Value {
    let output = pod.run(["curl", "-sS", "-m", "10", url]).expect("curl");
    assert!(output.success(), "{} -> {url}: {output:?}", pod.name());
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{output:?}: {error}"))
}
