//! What nodes may be told, encoded once, as snapshots that sessions read without waiting.
//!
//! One writer ([`Publisher`]); readers take a whole, immutable [`Snapshot`]. Owns no session and no rights.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use api::encode;
use arc_swap::ArcSwap;
use imbl::{OrdMap, OrdSet};
use model::Str;
use model::identity::Identity;
use model::l7;
use model::policy::{PolicyName, PolicyScope};
use model::store::Update;
use model::workload::Workload;
use tokio::sync::watch;
use xds::{Resource, Resources};

use super::guarding::Guarding;
use super::needs::{Needs, Stale};
use super::retiring::Retiring;
use crate::index::{Change, Enrolment};

/// Everything at one moment. Cloning is O(1).
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Workloads and services.
    pub addresses: Resources,
    /// Policies.
    pub authorizations: Resources,
    /// Rules of routes.
    pub rules: Resources,
    /// Traffic policies, each for one target.
    pub traffic: Resources,
    /// The TLS towards services' endpoints. Every waypoint is told of all: one that forgot it a moment before it forgets the rule that
    /// leads there, or whom it guards, would send plaintext meanwhile.
    pub backend_tls: Resources,
    nodes: OrdMap<Str, Node>,
    /// Pods of waypoints, by their uids.
    waypoints: OrdMap<Str, Arc<Enrolment>>,
    /// Alias to the names of what has it.
    pub(super) aliases: OrdMap<String, OrdSet<String>>,
    /// Service to the workloads that back it.
    pub(super) backing: OrdMap<String, OrdSet<String>>,
    pub(super) guarding: Guarding,
    needs: Needs,
}

/// What a waypoint is told of.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Workloads and services.
    pub addresses: Resources,
    /// Rules of routes.
    pub rules: Resources,
    /// Traffic policies.
    pub policies: Resources,
    /// The names of the services that it guards.
    pub guarded: BTreeSet<String>,
}

/// What one node is told about its own pods.
#[derive(Clone, Debug, Default)]
struct Node {
    enrolments: Resources,
    pods: OrdMap<Str, Arc<Enrolment>>,
}

impl Snapshot {
    /// What a node is told about its own pods.
    #[must_use]
    pub fn enrolments(&self, node: &str) -> Resources {
        self.nodes.get(node).map(|node| node.enrolments.clone()).unwrap_or_default()
    }

    /// Whether the pod of that uid lives on the node.
    #[must_use]
    pub fn has_pod(&self, node: &str, uid: &str) -> bool {
        self.nodes.get(node).is_some_and(|node| node.pods.contains_key(uid))
    }

    /// Whether a pod of that identity lives on the node whose traffic is the node's to carry: a waypoint carries its own.
    #[must_use]
    pub fn hosts(&self, node: &str, identity: &Identity) -> bool {
        let carried = |pod: &Arc<Enrolment>| pod.identity == *identity && !pod.is_waypoint;
        self.nodes.get(node).is_some_and(|node| node.pods.values().any(carried))
    }

    /// The waypoint's pod of that uid, if it lives.
    #[must_use]
    pub fn waypoint(&self, uid: &str) -> Option<&Arc<Enrolment>> {
        self.waypoints.get(uid)
    }

    /// All pods of waypoints that live.
    pub fn waypoints(&self) -> impl Iterator<Item = &Arc<Enrolment>> {
        self.waypoints.values()
    }

    /// What a waypoint's pod is told of.
    #[must_use]
    pub fn told(&self, pod: &Enrolment) -> Told {
        let Identity { namespace, service_account, .. } = &pod.identity;
        let named = self.guarding.told(&pod.guards_as, (namespace.clone(), service_account.clone()));
        Told {
            addresses: self.needs.told(&pod.guards_as, &pod.workload.0, &self.addresses),
            rules: select(&self.rules, named.rules),
            policies: select(&self.traffic, named.policies),
            guarded: named.guarded,
        }
    }

    /// What is called `key`, by name or alias; with a service, also its workloads.
    #[must_use]
    pub fn find_addresses(&self, key: &str) -> Vec<Arc<Resource>> {
        let named = self.addresses.get(key).map(|resource| resource.name.clone());
        let aliased = self.aliases.get(key).into_iter().flatten().cloned();
        let mut names: OrdSet<String> = named.into_iter().chain(aliased).collect();
        let backing: Vec<_> = names.iter().filter_map(|name| self.backing.get(name)).cloned().collect();
        names.extend(backing.into_iter().flatten());
        names.iter().filter_map(|name| self.addresses.get(name)).cloned().collect()
    }

