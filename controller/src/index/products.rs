//! What is derived from one object, and what readers must be told when that changes. Owns no derivation.

use model::Str;
use model::l7;
use model::policy::Policy;
use model::service::{Service, ServiceName};
use model::store::Update;
use model::workload::Workload;

use super::attachment::Bound;
use super::enrolment::Enrolment;
use super::finding::Finding;
use super::statements::Attachment;

/// One difference between before and after.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Something that every proxy is told.
    Mesh(Box<Update>),
    /// A node is told about one of its pods.
    Enrolment(Enrolment),
    /// A node forgets a pod.
    EnrolmentRemoved {
        /// The node.
        node: Str,
        /// The pod's Kubernetes uid.
        uid: Str,
    },
    /// Waypoints are told with what TLS the endpoints of a service are reached.
    BackendTls(Box<l7::BackendTls>),
    /// Waypoints forget it.
    BackendTlsRemoved(ServiceName),
    /// Waypoints are told a rule of a route.
    Rule(Box<l7::Rule>),
    /// Waypoints forget it.
    RuleRemoved(l7::RuleKey),
    /// Waypoints are told what a traffic policy says about one of its targets.
    Traffic(Box<l7::Policy>),
    /// Waypoints forget it.
    TrafficRemoved(l7::PolicyName, l7::PolicyTarget),
}

impl Change {
    /// Whether it ends something whose name another object may have taken over.
    pub(super) fn is_end_of_a_name(&self) -> bool {
        match self {
            Self::Mesh(update) => matches!(**update, Update::ServiceRemoved(_)),
            Self::EnrolmentRemoved { .. } => true,
            Self::BackendTls(_)
            | Self::BackendTlsRemoved(_)
            | Self::Enrolment(_)
            | Self::Rule(_)
            | Self::RuleRemoved(_)
            | Self::Traffic(_)
            | Self::TrafficRemoved(..) => false,
        }
    }
}

/// Everything that is derived from one object.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Products {
    pub(super) workloads: Vec<Workload>,
    pub(super) services: Vec<Service>,
    pub(super) policy: Option<Policy>,
    pub(super) enrolment: Option<Enrolment>,
    pub(super) rules: Vec<l7::Rule>,
    pub(super) traffic: Vec<l7::Policy>,
    pub(super) backend_tls: Option<l7::BackendTls>,
    pub(super) attachments: Vec<Attachment>,
    pub(super) findings: Vec<Finding>,
    /// What became of the wish for a waypoint, where an object's status says so.
    pub(super) bound: Option<Bound>,
}

/// What a proxy must be told to get from `before` to `after`: what is gone first, then what is.
pub(super) fn difference(before: &Products, after: &Products, changes: &mut Vec<Change>) {
    let mut tell = |update| changes.push(Change::Mesh(Box::new(update)));
    for old in &before.workloads {
        if !after.workloads.iter().any(|new| new.uid == old.uid) {
            tell(Update::WorkloadRemoved(old.uid.clone()));
        }
    }
    for new in &after.workloads {
        if !before.workloads.contains(new) {
            tell(Update::Workload(new.clone()));
        }
    }
    for old in &before.services {
        if !after.services.iter().any(|new| new.id == old.id) {
            tell(Update::ServiceRemoved(old.id.clone()));
        }
    }
    for new in &after.services {
        if !before.services.contains(new) {
            tell(Update::Service(new.clone()));
        }
    }
    match (&before.policy, &after.policy) {
        (Some(old), None) => tell(Update::PolicyRemoved(old.id.clone())),
        (old, Some(new)) if old.as_ref() != Some(new) => tell(Update::Policy(new.clone())),
        _ => {}
    }
    let place = |enrolment: &Enrolment| (enrolment.node.clone(), enrolment.uid.clone());
    if let Some(old) = &before.enrolment
        && after.enrolment.as_ref().is_none_or(|new| place(new) != place(old))
    {
        let (node, uid) = place(old);
        changes.push(Change::EnrolmentRemoved { node, uid });
    }
    if let Some(new) = after.enrolment.as_ref().filter(|new| before.enrolment.as_ref() != Some(new)) {
        changes.push(Change::Enrolment(new.clone()));
    }
    routing(before, after, changes);
}

/// The same for what waypoints are told.
fn routing(before: &Products, after: &Products, changes: &mut Vec<Change>) {
    for old in &before.rules {
        if !after.rules.iter().any(|new| new.key == old.key) {
            changes.push(Change::RuleRemoved(old.key.clone()));
        }
    }
    let new = after.rules.iter().filter(|new| !before.rules.contains(new));
    changes.extend(new.map(|rule| Change::Rule(Box::new(rule.clone()))));
    for old in &before.traffic {
        if !after.traffic.iter().any(|new| new.target == old.target) {
            changes.push(Change::TrafficRemoved(old.name.clone(), old.target.clone()));
        }
    }
    let new = after.traffic.iter().filter(|new| !before.traffic.contains(new));
    changes.extend(new.map(|policy| Change::Traffic(Box::new(policy.clone()))));
    match (&before.backend_tls, &after.backend_tls) {
        (Some(old), None) => changes.push(Change::BackendTlsRemoved(old.service.clone())),
        (old, Some(new)) if old.as_ref() != Some(new) => {
            changes.push(Change::BackendTls(Box::new(new.clone())));
        }
        _ => {}
    }
}
