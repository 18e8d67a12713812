//! `bench waypoint`: our waypoint in a lab on this machine, beside Envoy if its path is given.
//!
//! Owns the order of things. Both proxies stand side by side, follow the same routes, and are idle while the other is measured.

mod abuse;
mod certificates;
mod envoy;
mod ground;
pub(crate) mod load;
mod manifests;
mod measure;
pub(crate) mod plain;
mod report;
mod scale;
mod shapes;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::machine;
use ground::Ground;
use report::Results;
use shapes::SHAPES;

/// What to measure, and how long.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The executable of Envoy, to be measured in the same rounds with one worker
    #[arg(long)]
    envoy: Option<PathBuf>,
    /// How often every cell is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// The length of a measurement window
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Where to write everything that was measured, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Only the shapes whose names begin so (such as hbone or h2-4x32)
    #[arg(long, value_delimiter = ',')]
    shapes: Vec<String>,
    /// Only the abuses whose names begin so
    #[arg(long, value_delimiter = ',')]
    abuses: Vec<String>,
}

/// A part of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// Processor time, rates and latencies by shape
    Shapes,
    /// Resident memory: idle, with 1,000 idle tunnels, with 1,000 routes, with 10,000 endpoints
    Memory,
    /// Processor time beside 10 to 10,000 routes of the same host
    Routes,
    /// From a route's change to the first answer that follows it
    Change,
    /// Latency of an orderly client and memory while others break the rules
    Abuse,
}

/// Measures what was asked for and prints it.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.rounds > 0, "--rounds must be at least 1");
    let window = Duration::try_from_secs_f64(args.seconds).context("--seconds is not a length of time")?;
    ensure!(window >= Duration::from_millis(50), "--seconds must be at least 0.05");
    let shapes = begins(&SHAPES, |shape| shape.name, &args.shapes)?;
    let abuses = abuse::named(&args.abuses)?;
    let has = |part| args.only.is_empty() || args.only.contains(&part);
    let mut results = Results::new(args, machine::describe()?);
    let mut ground = Ground::start(args.envoy.as_deref())?;
    if has(Part::Memory) {
        results.memory = scale::memory(&ground, &shapes::HBONE)?;
    }
    if has(Part::Shapes) {
        results.slots = measure::rounds(&ground, &shapes, args.rounds, window)?;
    }
    if has(Part::Change) {
        results.change_us = Some(scale::changes(&ground, &shapes::HBONE)?);
    }
    if has(Part::Abuse) {
        results.abused = abuse::rounds(&ground, &abuses, (args.rounds, window))?;
    }
    if has(Part::Routes) {
        results.crowded = scale::crowded(&mut ground, &shapes::HBONE, (args.rounds, window))?;
    }
    ground.end()?;
    print!("{}", results.to_markdown());
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&results)?;
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Those whose names begin with one of these; all without any.
fn begins<T: Clone>(
    all: &[T],
    name: impl Fn(&T) -> &'static str,
    named: &[String],
) -> anyhow::Result<Vec<T>> {
    for begin in named {
        let names: Vec<_> = all.iter().map(&name).collect();
        let is_known = names.iter().any(|name| name.starts_with(begin.as_str()));
        ensure!(is_known, "nothing is called {begin}; there are {}", names.join(", "));
    }
    let is_asked_for =
        |one: &&T| named.is_empty() || named.iter().any(|begin| name(one).starts_with(begin.as_str()));
    Ok(all.iter().filter(is_asked_for).cloned().collect())
}

/// Says what is being done, beside the results on stdout.
fn say(text: &str) {
    eprintln!("bench: {text}");
}