    /// The workloads that have the address `key`, or the uid.
    #[must_use]
    pub fn find_workloads(&self, key: &str) -> Vec<Arc<Resource>> {
        let named = self.addresses.get(key).map(|resource| &resource.name);
        let names = named.into_iter().chain(self.aliases.get(key).into_iter().flatten());
        let workloads = names.filter(|name| self.needs.is_workload(name));
        workloads.filter_map(|name| self.addresses.get(name)).cloned().collect()
    }

    fn insert_address(&mut self, resource: Resource) {
        self.remove_address(&resource.name);
        for alias in &resource.aliases {
            self.aliases.entry(alias.clone()).or_default().insert(resource.name.clone());
        }
        self.addresses.insert(resource);
    }

    fn remove_address(&mut self, name: &str) {
        let Some(before) = self.addresses.remove(name) else { return };
        for alias in &before.aliases {
            remove_from(&mut self.aliases, alias, name);
        }
    }

    fn enrol(&mut self, enrolment: &Enrolment) {
        let node = self.nodes.entry(enrolment.node.clone()).or_default();
        node.enrolments.insert(Resource::from(encode::enrolment(&wire(enrolment))));
        let enrolment = Arc::new(enrolment.clone());
        node.pods.insert(enrolment.uid.clone(), enrolment.clone());
        match enrolment.is_waypoint {
            true => drop(self.waypoints.insert(enrolment.uid.clone(), enrolment)),
            false => drop(self.waypoints.remove(&enrolment.uid)),
        }
    }

    fn forget(&mut self, name: &str, uid: &str) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        node.enrolments.remove(uid);
        node.pods.remove(uid);
        // It may be on another node by now.
        if self.waypoints.get(uid).is_some_and(|pod| *pod.node == *name) {
            self.waypoints.remove(uid);
        }
        if node.pods.is_empty() {
            self.nodes.remove(name);
        }
    }
}

fn select(all: &Resources, names: BTreeSet<String>) -> Resources {
    let mut selected = Resources::default();
    selected.extend(names.iter().filter_map(|name| all.get(name)).cloned());
    selected
}

pub(super) fn remove_from(sets: &mut OrdMap<String, OrdSet<String>>, key: &str, value: &str) {
    let Some(set) = sets.get_mut(key) else { return };
    set.remove(value);
    if set.is_empty() {
        sets.remove(key);
    }
}

fn wire(enrolment: &Enrolment) -> api::Enrolment {
    let Enrolment {
        uid,
        node: _,
        name,
        identity,
        addresses,
        workload,
        verdict,
        is_waypoint: _,
        guards_as: _,
    } = enrolment.clone();
    api::Enrolment { uid, name, identity, addresses, enrol: verdict.enrol, reason: verdict.reason, workload }
}

/// What sessions read. Clones share it.
#[derive(Clone, Debug)]
pub struct Published {
    snapshot: Arc<ArcSwap<Snapshot>>,
    changed: watch::Receiver<u64>,
}

impl Published {
    /// The present moment.
    #[must_use]
    pub fn now(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Changes with each snapshot.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }
}

/// The writer.
#[derive(Debug)]
pub struct Publisher {
    next: Snapshot,
    snapshot: Arc<ArcSwap<Snapshot>>,
    changed: watch::Sender<u64>,
    scopes: BTreeMap<PolicyName, PolicyScope>,
    /// Which services each workload backs, as last published.
    backed: BTreeMap<String, Vec<String>>,
    retiring: Retiring,
    /// What waypoints may need otherwise than before.
    stale: Stale,
}

impl Publisher {
    /// Nothing is published yet.
    #[must_use]
    pub fn new() -> (Self, Published) {
        let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let (changed, watched) = watch::channel(0);
        let publisher = Self {
            next: Snapshot::default(),
            snapshot: snapshot.clone(),
            changed,
            scopes: BTreeMap::new(),
            backed: BTreeMap::new(),
            retiring: Retiring::default(),
            stale: Stale::default(),
        };
        (publisher, Published { snapshot, changed: watched })
    }

