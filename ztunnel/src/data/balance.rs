//! What one data thread knows of endpoints: how many of its connections each carries, and which failed lately.
//!
//! Feeds `model::route`'s choice; makes none itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::route::{Load, Pick};
use model::workload::WorkloadUid;
use parking_lot::Mutex;

/// How long a failed connect counts against an endpoint: longer than a pod takes to be announced as gone, short enough
/// that one that recovered is used again soon.
const FAILURE_MEMORY: Duration = Duration::from_secs(10);
/// Endpoints remembered before idle ones are swept out.
const SWEEP_AT: usize = 4096;

/// Connections and failures per endpoint, of one thread. The lock is this thread's alone and so never waited for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Balance(Arc<Mutex<HashMap<WorkloadUid, Record>>>);

#[derive(Debug, Default)]
struct Record {
    outstanding: u32,
    failures: u32,
    last_failure: Option<Instant>,
}

impl Record {
    fn recent_failures(&self, now: Instant) -> u32 {
        let recent = self.last_failure.is_some_and(|at| now.duration_since(at) < FAILURE_MEMORY);
        if recent { self.failures } else { 0 }
    }
}

/// One connection that counts against an endpoint until it is dropped.
#[derive(Debug)]
pub(crate) struct Outstanding {
    balance: Balance,
    endpoint: WorkloadUid,
}

impl Drop for Outstanding {
    fn drop(&mut self) {
        if let Some(record) = self.balance.0.lock().get_mut(&self.endpoint) {
            record.outstanding = record.outstanding.saturating_sub(1);
        }
    }
}

impl Balance {
    /// Counts a connection to `endpoint`.
    pub(crate) fn connecting(&self, endpoint: &WorkloadUid) -> Outstanding {
        let mut records = self.0.lock();
        if records.len() >= SWEEP_AT {
            let now = Instant::now();
            records.retain(|_, record| record.outstanding > 0 || record.recent_failures(now) > 0);
        }
        records.entry(endpoint.clone()).or_default().outstanding += 1;
        Outstanding { balance: self.clone(), endpoint: endpoint.clone() }
    }

    /// Notes that a connection to `endpoint` could not be made.
    pub(crate) fn failed(&self, endpoint: &WorkloadUid) {
        let now = Instant::now();
        let mut records = self.0.lock();
        let record = records.entry(endpoint.clone()).or_default();
        record.failures = record.recent_failures(now).saturating_add(1);
        record.last_failure = Some(now);
    }

    /// Notes that `endpoint` answered: what failed before no longer counts.
    pub(crate) fn succeeded(&self, endpoint: &WorkloadUid) {
        if let Some(record) = self.0.lock().get_mut(endpoint) {
            record.last_failure = None;
        }
    }
}

impl Pick for Balance {
    fn random(&mut self, below: u32) -> u32 {
        fastrand::u32(..below.max(1))
    }

    fn load(&self, uid: &WorkloadUid) -> Load {
        let records = self.0.lock();
        let record = records.get(uid);
        Load {
            outstanding: record.map_or(0, |record| record.outstanding),
            recent_failures: record.map_or(0, |record| record.recent_failures(Instant::now())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_count_while_they_live_and_failures_until_a_success() {
        let balance = Balance::default();
        let endpoint = WorkloadUid("a".into());
        let first = balance.connecting(&endpoint);
        let second = balance.connecting(&endpoint);
        assert_eq!(balance.load(&endpoint).outstanding, 2);
        drop(first);
        assert_eq!(balance.load(&endpoint).outstanding, 1);
        drop(second);
        balance.failed(&endpoint);
        balance.failed(&endpoint);
        assert_eq!(balance.load(&endpoint).recent_failures, 2);
        balance.succeeded(&endpoint);
        assert_eq!(balance.load(&endpoint).recent_failures, 0);
    }
}
