//! Resident memory of processes that have come to rest.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::load::meter::{self, Watched};

/// A process has settled when it used less than this share of a processor in [`LOOK`].
const QUIET: f64 = 0.02;
const LOOK: Duration = Duration::from_millis(200);

/// One that is not quiet by now will not be.
const QUIET_WITHIN: Duration = Duration::from_secs(20);

/// What proxies have freed they give back after a while, ours within ten seconds.
const GIVEN_BACK_WITHIN: Duration = Duration::from_secs(12);

/// Waits until these processes have nothing to do, and have given back what they need no more. One that never rests is
/// measured as it is.
pub(crate) fn settle(name: &str, pids: &[u32]) -> anyhow::Result<()> {
    let watched = Watched { proxies: pids.to_vec(), apps: vec![] };
    let deadline = Instant::now() + QUIET_WITHIN;
    while Instant::now() < deadline {
        let before = meter::read(&watched)?;
        thread::sleep(LOOK);
        if meter::read(&watched)?.since(before).proxies < QUIET * LOOK.as_secs_f64() {
            thread::sleep(GIVEN_BACK_WITHIN);
            return Ok(());
        }
    }
    eprintln!("bench: the proxies of {name} do not come to rest");
    Ok(())
}

/// The resident set of these processes together.
pub(crate) fn bytes(pids: &[u32]) -> anyhow::Result<u64> {
    pids.iter()
        .map(|pid| {
            let path = format!("/proc/{pid}/status");
            let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            parse(&text, "VmRSS").with_context(|| format!("{path} has no VmRSS"))
        })
        .sum()
}

/// The largest resident set of a process since [`forget_peak`].
pub(crate) fn peak(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    parse(&text, "VmHWM").with_context(|| format!("{path} has no VmHWM"))
}

/// Begins to watch for the peak (proc_pid_clear_refs(5)).
pub(crate) fn forget_peak(pid: u32) -> anyhow::Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, "5").with_context(|| format!("write {path}"))
}

/// Bytes of such a line in /proc/pid/status (proc_pid_status(5)).
fn parse(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_in_bytes() {
        assert_eq!(parse("VmPeak:\t  10 kB\nVmRSS:\t    2048 kB\n", "VmRSS"), Some(2 << 20));
        assert_eq!(parse("VmPeak:\t  10 kB\n", "VmRSS"), None);
    }
}
