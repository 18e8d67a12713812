//! Which watches fail at present, and the lines in the log about it: one when it begins, one when it ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::super::objects::Kind;

/// Which watches fail, and why. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Failing(Arc<Mutex<BTreeMap<Kind, String>>>);

impl Failing {
    /// How many kinds are not watched at present, so that what is known of them may be out of date.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.with(|failing| failing.len() as u64)
    }

    /// The watch of `kind` does not work. Another reason than before is worth another line.
    pub(super) fn failed(&self, kind: Kind, why: String) {
        let (first, new) = self.with(|failing| {
            let first = failing.is_empty();
            (first, failing.insert(kind, why.clone()).as_ref() != Some(&why))
        });
        if first {
            tracing::warn!(%kind, why, "the API server can't be watched; what is known stays");
        } else if new {
            tracing::info!(%kind, why, "this kind can't be watched either");
        }
    }

    /// The watch of `kind` works.
    pub(super) fn works(&self, kind: Kind) {
        let last = self.with(|failing| failing.remove(&kind).is_some() && failing.is_empty());
        if last {
            tracing::info!("the API server is watched again");
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<Kind, String>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
