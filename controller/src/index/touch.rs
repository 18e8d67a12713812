//! Which objects' products may depend on one object: what has to be derived again when it comes, changes or goes.
//!
//! Says too much rather than too little; derives nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::attachment::names_waypoint_in;
use super::cluster::{Name, cluster_ips, key_of, name_of, pods_of, selects, service_of, within};
use super::{
    Index, authorization, backend_tls, references, routes, service, service_entry, traffic, workload_entry,
};
use crate::source::objects::{Key, Kind, Labels, Metadata, Object, Service, ServiceEntry};

impl Index {
    /// Marks the objects whose products may depend on `object`, by what the cluster holds right now.
    pub(super) fn touch(&self, object: &Object, touched: &mut BTreeSet<Key>) {
        let Self { config, cluster, .. } = self;
        let key = object.key();
        let pod = |name: &Name| key_of(Kind::Pod, name);
        match object {
            Object::AuthorizationPolicy(policy) => {
                if let Some(selector) = authorization::selector(policy) {
                    touched.extend(self.selected(&key.namespace, selector).map(pod));
                }
            }
            Object::BackendTLSPolicy(policy) => {
                touched.extend(backend_tls::services(policy));
                // Of several for one target, one counts.
                Self::touch_beside(&cluster.backend_tls, &key, touched);
            }
            Object::ConfigMap(_) => self.touch_secured(&key, touched),
            Object::EndpointSlice(slice) => {
                touched.extend(pods_of(slice).map(|name| pod(&name)));
                // Whose account matters to it.
                touched.extend(service_of(slice).map(|name| key_of(Kind::Service, &name)));
            }
            Object::GRPCRoute(_) | Object::HTTPRoute(_) | Object::TCPRoute(_) | Object::TLSRoute(_) => {
                self.touch_displaced(object, &key, touched);
                // They may need a waypoint now, or no more.
                touched.extend(references::parents(object).iter().map(|name| key_of(Kind::Service, name)));
            }
            Object::Gateway(_) => self.touch_guarded(&key.namespace, touched),
            Object::GatewayClass(_) => {
                for (name, gateway) in &cluster.gateways {
                    if gateway.spec.gateway_class_name == key.name {
                        let gateway = key_of(Kind::Gateway, name);
                        touched.extend(cluster.references().of(&gateway).cloned());
                        touched.insert(gateway);
                        self.touch_guarded(&name.0, touched);
                    }
                }
            }
            Object::Namespace(_) if key.name == config.root_namespace => touched.extend(cluster.keys()),
            Object::Namespace(_) => self.touch_within(&key.name, touched),
            Object::Node(_) => touched.extend(cluster.pods_on(&key.name).map(pod)),
            Object::PeerAuthentication(_) if key.namespace == config.root_namespace => {
                touched.extend(cluster.pods.keys().map(pod));
                touched.extend(cluster.peers.keys().map(|name| key_of(Kind::PeerAuthentication, name)));
            }
            Object::PeerAuthentication(_) => {
                touched.extend(within(&cluster.pods, &key.namespace).map(|(name, _)| pod(name)));
                let peers = within(&cluster.peers, &key.namespace);
                touched.extend(peers.map(|(name, _)| key_of(Kind::PeerAuthentication, name)));
            }
            Object::Pod(object) => {
                touched.extend(cluster.pods_with_uid(&object.metadata.uid).map(pod));
                self.touch_services_of(&object.metadata, &object.metadata.labels, touched);
            }
            Object::ReferenceGrant(_) => {
                touched.extend(cluster.references().of_services_in(&key.namespace).cloned());
            }
            Object::Service(service) => self.touch_service(service, touched),
            Object::TrafficPolicy(policy) => {
                touched.extend(traffic::targets(policy).filter(|target| target.kind == Kind::Service));
                // Where several set the same, it is taken from one.
                Self::touch_beside(&cluster.traffic, &key, touched);
            }
            Object::ServiceAccount(_) => {}
            Object::ServiceEntry(entry) => {
                self.touch_entry(entry, touched);
                // The one whose host it is may be another one now.
                for host in &entry.spec.hosts {
                    self.touch_host(host, touched);
                }
            }
            Object::WorkloadEntry(entry) => {
                self.touch_services_of(&entry.metadata, &workload_entry::labels(entry), touched);
            }
        }
        touched.extend(cluster.references().of(&key).cloned());
        touched.insert(key);
    }

