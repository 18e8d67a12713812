//! One slot: one load on one variant for one window. And the rounds that slots are arranged in.
//!
//! Neighbours on the machine change by the minute, so what is compared lies as close together in time as it can, and the
//! order is reversed from round to round.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lab::Process;
use serde::Serialize;

use super::variants::{Cluster, Variant, own_program};
use super::{Part, say};
use crate::load::client::{Kind, Report};

/// Load before each window: connections and tunnels are open, windows have grown.
const WARM: Duration = Duration::from_millis(200);

/// How much longer than its window a client may take before it counts as hung.
const END_WITHIN: Duration = Duration::from_secs(60);

/// Lines of a proxy's log that are shown when connections failed.
const COMPLAINTS: usize = 3;

/// A slot in which other programs took more than this share of the machine is measured again.
pub(crate) const DISTURBED: f64 = 0.15;

/// How often a slot is measured at most; of several, the least disturbed counts. Chosen by the disturbance and not by the
/// result, so that it favours nobody.
const TRIES: usize = 4;

/// Connections of the bulk load that a ping-pong runs beside.
pub(crate) const BESIDE: usize = 4;

/// What is measured in one slot; the number is that of connections or clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Measurement {
    Bulk(usize),
    PingPong(usize),
    Connect(usize),
    /// A ping-pong on one connection while [`BESIDE`] others carry bulk data.
    Beside,
}

/// A figure of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    GigabitsPerSecond,
    OperationsPerSecond,
    P50Microseconds,
    P99Microseconds,
    /// Seconds per GB, microseconds per operation.
    ProxyCpu,
    /// Of everything on the machine, per the same unit.
    MachineCpu,
}

/// How long a load runs before it is measured, and how long it is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) warm: Duration,
    pub(crate) length: Duration,
}

/// What one slot gave.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Slot {
    pub(crate) round: usize,
    #[serde(serialize_with = "by_label")]
    pub(crate) measurement: Measurement,
    pub(crate) variant: &'static str,
    pub(crate) values: BTreeMap<Metric, f64>,
    /// Connections that failed.
    pub(crate) failed: u64,
    /// The share of the machine that went to programs that are no part of the measurement.
    pub(crate) others: f64,
    /// The share of the machine that the hypervisor gave away.
    pub(crate) stolen: f64,
}

/// Measures everything `rounds` times.
pub(crate) fn rounds(
    cluster: &Cluster,
    measurements: &[Measurement],
    rounds: usize,
    length: Duration,
) -> anyhow::Result<Vec<Slot>> {
    let besides = measurements.contains(&Measurement::Beside);
    let mut cells: Vec<_> = measurements
        .iter()
        .flat_map(|measurement| cluster.variants.iter().map(|variant| (*measurement, variant)))
        .filter(|(measurement, variant)| variant.plan.takes(*measurement, besides))
        .collect();
    let mut slots = Vec::new();
    for round in 0..if cells.is_empty() { 0 } else { rounds } {
        say(&format!("round {} of {rounds}: {} measurements", round + 1, cells.len()));
        for (measurement, variant) in &cells {
            let slot = least_disturbed(variant, *measurement, round, length);
            slots.push(slot.with_context(|| format!("{} of {}", measurement.label(), variant.plan.name))?);
        }
        cells.reverse();
    }
    Ok(slots)
}

fn least_disturbed(
    variant: &Variant,
    measurement: Measurement,
    round: usize,
    length: Duration,
) -> anyhow::Result<Slot> {
    let mut best: Option<Slot> = None;
    let mut failed = 0;
    for _ in 0..TRIES {
        let slot = slot(variant, measurement, round, Window { warm: WARM, length })?;
        failed += slot.failed;
        if best.as_ref().is_none_or(|best| slot.others < best.others) {
            best = Some(slot);
        }
        if best.as_ref().is_some_and(|best| best.others <= DISTURBED) {
            break;
        }
    }
    let best = best.context("nothing was tried")?;
    // A failure counts wherever it happened.
    Ok(Slot { failed, ..best })
}

