//! `bench node`: the node proxy in a lab on this machine, against no mesh and, if its path is given, another proxy.
//!
//! Owns the order of things: set all variants up, memory before any traffic, then the rounds, then enrolment in a lab of
//! its own. Every variant has nodes and pods of its own and is idle while another is measured.

mod enrolment;
mod measure;
mod memory;
mod peer;
mod report;
mod variants;
mod zds;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use lab::Tuning;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;

use crate::machine;
use measure::Measurement;
use report::Results;
use variants::Cluster;

/// Files that each process may have open, if the machine lets us: what container runtimes give (`fs.nr_open`).
const OPEN_FILES: u64 = 1 << 20;

/// What to measure, and how long.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The executable of another ztunnel that speaks ZDS and delta xDS, to be measured in the same rounds
    #[arg(long)]
    peer: Option<PathBuf>,
    /// How often every cell is measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The length of a measurement window
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Where to write everything that was measured, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// The congestion control of the pods and nodes: reno shows what the software costs, as-found what the machine does
    #[arg(long, value_enum, default_value_t = Congestion::Reno)]
    congestion: Congestion,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Only these variants, by name (such as airglow-cross), and those without a mesh
    #[arg(long, value_delimiter = ',')]
    variants: Vec<String>,
}

/// Which congestion control is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Congestion {
    AsFound,
    Reno,
}

/// A part of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Part {
    /// Throughput of 1, 4 and 16 connections
    Bulk,
    /// A small message back and forth on 1 and 32 connections
    PingPong,
    /// New connections by 1 and 16 clients
    Connect,
    /// A ping-pong beside 4 bulk connections
    Beside,
    /// Resident memory idle and with 10,000 idle connections
    Memory,
    /// From the label to the first encrypted byte
    Enrolment,
}

/// Measures what was asked for and prints it.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.rounds > 0, "--rounds must be at least 1");
    let window = Duration::try_from_secs_f64(args.seconds).context("--seconds is not a length of time")?;
    ensure!(window >= Duration::from_millis(50), "--seconds must be at least 0.05: CPU time comes in ticks");
    let open_files = raise_open_files()?;
    let parts = if args.only.is_empty() { Part::value_variants().to_vec() } else { args.only.clone() };
    let measurements = Measurement::of(&parts);
    let plans = variants::plans(args.peer.is_some(), &args.variants)?;
    let mut results = Results::new(args, machine::describe()?);
    if parts.contains(&Part::Memory) || !measurements.is_empty() {
        let cluster = Cluster::start(&plans, args.peer.as_deref(), args.congestion.tuning())?;
        results.variants = cluster.variants.iter().map(|variant| variant.describe()).collect();
        if parts.contains(&Part::Memory) {
            results.memory = memory::measure(&cluster, open_files)?;
        }
        results.slots = measure::rounds(&cluster, &measurements, args.rounds, window)?;
        cluster.end()?;
    }
    if parts.contains(&Part::Enrolment) {
        results.enrolment = Some(enrolment::measure(args.congestion.tuning())?);
    }
    print!("{}", results.to_markdown());
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&results)?;
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

impl Congestion {
    fn tuning(self) -> Tuning {
        let bench = Tuning::bench();
        match self {
            Self::Reno => bench,
            Self::AsFound => Tuning { congestion_control: None, ..bench },
        }
    }
}

/// How many files each process may have open from now on. What we start inherits it.
fn raise_open_files() -> anyhow::Result<u64> {
    if setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES).is_ok() {
        return Ok(OPEN_FILES);
    }
    // Without CAP_SYS_RESOURCE, as in many containers, the hard limit is the end.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
        .context("raise the limit of open files to the hard limit")?;
    Ok(hard)
}

/// Says what is being done, beside the results on stdout.
fn say(text: &str) {
    eprintln!("bench: {text}");
}
