//! What the tests share: manifests to mesh, and the mesh as a reader of changes sees it.

use std::collections::BTreeMap;
use std::time::Duration;

use controller::index::{
    Answers, Change, Condition, Config, Enrolment, Finding, Index, PodState, Progress, Proven,
};
use controller::serve::published::{Published, Publisher};
use controller::source::objects::{Event, Object};
use controller::source::yaml;
use model::Str;
use model::l7::{self, Rule, RuleKey};
use model::policy::{Policy, PolicyName};
use model::service::{Service, ServiceName};
use model::store::Update;
use model::workload::{Workload, WorkloadUid};

/// The objects of a text without mistakes.
pub(crate) fn objects(text: &str) -> Vec<Object> {
    let parsed = yaml::parse(text);
    assert_eq!(parsed.problems, [], "the test's own manifests");
    parsed.objects.into_iter().map(|(object, _)| object).collect()
}

pub(crate) fn upserts(text: &str) -> Vec<Event> {
    objects(text).into_iter().map(Event::Upsert).collect()
}

/// No node has answered anything.
pub(crate) struct Silence;

impl Answers for Silence {
    fn refusals(&self, _: &PolicyName) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    fn has_taken(&self, _: &str, _: &PolicyName) -> bool {
        false
    }
}

/// What a reader of changes holds.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Seen {
    pub(crate) workloads: BTreeMap<WorkloadUid, Workload>,
    pub(crate) services: BTreeMap<ServiceName, Service>,
    pub(crate) policies: BTreeMap<PolicyName, Policy>,
    pub(crate) enrolments: BTreeMap<(Str, Str), Enrolment>,
    pub(crate) rules: BTreeMap<RuleKey, Rule>,
    pub(crate) backend_tls: BTreeMap<ServiceName, l7::BackendTls>,
    pub(crate) traffic: BTreeMap<(l7::PolicyName, l7::PolicyTarget), l7::Policy>,
}

impl Seen {
    pub(crate) fn take(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Mesh(update) => self.update(*update),
                Change::Enrolment(new) => {
                    self.enrolments.insert((new.node.clone(), new.uid.clone()), new);
                }
                Change::EnrolmentRemoved { node, uid } => {
                    assert!(self.enrolments.remove(&(node, uid)).is_some(), "removed twice");
                }
                Change::BackendTls(new) => drop(self.backend_tls.insert(new.service.clone(), *new)),
                Change::BackendTlsRemoved(service) => {
                    assert!(self.backend_tls.remove(&service).is_some(), "removed twice: {service}");
                }
                Change::Rule(new) => drop(self.rules.insert(new.key.clone(), *new)),
                Change::RuleRemoved(key) => {
                    assert!(self.rules.remove(&key).is_some(), "removed twice: {key}");
                }
                Change::Traffic(new) => {
                    self.traffic.insert((new.name.clone(), new.target.clone()), *new);
                }
                Change::TrafficRemoved(name, target) => {
                    assert!(self.traffic.remove(&(name, target)).is_some(), "removed twice");
                }
            }
        }
    }

    fn update(&mut self, update: Update) {
        match update {
            Update::Workload(new) => drop(self.workloads.insert(new.uid.clone(), new)),
            Update::WorkloadRemoved(uid) => {
                assert!(self.workloads.remove(&uid).is_some(), "removed twice: {uid}");
            }
            Update::Service(new) => drop(self.services.insert(new.id.clone(), new)),
            Update::ServiceRemoved(name) => {
                assert!(self.services.remove(&name).is_some(), "removed twice: {name}");
            }
            Update::Policy(new) => drop(self.policies.insert(new.id.clone(), new)),
            Update::PolicyRemoved(name) => {
                assert!(self.policies.remove(&name).is_some(), "removed twice: {name}");
            }
            Update::PolicyUnenforceable(..) => panic!("the index never says that"),
        }
    }
}

/// An index with one reader, and what clients are told.
pub(crate) struct Mesh {
    pub(crate) index: Index,
    pub(crate) seen: Seen,
    publisher: Publisher,
    pub(crate) published: Published,
}

