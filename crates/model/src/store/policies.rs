//! Policies by name and by what they guard, and those that were refused.
//!
//! A refused policy keeps its place: nobody knows what it would have forbidden, so whatever it may guard is denied.

use std::sync::Arc;

use imbl::{HashMap, OrdMap};

use super::list::{self, List};
use crate::Str;
use crate::policy::{Guard, Policy, PolicyName, PolicyScope};
use crate::workload::Workload;

/// All policies.
#[derive(Clone)]
pub(super) struct Policies {
    root_namespace: Str,
    by_name: HashMap<PolicyName, Arc<Policy>>,
    /// Those of namespace scope under their namespace, those of global scope under no name.
    scoped: HashMap<Option<Str>, List<Policy>>,
    /// The reason for each, by namespace.
    unenforceable: HashMap<Str, OrdMap<PolicyName, Str>>,
}

impl Policies {
    pub(super) fn new(root_namespace: Str) -> Self {
        Self {
            root_namespace,
            by_name: HashMap::new(),
            scoped: HashMap::new(),
            unenforceable: HashMap::new(),
        }
    }

    /// Says whether anything changed, like its siblings.
    pub(super) fn insert(&mut self, policy: Policy) -> bool {
        if self.by_name.get(&policy.id).is_some_and(|old| **old == policy) {
            return false;
        }
        self.remove(&policy.id);
        let policy = Arc::new(policy);
        if let Some(key) = scope_key(&policy) {
            list::insert(&mut self.scoped, key, &policy, |other| other.id.clone());
        }
        self.by_name.insert(policy.id.clone(), policy);
        true
    }

    pub(super) fn refuse(&mut self, name: PolicyName, reason: Str) -> bool {
        if self.reason(&name) == Some(&reason) {
            return false;
        }
        self.remove(&name);
        self.unenforceable.entry(name.namespace.clone()).or_default().insert(name, reason);
        true
    }

    pub(super) fn remove(&mut self, name: &PolicyName) -> bool {
        let mut removed = false;
        if let Some(old) = self.by_name.remove(name) {
            removed = true;
            if let Some(key) = scope_key(&old) {
                list::remove(&mut self.scoped, &key, &old);
            }
        }
        if let Some(refused) = self.unenforceable.get_mut(&name.namespace) {
            removed |= refused.remove(name).is_some();
            if refused.is_empty() {
                self.unenforceable.remove(&name.namespace);
            }
        }
        removed
    }

    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.by_name.values()
    }

    pub(super) fn get(&self, name: &PolicyName) -> Option<&Arc<Policy>> {
        self.by_name.get(name)
    }

    pub(super) fn unenforceable(&self) -> impl Iterator<Item = (&PolicyName, &Str)> {
        self.unenforceable.values().flat_map(OrdMap::iter)
    }

    /// What guards a workload, each policy once unless the workload names it twice: global, of its namespace, named by
    /// it; then the refused ones.
    pub(super) fn guards<'a>(&'a self, destination: &'a Workload) -> impl Iterator<Item = Guard<'a>> + Clone {
        let namespace = destination.namespace();
        let scoped = |key: &Option<Str>| self.scoped.get(key).map_or(&[][..], |list| list);
        let global = scoped(&None).iter();
        let local = scoped(&Some(namespace.clone())).iter();
        let named = destination.authorization_policies.iter().filter_map(|name| self.named(name, namespace));
        let root = Some(&self.root_namespace).filter(|root| *root != namespace);
        let refused = [Some(namespace), root].into_iter().flatten();
        let refused =
            refused.filter_map(|namespace| self.unenforceable.get(namespace)).flat_map(OrdMap::iter);
        global
            .chain(local)
            .map(Guard::Policy)
            .chain(named)
            .chain(refused.map(|(name, reason)| Guard::Unenforceable(name, reason)))
    }

    /// A policy that a workload of `namespace` names, unless it guards that workload anyway.
    fn named<'a>(&'a self, name: &'a PolicyName, namespace: &Str) -> Option<Guard<'a>> {
        if let Some(policy) = self.by_name.get(name) {
            let guards_anyway = match policy.scope {
                PolicyScope::Global => true,
                PolicyScope::Namespace => name.namespace == *namespace,
                PolicyScope::Selector => false,
            };
            return (!guards_anyway).then_some(Guard::Policy(policy));
        }
        Some(match self.reason(name) {
            Some(reason) => Guard::Unenforceable(name, reason),
            None => Guard::Unknown(name),
        })
    }

    fn reason(&self, name: &PolicyName) -> Option<&Str> {
        self.unenforceable.get(&name.namespace)?.get(name)
    }
}

/// Where a policy is listed in `scoped`. Selector policies are not: workloads name them.
fn scope_key(policy: &Policy) -> Option<Option<Str>> {
    match policy.scope {
        PolicyScope::Global => Some(None),
        PolicyScope::Namespace => Some(Some(policy.id.namespace.clone())),
        PolicyScope::Selector => None,
    }
}
