//! Workloads by uid, address, node and service.
//!
//! What a workload says of itself is all that is indexed here: a service need not be known to have endpoints, and health
//! is not looked at, so that no order of arrival loses any.

use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::{HashMap, OrdMap};

use super::WorkloadChange;
use super::list::{self, List};
use crate::Str;
use crate::service::ServiceName;
use crate::workload::{NetworkMode, TunnelProtocol, Workload, WorkloadUid};

type ByUid = OrdMap<WorkloadUid, Arc<Workload>>;

/// All workloads.
#[derive(Clone, Default)]
pub(super) struct Workloads {
    by_uid: HashMap<WorkloadUid, Arc<Workload>>,
    /// By network, then address; the owner first (see [`claim`]).
    by_address: HashMap<Str, HashMap<IpAddr, List<Workload>>>,
    by_node: HashMap<Str, ByUid>,
    by_service: HashMap<ServiceName, ByUid>,
}

impl Workloads {
    pub(super) fn insert(&mut self, workload: Workload) -> WorkloadChange {
        if self.by_uid.get(&workload.uid).is_some_and(|old| **old == workload) {
            return WorkloadChange::default();
        }
        let new = Arc::new(workload);
        let old = self.by_uid.insert(new.uid.clone(), new.clone());
        if let Some(old) = &old {
            self.forget(old, Some(&new));
        }
        self.index(&new);
        change(old.as_deref(), Some(&new))
    }

    pub(super) fn remove(&mut self, uid: &WorkloadUid) -> WorkloadChange {
        let Some(old) = self.by_uid.remove(uid) else { return WorkloadChange::default() };
        self.forget(&old, None);
        change(Some(&old), None)
    }

    pub(super) fn len(&self) -> usize {
        self.by_uid.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.by_uid.values()
    }

    pub(super) fn get(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.by_uid.get(uid)
    }

    pub(super) fn at(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.by_address.get(network)?.get(&ip.to_canonical())?.first()
    }

    pub(super) fn on(&self, node: &str) -> impl Iterator<Item = &Arc<Workload>> {
        self.by_node.get(node).into_iter().flat_map(OrdMap::values)
    }

    pub(super) fn backing<'a>(
        &'a self,
        service: &ServiceName,
    ) -> impl Iterator<Item = &'a Arc<Workload>> + use<'a> {
        self.by_service.get(service).into_iter().flat_map(OrdMap::values)
    }

    fn index(&mut self, workload: &Arc<Workload>) {
        if owns_addresses(workload) && !workload.addresses.is_empty() {
            let network = self.by_address.entry(workload.network.clone()).or_default();
            for ip in &workload.addresses {
                list::insert(network, ip.to_canonical(), workload, claim);
            }
        }
        if !workload.node.is_empty() {
            put(&mut self.by_node, &workload.node, workload);
        }
        for service in workload.services.keys() {
            put(&mut self.by_service, service, workload);
        }
    }

    /// Undoes `index`, except where `successor` is about to overwrite the entry.
    fn forget(&mut self, old: &Arc<Workload>, successor: Option<&Workload>) {
        if owns_addresses(old)
            && let Some(network) = self.by_address.get_mut(&old.network)
        {
            for ip in &old.addresses {
                list::remove(network, &ip.to_canonical(), old);
            }
            if network.is_empty() {
                self.by_address.remove(&old.network);
            }
        }
        if successor.is_none_or(|new| new.node != old.node) {
            take(&mut self.by_node, &old.node, &old.uid);
        }
        for service in old.services.keys() {
            if successor.is_none_or(|new| !new.services.contains_key(service)) {
                take(&mut self.by_service, service, &old.uid);
            }
        }
    }
}

fn owns_addresses(workload: &Workload) -> bool {
    workload.network_mode == NetworkMode::Standard
}

/// Who owns an address that several claim, best first: a pod is certain to be there, and one that is reached by tunnel
/// proves who it is.
fn claim(workload: &Workload) -> (bool, bool, WorkloadUid) {
    let is_pod = workload.uid.0.contains("//Pod/");
    (!is_pod, workload.tunnel != TunnelProtocol::Hbone, workload.uid.clone())
}

fn put<K: Hash + Eq + Clone>(map: &mut HashMap<K, ByUid>, key: &K, workload: &Arc<Workload>) {
    map.entry(key.clone()).or_default().insert(workload.uid.clone(), workload.clone());
}

fn take<K: Hash + Eq + Clone>(map: &mut HashMap<K, ByUid>, key: &K, uid: &WorkloadUid) {
    let Some(members) = map.get_mut(key) else { return };
    members.remove(uid);
    if members.is_empty() {
        map.remove(key);
    }
}

fn change(old: Option<&Workload>, new: Option<&Workload>) -> WorkloadChange {
    let both = || [old, new].into_iter().flatten();
    WorkloadChange {
        uid: both().next().map(|workload| workload.uid.clone()),
        policies: new.is_some_and(|new| may_deny_more(old, new)),
        services: both().flat_map(|workload| workload.services.keys().cloned()).collect(),
    }
}

/// Whether connections to a workload that were allowed may not be any more. One that is new and names policies counts:
/// it may have been known before, under others.
fn may_deny_more(old: Option<&Workload>, new: &Workload) -> bool {
    match old {
        Some(old) => {
            old.namespace() != new.namespace() || old.authorization_policies != new.authorization_policies
        }
        None => !new.authorization_policies.is_empty(),
    }
}
