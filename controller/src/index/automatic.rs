//! Waypoints that come when something needs them and go when nothing does: in namespaces that ask for that by a label, for the
//! services that routes and traffic policies name and that no other label or annotation speaks of.
//!
//! From the first time that one is ready it guards them, and a service that it has guarded once is guarded for as long as it needs
//! one, also while the waypoint is made again; before, services are reached without it. Both are remembered in statuses: the
//! Gateway's, and the service's. Owns no making and no writing.

use std::sync::Arc;

use super::Index;
use super::attachment::{Bound, unmet};
use super::cluster::{Cluster, Name, key_of, name_of, within};
use super::gateways::{Said, said};
use super::routes::{ROUTES, can_be_parent};
use super::service;
use crate::source::objects::{Gateway, Kind, Labels, Metadata, PolicyCondition, Service};

/// The label by which a namespace asks for a waypoint when one is needed, and a Gateway says that it came so.
pub const AUTOMATIC: &str = "airglow.dev/waypoint";
/// Its value.
pub const AUTO: &str = "auto";

/// What such a waypoint is called. Nobody else's is likely to have the name, and one that has it is left alone.
pub const AUTOMATIC_NAME: &str = "waypoint-auto";

/// The condition that remembers that such a waypoint was ready, and of a service that one has guarded it.
pub(super) const ATTACHED: &str = "airglow.dev/Attached";

/// Services that a status names: enough to see what it is about.
const MAX_NAMED: usize = 8;

/// What is to become of a Gateway that nobody has written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    /// The namespace needs one and has none.
    Make(String),
    /// Nothing needs the one of that uid any more.
    Remove(String, String),
}

/// A service that needs such a waypoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needing {
    /// Its name, in the namespace of the waypoint.
    pub name: String,
    /// Whether such a waypoint has guarded it, so that it is not reached without.
    pub was_guarded: bool,
}

/// What becomes of a service that is to have such a waypoint.
pub(super) enum State {
    /// It has it, or had it: then it is refused until that is there again.
    Attached(Name),
    /// It had one of that name, which can't be made again, for this reason: it is refused.
    Closed(Name, Bound),
    /// It is reached without, for this reason.
    Not(Bound),
}

/// Whether a namespace asks for one, or a Gateway is one.
pub(super) fn is_marked(labels: &Labels) -> bool {
    labels.get(AUTOMATIC).is_some_and(|value| value == AUTO)
}

/// Whether a Gateway is one that came by need.
pub(super) fn is_one(gateway: &Metadata) -> bool {
    gateway.name == AUTOMATIC_NAME && is_marked(&gateway.labels)
}

/// Whether something is asked for at a service that only a waypoint does.
pub(super) fn is_needed(cluster: &Cluster, service: &Service) -> bool {
    let name = name_of(&service.metadata);
    let references = cluster.references();
    let key = key_of(Kind::Service, &name);
    let mut named = references.of(&key);
    can_be_parent(service)
        && (ROUTES.into_iter().any(|kind| references.attached(&name, kind).next().is_some())
            || named.any(|key| matches!(key.kind, Kind::BackendTLSPolicy | Kind::TrafficPolicy)))
}

/// What becomes of a service that is to have one.
pub(super) fn state(cluster: &Cluster, service: &Service) -> State {
    let namespace = &service.metadata.namespace;
    let name = (namespace.clone(), AUTOMATIC_NAME.to_owned());
    let was_guarded = was_guarded(service);
    match cluster.gateways.get(&name) {
        Some(gateway) if !is_one(&gateway.metadata) => {
            let meanwhile = match was_guarded {
                true => "connections are refused",
                false => "routes and policies are without effect",
            };
            let message = format!(
                "the automatic waypoint can't be made, because somebody else's Gateway {namespace}/{AUTOMATIC_NAME} has its name; until \
                 that is deleted, {meanwhile}"
            );
            let bound = unmet("AttachmentDenied", message);
            if was_guarded { State::Closed(name, bound) } else { State::Not(bound) }
        }
        Some(gateway) if is_attached(&gateway.status.conditions) => State::Attached(name),
        _ if was_guarded => State::Attached(name),
        _ => {
            let message = format!(
                "the automatic waypoint {namespace}/{AUTOMATIC_NAME} is not ready yet; until it is, connections go on without it, and \
                 routes and policies are without effect"
            );
            State::Not(unmet("WaypointIsNotReady", message))
        }
    }
}