    /// Publishes all of `changes` at once, `now` being counted from any fixed moment.
    pub fn publish(&mut self, changes: Vec<Change>, now: Duration) {
        if changes.is_empty() {
            return;
        }
        for change in changes {
            match change {
                Change::Mesh(update) => self.update(*update, now),
                Change::Enrolment(enrolment) => self.next.enrol(&enrolment),
                Change::EnrolmentRemoved { node, uid } => self.next.forget(&node, &uid),
                Change::BackendTls(tls) => {
                    self.retiring.tls_is_back(&tls.service);
                    self.next.backend_tls.insert(Resource::from(encode::backend_tls(&tls)));
                }
                Change::BackendTlsRemoved(service) => self.retiring.tls(service, now),
                Change::Rule(rule) => {
                    self.next.guarding.rule(&rule, &mut self.stale);
                    self.next.rules.insert(Resource::from(encode::rule(&rule)));
                }
                Change::RuleRemoved(key) => {
                    self.next.guarding.rule_removed(&key, &mut self.stale);
                    self.next.rules.remove(&key.to_string());
                }
                Change::Traffic(policy) => self.traffic(&policy),
                Change::TrafficRemoved(name, target) => {
                    if let Some(name) = self.next.guarding.policy_removed(&name, &target) {
                        self.next.traffic.remove(&name);
                    }
                }
            }
        }
        self.retiring.let_go(&mut self.next);
        self.flush(now);
    }

    /// When there is something to do even if nothing changes.
    #[must_use]
    pub fn next_retirement(&self) -> Option<Duration> {
        self.retiring.next().into_iter().chain(self.stale.next()).min()
    }

    /// Takes out the policies whose time has come, and what waypoints are told of for a while yet.
    pub fn retire(&mut self, now: Duration) {
        if self.next_retirement().is_none_or(|at| at > now) {
            return;
        }
        self.retiring.take_out(&mut self.next, now);
        self.flush(now);
    }

    fn flush(&mut self, now: Duration) {
        let mut needs = mem::take(&mut self.next.needs);
        needs.settle(&mut self.stale, &self.next, now);
        self.next.needs = needs;
        self.snapshot.store(Arc::new(self.next.clone()));
        self.changed.send_modify(|sequence| *sequence = sequence.wrapping_add(1));
    }

    fn update(&mut self, update: Update, now: Duration) {
        match update {
            Update::Policy(policy) => {
                self.retiring.policy_is_back(&policy.id);
                self.next.authorizations.insert(Resource::from(encode::policy(&policy)));
                self.scopes.insert(policy.id, policy.scope);
            }
            Update::PolicyRemoved(name) => match self.scopes.remove(&name) {
                Some(PolicyScope::Selector) => self.retiring.policy(name, now),
                Some(PolicyScope::Global | PolicyScope::Namespace) | None => {
                    self.next.authorizations.remove(&name.to_string());
                }
            },
            // What can't be enforced is a refused resource on the wire; the index has none of those.
            Update::PolicyUnenforceable(..) => {}
            Update::Service(service) => {
                self.next.guarding.service(&service, &mut self.stale);
                self.stale.add(service.id.to_string());
                self.next.insert_address(encode::service(&service).into());
            }
            Update::ServiceRemoved(name) => {
                self.next.guarding.service_removed(&name, &mut self.stale);
                self.stale.add(name.to_string());
                self.next.remove_address(&name.to_string());
            }
            Update::Workload(workload) => {
                self.back(workload.uid.to_string(), services(&workload));
                self.next.needs.workload(&workload, &mut self.stale);
                self.next.insert_address(encode::workload(&workload).into());
            }
            Update::WorkloadRemoved(uid) => {
                self.back(uid.to_string(), Vec::new());
                self.next.needs.workload_removed(&uid.0, &mut self.stale);
                self.next.remove_address(&uid.0);
            }
        }
    }

    fn traffic(&mut self, policy: &l7::Policy) {
        let resource = Resource::from(encode::traffic_policy(policy));
        self.next.guarding.policy(policy.name.clone(), policy.target.clone(), resource.name.clone());
        self.next.traffic.insert(resource);
    }

