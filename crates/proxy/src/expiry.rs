//! What becomes of a tunnel when a certificate expires that it was made with.
//!
//! Nothing new begins in it: whoever is still who he was has a new certificate by then, and proves it with a new tunnel.
//! What is open may go on for a while, because applications keep connections for long.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// How long connections may go on in a tunnel whose certificates have expired: as long again as a certificate lives by
/// default. Few applications keep a connection for longer, and nobody is believed for ever.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);

/// The moment at which the first of these expires. A wall clock that is set later does not move it.
pub fn first_of(expiries: impl IntoIterator<Item = SystemTime>) -> Instant {
    let now = SystemTime::now();
    let left = expiries.into_iter().map(|expiry| expiry.duration_since(now).unwrap_or_default()).min();
    Instant::now() + left.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_to_expire_counts_and_the_past_is_now() {
        let (now, start) = (SystemTime::now(), Instant::now());
        let (hour, day) = (Duration::from_secs(3600), Duration::from_secs(24 * 3600));
        let first = first_of([now + day, now + hour]);
        assert!(first > start && first < start + day);
        for past in [first_of([now + day, now - hour]), first_of([])] {
            assert!(past >= start && past < start + hour);
        }
    }
}
