//! Which rules and traffic policies each waypoint is told of: those about the services that it guards, and about what these lead to.
//!
//! It has no use for others, and does not work anew when they change. Kept in step change by change; cloning is O(1), and asking
//! costs what the waypoint is told.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use model::Str;
use model::l7::{BackendTarget, Filter, PolicyName, PolicyTarget, Rule, RuleKey};
use model::service::{Service, ServiceName};

use super::needs::Stale;

/// Who is told of what.
#[derive(Clone, Debug, Default)]
pub(super) struct Guarding {
    /// What services call a waypoint, to the services.
    guards: OrdMap<String, OrdSet<ServiceName>>,
    guarded: OrdMap<ServiceName, Vec<String>>,
    /// A service to the rules about it.
    about: OrdMap<ServiceName, OrdSet<RuleKey>>,
    /// A service to the rules that lead to it.
    leading: OrdMap<ServiceName, OrdSet<RuleKey>>,
    rules: OrdMap<RuleKey, Arc<Links>>,
    /// What policies are about, to the policies and their resources' names.
    policies: OrdMap<PolicyTarget, OrdMap<PolicyName, String>>,
}

/// The services that a rule names.
#[derive(Debug, PartialEq)]
struct Links {
    parents: Vec<ServiceName>,
    leads_to: Vec<ServiceName>,
}

/// The names of resources that one waypoint is told of.
#[derive(Debug, Default)]
pub(super) struct Named {
    pub(super) guarded: BTreeSet<String>,
    pub(super) rules: BTreeSet<String>,
    pub(super) policies: BTreeSet<String>,
}

impl Guarding {
    /// A service is there, or another one than before.
    pub(super) fn service(&mut self, service: &Service, stale: &mut Stale) {
        let weighted = service.weighted_waypoints.iter().map(|waypoint| &waypoint.destination);
        let waypoints = service.waypoint.iter().chain(weighted).map(|at| at.destination.to_string());
        self.guard(&service.id, waypoints.collect(), stale);
    }

    pub(super) fn service_removed(&mut self, service: &ServiceName, stale: &mut Stale) {
        self.guard(service, Vec::new(), stale);
    }

    fn guard(&mut self, service: &ServiceName, waypoints: Vec<String>, stale: &mut Stale) {
        let before = self.guarded.remove(service).unwrap_or_default();
        if before != waypoints {
            stale.services.insert(service.clone());
            let rules = self.about.get(service).into_iter().flatten();
            let links = rules.filter_map(|key| self.rules.get(key));
            stale.services.extend(links.flat_map(|links| &links.leads_to).cloned());
        }
        for waypoint in &before {
            take(&mut self.guards, waypoint, service);
        }
        for waypoint in &waypoints {
            self.guards.entry(waypoint.clone()).or_default().insert(service.clone());
        }
        if !waypoints.is_empty() {
            self.guarded.insert(service.clone(), waypoints);
        }
    }

    /// A rule is there, or another one than before.
    pub(super) fn rule(&mut self, rule: &Rule, stale: &mut Stale) {
        let links = Links {
            parents: rule.parents.iter().map(|parent| parent.service.clone()).collect(),
            leads_to: leads_to(rule).cloned().collect(),
        };
        if self.rules.get(&rule.key).is_some_and(|before| **before == links) {
            return;
        }
        self.rule_removed(&rule.key, stale);
        for service in &links.parents {
            self.about.entry(service.clone()).or_default().insert(rule.key.clone());
        }
        for service in &links.leads_to {
            self.leading.entry(service.clone()).or_default().insert(rule.key.clone());
        }
        stale.services.extend(links.leads_to.iter().cloned());
        self.rules.insert(rule.key.clone(), Arc::new(links));
    }

    pub(super) fn rule_removed(&mut self, key: &RuleKey, stale: &mut Stale) {
        let Some(links) = self.rules.remove(key) else { return };
        for service in &links.parents {
            take(&mut self.about, service, key);
        }
        for service in &links.leads_to {
            take(&mut self.leading, service, key);
        }
        stale.services.extend(links.leads_to.iter().cloned());
    }

    /// What the waypoints are called that guard a service, or are led there by a rule about one that they guard.
    pub(super) fn interested(&self, service: &ServiceName) -> BTreeSet<String> {
        let rules = self.leading.get(service).into_iter().flatten();
        let links = rules.filter_map(|key| self.rules.get(key));
        let parents = links.flat_map(|links| &links.parents).chain([service]);
        parents.filter_map(|service| self.guarded.get(service)).flatten().cloned().collect()
    }

    /// A policy is there under that name of a resource.
    pub(super) fn policy(&mut self, name: PolicyName, target: PolicyTarget, resource: String) {
        self.policies.entry(target).or_default().insert(name, resource);
    }

    /// Returns the name of its resource.
    pub(super) fn policy_removed(&mut self, name: &PolicyName, target: &PolicyTarget) -> Option<String> {
        let about = self.policies.get_mut(target)?;
        let resource = about.remove(name);
        if about.is_empty() {
            self.policies.remove(target);
        }
        resource
    }

    /// What a waypoint is told that services call so, and whose Gateway is `namespace/name`.
    pub(super) fn told(&self, called: &[Str], (namespace, name): (Str, Str)) -> Named {
        let mut told = Named::default();
        let mut targets = vec![PolicyTarget::Waypoint { namespace, name }];
        let mut services: BTreeSet<&ServiceName> =
            called.iter().filter_map(|waypoint| self.guards.get(&**waypoint)).flatten().collect();
        told.guarded = services.iter().map(ToString::to_string).collect();
        let rules: BTreeSet<&RuleKey> =
            services.iter().filter_map(|service| self.about.get(*service)).flatten().collect();
        for key in rules {
            told.rules.insert(key.to_string());
            services.extend(self.rules.get(key).into_iter().flat_map(|links| &links.leads_to));
            let RuleKey { kind, namespace, name, index: _ } = key.clone();
            targets.extend([PolicyTarget::Route { kind, namespace, name }, PolicyTarget::Rule(key.clone())]);
        }
        targets.extend(services.into_iter().cloned().map(PolicyTarget::Service));
        let policies = targets.iter().filter_map(|target| self.policies.get(target));
        told.policies = policies.flat_map(|about| about.values().cloned()).collect();
        told
    }
}

fn leads_to(rule: &Rule) -> impl Iterator<Item = &ServiceName> {
    let of_backends = rule.backends.iter().flat_map(|backend| &backend.filters);
    let mirrors = rule.filters.iter().chain(of_backends).filter_map(mirror);
    let targets = rule.backends.iter().map(|backend| &backend.target).chain(mirrors);
    targets.filter_map(|target| match target {
        BackendTarget::Service { name, .. } => Some(name),
        BackendTarget::Invalid(_) => None,
    })
}

fn mirror(filter: &Filter) -> Option<&BackendTarget> {
    if let Filter::Mirror(mirror) = filter { Some(&mirror.target) } else { None }
}

fn take<K: Ord + Clone, V: Ord + Clone>(sets: &mut OrdMap<K, OrdSet<V>>, key: &K, value: &V) {
    let Some(set) = sets.get_mut(key) else { return };
    set.remove(value);
    if set.is_empty() {
        sets.remove(key);
    }
}
