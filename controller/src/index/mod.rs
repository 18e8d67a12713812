//! What the mesh is, derived from what the source says: objects in, model out.
//!
//! Pure: no clock, no I/O, no async, no wire form. Every object has *products* (workloads, a service, a policy, an
//! enrolment, findings), each a function of the cluster alone. An event recomputes the products of the objects that it
//! touches; that this equals computing all of them is a property test. Owns no persistence and no delivery.

mod attachment;
mod authorization;
mod automatic;
mod backend_tls;
mod cluster;
mod complaints;
mod config;
mod endpoints;
mod enrolment;
mod finding;
mod gateways;
mod judgements;
mod marks;
mod peer_authentication;
mod products;
mod proven;
mod references;
mod routes;
mod service;
mod service_entry;
mod statements;
mod touch;
mod traffic;
mod waypoint;
mod workload;
mod workload_entry;

use std::collections::{BTreeMap, BTreeSet};

use model::Str;
use model::store::Update;

use crate::source::objects::{Event, Key, Kind};
use cluster::{Cluster, Name, key_of};
use products::{Products, difference};

pub use attachment::Bound;
pub use automatic::{AUTO, AUTOMATIC, AUTOMATIC_NAME, Needing, Wish};
pub use complaints::Complaint;
pub use config::Config;
pub use enrolment::{Enrolment, Verdict};
pub use finding::{Finding, Outcome, Reason};
pub use gateways::{Said, Wanted};
pub use judgements::{Answers, CONDITION, Judgement, WAYPOINT_BOUND};
pub use marks::{Mark, REDIRECTION, Remark};
pub use products::Change;
pub use proven::{PodState, Progress, Proven};
pub use statements::{Attachment, CONDITIONS, Condition, SPEAKER, Statement, has_parents};
pub use waypoint::{CLASSES, CONTROLLER, GATEWAY_NAME, MANAGED};

/// What came of a node's report.
#[derive(Debug, Default, PartialEq)]
pub struct Reported {
    /// What is different now.
    pub changes: Vec<Change>,
    /// Whether the proofs are other than before, and so to be kept.
    pub proven: bool,
    /// Pods that the report names and that are not this node's.
    pub unknown: Vec<String>,
}

/// The mesh as derived so far.
#[derive(Debug)]
pub struct Index {
    config: Config,
    cluster: Cluster,
    proven: Proven,
    /// The source has named all there is: what comes now is new.
    complete: bool,
    products: BTreeMap<Key, Products>,
    /// By node and pod uid.
    enrolments: BTreeMap<(Str, Str), Name>,
    states: BTreeMap<(Str, Str), PodState>,
}

impl Index {
    /// An empty mesh. `proven` is what was kept over a restart.
    #[must_use]
    pub fn new(config: Config, proven: Proven) -> Self {
        Self {
            config,
            cluster: Cluster::default(),
            proven,
            complete: false,
            products: BTreeMap::new(),
            enrolments: BTreeMap::new(),
            states: BTreeMap::new(),
        }
    }

    /// What an empty mesh tells every proxy already.
    #[must_use]
    pub fn constants(&self) -> Vec<Change> {
        // Always there, so that a workload never names it before it is known.
        let strict = peer_authentication::static_strict(&self.config.root_namespace);
        vec![Change::Mesh(Box::new(Update::Policy(strict)))]
    }

    /// Takes events in, and says what is different.
    pub fn apply(&mut self, events: impl IntoIterator<Item = Event>) -> Vec<Change> {
        let mut touched = BTreeSet::new();
        for event in events {
            if let Event::Upsert(object) = &event {
                self.touch(object, &mut touched);
            }
            let before = self.cluster.apply(&event);
            if let Some(before) = before {
                self.touch(&before, &mut touched);
            }
            // Once more: who refers to whom may have changed by the event itself.
            if let Event::Upsert(object) = &event {
                self.touch(object, &mut touched);
            }
        }
        self.derive(touched)
    }

    /// Takes a node's complete report in.
    pub fn report(&mut self, node: &str, pods: Vec<PodState>) -> Reported {
        let node = Str::from(node);
        let mut reported = Reported::default();
        let mut touched = BTreeSet::new();
        self.states.retain(|(of, _), _| *of != node);
        for pod in pods {
            let place = (node.clone(), Str::from(pod.uid.as_str()));
            let Some(key) = self.enrolments.get(&place).map(|name| key_of(Kind::Pod, name)) else {
                reported.unknown.push(pod.uid);
                continue;
            };
            let wanted = self.products.get(&key).and_then(|products| products.enrolment.as_ref());
            let wanted = wanted.is_some_and(|enrolment| enrolment.verdict.enrol);
            if pod.progress == Progress::Enrolled
                && wanted
                && !self.config.proofs_on_pods
                && self.proven.insert(place.1.clone(), node.clone())
            {
                reported.proven = true;
                touched.insert(key);
            }
            self.states.insert(place, pod);
        }
        reported.changes = self.derive(touched);
        reported
    }

