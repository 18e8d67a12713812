//! How often something may happen: a token bucket per key, told the time. Owns no clock and no waiting. Keys are
//! few (names that were proven, or none), so none is forgotten.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

/// So many at once, and then one per `every`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    /// At once, after a long silence.
    pub(crate) burst: u32,
    /// The steady pace.
    pub(crate) every: Duration,
}

/// What each key has left of its allowance.
#[derive(Debug)]
pub(crate) struct Rates<K> {
    allowance: Allowance,
    /// When each key's bucket will be full again. A key that is not here has a full one.
    full_at: HashMap<K, Duration>,
}

impl<K: Eq + Hash + Clone> Rates<K> {
    pub(crate) fn new(allowance: Allowance) -> Self {
        Self { allowance, full_at: HashMap::new() }
    }

    /// Whether `key` may once more, `now` being counted from any fixed moment. Counts it when it may.
    pub(crate) fn allow(&mut self, key: &K, now: Duration) -> bool {
        let Allowance { burst, every } = self.allowance;
        let full_at = self.full_at.get(key).copied().unwrap_or(now).max(now);
        if full_at + every > now + every * burst {
            return false;
        }
        self.full_at.insert(key.clone(), full_at + every);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_pace() {
        let mut rates = Rates::new(Allowance { burst: 3, every: Duration::from_secs(10) });
        let mut allowed = |key: &str, at: u64| rates.allow(&key.to_owned(), Duration::from_secs(at));
        assert_eq!([0, 0, 0, 0].map(|at| allowed("a", at)), [true, true, true, false]);
        assert!(allowed("b", 0), "others have their own");
        assert!(!allowed("a", 9));
        assert!(allowed("a", 10));
        assert!(!allowed("a", 10));
        assert_eq!([100, 100, 100, 100].map(|at| allowed("a", at)), [true, true, true, false]);
    }
}
