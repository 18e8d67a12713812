//! What streams may hold unread or unsent: those of one client together, and those towards endpoints together.
//!
//! Counts nothing itself: that is `hbone`'s. A client is known by the address that its tunnels come from, which is its pod's.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use hbone::{Budget, ClientLimits, ServerLimits, TunnelLimits};
use parking_lot::Mutex;

/// What the streams of one client may hold in all its tunnels: a quarter of what a node lets a pod hold, because a waypoint has
/// the clients of many nodes, and a dozen of them at their worst still fit half a GiB.
const CLIENT_BUDGET: usize = 32 << 20;

/// What all streams towards endpoints may hold. Clients share the tunnels there; whose streams have stood still longest lose them
/// first, and those are the ones of whoever does not read.
const ENDPOINTS_BUDGET: usize = 128 << 20;

/// The budgets of all threads. The lock is held for one look-up, once for each tunnel.
#[derive(Debug)]
pub(crate) struct Budgets {
    clients: Mutex<HashMap<IpAddr, (Budget, usize)>>,
    endpoints: Budget,
}

/// A client's budget, as long as a tunnel of its has a use for it.
pub(crate) struct Share {
    budgets: Arc<Budgets>,
    client: IpAddr,
    budget: Budget,
}

impl Default for Budgets {
    fn default() -> Self {
        Self { clients: Mutex::default(), endpoints: Budget::new(ENDPOINTS_BUDGET) }
    }
}

impl Budgets {
    /// The budget of a client that has one tunnel more.
    pub(crate) fn client(self: &Arc<Self>, client: IpAddr) -> Share {
        let mut clients = self.clients.lock();
        let (budget, tunnels) = clients.entry(client).or_insert_with(|| (Budget::new(CLIENT_BUDGET), 0));
        *tunnels += 1;
        Share { budgets: Arc::clone(self), client, budget: budget.clone() }
    }

    /// Whether streams towards endpoints hold more than they may.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.endpoints.is_exceeded()
    }

    /// The limits of tunnels to endpoints.
    pub(crate) fn limits(&self) -> ClientLimits {
        ClientLimits { tunnel: sharing(&self.endpoints), ..ClientLimits::default() }
    }
}

impl Share {
    /// Whether the client's streams hold more than they may.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.budget.is_exceeded()
    }

    /// The limits of a tunnel of this client's.
    pub(crate) fn limits(&self) -> ServerLimits {
        ServerLimits { tunnel: sharing(&self.budget), ..ServerLimits::default() }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut clients = self.budgets.clients.lock();
        if let Some((_, tunnels)) = clients.get_mut(&self.client) {
            *tunnels -= 1;
            if *tunnels == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

fn sharing(budget: &Budget) -> TunnelLimits {
    TunnelLimits { budget: budget.clone(), ..TunnelLimits::default() }
}

#[cfg(test)]
impl Budgets {
    /// What streams towards endpoints hold now.
    pub(super) fn held_of_endpoints(&self) -> usize {
        self.endpoints.held()
    }

    /// What a client's streams hold now.
    pub(super) fn held(&self, client: IpAddr) -> usize {
        self.clients.lock().get(&client).map_or(0, |(budget, _)| budget.held())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_lives_as_long_as_its_clients_tunnels() {
        let budgets = Arc::new(Budgets::default());
        let [one, two] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        let shares = [one, one, two].map(|client| budgets.client(client));
        let known = || -> HashMap<IpAddr, usize> {
            budgets.clients.lock().iter().map(|(client, (_, tunnels))| (*client, *tunnels)).collect()
        };
        assert_eq!(known(), HashMap::from([(one, 2), (two, 1)]));
        let [first, second, other] = shares;
        drop(first);
        drop(other);
        assert_eq!(known(), HashMap::from([(one, 1)]));
        drop(second);
        assert_eq!(known(), HashMap::new());
    }
}
