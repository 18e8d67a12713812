//! What the controller tells this node: the mesh, and which of its pods should be enrolled.
//!
//! The sink of the xDS client: converts each resource, applies what is valid, names what is not. Decides nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Enrolment, decode, type_url};
use daemon::readiness::Latch;
use model::Str;
use model::store::Update;
use proxy::feed::{self, Batch};
use proxy::mesh::{MeshState, MeshWriter};
use tokio::sync::watch;
use xds::{Mode, Rejection, Resource, Sink, Subscription};

use crate::flow::Flows;

/// The verdict on every pod of this node; `None` until the controller has said everything once. Verdicts alone would not
/// do: a pod that is served before its policies and its peers are known would let in whom it must not, and send plaintext
/// to peers that it takes for strangers.
pub(crate) type Wanted = Option<Arc<BTreeMap<Str, Enrolment>>>;

/// What a node asks for, in this order, in which it is answered: a workload that names a policy which is not known is refused
/// everything, so policies come first, also when a session begins anew. `addresses`: how much of the mesh.
pub(crate) fn subscriptions(addresses: Mode) -> [Subscription; 3] {
    [
        Subscription { type_url: type_url::AUTHORIZATION, mode: Mode::Wildcard },
        Subscription { type_url: type_url::ADDRESS, mode: addresses },
        Subscription { type_url: type_url::POD_ENROLMENT, mode: Mode::Wildcard },
    ]
}

/// Applies what discovery delivers.
#[derive(Debug)]
pub(crate) struct Discovery {
    writer: MeshWriter,
    mesh: Arc<MeshState>,
    flows: Arc<Flows>,
    enrolments: BTreeMap<Str, Enrolment>,
    wanted: watch::Sender<Wanted>,
    /// Released, by type, with the first complete answer. Empty when everything is known.
    latches: BTreeMap<&'static str, Latch>,
}

impl Discovery {
    /// Fills `mesh`. `latches` has one for each type of which everything is sent unasked.
    pub(crate) fn new(
        (mesh, writer): (Arc<MeshState>, MeshWriter),
        flows: Arc<Flows>,
        latches: BTreeMap<&'static str, Latch>,
    ) -> (Self, watch::Receiver<Wanted>) {
        let (wanted, watched) = watch::channel(None);
        let enrolments = BTreeMap::new();
        (Self { writer, mesh, flows, enrolments, wanted, latches }, watched)
    }

    fn take(&mut self, Batch { updates, rejections }: Batch) -> Vec<Rejection> {
        self.publish(updates);
        rejections
    }

    fn publish(&mut self, updates: Vec<Update>) {
        if updates.is_empty() {
            return;
        }
        let changes = self.writer.apply(updates);
        if changes.policies {
            self.flows.judge(&self.mesh.snapshot(), None);
        } else if !changes.workloads.is_empty() {
            // A workload that changed may name other policies now.
            self.flows.judge(&self.mesh.snapshot(), Some(&changes.workloads.into_iter().collect()));
        }
    }

    fn verdicts(&mut self, added: Vec<Resource>, removed: &[String]) -> Vec<Rejection> {
        let mut rejections = Vec::new();
        for uid in removed {
            self.enrolments.remove(uid.as_str());
        }
        for resource in added {
            match decode::enrolment(&resource.name, &resource.body) {
                Ok(enrolment) => drop(self.enrolments.insert(enrolment.uid.clone(), enrolment)),
                Err(error) => rejections.push(feed::rejection(resource.name, &error)),
            }
        }
        self.publish_verdicts();
        rejections
    }

    fn publish_verdicts(&self) {
        if !self.latches.is_empty() {
            return;
        }
        self.wanted.send_replace(Some(Arc::new(self.enrolments.clone())));
    }
}

impl Sink for Discovery {
    fn apply(&mut self, kind: &str, added: Vec<Resource>, removed: Vec<String>) -> Vec<Rejection> {
        match kind {
            type_url::ADDRESS => self.take(feed::addresses(added, &removed)),
            type_url::AUTHORIZATION => self.take(feed::policies(added, &removed)),
            type_url::POD_ENROLMENT => self.verdicts(added, &removed),
            other => feed::unasked(other),
        }
    }

    fn synced(&mut self, kind: &str) {
        if self.latches.remove(kind).is_some() {
            self.publish_verdicts();
        }
    }
}

#[cfg(test)]
mod tests {
    use daemon::readiness::Readiness;
    use model::store::Mesh;
    use xds::client_core::Core;

    use super::*;

    #[test]
    fn policies_are_asked_for_before_the_workloads_that_name_them() {
        for addresses in [Mode::OnDemand, Mode::Wildcard] {
            let asked = Core::new(&subscriptions(addresses)).connected();
            let place = |kind| asked.iter().position(|request| request.type_url == kind).expect(kind);
            assert!(place(type_url::AUTHORIZATION) < place(type_url::ADDRESS), "{addresses:?}");
        }
    }

    #[test]
    fn no_pod_is_wanted_before_peers_and_policies_are_known() {
        let readiness = Readiness::new();
        let kinds = [type_url::ADDRESS, type_url::AUTHORIZATION, type_url::POD_ENROLMENT];
        for last in 0..kinds.len() {
            let latches = kinds.map(|kind| (kind, readiness.latch(kind.to_owned())));
            let mesh = MeshState::new(Mesh::new("istio-system"));
            let (mut discovery, wanted) = Discovery::new(mesh, Flows::new(), BTreeMap::from(latches));
            let others = kinds.iter().enumerate().filter(|(index, _)| *index != last);
            for (_, kind) in others {
                discovery.synced(kind);
                discovery.apply(type_url::POD_ENROLMENT, Vec::new(), vec!["gone".to_owned()]);
                assert!(wanted.borrow().is_none(), "{} is still to come", kinds[last]);
            }
            discovery.synced(kinds[last]);
            assert!(wanted.borrow().is_some());
        }
    }
}
