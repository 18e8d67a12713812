//! One connection to an echo server by an unusual way (`lab-app attempt`), and what became of it.

use std::net::{IpAddr, SocketAddr};

use lab::{Pod, Process, Program};
use serde_json::Value;

use crate::mesh::SOON;

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The canary came back whole.
    Answered,
    /// The connection was refused or ended before it brought anything right, with this error.
    Refused(String),
    /// Nothing came.
    Silent,
}

/// The program that tries to send `canary` to `to`; `options` are those of `lab-app attempt`.
pub(crate) fn program(to: SocketAddr, canary: &str, options: &str) -> Program {
    let to = to.to_string();
    Program::new("lab-app")
        .args(["attempt", "--to", &to, "--canary", canary])
        .args(options.split_whitespace())
}

/// Starts an attempt in a pod.
pub(crate) fn start(pod: &Pod, to: SocketAddr, canary: &str, options: &str) -> Process {
    pod.spawn(program(to, canary, options)).expect("an attempt")
}

/// Waits for an attempt's end.
pub(crate) fn outcome(attempt: &Process) -> Outcome {
    let output = attempt.wait(SOON).expect("an attempt that ends");
    assert!(output.success(), "{}: the attempt could not be made: {output:?}", attempt.command());
    let said: Value =
        serde_json::from_str(output.stdout.trim()).unwrap_or_else(|e| panic!("{output:?}: {e}"));
    match said["outcome"].as_str() {
        Some("answered") => Outcome::Answered,
        Some("silent") => Outcome::Silent,
        _ => Outcome::Refused(said["error"].to_string()),
    }
}

/// An IPv4 address as programs name it on an IPv6 socket.
pub(crate) fn mapped(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().into(),
        IpAddr::V6(_) => ip,
    }
}