    /// The policies of the same kind and namespace.
    fn touch_beside<T>(all: &BTreeMap<Name, T>, key: &Key, touched: &mut BTreeSet<Key>) {
        touched.extend(within(all, &key.namespace).map(|(name, _)| key_of(key.kind, name)));
    }

    /// The services that policies are about which name a ConfigMap.
    fn touch_secured(&self, bundle: &Key, touched: &mut BTreeSet<Key>) {
        let named_by = self.cluster.references().of(bundle);
        let policies = named_by
            .filter_map(|key| self.cluster.backend_tls.get(&(key.namespace.clone(), key.name.clone())));
        touched.extend(policies.flat_map(|policy| backend_tls::services(policy)));
    }

    /// What a waypoint of a namespace may guard: everything there, and elsewhere what names one of there.
    fn touch_guarded(&self, namespace: &str, touched: &mut BTreeSet<Key>) {
        let cluster = &self.cluster;
        self.touch_within(namespace, touched);
        let elsewhere = |metadata: &Metadata| {
            metadata.namespace != namespace
                && names_waypoint_in(&metadata.labels, &metadata.namespace, namespace)
        };
        let names =
            cluster.namespaces().filter(|other| names_waypoint_in(&other.labels, &other.name, namespace));
        for other in names {
            self.touch_within(&other.name, touched);
        }
        let pods = cluster.pods.iter().filter(|(_, pod)| elsewhere(&pod.metadata));
        touched.extend(pods.map(|(name, _)| key_of(Kind::Pod, name)));
        let services = cluster.services.iter().filter(|(_, service)| elsewhere(&service.metadata));
        touched.extend(services.map(|(name, _)| key_of(Kind::Service, name)));
        let entries = cluster.entries.iter().filter(|(_, entry)| elsewhere(&entry.metadata));
        touched.extend(entries.map(|(name, _)| key_of(Kind::ServiceEntry, name)));
        let machines = cluster.machines.iter().filter(|(_, entry)| elsewhere(&entry.metadata));
        touched.extend(machines.map(|(name, _)| key_of(Kind::WorkloadEntry, name)));
    }

    /// Everything in a namespace to which the namespace's labels or a waypoint may matter.
    fn touch_within(&self, namespace: &str, touched: &mut BTreeSet<Key>) {
        let cluster = &self.cluster;
        touched.extend(within(&cluster.pods, namespace).map(|(name, _)| key_of(Kind::Pod, name)));
        touched.extend(within(&cluster.services, namespace).map(|(name, _)| key_of(Kind::Service, name)));
        touched.extend(within(&cluster.entries, namespace).map(|(name, _)| key_of(Kind::ServiceEntry, name)));
        touched
            .extend(within(&cluster.machines, namespace).map(|(name, _)| key_of(Kind::WorkloadEntry, name)));
    }

    /// The services of a workload, where the account that it runs as matters to them.
    fn touch_services_of(&self, metadata: &Metadata, labels: &Labels, touched: &mut BTreeSet<Key>) {
        let cluster = &self.cluster;
        let namespace = &metadata.namespace;
        if !cluster.has_gateways_for_accounts(namespace) {
            return;
        }
        let services = within(&cluster.services, namespace);
        let services = services.filter(|(_, service)| selects(&service.spec.selector, labels));
        touched.extend(services.map(|(name, _)| key_of(Kind::Service, name)));
        let name = name_of(metadata);
        let referring = cluster.slices_naming(&name).filter_map(|slice| service_of(slice));
        touched.extend(referring.map(|name| key_of(Kind::Service, &name)));
        let entries = within(&cluster.entries, namespace)
            .filter(|(_, entry)| service_entry::selector(entry).is_some_and(|of| selects(of, labels)));
        touched.extend(entries.map(|(name, _)| key_of(Kind::ServiceEntry, name)));
    }