    /// The source has named all there is. Forgets proofs of pods that are not there or not to be enrolled: the wish may have
    /// ended while nobody watched. Pods that appear from now on are new.
    pub fn prune(&mut self) {
        self.complete = true;
        let wanted: BTreeSet<_> = (self.enrolments())
            .filter(|(enrolment, _)| enrolment.verdict.enrol)
            .map(|(enrolment, _)| (enrolment.uid.clone(), enrolment.node.clone()))
            .collect();
        self.proven.retain(|uid, node| wanted.contains(&(uid.into(), node.into())));
    }

    /// The proofs to keep over a restart.
    #[must_use]
    pub fn proven(&self) -> &Proven {
        &self.proven
    }

    /// How many objects there are of each kind.
    #[must_use]
    pub fn census(&self) -> BTreeMap<Kind, usize> {
        self.cluster.census()
    }

    /// Every object, by kind, namespace and name.
    #[must_use]
    pub fn keys(&self) -> Vec<Key> {
        self.cluster.all_keys()
    }

    /// What there is to say about each object.
    pub fn findings(&self) -> impl Iterator<Item = (&Key, &Finding)> {
        self.products
            .iter()
            .flat_map(|(key, products)| products.findings.iter().map(move |finding| (key, finding)))
    }

    /// Every enrolment, with what the node last said about it.
    pub fn enrolments(&self) -> impl Iterator<Item = (&Enrolment, Option<&PodState>)> {
        self.enrolments.iter().filter_map(|(place, name)| {
            let enrolment = self.products.get(&key_of(Kind::Pod, name))?.enrolment.as_ref()?;
            Some((enrolment, self.states.get(place)))
        })
    }

    /// Everything that is derived, as changes from nothing, in the order of the objects.
    #[must_use]
    pub fn everything(&self) -> Vec<Change> {
        let mut changes = self.constants();
        for products in self.products.values() {
            difference(&Products::default(), products, &mut changes);
        }
        changes
    }

    fn derive(&mut self, touched: BTreeSet<Key>) -> Vec<Change> {
        // Before anything else, so that no workload is derived from a proof that is about to end.
        for key in touched.iter().filter(|key| key.kind == Kind::Pod) {
            self.settle(key);
        }
        let mut changes = Vec::new();
        let mut followers = BTreeSet::new();
        for key in &touched {
            if self.renew(key, &mut changes) && key.kind == Kind::Service {
                // They say whether somebody guards it.
                let named_by = self.cluster.references().of(key);
                followers.extend(named_by.filter(|key| !touched.contains(key)).cloned());
            }
        }
        for key in &followers {
            self.renew(key, &mut changes);
        }
        // A uid may have moved to a pod that came earlier in the order of names, and a host to another object.
        changes.sort_by_key(|change| !change.is_end_of_a_name());
        changes
    }

    /// Derives the products of an object again. Whether they are others.
    fn renew(&mut self, key: &Key, changes: &mut Vec<Change>) -> bool {
        let after = self.products_of(key);
        let before = self.products.remove(key).unwrap_or_default();
        let is_new = before != after;
        if is_new {
            self.place(key, &before, &after);
            difference(&before, &after, changes);
        }
        if after != Products::default() {
            self.products.insert(key.clone(), after);
        }
        is_new
    }

    /// Ends the proof of a pod that is not to be enrolled any more: it was about the pod as it was wanted before. A new pod
    /// that is to be enrolled needs none: nobody is to send it plaintext, not even until its node has said that it is.
    fn settle(&mut self, pod: &Key) {
        let place = |enrolment: &Enrolment| (enrolment.node.clone(), enrolment.uid.clone());
        let wanted = |enrolment: &&Enrolment| enrolment.verdict.enrol;
        let before = self.products.get(pod).and_then(|products| products.enrolment.as_ref());
        let (known, wanted_before) = (before.map(place), before.filter(wanted).map(place));
        let object = self.cluster.pods.get(&(pod.namespace.clone(), pod.name.clone()));
        let after = object.and_then(|object| enrolment::of(&self.config, &self.cluster, object).0);
        let wanted_after = after.as_ref().filter(wanted).map(place);
        if let Some(before) = wanted_before.filter(|before| wanted_after.as_ref() != Some(before)) {
            self.proven.remove(&before.1);
        }
        let marked = self.config.proofs_on_pods && object.is_some_and(|pod| marks::mark(pod).is_some());
        let is_new = |after: &(Str, Str)| self.complete && known.as_ref() != Some(after);
        if let Some((node, uid)) = wanted_after.filter(|after| marked || is_new(after)) {
            self.proven.insert(uid, node);
        }
    }

