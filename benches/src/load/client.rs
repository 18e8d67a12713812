//! The client of every load: keeps it up for a while, measures a window of it, and prints one line of JSON.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::bulk::Bulk;
use super::connect::Connect;
use super::meter::{self, Cpu, Watched};
use super::ping_pong::PingPong;
use super::{Load, Tally, steady};
use crate::stats::percentile;

/// What to do, with whom, for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(value_enum)]
    kind: Kind,
    /// The server
    #[arg(long)]
    to: SocketAddr,
    /// How many connections, or clients
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Milliseconds of load before the window
    #[arg(long, default_value_t = 0)]
    warm_ms: u64,
    /// Milliseconds of the window
    #[arg(long, default_value_t = 1000)]
    for_ms: u64,
    #[command(flatten)]
    watched: Watched,
}

/// Which load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    Bulk,
    Connect,
    Idle,
    PingPong,
    Probe,
}

/// What was measured in the window.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) seconds: f64,
    pub(crate) bytes: u64,
    pub(crate) operations: u64,
    pub(crate) failed: u64,
    /// How the first of these failed.
    pub(crate) failure: Option<String>,
    /// Microseconds; 0 where nothing was timed.
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
    pub(crate) cpu: Cpu,
    /// CPU seconds of the client itself, which are among those of the apps.
    pub(crate) own_cpu: f64,
}

/// Does what was asked for.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let (to, connections) = (args.to, args.connections);
    let report = match args.kind {
        Kind::Bulk => window(&mut Bulk::new(to, connections)?, args),
        Kind::Connect => window(&mut Connect::new(to, connections)?, args),
        Kind::PingPong => window(&mut PingPong::new(to, connections)?, args),
        Kind::Idle => return Ok(steady::idle(to, connections)?),
        Kind::Probe => return Ok(steady::probe(to)?),
    }?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn window(load: &mut dyn Load, args: &Args) -> io::Result<Report> {
    keep_up(load, Instant::now() + Duration::from_millis(args.warm_ms))?;
    // Reading takes a part of a millisecond in which the proxies go on; it is counted as their time, not as work.
    let (before, own_before) = (meter::read(&args.watched)?, meter::read_own()?);
    let began = Instant::now();
    drop(load.take());
    keep_up(load, began + Duration::from_millis(args.for_ms))?;
    let tally = load.take();
    let seconds = began.elapsed().as_secs_f64();
    let own_cpu = meter::read_own()? - own_before;
    Ok(Report { own_cpu, ..report(tally, seconds, meter::read(&args.watched)?.since(before)) })
}

fn keep_up(load: &mut dyn Load, until: Instant) -> io::Result<()> {
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        load.turn(left)?;
    }
    Ok(())
}

/// What a window's tally comes to.
pub(crate) fn report(tally: Tally, seconds: f64, cpu: Cpu) -> Report {
    let Tally { bytes, operations, failed, failure, mut latencies } = tally;
    let mut at = |p| percentile(&mut latencies, p).unwrap_or(0) as f64 / 1e3;
    let (p50_us, p99_us, max_us) = (at(0.5), at(0.99), at(1.0));
    Report { seconds, bytes, operations, failed, failure, p50_us, p99_us, max_us, cpu, own_cpu: 0.0 }
}
