//! Which routes and policies name an object, so that a change of it reaches them.
//!
//! Derived from the objects alone. Owns no judgement of a reference: what is named need not exist.

use std::collections::{BTreeMap, BTreeSet};

use super::cluster::Name;
use super::routes::Described;
use super::{backend_tls, traffic};
use crate::source::objects::{Key, Kind, Object};

/// Who names whom.
#[derive(Debug, Default, Clone)]
pub(crate) struct References {
    /// Everything that is named, and by whom.
    named: BTreeMap<Key, BTreeSet<Key>>,
    /// The services that routes are attached to.
    attached: BTreeMap<Name, BTreeSet<Key>>,
}

impl References {
    /// Notes what an object names.
    pub(crate) fn insert(&mut self, object: &Object) {
        let key = object.key();
        for named in named(object) {
            self.named.entry(named).or_default().insert(key.clone());
        }
        for service in parents(object) {
            self.attached.entry(service).or_default().insert(key.clone());
        }
    }

    /// Forgets what it named.
    pub(crate) fn remove(&mut self, object: &Object) {
        let key = object.key();
        for named in named(object) {
            take(&mut self.named, &named, &key);
        }
        for service in parents(object) {
            take(&mut self.attached, &service, &key);
        }
    }

    /// Who names an object.
    pub(crate) fn of(&self, named: &Key) -> impl Iterator<Item = &Key> {
        self.named.get(named).into_iter().flatten()
    }

    /// Who names a Service of a namespace.
    pub(crate) fn of_services_in(&self, namespace: &str) -> impl Iterator<Item = &Key> {
        let namespace = namespace.to_owned();
        let first = Key { kind: Kind::Service, namespace: namespace.clone(), name: String::new() };
        let within = self.named.range(first..);
        let within =
            within.take_while(move |(key, _)| key.kind == Kind::Service && key.namespace == namespace);
        within.flat_map(|(_, by)| by)
    }

    /// The routes of a kind that are attached to a service, if only by name.
    pub(crate) fn attached(&self, service: &Name, kind: Kind) -> impl Iterator<Item = &Key> {
        let first = Key { kind, namespace: String::new(), name: String::new() };
        let of_kind = move |key: &&Key| key.kind == kind;
        self.attached
            .get(service)
            .into_iter()
            .flat_map(move |keys| keys.range(first.clone()..))
            .take_while(of_kind)
    }
}

fn take<K: Ord>(map: &mut BTreeMap<K, BTreeSet<Key>>, of: &K, key: &Key) {
    let Some(keys) = map.get_mut(of) else { return };
    keys.remove(key);
    if keys.is_empty() {
        map.remove(of);
    }
}

/// What an object names: each thing perhaps several times.
fn named(object: &Object) -> Vec<Key> {
    if let Object::TrafficPolicy(policy) = object {
        return traffic::targets(policy).collect();
    }
    if let Object::BackendTLSPolicy(policy) = object {
        return backend_tls::services(policy).chain(backend_tls::bundles(policy)).collect();
    }
    let of = |route: Described<'_>| route.services().chain(route.gateways()).collect();
    Described::of(object).map(of).unwrap_or_default()
}

/// The services that an object is attached to as a route.
pub(super) fn parents(object: &Object) -> Vec<Name> {
    let name = |key: Key| (key.namespace, key.name);
    Described::of(object).map(|route| route.parents().map(name).collect()).unwrap_or_default()
}
