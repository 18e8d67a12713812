//! Resident memory of the proxies: as they stand before any load, and with many idle connections.

use std::time::Duration;

use anyhow::Context as _;
use lab::Process;
use serde::Serialize;

use super::measure::start_steady;
use super::say;
use super::variants::{Cluster, Variant};
use crate::load::client::Kind;
use crate::resident;

/// Connections that are open and silent, as far as the limit of open files allows.
const CONNECTIONS: u64 = 10_000;

/// Files that a proxy needs for other things.
const OTHER_FILES: u64 = 1_000;

/// How long they may take to open, one after the other, on a busy machine.
const OPEN_WITHIN: Duration = Duration::from_secs(180);

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
    let pids: Vec<_> = variant.proxies.iter().map(Process::pid).collect();
    resident::settle(variant.plan.name, &pids)?;
    let idle = resident::bytes(&pids)?;
    let client = start_steady(variant, Kind::Idle, connections)?;
    client.wait_for_line("holding", OPEN_WITHIN).inspect_err(|_| drop(client.kill()))?;
    resident::settle(variant.plan.name, &pids)?;
    let connected = resident::bytes(&pids)?;
    client.kill()?;
    resident::settle(variant.plan.name, &pids)?;
    let after = resident::bytes(&pids)?;
    let proxies = variant.proxies.len();
    Ok(Memory { variant: variant.plan.name, proxies, connections, idle, connected, after })
}