/// Runs a load on a variant to its end.
pub(crate) fn run(
    variant: &Variant,
    kind: Kind,
    connections: usize,
    window: Window,
) -> anyhow::Result<Report> {
    finish(&start(variant, kind, connections, window)?, window)
}

impl Measurement {
    /// What these parts consist of, in the order of the tables.
    pub(crate) fn of(parts: &[Part]) -> Vec<Self> {
        let mut all: Vec<_> = parts
            .iter()
            .flat_map(|part| match part {
                Part::Bulk => vec![Self::Bulk(1), Self::Bulk(4), Self::Bulk(16)],
                Part::PingPong => vec![Self::PingPong(1), Self::PingPong(32)],
                Part::Connect => vec![Self::Connect(1), Self::Connect(16)],
                // What the figures beside each other are compared with comes along.
                Part::Beside => vec![Self::Bulk(BESIDE), Self::PingPong(1), Self::Beside],
                Part::Memory | Part::Enrolment => vec![],
            })
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// A short name.
    pub(crate) fn label(self) -> String {
        match self {
            Self::Bulk(n) => format!("bulk-{n}"),
            Self::PingPong(n) => format!("ping-pong-{n}"),
            Self::Connect(n) => format!("connect-{n}"),
            Self::Beside => "beside".into(),
        }
    }
}

fn by_label<S: serde::Serializer>(measurement: &Measurement, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&measurement.label())
}

fn slot(variant: &Variant, measurement: Measurement, round: usize, window: Window) -> anyhow::Result<Slot> {
    ensure!(variant.app.is_running(), "the server ended: {:?}", variant.app.output());
    let (report, values) = match measurement {
        Measurement::Bulk(n) => with_values(run(variant, Kind::Bulk, n, window)?, bulk_values),
        Measurement::PingPong(n) => with_values(run(variant, Kind::PingPong, n, window)?, operation_values),
        Measurement::Connect(n) => with_values(run(variant, Kind::Connect, n, window)?, operation_values),
        Measurement::Beside => {
            let bulk = start(variant, Kind::Bulk, BESIDE, window)?;
            let ping = start(variant, Kind::PingPong, 1, window)?;
            let (mut bulk, ping) = (finish(&bulk, window)?, finish(&ping, window)?);
            let mut values = bulk_values(&bulk);
            // Neither client knows the other. Their windows are the same but for the time that starting one takes.
            bulk.cpu.apps += ping.own_cpu;
            values.extend([(Metric::P50Microseconds, ping.p50_us), (Metric::P99Microseconds, ping.p99_us)]);
            values.insert(Metric::OperationsPerSecond, ping.operations as f64 / ping.seconds);
            (bulk, values)
        }
    };
    if let Some(failure) = &report.failure {
        say(&format!(
            "{} of {}: {} connections failed, the first: {failure}",
            measurement.label(),
            variant.plan.name,
            report.failed
        ));
        say_complaints(variant);
    }
    let capacity = report.seconds * std::thread::available_parallelism()?.get() as f64;
    let others = report.cpu.others() / capacity;
    let stolen = report.cpu.stolen / capacity;
    Ok(Slot { round, measurement, variant: variant.plan.name, values, failed: report.failed, others, stolen })
}

/// What the proxies logged of late about connections that failed.
fn say_complaints(variant: &Variant) {
    for proxy in &variant.proxies {
        let output = proxy.output();
        let lines = output.stdout.lines().chain(output.stderr.lines()).filter(|line| line.contains("error"));
        let lines: Vec<_> = lines.collect();
        for line in lines.iter().rev().take(COMPLAINTS) {
            say(&format!("  process {}: {line}", proxy.pid()));
        }
    }
}

fn with_values(
    report: Report,
    values: impl FnOnce(&Report) -> BTreeMap<Metric, f64>,
) -> (Report, BTreeMap<Metric, f64>) {
    let values = values(&report);
    (report, values)
}

