//! Every object that the source named, with the lookups that the rules need.
//!
//! Owns no rules. Secondary indexes are derived from the objects alone, so they can't disagree with them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::references::References;
use super::waypoint;
use crate::source::objects::{
    AuthorizationPolicy, BackendTLSPolicy, ConfigMap, EndpointSlice, Event, Gateway, GatewayClass, Key, Kind,
    Labels, Metadata, Namespace, Node, Object, PeerAuthentication, Pod, ReferenceGrant, Service,
    ServiceEntry, TrafficPolicy, WorkloadEntry,
};

/// The label by which a slice names its service.
const SERVICE_OF_SLICE: &str = "kubernetes.io/service-name";

/// Namespace and name, in that order, so that a namespace is a range.
pub(crate) type Name = (String, String);

/// The namespace and name of an object.
pub(crate) fn name_of(metadata: &Metadata) -> Name {
    (metadata.namespace.clone(), metadata.name.clone())
}

/// The object of that kind and name.
pub(crate) fn key_of(kind: Kind, (namespace, name): &Name) -> Key {
    Key { kind, namespace: namespace.clone(), name: name.clone() }
}

/// Whether `labels` has every pair of `selector`.
pub(crate) fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The service that a slice belongs to.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<Name> {
    let service = slice.metadata.labels.get(SERVICE_OF_SLICE)?;
    Some((slice.metadata.namespace.clone(), service.clone()))
}

/// The pods that a slice refers to.
pub(crate) fn pods_of(slice: &EndpointSlice) -> impl Iterator<Item = Name> + '_ {
    (slice.endpoints.iter().filter_map(|endpoint| endpoint.target_ref.as_ref()))
        .filter(|target| target.kind == "Pod" && target.namespace == slice.metadata.namespace)
        .map(|target| (target.namespace.clone(), target.name.clone()))
}

/// Every object that the source named.
#[derive(Debug, Default, Clone)]
pub(crate) struct Cluster {
    pub(crate) authorizations: BTreeMap<Name, Arc<AuthorizationPolicy>>,
    pub(crate) backend_tls: BTreeMap<Name, Arc<BackendTLSPolicy>>,
    /// Certificates that policies may name.
    pub(crate) bundles: BTreeMap<Name, Arc<ConfigMap>>,
    pub(crate) entries: BTreeMap<Name, Arc<ServiceEntry>>,
    pub(crate) machines: BTreeMap<Name, Arc<WorkloadEntry>>,
    pub(crate) grants: BTreeMap<Name, Arc<ReferenceGrant>>,
    pub(crate) slices: BTreeMap<Name, Arc<EndpointSlice>>,
    classes: BTreeMap<String, Arc<GatewayClass>>,
    pub(crate) gateways: BTreeMap<Name, Arc<Gateway>>,
    namespaces: BTreeMap<String, Arc<Namespace>>,
    nodes: BTreeMap<String, Arc<Node>>,
    pub(crate) peers: BTreeMap<Name, Arc<PeerAuthentication>>,
    pub(crate) pods: BTreeMap<Name, Arc<Pod>>,
    /// Of all kinds.
    pub(crate) routes: BTreeMap<Key, Object>,
    pub(crate) services: BTreeMap<Name, Arc<Service>>,
    pub(crate) traffic: BTreeMap<Name, Arc<TrafficPolicy>>,
    accounts: BTreeSet<Name>,
    cluster_ips: BTreeSet<(IpAddr, Name)>,
    entries_with: BTreeSet<(String, Name)>,
    gateways_for: BTreeSet<(Name, Name)>,
    pods_on: BTreeSet<(String, Name)>,
    pods_by_uid: BTreeSet<(String, Name)>,
    references: References,
    slices_for: BTreeSet<(Name, Name)>,
    slices_naming: BTreeSet<(Name, Name)>,
}

impl Cluster {
    /// Takes one event in. Returns the object that was there before.
    pub(crate) fn apply(&mut self, event: &Event) -> Option<Object> {
        let key = match event {
            Event::Delete(key) => key.clone(),
            Event::Upsert(object) => object.key(),
        };
        let before = self.remove(&key);
        if let Event::Upsert(object) = event {
            self.insert(object.clone());
        }
        before
    }