impl Mesh {
    pub(crate) fn new(proven: Proven) -> Self {
        let index = Index::new(Config::default(), proven);
        let (publisher, published) = Publisher::new();
        let constants = index.constants();
        let mut mesh = Self { index, seen: Seen::default(), publisher, published };
        mesh.take(constants);
        mesh
    }

    pub(crate) fn of(text: &str) -> Self {
        let mut mesh = Self::new(Proven::default());
        mesh.apply(upserts(text));
        mesh
    }

    pub(crate) fn apply(&mut self, events: impl IntoIterator<Item = Event>) {
        let changes = self.index.apply(events);
        self.take(changes);
    }

    fn take(&mut self, changes: Vec<Change>) {
        self.seen.take(changes.clone());
        self.publisher.publish(changes, Duration::ZERO);
    }

    /// Long after the last change: what lingered has gone.
    pub(crate) fn later(&mut self) {
        self.publisher.retire(Duration::from_secs(3600));
    }

    pub(crate) fn report(&mut self, node: &str, pods: &[(&str, Progress)]) -> Vec<String> {
        let state = |(uid, progress): &(&str, Progress)| PodState {
            uid: (*uid).to_owned(),
            progress: *progress,
            message: String::new(),
            certificate_failure: String::new(),
        };
        let reported = self.index.report(node, pods.iter().map(state).collect());
        self.take(reported.changes);
        reported.unknown
    }

    pub(crate) fn workload(&self, name: &str) -> &Workload {
        let found = self.seen.workloads.values().find(|workload| &*workload.name == name);
        found.unwrap_or_else(|| panic!("no workload {name}; there are {:?}", self.seen.workloads.keys()))
    }

    pub(crate) fn service(&self, name: &str) -> &Service {
        let found = self.seen.services.values().find(|service| &*service.name == name);
        found.unwrap_or_else(|| panic!("no service {name}; there are {:?}", self.seen.services.keys()))
    }

    pub(crate) fn policy(&self, name: &str) -> &Policy {
        let found = self.seen.policies.values().find(|policy| &*policy.id.name == name);
        found.unwrap_or_else(|| panic!("no policy {name}; there are {:?}", self.seen.policies.keys()))
    }

    pub(crate) fn enrolment(&self, name: &str) -> &Enrolment {
        let found = self.seen.enrolments.values().find(|enrolment| &*enrolment.name == name);
        found.unwrap_or_else(|| panic!("no enrolment {name}; there are {:?}", self.seen.enrolments.keys()))
    }

    /// The rules of a route, in order.
    pub(crate) fn rules(&self, name: &str) -> Vec<&Rule> {
        self.seen.rules.values().filter(|rule| &*rule.key.name == name).collect()
    }

    /// What is to be said of an object's attachments: whether, why in a word, and in words.
    pub(crate) fn conditions(&self, name: &str) -> Vec<Condition> {
        let statements =
            self.index.statements(&[]).into_iter().filter(|statement| statement.key.name == name);
        statements.flat_map(|it| it.attachments).flat_map(|it| it.conditions).collect()
    }

    /// The one condition of a type; there has to be one.
    pub(crate) fn condition(&self, name: &str, kind: &str) -> (bool, &'static str, String) {
        let conditions = self.conditions(name);
        let mut found = conditions.iter().filter(|condition| condition.kind == kind);
        let (Some(one), None) = (found.next(), found.next()) else { panic!("{name} {kind}: {conditions:?}") };
        (one.holds, one.reason, one.message.clone())
    }

    pub(crate) fn findings(&self, name: &str) -> Vec<&Finding> {
        self.index.findings().filter(|(key, _)| key.name == name).map(|(_, finding)| finding).collect()
    }
}

/// A pod that is ready, as text; `more` goes below the top level.
pub(crate) fn pod(namespace: &str, name: &str, ip: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{namespace: {namespace}, name: {name}, uid: uid-{name}, labels: {{app: {name}}}}}
spec: {{nodeName: n1, serviceAccountName: {name}}}
status: {{phase: Running, podIP: {ip}, conditions: [{{type: Ready, status: 'True'}}]}}
"
    )
}

pub(crate) const SHOP_AMBIENT: &str = "---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
";
