//! What the kernel knows about this process: file descriptors, memory, processor time.
//!
//! Read from `/proc/self` when somebody asks for metrics. A file that cannot be read or parsed yields zero, because a scrape must
//! not fail for it.

use std::fs;

use super::Metrics;

/// Ticks per second in `/proc/*/stat`: USER_HZ, which is 100 on every architecture that we build for.
const TICKS_PER_SECOND: u64 = 100;

/// Registers `process_*` metrics.
pub fn register_process_metrics(metrics: &Metrics) {
    metrics.register_gauge_fn("process_open_fds", "Open file descriptors", open_fds);
    metrics.register_gauge_fn("process_max_fds", "Limit of open file descriptors", || {
        fs::read_to_string("/proc/self/limits").ok().and_then(|text| max_fds(&text)).unwrap_or(0)
    });
    metrics.register_gauge_fn("process_resident_memory_bytes", "Resident memory", || {
        fs::read_to_string("/proc/self/status").ok().and_then(|text| resident_bytes(&text)).unwrap_or(0)
    });
    metrics.register_counter_fn("process_cpu_milliseconds", "User and system processor time", || {
        fs::read_to_string("/proc/self/stat").ok().and_then(|text| cpu_ms(&text)).unwrap_or(0)
    });
}

fn open_fds() -> u64 {
    fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64)
}

/// `Max open files            1024                 524288               files`: the soft limit.
fn max_fds(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// `VmRSS:      1234 kB`
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Fields 14 and 15 of proc(5) stat, counted after the name, which may hold spaces and parentheses.
fn cpu_ms(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) * 1000 / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_understood() {
        let limits = "Max processes  5 6 processes\nMax open files            1024   524288   files\n";
        assert_eq!(max_fds(limits), Some(1024));
        assert_eq!(max_fds("Max open files  unlimited  unlimited files"), None);
        assert_eq!(resident_bytes("VmHWM:  9 kB\nVmRSS:\t  12 kB\n"), Some(12_288));
        let stat = "42 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0";
        assert_eq!(cpu_ms(stat), Some(2_000));
    }

    #[test]
    fn this_process_has_numbers() {
        let metrics = Metrics::new();
        register_process_metrics(&metrics);
        let text = metrics.encode();
        for name in ["process_open_fds", "process_max_fds", "process_resident_memory_bytes"] {
            let value = text.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).unwrap();
            assert_ne!(value, "0", "{name}");
        }
        assert!(text.contains("process_cpu_milliseconds_total "), "{text}");
    }
}