    fn remove(&mut self, key: &Key) -> Option<Object> {
        let name = (key.namespace.clone(), key.name.clone());
        match key.kind {
            Kind::AuthorizationPolicy => self.authorizations.remove(&name).map(Object::AuthorizationPolicy),
            Kind::BackendTLSPolicy => {
                let policy = Object::BackendTLSPolicy(self.backend_tls.remove(&name)?);
                self.references.remove(&policy);
                Some(policy)
            }
            Kind::ConfigMap => self.bundles.remove(&name).map(Object::ConfigMap),
            Kind::EndpointSlice => {
                let slice = self.slices.remove(&name)?;
                if let Some(service) = service_of(&slice) {
                    self.slices_for.remove(&(service, name.clone()));
                }
                for pod in pods_of(&slice) {
                    self.slices_naming.remove(&(pod, name.clone()));
                }
                Some(Object::EndpointSlice(slice))
            }
            Kind::Gateway => {
                let gateway = self.gateways.remove(&name)?;
                if let Some(account) = account_of(&gateway) {
                    self.gateways_for.remove(&(account, name));
                }
                Some(Object::Gateway(gateway))
            }
            Kind::GatewayClass => self.classes.remove(&key.name).map(Object::GatewayClass),
            Kind::GRPCRoute | Kind::HTTPRoute | Kind::TCPRoute | Kind::TLSRoute => {
                let route = self.routes.remove(key)?;
                self.references.remove(&route);
                Some(route)
            }
            Kind::Namespace => self.namespaces.remove(&key.name).map(Object::Namespace),
            Kind::Node => self.nodes.remove(&key.name).map(Object::Node),
            Kind::PeerAuthentication => self.peers.remove(&name).map(Object::PeerAuthentication),
            Kind::Pod => {
                let pod = self.pods.remove(&name)?;
                self.pods_on.remove(&(pod.spec.node_name.clone(), name.clone()));
                self.pods_by_uid.remove(&(pod.metadata.uid.clone(), name));
                Some(Object::Pod(pod))
            }
            Kind::ReferenceGrant => self.grants.remove(&name).map(Object::ReferenceGrant),
            Kind::Service => {
                let service = self.services.remove(&name)?;
                for ip in cluster_ips(&service) {
                    self.cluster_ips.remove(&(ip, name.clone()));
                }
                Some(Object::Service(service))
            }
            // An account's content means nothing to the index, so there is nothing to hand back.
            Kind::ServiceAccount => {
                self.accounts.remove(&name);
                None
            }
            Kind::ServiceEntry => {
                let entry = self.entries.remove(&name)?;
                for host in &entry.spec.hosts {
                    self.entries_with.remove(&(host.clone(), name.clone()));
                }
                Some(Object::ServiceEntry(entry))
            }
            Kind::TrafficPolicy => {
                let policy = Object::TrafficPolicy(self.traffic.remove(&name)?);
                self.references.remove(&policy);
                Some(policy)
            }
            Kind::WorkloadEntry => self.machines.remove(&name).map(Object::WorkloadEntry),
        }
    }

    fn insert(&mut self, object: Object) {
        let name = name_of(object.metadata());
        self.references.insert(&object);
        match object {
            Object::AuthorizationPolicy(policy) => drop(self.authorizations.insert(name, policy)),
            Object::BackendTLSPolicy(policy) => drop(self.backend_tls.insert(name, policy)),
            Object::ConfigMap(map) => drop(self.bundles.insert(name, map)),
            Object::EndpointSlice(slice) => {
                if let Some(service) = service_of(&slice) {
                    self.slices_for.insert((service, name.clone()));
                }
                self.slices_naming.extend(pods_of(&slice).map(|pod| (pod, name.clone())));
                self.slices.insert(name, slice);
            }
            Object::Gateway(gateway) => {
                self.gateways_for.extend(account_of(&gateway).map(|account| (account, name.clone())));
                self.gateways.insert(name, gateway);
            }
            Object::GatewayClass(class) => drop(self.classes.insert(name.1, class)),
            Object::GRPCRoute(_) | Object::HTTPRoute(_) | Object::TCPRoute(_) | Object::TLSRoute(_) => {
                self.routes.insert(object.key(), object);
            }
            Object::Namespace(namespace) => drop(self.namespaces.insert(name.1, namespace)),
            Object::Node(node) => drop(self.nodes.insert(name.1, node)),
            Object::PeerAuthentication(peer) => drop(self.peers.insert(name, peer)),
            Object::Pod(pod) => {
                self.pods_on.insert((pod.spec.node_name.clone(), name.clone()));
                self.pods_by_uid.insert((pod.metadata.uid.clone(), name.clone()));
                self.pods.insert(name, pod);
            }
            Object::ReferenceGrant(grant) => drop(self.grants.insert(name, grant)),
            Object::Service(service) => {
                self.cluster_ips.extend(cluster_ips(&service).map(|ip| (ip, name.clone())));
                self.services.insert(name, service);
            }
            Object::ServiceAccount(_) => drop(self.accounts.insert(name)),
            Object::ServiceEntry(entry) => {
                self.entries_with.extend(entry.spec.hosts.iter().map(|host| (host.clone(), name.clone())));
                self.entries.insert(name, entry);
            }
            Object::TrafficPolicy(policy) => drop(self.traffic.insert(name, policy)),
            Object::WorkloadEntry(entry) => drop(self.machines.insert(name, entry)),
        }
    }

