//! Readiness: a set of named latches. The process is ready when every latch has been released.
//!
//! A latch is released by dropping it, so that the part which becomes ready needs to know nothing but the latch it was given.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// Which parts are still pending, each name with the number of its latches.
type Pending = BTreeMap<String, usize>;

/// The set of latches of one process. Clones share it.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<Pending>>);

/// Keeps the process from being ready until it is dropped.
#[derive(Debug)]
#[must_use = "dropping a latch releases it"]
pub struct Latch {
    name: String,
    readiness: Readiness,
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// Nothing is pending.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Pending::new())))
    }

    /// From now on the process is not ready, because of `name`, until the latch is dropped. Taken before the part it
    /// stands for is started, or there would be a moment of false readiness.
    pub fn latch(&self, name: impl Into<String>) -> Latch {
        let name = name.into();
        self.0.send_modify(|pending| *pending.entry(name.clone()).or_default() += 1);
        Latch { name, readiness: self.clone() }
    }

    /// The names that are still pending, sorted. Empty: ready.
    pub fn pending(&self) -> Vec<String> {
        self.0.borrow().keys().cloned().collect()
    }

    /// Whether nothing is pending.
    pub fn is_ready(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Waits until nothing is pending.
    pub async fn ready(&self) {
        let mut changes = self.0.subscribe();
        changes.wait_for(Pending::is_empty).await.map(|_| ()).expect("self holds the sender");
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        self.readiness.0.send_modify(|pending| {
            if let Some(count) = pending.get_mut(&self.name) {
                *count -= 1;
                if *count == 0 {
                    pending.remove(&self.name);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_when_the_last_latch_is_dropped() {
        let readiness = Readiness::new();
        assert!(readiness.is_ready());
        let discovery = readiness.latch("discovery");
        let first = readiness.latch("capture");
        let second = readiness.latch("capture");
        assert_eq!(readiness.pending(), ["capture", "discovery"]);
        drop(first);
        assert_eq!(readiness.pending(), ["capture", "discovery"]);
        drop(second);
        assert_eq!(readiness.pending(), ["discovery"]);
        let waiter = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.ready().await }
        });
        drop(discovery);
        waiter.await.unwrap();
        assert!(readiness.is_ready());
    }

    #[test]
    fn a_process_can_become_unready_again() {
        let readiness = Readiness::new();
        let draining = readiness.latch("draining");
        assert!(!readiness.is_ready());
        drop(draining);
        assert!(readiness.is_ready());
    }
}
