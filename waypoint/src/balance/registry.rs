//! The states of all endpoints, by service and endpoint: shared by every route, thread and version of the mesh.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use model::service::ServiceName;
use model::workload::WorkloadUid;
use parking_lot::Mutex;

use super::state::State;

/// Entries between two sweeps of those that nobody uses any more.
const SWEEP_EVERY: usize = 1024;

/// Finds the state of an endpoint. Asked when a set of endpoints is made, never by a request.
#[derive(Debug, Default)]
pub struct Registry(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    states: HashMap<(ServiceName, WorkloadUid), Weak<State>>,
    added: usize,
}

impl Registry {
    /// The state of an endpoint of a service: the one that somebody has already, or a new one.
    pub fn state(&self, service: &ServiceName, endpoint: &WorkloadUid) -> Arc<State> {
        let mut known = self.0.lock();
        let key = (service.clone(), endpoint.clone());
        if let Some(state) = known.states.get(&key).and_then(Weak::upgrade) {
            return state;
        }
        known.added += 1;
        if known.added.is_multiple_of(SWEEP_EVERY) {
            known.states.retain(|_, state| state.strong_count() > 0);
        }
        let state = Arc::new(State::default());
        known.states.insert(key, Arc::downgrade(&state));
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_shared_while_somebody_has_it() {
        let registry = Registry::default();
        let service = |name: &str| ServiceName { namespace: "shop".into(), hostname: name.into() };
        let endpoint = WorkloadUid("web-0".into());
        let one = registry.state(&service("web"), &endpoint);
        let lease = one.begin();
        assert_eq!(registry.state(&service("web"), &endpoint).under_way(), 1);
        assert_eq!(registry.state(&service("api"), &endpoint).under_way(), 0, "another service's is another");
        drop(one);
        assert_eq!(registry.state(&service("web"), &endpoint).under_way(), 1, "a request holds it");
        drop(lease);
        for index in 0..2 * SWEEP_EVERY {
            registry.state(&service("web"), &WorkloadUid(index.to_string().into()));
        }
        assert!(registry.0.lock().states.len() <= SWEEP_EVERY, "those that are gone are forgotten");
    }
}
