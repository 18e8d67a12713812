//! Enrolment time: from the moment before a namespace's label is written to the first byte of TLS between its pods.
//!
//! In a lab of its own, with a look at the wire, which the other measurements do without.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use lab::{Env, Lab, LabConfig, PodSpec, Tuning, wait_until};
use serde::Serialize;

use super::say;
use super::variants::own_program;
use crate::load::ECHO_PORT;
use crate::stats::percentile;

/// How often a namespace is enrolled.
const TIMES: usize = 20;

/// How long each step may take.
const WITHIN: Duration = Duration::from_secs(30);

/// Where tunnels lead.
const HBONE_PORT: u16 = 15008;

/// Milliseconds from the label to the first encrypted byte.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Enrolment {
    pub(crate) times_ms: Vec<f64>,
    pub(crate) median_ms: f64,
    /// Of so few, this is the slowest.
    pub(crate) p99_ms: f64,
}

/// Enrols namespaces one after the other.
pub(crate) fn measure(tuning: Tuning) -> anyhow::Result<Enrolment> {
    say(&format!("enrolling {TIMES} namespaces"));
    let lab = Lab::start(LabConfig { nodes: 2, ipv6: false, capture: true, tuning, binaries: None })?;
    lab.start_controller(Env::new())?;
    for node in lab.nodes() {
        node.start_ztunnel(Env::new())?;
    }
    let mut micros = (0..TIMES)
        .map(|number| once(&lab, &format!("team-{number}")).with_context(|| format!("enrolment {number}")))
        .map(|time| Ok(u64::try_from(time?.as_micros())?))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let times_ms = micros.iter().map(|micros| *micros as f64 / 1e3).collect();
    let mut at = |p| percentile(&mut micros, p).unwrap_or(0) as f64 / 1e3;
    Ok(Enrolment { times_ms, median_ms: at(0.5), p99_ms: at(0.99) })
}

fn once(lab: &Lab, namespace: &str) -> anyhow::Result<Duration> {
    let client = lab.node(0).add_pod(PodSpec::new(namespace, "client").service_account("client"))?;
    let server = lab.node(1).add_pod(PodSpec::new(namespace, "server").service_account("server"))?;
    let app = server.spawn(own_program()?.args(["app-server"]))?;
    app.wait_for_line("serving", WITHIN)?;
    let to = format!("{}:{ECHO_PORT}", server.ip());
    let probe = client.spawn(own_program()?.args(["app-client", "probe", "--to", to.as_str()]))?;
    probe.wait_for_line("probing", WITHIN)?;
    let encrypted = lab.wire().watch_port(HBONE_PORT);
    let labelled = SystemTime::now();
    lab.label_namespace(namespace, "istio.io/dataplane-mode", Some("ambient"))?;
    let first = wait_until("the first encrypted byte", WITHIN, || {
        let sightings = encrypted.sightings()?;
        match sightings.iter().find(|sighting| sighting.from.ip() == client.ip()) {
            Some(first) => anyhow::Ok(first.at),
            None => bail!("{} segments of others", sightings.len()),
        }
    })?;
    client.remove()?;
    server.remove()?;
    first.duration_since(labelled).context("the first encrypted byte came before the label")
}
