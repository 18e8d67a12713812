//! TLS handshakes under way with one pod on one thread, counted by source address.
//!
//! Until its handshake is done nobody knows who a peer is. Without a limit of its own, one source that opens connections
//! and says nothing would take all that the pod may have. Refuses no peer that has proven itself.

use std::collections::HashMap;
use std::net::IpAddr;

use parking_lot::Mutex;

/// Handshakes that one address may have under way with one pod on one thread: a 64th of what the pod may have in all, so
/// that dozens of addresses have to conspire. A handshake takes milliseconds, and a client shares few tunnels between its
/// connections; only a whole cluster behind one address would come near, in the moment after an outage.
pub const MAX_HANDSHAKES: usize = 256;

/// The count. Each thread has its own, so that nobody ever waits for the lock.
#[derive(Debug, Default)]
pub struct Handshakes(Mutex<HashMap<IpAddr, usize>>);

/// One handshake; it counts until it is dropped.
#[derive(Debug)]
pub struct Handshake<'a> {
    all: &'a Handshakes,
    from: IpAddr,
}

impl Handshakes {
    /// Counts one more; `None` if its source has as many as it may.
    pub fn begin(&self, from: IpAddr) -> Option<Handshake<'_>> {
        let mut all = self.0.lock();
        let count = all.entry(from).or_default();
        if *count >= MAX_HANDSHAKES {
            return None;
        }
        *count += 1;
        Some(Handshake { all: self, from })
    }
}

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        let mut all = self.all.0.lock();
        if let Some(count) = all.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_limit_and_places_are_given_back() {
        let handshakes = Handshakes::default();
        let (flood, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut held: Vec<_> =
            (0..MAX_HANDSHAKES).map(|_| handshakes.begin(flood).expect("within the limit")).collect();
        assert!(handshakes.begin(flood).is_none());
        assert!(handshakes.begin(other).is_some(), "others are not concerned");
        held.pop();
        assert!(handshakes.begin(flood).is_some());
        held.clear();
        assert!(handshakes.0.lock().is_empty(), "nothing is kept of those that are gone");
    }
}