    /// The routes of weaker kinds that a route may displace.
    fn touch_displaced(&self, route: &Object, key: &Key, touched: &mut BTreeSet<Key>) {
        let references = self.cluster.references();
        for service in references::parents(route) {
            for kind in routes::weaker_than(key.kind) {
                let displaced = references.attached(&service, kind);
                touched.extend(displaced.filter(|other| other.namespace == key.namespace).cloned());
            }
        }
    }

    fn touch_service(&self, service: &Service, touched: &mut BTreeSet<Key>) {
        let Self { config, cluster, .. } = self;
        let name = name_of(&service.metadata);
        if !service.spec.selector.is_empty() {
            self.touch_selected(&name.0, &service.spec.selector, touched);
        }
        for slice in cluster.slices_for(&name) {
            touched.insert(key_of(Kind::EndpointSlice, &name_of(&slice.metadata)));
            touched.extend(pods_of(slice).map(|name| key_of(Kind::Pod, &name)));
        }
        self.touch_host(&service::service_name(config, &name).hostname, touched);
        let ips: BTreeSet<_> = cluster_ips(service).collect();
        let claims = |entry: &ServiceEntry| {
            entry.spec.addresses.iter().any(|text| canonical(text).is_some_and(|ip| ips.contains(&ip)))
        };
        let claiming = cluster.entries.iter().filter(|(_, entry)| claims(entry));
        touched.extend(claiming.map(|(name, _)| key_of(Kind::ServiceEntry, name)));
    }

    /// The entries of a host, and who backs them.
    fn touch_host(&self, host: &str, touched: &mut BTreeSet<Key>) {
        for entry in self.cluster.entries_with(host) {
            self.touch_entry(entry, touched);
        }
    }

    fn touch_entry(&self, entry: &ServiceEntry, touched: &mut BTreeSet<Key>) {
        touched.insert(key_of(Kind::ServiceEntry, &name_of(&entry.metadata)));
        if let Some(selector) = service_entry::selector(entry) {
            self.touch_selected(&entry.metadata.namespace, selector, touched);
        }
    }

    /// The workloads of a namespace with these labels.
    fn touch_selected(&self, namespace: &str, selector: &Labels, touched: &mut BTreeSet<Key>) {
        let pods = within(&self.cluster.pods, namespace);
        let pods = pods.filter(|(_, pod)| selects(selector, &pod.metadata.labels));
        touched.extend(pods.map(|(name, _)| key_of(Kind::Pod, name)));
        let machines = within(&self.cluster.machines, namespace);
        let machines = machines.filter(|(_, entry)| selects(selector, &workload_entry::labels(entry)));
        touched.extend(machines.map(|(name, _)| key_of(Kind::WorkloadEntry, name)));
    }

    /// The pods that a policy of `namespace` selects: everywhere, when it is the root namespace.
    fn selected<'a>(&'a self, namespace: &'a str, selector: &'a Labels) -> impl Iterator<Item = &'a Name> {
        let everywhere = namespace == self.config.root_namespace;
        let pods: Box<dyn Iterator<Item = _>> = match everywhere {
            true => Box::new(self.cluster.pods.iter()),
            false => Box::new(within(&self.cluster.pods, namespace)),
        };
        pods.filter(move |(_, pod)| selects(selector, &pod.metadata.labels)).map(|(name, _)| name)
    }
}

/// An address in the one form in which addresses are compared, also when it is written as a block of one.
fn canonical(text: &str) -> Option<IpAddr> {
    let ip = text.split_once('/').map_or(text, |(ip, _)| ip);
    ip.parse().ok().map(|ip: IpAddr| ip.to_canonical())
}