    /// Keeps the lookup of enrolments in step.
    fn place(&mut self, key: &Key, before: &Products, after: &Products) {
        let place = |enrolment: &Enrolment| (enrolment.node.clone(), enrolment.uid.clone());
        let (before, after) = (before.enrolment.as_ref().map(place), after.enrolment.as_ref().map(place));
        let name = (key.namespace.clone(), key.name.clone());
        if let Some(before) = before.filter(|before| Some(before) != after.as_ref())
            && self.enrolments.get(&before) == Some(&name)
        {
            self.enrolments.remove(&before);
            self.states.remove(&before);
        }
        if let Some(after) = after {
            self.enrolments.insert(after, name);
        }
    }

    fn products_of(&self, key: &Key) -> Products {
        let Self { config, cluster, .. } = self;
        let root = config.root_namespace.as_str();
        let name = (key.namespace.clone(), key.name.clone());
        let mut products = Products::default();
        match key.kind {
            Kind::AuthorizationPolicy => {
                if let Some(object) = cluster.authorizations.get(&name) {
                    (products.policy, products.findings) = authorization::convert(object, root);
                }
            }
            Kind::BackendTLSPolicy => {
                if let Some(object) = cluster.backend_tls.get(&name) {
                    products.attachments = backend_tls::attachments(config, cluster, object);
                }
            }
            Kind::EndpointSlice => {
                if let Some(object) = cluster.slices.get(&name) {
                    (products.workloads, products.findings) = endpoints::convert(config, cluster, object);
                }
            }
            Kind::GRPCRoute | Kind::HTTPRoute | Kind::TCPRoute | Kind::TLSRoute => {
                if let Some(object) = cluster.route(key) {
                    (products.rules, products.attachments) = routes::convert(config, cluster, object);
                }
            }
            Kind::PeerAuthentication => {
                if let Some(object) = cluster.peers.get(&name) {
                    products.policy =
                        peer_authentication::converted(cluster, root, object).map(|(policy, _)| policy);
                    products.findings = peer_authentication::findings(cluster, root, object);
                }
            }
            Kind::Pod => self.products_of_pod(&name, &mut products),
            Kind::Service => self.products_of_service(&name, &mut products),
            Kind::ServiceEntry => {
                if let Some(object) = cluster.entries.get(&name) {
                    let service_entry::Converted { services, workloads, findings, bound } =
                        service_entry::convert(config, cluster, object);
                    products.services = services;
                    products.workloads = workloads;
                    products.findings = findings;
                    products.bound = bound;
                }
            }
            Kind::TrafficPolicy => {
                if let Some(object) = cluster.traffic.get(&name) {
                    (products.traffic, products.attachments) = traffic::convert(config, cluster, object);
                }
            }
            Kind::WorkloadEntry => {
                if let Some(object) = cluster.machines.get(&name) {
                    let workload_entry::Converted { workload, findings, bound } =
                        workload_entry::convert(config, cluster, object);
                    products.workloads = workload.into_iter().collect();
                    products.findings = findings;
                    products.bound = bound;
                }
            }
            Kind::ConfigMap
            | Kind::Gateway
            | Kind::GatewayClass
            | Kind::Namespace
            | Kind::Node
            | Kind::ReferenceGrant
            | Kind::ServiceAccount => {}
        }
        products.findings.extend(statements::findings(&products.attachments));
        products
    }

    fn products_of_service(&self, name: &Name, products: &mut Products) {
        let Self { config, cluster, .. } = self;
        let Some(object) = cluster.services.get(name) else { return };
        let service::Converted { service, findings, bound } = service::convert(config, cluster, object);
        products.services = service.into_iter().collect();
        products.findings = findings;
        products.bound = bound;
        products.backend_tls = backend_tls::of_service(config, cluster, object);
    }

    fn products_of_pod(&self, name: &Name, products: &mut Products) {
        let Self { config, cluster, proven, .. } = self;
        let Some(pod) = cluster.pods.get(name) else { return };
        let (enrolment, findings) = enrolment::of(config, cluster, pod);
        let enrolled = enrolment.as_ref().is_some_and(|enrolment| {
            enrolment.verdict.enrol && proven.contains(&enrolment.uid, &enrolment.node)
        });
        let (workload, more) = workload::convert(config, cluster, pod, enrolled);
        products.enrolment = enrolment;
        products.workloads = workload.into_iter().collect();
        products.findings = findings.into_iter().chain(more).collect();
    }
}