    /// Keeps in step which workloads back which services.
    fn back(&mut self, workload: String, services: Vec<String>) {
        for service in self.backed.remove(&workload).unwrap_or_default() {
            remove_from(&mut self.next.backing, &service, &workload);
        }
        for service in &services {
            self.next.backing.entry(service.clone()).or_default().insert(workload.clone());
        }
        if !services.is_empty() {
            self.backed.insert(workload, services);
        }
    }
}

fn services(workload: &Workload) -> Vec<String> {
    workload.services.keys().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{Config, Index, Proven};
    use crate::serve::retiring::RETIREMENT;
    use crate::source::objects::{Event, Key, Kind};
    use crate::source::yaml;

    struct Mesh {
        index: Index,
        publisher: Publisher,
        published: Published,
    }

    impl Mesh {
        fn of(text: &str) -> Self {
            let (publisher, published) = Publisher::new();
            let mut mesh =
                Self { index: Index::new(Config::default(), Proven::default()), publisher, published };
            let objects = yaml::parse(text).objects.into_iter();
            mesh.apply(objects.map(|(object, _)| Event::Upsert(object)).collect(), 0);
            mesh
        }

        fn apply(&mut self, events: Vec<Event>, now: u64) {
            let changes = self.index.apply(events);
            self.publisher.publish(changes, Duration::from_secs(now));
        }

        fn found(&self, key: &str) -> Vec<String> {
            self.published.now().find_addresses(key).iter().map(|resource| resource.name.clone()).collect()
        }

        fn policies(&self) -> Vec<String> {
            self.published.now().authorizations.iter().map(|resource| resource.name.clone()).collect()
        }
    }

    const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: cart}
