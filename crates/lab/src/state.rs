//! What the cluster consists of at this moment. Plain data with one owner (`Lab`); manifests, service rules and DNS are
//! functions of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::spec::{Map, PodSpec, ServicePort, ServiceSpec, TargetPort};
use crate::topology::{self, Pair};

/// Namespace and name.
pub(crate) type Key = (String, String);

#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) ipv6: bool,
    pub(crate) nodes: Vec<NodeRecord>,
    pub(crate) namespaces: BTreeMap<String, Map>,
    pub(crate) pods: BTreeMap<Key, PodRecord>,
    pub(crate) services: BTreeMap<Key, ServiceRecord>,
    /// Files of the user's own, by file name.
    pub(crate) verbatim: BTreeMap<String, String>,
    /// Names outside the cluster that its DNS answers for.
    pub(crate) outside_names: BTreeMap<String, Vec<IpAddr>>,
}

#[derive(Clone, Debug)]
pub(crate) struct NodeRecord {
    pub(crate) name: String,
    pub(crate) number: u8,
    pub(crate) labels: Map,
}

#[derive(Clone, Debug)]
pub(crate) struct PodRecord {
    pub(crate) uid: String,
    pub(crate) spec: PodSpec,
    /// Index into `State::nodes`.
    pub(crate) node: usize,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) ready: bool,
    /// When its deletion was asked for, in RFC 3339.
    pub(crate) deleted_at: Option<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct ServiceRecord {
    pub(crate) spec: ServiceSpec,
    /// Absent for a headless service.
    pub(crate) vips: Option<Pair>,
}

impl State {
    /// The pods that a service selects, ready or not.
    pub(crate) fn selected<'a>(&'a self, service: &'a ServiceSpec) -> impl Iterator<Item = &'a PodRecord> {
        self.pods.values().filter(move |pod| {
            !service.selector.is_empty()
                && pod.spec.namespace == service.namespace
                && service.selector.iter().all(|(key, value)| pod.spec.labels.get(key) == Some(value))
        })
    }

    /// The pods that take new connections for a service.
    pub(crate) fn serving<'a>(&'a self, service: &'a ServiceSpec) -> impl Iterator<Item = &'a PodRecord> {
        self.selected(service)
            .filter(|pod| service.publish_not_ready || (pod.ready && pod.deleted_at.is_none()))
    }

    /// The service accounts that exist: those of pods, and every namespace's default one.
    pub(crate) fn service_accounts(&self) -> BTreeSet<Key> {
        let of_pods =
            self.pods.values().map(|pod| (pod.spec.namespace.clone(), pod.spec.service_account.clone()));
        let defaults = self.namespaces.keys().map(|name| (name.clone(), "default".to_owned()));
        of_pods.chain(defaults).collect()
    }
}

impl PodRecord {
    /// The number of the port that a service port leads to in this pod; absent when the pod has no port of that name.
    pub(crate) fn target(&self, port: &ServicePort) -> Option<u16> {
        match &port.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => self
                .spec
                .ports
                .iter()
                .find(|candidate| candidate.name == *name && candidate.protocol == port.protocol)
                .map(|found| found.port),
        }
    }
}

impl NodeRecord {
    pub(crate) fn ips(&self, ipv6: bool) -> Vec<IpAddr> {
        topology::node(self.number).ips(ipv6)
    }
}
