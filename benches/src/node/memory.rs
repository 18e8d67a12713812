//! Resident memory of the proxies: as they stand before any load, and with many idle connections.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use lab::Process;
use serde::Serialize;

use super::measure::start_steady;
use super::say;
use super::variants::{Cluster, Variant};
use crate::load::client::Kind;
use crate::load::meter::{self, Watched};

/// Connections that are open and silent, as far as the limit of open files allows.
const CONNECTIONS: u64 = 10_000;

/// Files that a proxy needs for other things.
const OTHER_FILES: u64 = 1_000;

/// How long they may take to open, one after the other, on a busy machine.
const OPEN_WITHIN: Duration = Duration::from_secs(180);

/// A proxy has settled when it used less than this share of a processor in [`LOOK`].
const QUIET: f64 = 0.02;
const LOOK: Duration = Duration::from_millis(200);

/// A proxy that is not quiet by now will not be.
const QUIET_WITHIN: Duration = Duration::from_secs(20);

/// What proxies have freed they give back after a while, ours within ten seconds.
const GIVEN_BACK_WITHIN: Duration = Duration::from_secs(12);

/// The resident set of a variant's proxies together, in bytes.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Memory {
    pub(crate) variant: &'static str,
    pub(crate) proxies: usize,
    pub(crate) connections: usize,
    pub(crate) idle: u64,
    pub(crate) connected: u64,
    /// After the connections have ended.
    pub(crate) after: u64,
}

/// Measures every variant that has proxies, one after the other.
pub(crate) fn measure(cluster: &Cluster, open_files: u64) -> anyhow::Result<Vec<Memory>> {
    // A proxy between pods of one node has both ends of each.
    let connections = CONNECTIONS.min(open_files.saturating_sub(OTHER_FILES) / 2);
    if connections < CONNECTIONS {
        say(&format!(
            "processes may have {open_files} open files: {connections} idle connections instead of {CONNECTIONS}"
        ));
    }
    let connections = usize::try_from(connections)?;
    let with_proxies = cluster.variants.iter().filter(|variant| !variant.proxies.is_empty());
    with_proxies
        .map(|variant| of(variant, connections).with_context(|| format!("memory of {}", variant.plan.name)))
        .collect()
}

fn of(variant: &Variant, connections: usize) -> anyhow::Result<Memory> {
    say(&format!("{}: {connections} idle connections", variant.plan.name));
    settle(variant)?;
    let idle = resident(&variant.proxies)?;
    let client = start_steady(variant, Kind::Idle, connections)?;
    client.wait_for_line("holding", OPEN_WITHIN).inspect_err(|_| drop(client.kill()))?;
    settle(variant)?;
    let connected = resident(&variant.proxies)?;
    client.kill()?;
    settle(variant)?;
    let after = resident(&variant.proxies)?;
    let proxies = variant.proxies.len();
    Ok(Memory { variant: variant.plan.name, proxies, connections, idle, connected, after })
}

/// Waits until the proxies have nothing to do, and have given back what they need no more. One that never rests is
/// measured as it is.
fn settle(variant: &Variant) -> anyhow::Result<()> {
    let proxies = variant.proxies.iter().map(Process::pid).collect();
    let watched = Watched { proxies, apps: vec![] };
    let deadline = Instant::now() + QUIET_WITHIN;
    while Instant::now() < deadline {
        let before = meter::read(&watched)?;
        thread::sleep(LOOK);
        if meter::read(&watched)?.since(before).proxies < QUIET * LOOK.as_secs_f64() {
            thread::sleep(GIVEN_BACK_WITHIN);
            return Ok(());
        }
    }
    say(&format!("the proxies of {} do not come to rest", variant.plan.name));
    Ok(())
}

fn resident(processes: &[Process]) -> anyhow::Result<u64> {
    processes
        .iter()
        .map(|process| {
            let path = format!("/proc/{}/status", process.pid());
            let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            parse_resident(&text).with_context(|| format!("{path} has no VmRSS"))
        })
        .sum()
}

/// Bytes of `VmRSS` in /proc/pid/status (proc_pid_status(5)).
fn parse_resident(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_in_bytes() {
        assert_eq!(parse_resident("VmPeak:\t  10 kB\nVmRSS:\t    2048 kB\n"), Some(2 << 20));
        assert_eq!(parse_resident("VmPeak:\t  10 kB\n"), None);
    }
}