fn bulk_values(report: &Report) -> BTreeMap<Metric, f64> {
    let gigabytes = report.bytes as f64 / 1e9;
    BTreeMap::from([
        (Metric::GigabitsPerSecond, gigabytes * 8.0 / report.seconds),
        (Metric::ProxyCpu, report.cpu.proxies / gigabytes),
        (Metric::MachineCpu, report.cpu.machine / gigabytes),
    ])
}

fn operation_values(report: &Report) -> BTreeMap<Metric, f64> {
    let operations = report.operations as f64;
    BTreeMap::from([
        (Metric::OperationsPerSecond, operations / report.seconds),
        (Metric::P50Microseconds, report.p50_us),
        (Metric::P99Microseconds, report.p99_us),
        (Metric::ProxyCpu, report.cpu.proxies * 1e6 / operations),
        (Metric::MachineCpu, report.cpu.machine * 1e6 / operations),
    ])
}

fn start(variant: &Variant, kind: Kind, connections: usize, window: Window) -> anyhow::Result<Process> {
    let word = match kind {
        Kind::Bulk => "bulk",
        Kind::Connect => "connect",
        Kind::Idle => "idle",
        Kind::PingPong => "ping-pong",
        Kind::Probe => "probe",
    };
    let mut args = vec!["app-client".to_owned(), word.to_owned()];
    let mut set = |name: &str, value: String| args.extend([format!("--{name}"), value]);
    set("to", variant.address(kind).to_string());
    set("connections", connections.to_string());
    set("warm-ms", window.warm.as_millis().to_string());
    set("for-ms", window.length.as_millis().to_string());
    // This process reads what the proxies log.
    set("apps", format!("{},{}", variant.app.pid(), std::process::id()));
    if !variant.proxies.is_empty() {
        let pids: Vec<_> = variant.proxies.iter().map(|proxy| proxy.pid().to_string()).collect();
        set("proxies", pids.join(","));
    }
    Ok(variant.client.spawn(own_program()?.args(args))?)
}

/// Starts a load that goes on until it is killed.
pub(crate) fn start_steady(variant: &Variant, kind: Kind, connections: usize) -> anyhow::Result<Process> {
    start(variant, kind, connections, Window { warm: Duration::ZERO, length: Duration::ZERO })
}

fn finish(client: &Process, window: Window) -> anyhow::Result<Report> {
    let output =
        client.wait(window.warm + window.length + END_WITHIN).inspect_err(|_| drop(client.kill()))?;
    ensure!(output.success(), "`{}` failed: {}", client.command(), output.stderr.trim());
    serde_json::from_str(&output.stdout).with_context(|| format!("read {:?}", output.stdout))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::meter::Cpu;

    fn report() -> Report {
        let cpu = Cpu { proxies: 1.0, apps: 0.5, machine: 2.0, stolen: 0.0 };
        let (bytes, operations) = (2_000_000_000, 100_000);
        let (p50_us, p99_us, max_us) = (7.0, 9.0, 10.0);
        Report {
            seconds: 0.5,
            bytes,
            operations,
            failed: 0,
            failure: None,
            p50_us,
            p99_us,
            max_us,
            cpu,
            own_cpu: 0.1,
        }
    }

    #[test]
    fn bulk_is_counted_in_bits_and_paid_for_in_bytes() {
        let values = bulk_values(&report());
        assert_eq!(values[&Metric::GigabitsPerSecond], 32.0);
        assert_eq!((values[&Metric::ProxyCpu], values[&Metric::MachineCpu]), (0.5, 1.0));
    }

    #[test]
    fn operations_are_paid_for_one_by_one() {
        let values = operation_values(&report());
        assert_eq!(values[&Metric::OperationsPerSecond], 200_000.0);
        assert_eq!((values[&Metric::ProxyCpu], values[&Metric::MachineCpu]), (10.0, 20.0));
    }

    #[test]
    fn a_ping_pong_beside_others_brings_what_it_is_compared_with() {
        let expected = [Measurement::Bulk(4), Measurement::PingPong(1), Measurement::Beside];
        assert_eq!(Measurement::of(&[Part::Beside]), expected);
        assert_eq!(Measurement::of(&[Part::Beside, Part::PingPong, Part::Bulk]).len(), 6);
    }
}
