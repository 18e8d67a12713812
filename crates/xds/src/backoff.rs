//! How long to wait before the next attempt. Owns no clock and no randomness: the caller brings both.

use std::time::Duration;

/// The first wait. A control plane that is only restarting is back this soon.
const FIRST: Duration = Duration::from_millis(100);

/// The longest wait. Long enough that a thousand nodes do not keep a recovering control plane down (one attempt each per
/// ten seconds), short enough that a person does not wait for it.
const LONGEST: Duration = Duration::from_secs(10);

/// Waits that double from `first` to `longest`, each shortened at random by up to half so that clients which lost the
/// same server do not come back at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Waits between these bounds.
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first.min(longest) }
    }

    /// The wait before the next attempt, given a random number from 0 (included) to 1.
    pub fn wait(&mut self, random: f64) -> Duration {
        let wait = self.next.mul_f64(1.0 - random.clamp(0.0, 1.0) / 2.0);
        self.next = self.next.saturating_mul(2).min(self.longest);
        wait
    }

    /// An attempt succeeded.
    pub fn reset(&mut self) {
        self.next = self.first.min(self.longest);
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(FIRST, LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        let waits: Vec<u128> = (0..4).map(|_| backoff.wait(0.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 350, 350]);
        backoff.reset();
        assert_eq!(backoff.wait(0.0).as_millis(), 100);
    }

    #[test]
    fn waits_are_shortened_by_at_most_half() {
        for random in [0.0, 0.3, 0.999, 1.0, 7.0, -1.0] {
            let wait = Backoff::new(Duration::from_millis(100), Duration::from_secs(1)).wait(random);
            assert!((50..=100).contains(&wait.as_millis()), "{random}: {wait:?}");
        }
    }
}