spec: {clusterIP: 10.1.0.1, selector: {app: cart}}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: cart-1, uid: u1, labels: {app: cart}}
spec: {nodeName: n1, serviceAccountName: carter}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: other, uid: u2}
spec: {nodeName: n2}
status: {podIP: 10.0.0.2}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: selecting}
spec: {selector: {matchLabels: {app: cart}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: all}
";

    fn gone(kind: Kind, name: &str) -> Vec<Event> {
        vec![Event::Delete(Key { kind, namespace: "shop".into(), name: name.into() })]
    }

    #[test]
    fn lookups() {
        let mut mesh = Mesh::of(SHOP);
        let (cart, pod) = ("shop/cart.shop.svc.cluster.local", "Kubernetes//Pod/shop/cart-1");
        for key in [cart, "/10.1.0.1"] {
            assert_eq!(mesh.found(key), [pod, cart], "a service comes with its workloads");
        }
        for key in [pod, "/10.0.0.1"] {
            assert_eq!(mesh.found(key), [pod]);
        }
        assert!(mesh.found("/10.9.9.9").is_empty());
        mesh.apply(gone(Kind::Pod, "cart-1"), 0);
        assert_eq!(mesh.found(cart), [cart]);
        assert!(mesh.found("/10.0.0.1").is_empty());
        mesh.apply(gone(Kind::Service, "cart"), 0);
        assert!(mesh.found("/10.1.0.1").is_empty());
    }

    #[test]
    fn nodes_and_identities() {
        let mut mesh = Mesh::of(SHOP);
        let now = mesh.published.now();
        let carter = Identity::new("cluster.local", "shop", "carter").expect("valid");
        assert!(now.hosts("n1", &carter));
        assert!(!now.hosts("n2", &carter));
        let foreign = Identity::new("elsewhere", "shop", "carter").expect("valid");
        assert!(!now.hosts("n1", &foreign), "another trust domain");
        assert_eq!(
            (now.enrolments("n1").len(), now.enrolments("n2").len(), now.enrolments("n3").len()),
            (1, 1, 0)
        );
        mesh.apply(gone(Kind::Pod, "cart-1"), 0);
        assert!(!mesh.published.now().hosts("n1", &carter));
        assert!(now.hosts("n1", &carter), "a snapshot does not change");
    }

    #[test]
    fn a_policy_that_is_named_outlives_its_removal() {
        let mut mesh = Mesh::of(SHOP);
        assert_eq!(mesh.policies(), ["shop/all", "shop/selecting"]);
        mesh.apply(gone(Kind::AuthorizationPolicy, "all"), 0);
        assert_eq!(mesh.policies(), ["shop/selecting"], "nobody names it");
        mesh.apply(gone(Kind::AuthorizationPolicy, "selecting"), 0);
        assert_eq!(mesh.policies(), ["shop/selecting"]);
        assert_eq!(mesh.publisher.next_retirement(), Some(RETIREMENT));
        mesh.publisher.retire(RETIREMENT - Duration::from_secs(1));
        assert_eq!(mesh.policies(), ["shop/selecting"]);
        mesh.publisher.retire(RETIREMENT);
        assert!(mesh.policies().is_empty());
        assert_eq!(mesh.publisher.next_retirement(), None);
    }

    #[test]
    fn tls_outlives_its_service_and_no_wish_to_be_without() {
        const TLS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {namespace: shop, name: tls}
spec: {targetRefs: [{group: '', kind: Service, name: cart}], validation: {hostname: cart.test}}
";
        let text = format!("{}---{TLS}", SHOP.replace("selector:", "ports: [{port: 80}], selector:"));
        let count = |mesh: &Mesh| mesh.published.now().backend_tls.len();
        let mut mesh = Mesh::of(&text);
        assert_eq!(count(&mesh), 1);
        mesh.apply(gone(Kind::BackendTLSPolicy, "tls"), 1);
        assert_eq!((count(&mesh), mesh.publisher.next_retirement()), (0, None), "it is to be without");
        let mut mesh = Mesh::of(&text);
        mesh.apply(gone(Kind::Service, "cart"), 1);
        mesh.apply(gone(Kind::BackendTLSPolicy, "tls"), 2);
        assert_eq!(count(&mesh), 1, "a waypoint may know the service a moment longer");
        let at = Duration::from_secs(1) + RETIREMENT;
        assert_eq!(mesh.publisher.next_retirement(), Some(at));
        mesh.publisher.retire(at);
        assert_eq!((count(&mesh), mesh.publisher.next_retirement()), (0, None));
    }

    #[test]
    fn a_policy_that_comes_back_stays() {
        let mut mesh = Mesh::of(SHOP);
        mesh.apply(gone(Kind::AuthorizationPolicy, "selecting"), 0);
        let again = yaml::parse(SHOP).objects.into_iter().map(|(object, _)| Event::Upsert(object));
        mesh.apply(again.collect(), 1);
        mesh.publisher.retire(RETIREMENT * 2);
        assert_eq!(mesh.policies(), ["shop/all", "shop/selecting"]);
    }

    #[test]
    fn an_edit_of_a_rule_is_another_version_of_one_resource() {
        let text = |second: &str| {
            format!(
                "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{namespace: shop, name: split}}
spec: {{parentRefs: [{{group: '', kind: Service, name: web}}], rules: [{{name: one}}, {{name: {second}}}]}}
---
apiVersion: airglow.dev/v1alpha1
kind: TrafficPolicy
metadata: {{namespace: shop, name: chaos}}
spec: {{targetRefs: [{{kind: Service, name: web}}], balancing: {{algorithm: Random}}}}
---
apiVersion: v1
kind: Service
metadata: {{namespace: shop, name: web}}
spec: {{clusterIP: 10.1.0.2, ports: [{{port: 80}}]}}
"
            )
        };
        let mut mesh = Mesh::of(&text("two"));
        let names = |resources: &Resources| resources.iter().map(|it| it.name.clone()).collect::<Vec<_>>();
        let before = mesh.published.now();
        assert_eq!(names(&before.rules), ["HTTPRoute/shop/split/0", "HTTPRoute/shop/split/1"]);
        assert_eq!(names(&before.traffic), ["shop/chaos/Service/shop/web.shop.svc.cluster.local"]);
        let objects = yaml::parse(&text("three")).objects.into_iter();
        mesh.apply(objects.map(|(object, _)| Event::Upsert(object)).collect(), 0);
        let after = mesh.published.now();
        let version = |resources: &Resources, at: usize| {
            resources.get(&format!("HTTPRoute/shop/split/{at}")).map(|it| it.version.clone())
        };
        assert_eq!(version(&before.rules, 0), version(&after.rules, 0));
        assert_ne!(version(&before.rules, 1), version(&after.rules, 1));
        mesh.apply(gone(Kind::HTTPRoute, "split"), 0);
        mesh.apply(gone(Kind::TrafficPolicy, "chaos"), 0);
        let now = mesh.published.now();
        assert_eq!((now.rules.len(), now.traffic.len()), (0, 0));
    }
}
