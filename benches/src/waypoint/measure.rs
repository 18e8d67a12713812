//! One slot: one shape through one proxy for one window. And the rounds that slots are arranged in.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use lab::Process;
use serde::Serialize;

use super::ground::{Ground, Kind, Proxy};
use super::load::client::Protocol;
use super::say;
use super::shapes::{Mesh, SHAPES, Shape};
use crate::load::client::Report;

/// Load before each window: connections and tunnels are open, windows have grown.
const WARM: Duration = Duration::from_millis(300);
/// How much longer than its window a client may take before it counts as hung.
const END_WITHIN: Duration = Duration::from_secs(60);

/// A figure of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    /// Microseconds of the proxy's processor time per request.
    Cpu,
    PerSecond,
    P50Microseconds,
    P99Microseconds,
}

/// What one slot gave.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Slot {
    pub(crate) round: usize,
    pub(crate) shape: &'static str,
    pub(crate) proxy: Kind,
    pub(crate) values: BTreeMap<Metric, f64>,
    /// The share of the machine that went to programs that are no part of the measurement.
    pub(crate) others: f64,
}

/// Measures every shape through every proxy `rounds` times. What is compared lies as close together in time as it can, and the order is
/// reversed from round to round.
pub(crate) fn rounds(
    ground: &Ground,
    shapes: &[Shape],
    rounds: usize,
    length: Duration,
) -> anyhow::Result<Vec<Slot>> {
    let mut cells: Vec<_> =
        shapes.iter().flat_map(|shape| ground.taking(shape.mesh).map(move |proxy| (shape, proxy))).collect();
    let mut slots = Vec::new();
    for round in 0..rounds {
        say(&format!("round {} of {rounds}: {} measurements", round + 1, cells.len()));
        for (shape, proxy) in &cells {
            let slot = slot(ground, proxy, shape, (round, length));
            slots.push(slot.with_context(|| format!("{} through {:?}", shape.name, proxy.kind))?);
        }
        cells.reverse();
    }
    Ok(slots)
}

fn slot(
    ground: &Ground,
    proxy: &Proxy,
    shape: &Shape,
    (round, length): (usize, Duration),
) -> anyhow::Result<Slot> {
    let report = run(ground, proxy, shape, (WARM, length))?;
    let capacity = report.seconds * std::thread::available_parallelism()?.get() as f64;
    let requests = report.operations as f64;
    let values = BTreeMap::from([
        (Metric::Cpu, report.cpu.proxies * 1e6 / requests),
        (Metric::PerSecond, requests / report.seconds),
        (Metric::P50Microseconds, report.p50_us),
        (Metric::P99Microseconds, report.p99_us),
    ]);
    Ok(Slot { round, shape: shape.name, proxy: proxy.kind, values, others: report.cpu.others() / capacity })
}

/// A short load of one connection, to see whether there are answers.
pub(crate) fn probe(mesh: Mesh) -> Shape {
    let shape = SHAPES.into_iter().find(|shape| shape.mesh == mesh && shape.protocol == Protocol::Http1);
    Shape { connections: 1, streams: 1, rate: Some(1000), ..shape.expect("each kind of mesh has shapes") }
}

/// Asks for a moment; every answer has to be right.
pub(crate) fn once(ground: &Ground, proxy: &Proxy, shape: &Shape) -> anyhow::Result<()> {
    run(ground, proxy, shape, (Duration::ZERO, Duration::from_millis(50))).map(drop)
}

/// Runs a load to its end. One wrong answer is a failure.
pub(crate) fn run(
    ground: &Ground,
    proxy: &Proxy,
    shape: &Shape,
    (warm, length): (Duration, Duration),
) -> anyhow::Result<Report> {
    let client = start(ground, proxy, shape, &|args| {
        args.extend(["--warm-ms".into(), warm.as_millis().to_string()]);
        args.extend(["--for-ms".into(), length.as_millis().to_string()]);
    })?;
    let output = client.wait(warm + length + END_WITHIN).inspect_err(|_| drop(client.kill()))?;
    ensure!(output.success(), "`{}` failed: {}", client.command(), output.stderr.trim());
    let report: Report =
        serde_json::from_str(&output.stdout).with_context(|| format!("read {:?}", output.stdout))?;
    if let Some(failure) = &report.failure {
        bail!("{} requests failed, the first: {failure}", report.failed);
    }
    ensure!(report.operations > 0, "nothing was answered");
    Ok(report)
}

/// Starts a load; `more` adds what is to be done.
pub(crate) fn start(
    ground: &Ground,
    proxy: &Proxy,
    shape: &Shape,
    more: &dyn Fn(&mut Vec<String>),
) -> anyhow::Result<Process> {
    let (address, authority) = ground.address(proxy, shape);
    let mut args = Vec::new();
    let mut set = |name: &str, value: String| args.extend([format!("--{name}"), value]);
    set("proxy", address.to_string());
    if let Some(authority) = authority {
        set("authority", authority.to_string());
    }
    set("connections", shape.connections.to_string());
    set("streams", shape.streams.to_string());
    set("calls", shape.calls.to_string());
    set("answer", shape.answer.to_string());
    if let Some(bytes) = shape.request {
        set("request", bytes.to_string());
    }
    if let Some(rate) = shape.rate {
        set("rate", rate.to_string());
        set("burst", shape.burst.to_string());
    }
    let protocol = match shape.protocol {
        Protocol::Grpc => "grpc",
        Protocol::Http1 => "http1",
        Protocol::Http2 => "http2",
    };
    set("protocol", protocol.into());
    set("proxies", proxy.process.pid().to_string());
    let servers = ground.servers.iter().map(Process::pid).chain([std::process::id()]);
    set("apps", servers.map(|pid| pid.to_string()).collect::<Vec<_>>().join(","));
    more(&mut args);
    ground.load(shape, &args)
}