    /// Every object that can have products.
    pub(crate) fn keys(&self) -> Vec<Key> {
        let mut keys = Vec::new();
        keys.extend(self.authorizations.keys().map(|name| key_of(Kind::AuthorizationPolicy, name)));
        keys.extend(self.backend_tls.keys().map(|name| key_of(Kind::BackendTLSPolicy, name)));
        keys.extend(self.slices.keys().map(|name| key_of(Kind::EndpointSlice, name)));
        keys.extend(self.gateways.keys().map(|name| key_of(Kind::Gateway, name)));
        keys.extend(self.peers.keys().map(|name| key_of(Kind::PeerAuthentication, name)));
        keys.extend(self.pods.keys().map(|name| key_of(Kind::Pod, name)));
        keys.extend(self.routes.keys().cloned());
        keys.extend(self.services.keys().map(|name| key_of(Kind::Service, name)));
        keys.extend(self.traffic.keys().map(|name| key_of(Kind::TrafficPolicy, name)));
        keys.extend(self.entries.keys().map(|name| key_of(Kind::ServiceEntry, name)));
        keys.extend(self.machines.keys().map(|name| key_of(Kind::WorkloadEntry, name)));
        keys
    }

    /// Every object, in order.
    pub(crate) fn all_keys(&self) -> Vec<Key> {
        let mut keys = self.keys();
        let of_cluster = |kind, name: &String| Key { kind, namespace: String::new(), name: name.clone() };
        keys.extend(self.classes.keys().map(|name| of_cluster(Kind::GatewayClass, name)));
        keys.extend(self.bundles.keys().map(|name| key_of(Kind::ConfigMap, name)));
        keys.extend(self.namespaces.keys().map(|name| of_cluster(Kind::Namespace, name)));
        keys.extend(self.nodes.keys().map(|name| of_cluster(Kind::Node, name)));
        keys.extend(self.grants.keys().map(|name| key_of(Kind::ReferenceGrant, name)));
        keys.extend(self.accounts.iter().map(|name| key_of(Kind::ServiceAccount, name)));
        keys.sort();
        keys
    }

    /// How many objects there are of each kind.
    pub(crate) fn census(&self) -> BTreeMap<Kind, usize> {
        let routes = |kind| self.routes.keys().filter(|key| key.kind == kind).count();
        BTreeMap::from([
            (Kind::AuthorizationPolicy, self.authorizations.len()),
            (Kind::BackendTLSPolicy, self.backend_tls.len()),
            (Kind::ConfigMap, self.bundles.len()),
            (Kind::EndpointSlice, self.slices.len()),
            (Kind::Gateway, self.gateways.len()),
            (Kind::GatewayClass, self.classes.len()),
            (Kind::GRPCRoute, routes(Kind::GRPCRoute)),
            (Kind::HTTPRoute, routes(Kind::HTTPRoute)),
            (Kind::Namespace, self.namespaces.len()),
            (Kind::Node, self.nodes.len()),
            (Kind::PeerAuthentication, self.peers.len()),
            (Kind::Pod, self.pods.len()),
            (Kind::ReferenceGrant, self.grants.len()),
            (Kind::Service, self.services.len()),
            (Kind::ServiceAccount, self.accounts.len()),
            (Kind::ServiceEntry, self.entries.len()),
            (Kind::TCPRoute, routes(Kind::TCPRoute)),
            (Kind::TLSRoute, routes(Kind::TLSRoute)),
            (Kind::TrafficPolicy, self.traffic.len()),
            (Kind::WorkloadEntry, self.machines.len()),
        ])
    }

