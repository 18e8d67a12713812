//! CPU time of chosen processes and of the whole machine, from /proc.
//!
//! Read by the load's client at the edges of its own window, so that time and work belong to the same span.

use std::fs;
use std::io;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};
use serde::{Deserialize, Serialize};

/// Which processes are read.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Watched {
    /// Processes of the mesh
    #[arg(long, value_delimiter = ',')]
    pub(crate) proxies: Vec<u32>,
    /// The load's other processes; the client adds itself
    #[arg(long, value_delimiter = ',')]
    pub(crate) apps: Vec<u32>,
}

/// CPU seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cpu {
    pub(crate) proxies: f64,
    pub(crate) apps: f64,
    /// Everything that ran on the machine, these included. Counted in ticks, so coarse in short windows.
    pub(crate) machine: f64,
    /// What the hypervisor gave to others while something here wanted to run.
    pub(crate) stolen: f64,
}

impl Cpu {
    /// The time between two readings.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            proxies: self.proxies - before.proxies,
            apps: self.apps - before.apps,
            machine: self.machine - before.machine,
            stolen: self.stolen - before.stolen,
        }
    }

    /// What neither the load nor the proxies account for: other programs, and interrupts that hit idle processors.
    pub(crate) fn others(self) -> f64 {
        (self.machine - self.proxies - self.apps).max(0.0)
    }
}

/// Reads now.
pub(crate) fn read(watched: &Watched) -> io::Result<Cpu> {
    let sum = |pids: &[u32]| pids.iter().map(|pid| of_process(*pid)).sum::<io::Result<f64>>();
    let (machine, stolen) = of_machine()?;
    Ok(Cpu { proxies: sum(&watched.proxies)?, apps: sum(&watched.apps)? + read_own()?, machine, stolen })
}

/// CPU seconds of this process.
pub(crate) fn read_own() -> io::Result<f64> {
    of_process(std::process::id())
}

/// CPU seconds of all threads of a process, in the scheduler's own nanoseconds.
fn of_process(pid: u32) -> io::Result<f64> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("process {pid} is gone: {error}"));
    let mut total = Duration::ZERO;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).map_err(named)? {
        let path = thread?.path().join("schedstat");
        // A thread may end between the two calls.
        let text = fs::read_to_string(path).unwrap_or_default();
        total += Duration::from_nanos(first_number(&text).unwrap_or(0));
    }
    Ok(total.as_secs_f64())
}

/// Busy and stolen CPU seconds of the machine since its start.
fn of_machine() -> io::Result<(f64, f64)> {
    let per_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100) as f64;
    let text = fs::read_to_string("/proc/stat")?;
    let ticks = parse_stat(&text)
        .ok_or_else(|| io::Error::other("/proc/stat does not begin with eight numbers of ticks"))?;
    Ok((ticks.0 as f64 / per_second, ticks.1 as f64 / per_second))
}

/// Busy and stolen ticks of the first line of /proc/stat (proc_stat(5)): everything but idle, iowait and steal is busy.
fn parse_stat(text: &str) -> Option<(u64, u64)> {
    let mut fields = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace().map(str::parse::<u64>);
    let mut next = || fields.next()?.ok();
    let (user, nice, system) = (next()?, next()?, next()?);
    let (_idle, _iowait) = (next()?, next()?);
    let (irq, softirq, steal) = (next()?, next()?, next()?);
    Some((user + nice + system + irq + softirq, steal))
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_not_work() {
        let text = "cpu  10 1 20 5000 300 4 6 7 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(parse_stat(text), Some((41, 7)));
        assert_eq!(parse_stat("intr 1 2 3"), None);
        assert_eq!(parse_stat("cpu  1 2"), None);
    }

    #[test]
    fn own_work_is_seen() {
        let watched = Watched { proxies: vec![std::process::id()], apps: vec![] };
        let before = read(&watched).unwrap();
        let mut sum = 0_u64;
        while read(&watched).unwrap().since(before).proxies < 0.02 {
            sum = (0..100_000).fold(sum, |sum: u64, n| sum.wrapping_mul(31).wrapping_add(n));
        }
        assert!(read(&watched).unwrap().since(before).machine > 0.0, "{sum}");
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        let watched = Watched { proxies: vec![u32::MAX], apps: vec![] };
        assert!(read(&watched).unwrap_err().to_string().contains("is gone"));
    }
}