/// Whether a service was guarded by one, and was said to be, before that was deleted.
fn was_guarded(service: &Service) -> bool {
    is_attached(&service.status.conditions)
}

fn is_attached(conditions: &[PolicyCondition]) -> bool {
    conditions.iter().any(|it| it.kind == ATTACHED && it.status == "True")
}

/// What a service's status says, so that it stays guarded.
pub(super) fn remembered(namespace: &str) -> (bool, String, String) {
    let message = format!(
        "guarded by the automatic waypoint {namespace}/{AUTOMATIC_NAME} for as long as a route or policy names this Service; refused while \
         no pod of it is ready"
    );
    (true, "Attached".to_owned(), message)
}

impl Index {
    /// What is to become of Gateways that nobody has written, in order.
    #[must_use]
    pub fn automatic_waypoints(&self) -> Vec<Wish> {
        let cluster = &self.cluster;
        let asking = cluster.namespaces().filter(|namespace| is_marked(&namespace.labels));
        let missing = asking.map(|namespace| namespace.name.clone()).filter(|namespace| {
            !cluster.gateways.contains_key(&(namespace.clone(), AUTOMATIC_NAME.to_owned()))
                && !self.needing(namespace).is_empty()
        });
        let left = cluster.gateways.values().filter(|gateway| {
            let metadata = &gateway.metadata;
            is_one(metadata)
                && metadata.deletion_timestamp.is_none()
                && self.needing(&metadata.namespace).is_empty()
        });
        let remove = |gateway: &Arc<Gateway>| {
            Wish::Remove(gateway.metadata.namespace.clone(), gateway.metadata.uid.clone())
        };
        missing.map(Wish::Make).chain(left.map(remove)).collect()
    }

    /// The services of a namespace that are to have an automatic waypoint.
    pub(super) fn needing(&self, namespace: &str) -> Vec<Needing> {
        let services = within(&self.cluster.services, namespace);
        let needing =
            services.filter(|(_, service)| service::is_automatic(&self.config, &self.cluster, service));
        needing
            .map(|(name, service)| Needing { name: name.1.clone(), was_guarded: was_guarded(service) })
            .collect()
    }
}

/// What the status of an automatic waypoint says of what it guards. `is_ready`: a pod of it is.
pub(super) fn attached(gateway: &Gateway, needing: &[Needing], is_ready: bool) -> Said {
    if needing.is_empty() {
        let message = "nothing needs it any more; nothing is guarded by it, and it is removed".to_owned();
        return said(ATTACHED, false, "Unneeded", message);
    }
    if is_ready || is_attached(&gateway.status.conditions) {
        let named = named(needing.iter());
        let message = format!(
            "guards services that routes and policies name: {named}; they are refused while no pod of it is ready"
        );
        return said(ATTACHED, true, "Attached", message);
    }
    let mut message = "until a pod of it is ready for the first time,".to_owned();
    let (guarded, new): (Vec<_>, Vec<_>) = needing.iter().partition(|service| service.was_guarded);
    let new = (!new.is_empty()).then(|| format!(" these go on without it: {}", named(new.into_iter())));
    let guarded = (!guarded.is_empty())
        .then(|| format!(" these are refused, for one guarded them before: {}", named(guarded.into_iter())));
    message.push_str(&new.into_iter().chain(guarded).collect::<Vec<_>>().join(";"));
    said(ATTACHED, false, "Pending", message)
}

fn named<'a>(services: impl ExactSizeIterator<Item = &'a Needing>) -> String {
    let more = services.len().saturating_sub(MAX_NAMED);
    let named = services.take(MAX_NAMED).map(|service| service.name.as_str()).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{named} and {more} more") } else { named }
}
