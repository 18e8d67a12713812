//! Which services and workloads each waypoint is told of: what it guards, what its rules lead to, and who answers there.
//!
//! Kept in step name by name: a change costs those that need what has changed, however many others there are. What a waypoint needs no
//! more it is told of for a while yet: it carries on what is under way, and sees whether somebody else guards it. Owns no rules about
//! who guards what (`guarding`).

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use imbl::{OrdMap, OrdSet};
use model::Str;
use model::address::NetworkAddress;
use model::service::ServiceName;
use model::workload::{NetworkMode, Workload};
use xds::{Resource, Resources};

use super::guarding::Guarding;
use super::published::{Snapshot, remove_from};

/// How long a waypoint is told of what it needs no more. It carries on for up to 10 s what it guarded and nobody guards now.
const LINGER: Duration = Duration::from_secs(30);

/// Who is told of which service and workload.
#[derive(Clone, Debug, Default)]
pub(super) struct Needs {
    /// By what services call a waypoint.
    told: OrdMap<String, Resources>,
    /// A resource to those that are told of it, and until when those are that need it no more.
    told_to: OrdMap<String, BTreeMap<String, Option<Duration>>>,
    workloads: OrdMap<String, Arc<Placed>>,
    /// An address to the endpoints that have it without being who it belongs to.
    borrowed: OrdMap<String, OrdSet<String>>,
}

/// What matters of a workload.
#[derive(Debug, PartialEq)]
struct Placed {
    services: Vec<ServiceName>,
    /// What it calls its waypoint.
    waypoint: Option<String>,
    /// Addresses that may be somebody else's, who is connected to when it is chosen.
    borrowed: Vec<String>,
}

/// What has to be looked at anew.
#[derive(Debug, Default)]
pub(super) struct Stale {
    /// Services and workloads that have changed.
    names: BTreeSet<String>,
    /// Services that others may need now, or no more, and who answers there.
    pub(super) services: BTreeSet<ServiceName>,
    /// Whoever has these addresses.
    addresses: BTreeSet<String>,
    /// When to look at what lingers.
    due: BTreeMap<Duration, BTreeSet<String>>,
}

impl Stale {
    /// A service or workload has changed.
    pub(super) fn add(&mut self, name: String) {
        self.names.insert(name);
    }

    /// When something lingers no more.
    pub(super) fn next(&self) -> Option<Duration> {
        self.due.keys().next().copied()
    }
}

impl Needs {
    /// A workload is there, or another one than before.
    pub(super) fn workload(&mut self, workload: &Workload, stale: &mut Stale) {
        let name = workload.uid.to_string();
        self.workload_removed(&name, stale);
        let borrows = workload.network_mode == NetworkMode::HostNetwork;
        let addresses = workload.addresses.iter().filter(|_| borrows);
        let placed = Placed {
            services: workload.services.keys().cloned().collect(),
            waypoint: workload.waypoint.as_ref().map(|at| at.destination.to_string()),
            borrowed: addresses
                .map(|ip| NetworkAddress { network: workload.network.clone(), ip: *ip }.to_string())
                .collect(),
        };
        for address in &placed.borrowed {
            self.borrowed.entry(address.clone()).or_default().insert(name.clone());
        }
        self.workloads.insert(name, Arc::new(placed));
    }

    pub(super) fn workload_removed(&mut self, name: &str, stale: &mut Stale) {
        stale.add(name.to_owned());
        let Some(placed) = self.workloads.remove(name) else { return };
        for address in &placed.borrowed {
            remove_from(&mut self.borrowed, address, name);
            stale.addresses.insert(address.clone());
        }
    }

