//! What is known of one endpoint: requests under way, how long its answers take, and whether it asked to be left alone.
//!
//! Atomics only, shared by every thread. A lost update between two threads costs a little accuracy and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// What an endpoint is taken to need before it has answered once, for each request beside its first, which is always worth a try.
const FIRST_GUESS: Duration = Duration::from_millis(1);

/// How fast old answers are forgotten: after this time without an answer an estimate has fallen to a third. Ten seconds
/// outlast a garbage collection, and not a rollout.
const MEMORY: Duration = Duration::from_secs(10);

/// How long an endpoint that is overloaded is avoided if it does not say: long enough for a queue to empty.
const PENALTY: Duration = Duration::from_secs(1);

/// The longest time for which an endpoint's word (Retry-After) keeps requests away from it: a mistake in one answer must not
/// take an endpoint out for good.
const PENALTY_MAX: Duration = Duration::from_secs(60);

/// What an endpoint that can't be connected to costs: like one that is overloaded, a little longer.
const UNREACHABLE: Duration = Duration::from_secs(5);

/// How a request ended, as far as balancing is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing can be learnt: the client left, or we did not wait.
    Abandoned,
    /// It answered, after this time.
    Answered(Duration),
    /// It answered that it has too much to do (429, 503, gRPC `UNAVAILABLE`), maybe with how long to stay away.
    Overloaded(Option<Duration>),
    /// It did not answer at all.
    Unreachable,
}

/// One endpoint of one service. Times are nanoseconds since whatever moment the caller counts from.
#[derive(Debug, Default)]
pub struct State {
    under_way: AtomicU32,
    /// The estimate as of `seen`; 0 before the first answer.
    latency: AtomicU64,
    seen: AtomicU64,
    shunned_until: AtomicU64,
}

/// One request under way; counts until it is dropped.
#[derive(Debug)]
pub struct Lease(Arc<State>);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Relaxed);
    }
}

impl Lease {
    /// What is known of its endpoint.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.0
    }

    /// Takes in how it ended.
    pub fn ended(self, outcome: Outcome, now: u64) {
        self.0.learn(outcome, now);
    }
}

impl State {
    /// One more request under way.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> Lease {
        self.under_way.fetch_add(1, Relaxed);
        Lease(Arc::clone(self))
    }

    /// Requests under way.
    #[must_use]
    pub fn under_way(&self) -> u32 {
        self.under_way.load(Relaxed)
    }

    /// What another request may be expected to take: the estimate for each that is under way and this one. A request for
    /// peace counts as the time that is left of it. The first request to an endpoint costs nothing: one whose neighbours are
    /// quicker than any guess would else never be tried.
    #[must_use]
    pub fn cost(&self, now: u64) -> f64 {
        let peace = self.shunned_until.load(Relaxed).saturating_sub(now) as f64;
        let under_way = self.under_way();
        if under_way == 0 && self.latency.load(Relaxed) == 0 {
            return peace;
        }
        self.estimate(now).max(peace) * (f64::from(under_way) + 1.0)
    }

    /// Takes in how a request ended.
    pub fn learn(&self, outcome: Outcome, now: u64) {
        match outcome {
            Outcome::Abandoned => {}
            Outcome::Answered(after) => self.observe(nanos(after), now),
            Outcome::Overloaded(wait) => self.shun(wait.unwrap_or(PENALTY).min(PENALTY_MAX), now),
            Outcome::Unreachable => self.shun(UNREACHABLE, now),
        }
    }

    /// Peak-sensitive: a slow answer counts at once and in full, fast ones only bit by bit.
    fn observe(&self, latency: u64, now: u64) {
        let (old, weight) = (self.estimate(now), self.weight(now));
        let sample = latency as f64;
        let first = self.latency.load(Relaxed) == 0;
        let new = if first || sample > old { sample } else { old * weight + sample * (1.0 - weight) };
        self.latency.store((new as u64).max(1), Relaxed);
        self.seen.store(now, Relaxed);
    }

    fn shun(&self, wait: Duration, now: u64) {
        self.shunned_until.fetch_max(now.saturating_add(nanos(wait)), Relaxed);
    }

    /// The estimate, fallen since the last answer, so that a slow endpoint is tried again.
    fn estimate(&self, now: u64) -> f64 {
        match self.latency.load(Relaxed) {
            0 => nanos(FIRST_GUESS) as f64,
            latency => latency as f64 * self.weight(now),
        }
    }

    /// How much of the past still counts.
    fn weight(&self, now: u64) -> f64 {
        let past = now.saturating_sub(self.seen.load(Relaxed));
        (-(past as f64) / nanos(MEMORY) as f64).exp()
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn answered(millis: u64) -> Outcome {
        Outcome::Answered(Duration::from_millis(millis))
    }

    #[test]
    fn a_slow_answer_counts_at_once_and_is_forgotten_in_time() {
        let state = Arc::new(State::default());
        assert_eq!(state.cost(0), 0.0, "nothing is known, and nothing under way");
        let first = state.begin();
        assert_eq!(state.cost(0), 2e6, "the first guess");
        drop(first);
        state.learn(answered(2), 0);
        assert_eq!(state.cost(0), 2e6);
        state.learn(answered(200), 0);
        assert_eq!(state.cost(0), 200e6, "a peak");
        state.learn(answered(2), SECOND / 10);
        assert!(state.cost(SECOND / 10) > 190e6, "one fast answer does not make it fast");
        assert!(state.cost(10 * SECOND) < 80e6, "but it is tried again");
        state.learn(answered(2), 40 * SECOND);
        assert!((1.9e6..6e6).contains(&state.cost(40 * SECOND)), "{}", state.cost(40 * SECOND));
    }

    #[test]
    fn what_is_under_way_multiplies_and_is_given_back() {
        let state = Arc::new(State::default());
        let leases: Vec<_> = (0..3).map(|_| state.begin()).collect();
        assert_eq!(state.cost(0), 4e6);
        drop(leases);
        assert_eq!((state.cost(0), state.under_way()), (0.0, 0));
        state.begin().ended(Outcome::Abandoned, 0);
        assert_eq!((state.cost(0), state.under_way()), (0.0, 0));
    }

    #[test]
    fn who_asks_for_peace_has_it_for_as_long_but_not_for_ever() {
        let state = State::default();
        state.learn(Outcome::Overloaded(Some(Duration::from_secs(3))), 0);
        assert_eq!(state.cost(SECOND), 2e9);
        assert_eq!(state.cost(4 * SECOND), 0.0);
        state.learn(Outcome::Overloaded(None), 0);
        assert_eq!(state.cost(0), 3e9, "the longer word stands");
        state.learn(Outcome::Overloaded(Some(Duration::from_secs(86_400))), 0);
        assert_eq!(state.cost(0), 60e9);
    }
}
