//! The endpoints of services as one thread last saw them, so that a request looks one up instead of going through the mesh.
//!
//! A set is made again when it is asked for and the mesh has changed since. Chooses nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};

use foldhash::HashMap;
use model::address::OriginalDst;
use model::route::{self, NoRoute, Query};
use model::service::{Service, ServiceName};
use model::store::Mesh;
use model::workload::Workload;
use parking_lot::Mutex;

use crate::balance::{Registry, Set};

/// Sets of one thread. More ports of services than one waypoint guards; beyond it the cache begins anew.
const MAX_SETS: usize = 16_384;

/// A port of a service, at the address that was dialled.
type Key = (ServiceName, SocketAddr);

/// The sets of one thread. The lock is this thread's alone and so never waited for.
#[derive(Default)]
pub(crate) struct Cache(Mutex<HashMap<Key, Made>>);

/// A set, and the mesh that it is of. It stays until there is a newer one, so that what is known of its endpoints does.
struct Made {
    of: Weak<Mesh>,
    set: Arc<Set>,
}

impl Cache {
    /// The endpoints of a port of `service` that `local` can reach; of the dialled address's family where they have both.
    pub(crate) fn get(
        &self,
        (mesh, registry): (&Arc<Mesh>, &Registry),
        local: &Workload,
        service: &Arc<Service>,
        (port, dialled): (u16, Option<IpAddr>),
    ) -> Result<Arc<Set>, NoRoute> {
        let ip = dialled.or_else(|| local.addresses.first().copied());
        let dst = SocketAddr::new(ip.unwrap_or(IpAddr::from([0, 0, 0, 0])), port);
        let key = (service.id.clone(), dst);
        let mut sets = self.0.lock();
        let is_current = |made: &Made| std::ptr::eq(made.of.as_ptr(), Arc::as_ptr(mesh));
        if let Some(made) = sets.get(&key).filter(|made| is_current(made)) {
            return Ok(Arc::clone(&made.set));
        }
        if sets.len() >= MAX_SETS {
            sets.retain(|_, made| is_current(made));
        }
        if sets.len() >= MAX_SETS {
            sets.clear();
        }
        let query = Query { source: local, dst: OriginalDst(dst), exclude: &[] };
        let set = Arc::new(Set::new(&service.id, route::reachable(mesh, &query, service)?, registry));
        sets.insert(key, Made { of: Arc::downgrade(mesh), set: Arc::clone(&set) });
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use model::store::Update;

    use super::*;
    use crate::balance::Outcome;
    use crate::made;

    #[test]
    fn what_is_known_of_an_endpoint_outlives_changes_of_the_mesh() {
        let local = made::pod("waypoint-0", "waypoint", "10.0.0.9", "waypoint");
        let service = Arc::new(made::service("web", "10.96.0.1", true));
        let mut mesh = Mesh::default();
        mesh.apply([
            Update::Service((*service).clone()),
            Update::Workload(made::pod("one", "server", "10.0.0.1", "web")),
        ]);
        let (cache, registry) = (Cache::default(), Registry::default());
        let get = |mesh: &Arc<Mesh>| cache.get((mesh, &registry), &local, &service, (80, None)).unwrap();
        let first = Arc::new(mesh.clone());
        let set = get(&first);
        assert!(Arc::ptr_eq(&set, &get(&first)), "made once");
        let slow = Outcome::Answered(Duration::from_secs(1));
        set.iter().for_each(|endpoint| endpoint.state.learn(slow, 0));
        drop(set);

        mesh.apply([Update::Workload(made::pod("two", "server", "10.0.0.2", "web"))]);
        let second = Arc::new(mesh);
        let set = get(&second);
        let costs: Vec<_> = set.iter().map(|endpoint| endpoint.state.cost(0)).collect();
        assert_eq!(costs, [1e9, 0.0], "the one that was there before is known to be slow");
    }
}
