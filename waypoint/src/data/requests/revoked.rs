//! Requests under way, woken when policies have changed, so that each looks again at whether its client is denied.
//!
//! Knows no policy. A request that is over before its policies change costs an entry in a table and no more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context as Task, Waker};

use parking_lot::Mutex;
use slab::Slab;

use crate::data::Context;

/// Those of one thread. The lock is this thread's alone and so never waited for.
#[derive(Debug, Default)]
pub(crate) struct Revocations {
    /// How often policies have changed.
    changes: AtomicU64,
    waiting: Mutex<Slab<Waker>>,
}

/// One request, from before the first look at its policies.
#[derive(Debug)]
pub(super) struct Judged {
    of: Arc<Revocations>,
    /// The changes by which it was judged.
    by: u64,
    entry: Option<usize>,
}

impl Judged {
    /// To be made before policies are looked at, so that no change falls between.
    pub(super) fn begin(of: &Arc<Revocations>) -> Self {
        Self { of: Arc::clone(of), by: of.changes.load(Relaxed), entry: None }
    }

    /// Whether policies have changed since this was asked before. From now on the task is woken when they do: it must stay the same
    /// one.
    pub(super) fn is_outdated(&mut self, cx: &Task<'_>) -> bool {
        self.entry.get_or_insert_with(|| self.of.waiting.lock().insert(cx.waker().clone()));
        let changes = self.of.changes.load(Relaxed);
        std::mem::replace(&mut self.by, changes) != changes
    }
}

impl Drop for Judged {
    fn drop(&mut self) {
        if let Some(entry) = self.entry {
            self.of.waiting.lock().remove(entry);
        }
    }
}

/// Wakes the requests of a thread whenever policies have changed, as long as somebody tells.
pub(crate) async fn follow(context: Arc<Context>) {
    let mut policies = context.shared.policies.clone();
    while policies.changed().await.is_ok() {
        context.revocations.changes.fetch_add(1, Relaxed);
        context.revocations.waiting.lock().iter().for_each(|(_, waker)| waker.wake_by_ref());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_once_and_one_before_the_first_look_as_well() {
        let all = Arc::new(Revocations::default());
        let cx = Task::from_waker(Waker::noop());
        let mut first = Judged::begin(&all);
        all.changes.fetch_add(1, Relaxed);
        let mut second = Judged::begin(&all);
        assert!(first.is_outdated(&cx), "policies have changed after it was begun");
        assert!(!first.is_outdated(&cx) && !second.is_outdated(&cx));
        all.changes.fetch_add(1, Relaxed);
        assert!(first.is_outdated(&cx) && second.is_outdated(&cx));
        assert_eq!(all.waiting.lock().len(), 2);
        drop((first, second));
        assert!(all.waiting.lock().is_empty(), "nothing is left of those that are over");
    }
}