    /// The oldest Gateway of a namespace that guards one of these accounts' workloads.
    pub(crate) fn gateway_for<'a>(
        &self,
        accounts: impl IntoIterator<Item = &'a str>,
        namespace: &str,
    ) -> Option<&Gateway> {
        let of = |account: &str| related(&self.gateways_for, &(namespace.to_owned(), account.to_owned()));
        let named = accounts.into_iter().flat_map(of);
        named
            .filter_map(|name| self.gateways.get(name))
            .min_by_key(|gateway| age(&gateway.metadata))
            .map(|it| &**it)
    }

    /// Whether a Gateway of a namespace guards the workloads of an account.
    pub(crate) fn has_gateways_for_accounts(&self, namespace: &str) -> bool {
        let first = ((namespace.to_owned(), String::new()), (String::new(), String::new()));
        self.gateways_for.range(first..).next().is_some_and(|((of, _), _)| of == namespace)
    }

    /// Every class of gateways.
    pub(crate) fn classes(&self) -> impl Iterator<Item = &Arc<GatewayClass>> {
        self.classes.values()
    }

    /// Every namespace.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &Metadata> {
        self.namespaces.values().map(|namespace| &namespace.metadata)
    }

    /// A class of gateways; `None` when the source does not name it.
    pub(crate) fn class(&self, name: &str) -> Option<&GatewayClass> {
        self.classes.get(name).map(|class| &**class)
    }

    /// A route of any kind.
    pub(crate) fn route(&self, key: &Key) -> Option<&Object> {
        self.routes.get(key)
    }

    /// Which routes and policies name what.
    pub(crate) fn references(&self) -> &References {
        &self.references
    }

    /// A namespace's metadata; `None` when the source does not name it.
    pub(crate) fn namespace(&self, name: &str) -> Option<&Metadata> {
        self.namespaces.get(name).map(|namespace| &namespace.metadata)
    }

    /// A node's labels; `None` when the source does not name it.
    pub(crate) fn node_labels(&self, name: &str) -> Option<&Labels> {
        self.nodes.get(name).map(|node| &node.metadata.labels)
    }

    /// The pods that are scheduled to a node.
    pub(crate) fn pods_on(&self, node: &str) -> impl Iterator<Item = &Name> {
        related(&self.pods_on, &node.to_owned())
    }

    /// The pods that claim a uid: one, unless someone made a mistake.
    pub(crate) fn pods_with_uid(&self, uid: &str) -> impl Iterator<Item = &Name> {
        related(&self.pods_by_uid, &uid.to_owned())
    }

    /// The ServiceEntries that name a host.
    pub(crate) fn entries_with(&self, host: &str) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        related(&self.entries_with, &host.to_owned()).filter_map(|entry| self.entries.get(entry))
    }

    /// The Kubernetes Service whose address that is.
    pub(crate) fn with_cluster_ip(&self, ip: IpAddr) -> Option<&Name> {
        related(&self.cluster_ips, &ip.to_canonical()).next()
    }

    /// The slices of a service.
    pub(crate) fn slices_for(&self, service: &Name) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        related(&self.slices_for, service).filter_map(|slice| self.slices.get(slice))
    }

    /// The slices that refer to a pod.
    pub(crate) fn slices_naming(&self, pod: &Name) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        related(&self.slices_naming, pod).filter_map(|slice| self.slices.get(slice))
    }
}

/// The account whose workloads a Gateway guards, with its namespace.
fn account_of(gateway: &Gateway) -> Option<Name> {
    let account = waypoint::account(&gateway.metadata)?;
    Some((gateway.metadata.namespace.clone(), account.to_owned()))
}

/// By which the older of two objects counts. Without a timestamp, one counts as the newest: the API server always sets one, a
/// directory may not.
pub(crate) fn age(metadata: &Metadata) -> (bool, Option<String>, Name) {
    let created = &metadata.creation_timestamp;
    (created.is_none(), created.clone(), name_of(metadata))
}

/// The virtual addresses of a service.
pub(crate) fn cluster_ips(service: &Service) -> impl Iterator<Item = IpAddr> + '_ {
    let listed = service.spec.cluster_ips.iter().chain(&service.spec.cluster_ip);
    listed.filter_map(|text| text.parse().ok().map(|ip: IpAddr| ip.to_canonical()))
}

/// The right sides of the pairs whose left side is `of`.
fn related<'a, T: Ord + Clone>(
    pairs: &'a BTreeSet<(T, Name)>,
    of: &T,
) -> impl Iterator<Item = &'a Name> + use<'a, T> {
    let of = of.clone();
    let first = (of.clone(), (String::new(), String::new()));
    pairs.range(first..).take_while(move |(left, _)| *left == of).map(|(_, right)| right)
}

/// The entries of one namespace.
pub(crate) fn within<'a, T>(
    map: &'a BTreeMap<Name, T>,
    namespace: &str,
) -> impl Iterator<Item = (&'a Name, &'a T)> + use<'a, T> {
    let namespace = namespace.to_owned();
    let first = (namespace.clone(), String::new());
    map.range(first..).take_while(move |((of, _), _)| *of == namespace)
}