    /// Looks at what is stale, now that all of a change is in `now`, the time being `at`.
    pub(super) fn settle(&mut self, stale: &mut Stale, now: &Snapshot, at: Duration) {
        let mut names = mem::take(&mut stale.names);
        while let Some(due) = stale.due.first_entry().filter(|due| *due.key() <= at) {
            names.extend(due.remove());
        }
        for service in mem::take(&mut stale.services) {
            let name = service.to_string();
            names.extend(now.backing.get(&name).into_iter().flatten().cloned());
            names.insert(name);
        }
        let mut addresses = mem::take(&mut stale.addresses);
        let placed = names.iter().filter_map(|name| self.workloads.get(name));
        addresses.extend(placed.flat_map(|placed| placed.borrowed.iter().cloned()));
        names.extend(addresses.iter().filter_map(|address| now.aliases.get(address)).flatten().cloned());
        let mut interest = Interest { guarding: &now.guarding, found: BTreeMap::new() };
        for name in names {
            let found = now.addresses.get(&name);
            let needed = found.map(|found| self.needed_by(found, &mut interest)).unwrap_or_default();
            let before = self.told_to.remove(&name).unwrap_or_default();
            let mut told: BTreeMap<_, _> = needed.into_iter().map(|waypoint| (waypoint, None)).collect();
            for (waypoint, until) in before.iter().filter(|_| found.is_some()) {
                let until = until.unwrap_or(at + LINGER);
                if until > at && !told.contains_key(waypoint) {
                    stale.due.entry(until).or_default().insert(name.clone());
                    told.insert(waypoint.clone(), Some(until));
                }
            }
            for waypoint in before.keys().filter(|waypoint| !told.contains_key(*waypoint)) {
                self.forget(waypoint, &name);
            }
            if let Some(found) = found.filter(|_| !told.is_empty()) {
                for waypoint in told.keys() {
                    self.told.entry(waypoint.clone()).or_default().insert(Arc::clone(found));
                }
                self.told_to.insert(name, told);
            }
        }
    }

    fn forget(&mut self, waypoint: &str, name: &str) {
        let Some(told) = self.told.get_mut(waypoint) else { return };
        told.remove(name);
        if told.is_empty() {
            self.told.remove(waypoint);
        }
    }

    /// What a waypoint is told that services call so, with the pod that it is, and that one's own services.
    pub(super) fn told(&self, called: &[Str], pod: &str, now: &Resources) -> Resources {
        let mut all = called.iter().filter_map(|waypoint| self.told.get(&**waypoint));
        let mut told = all.next().cloned().unwrap_or_default();
        told.extend(all.flat_map(Resources::iter).cloned());
        let services = self.workloads.get(pod).map(|placed| &placed.services[..]).unwrap_or_default();
        let own = services.iter().map(ToString::to_string).chain([pod.to_owned()]);
        told.extend(own.filter_map(|name| now.get(&name).cloned()));
        told
    }

    /// Whether it is a workload, and no service.
    pub(super) fn is_workload(&self, name: &str) -> bool {
        self.workloads.contains_key(name)
    }

    /// What the waypoints are called that need it.
    fn needed_by(&self, resource: &Resource, interest: &mut Interest<'_>) -> BTreeSet<String> {
        let Some(placed) = self.workloads.get(&resource.name) else {
            let service = resource.name.split_once('/').map(|(namespace, hostname)| ServiceName {
                namespace: namespace.into(),
                hostname: hostname.into(),
            });
            return service.map(|service| interest.of(&service).clone()).unwrap_or_default();
        };
        let borrowers = resource.aliases.iter().filter_map(|address| self.borrowed.get(address)).flatten();
        let borrowers = borrowers.filter_map(|name| self.workloads.get(name));
        let mut needed = BTreeSet::new();
        for placed in borrowers.chain([placed]) {
            for service in &placed.services {
                needed.extend(interest.of(service).iter().cloned());
            }
            needed.extend(placed.waypoint.clone());
        }
        needed
    }
}

/// Who is interested in services, each found once.
struct Interest<'a> {
    guarding: &'a Guarding,
    found: BTreeMap<ServiceName, BTreeSet<String>>,
}

impl Interest<'_> {
    fn of(&mut self, service: &ServiceName) -> &BTreeSet<String> {
        self.found.entry(service.clone()).or_insert_with(|| self.guarding.interested(service))
    }
}
