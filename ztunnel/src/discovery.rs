//! What the controller tells this node: the mesh, and which of its pods should be enrolled.
//!
//! The sink of the xDS client: converts each resource, applies what is valid, names what is not. Decides nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Enrolment, decode, type_url};
use daemon::readiness::Latch;
use model::Str;
use model::store::Update;
use tokio::sync::watch;
use xds::{Rejection, Resource, Sink};

use crate::flow::Flows;
use crate::mesh::{MeshState, MeshWriter};

/// The verdict on every pod of this node; `None` until the controller has said all of them once.
pub(crate) type Wanted = Option<Arc<BTreeMap<Str, Enrolment>>>;

/// Applies what discovery delivers.
#[derive(Debug)]
pub(crate) struct Discovery {
    writer: MeshWriter,
    mesh: Arc<MeshState>,
    flows: Arc<Flows>,
    enrolments: BTreeMap<Str, Enrolment>,
    all_enrolments: bool,
    wanted: watch::Sender<Wanted>,
    /// Released, by type, with the first complete answer.
    latches: BTreeMap<&'static str, Latch>,
}

impl Discovery {
    pub(crate) fn new(
        (mesh, writer): (Arc<MeshState>, MeshWriter),
        flows: Arc<Flows>,
        latches: BTreeMap<&'static str, Latch>,
    ) -> (Self, watch::Receiver<Wanted>) {
        let (wanted, watched) = watch::channel(None);
        let enrolments = BTreeMap::new();
        (Self { writer, mesh, flows, enrolments, all_enrolments: false, wanted, latches }, watched)
    }

    fn addresses(&mut self, added: Vec<Resource>, removed: &[String]) -> Vec<Rejection> {
        let mut rejections = Vec::new();
        let mut updates: Vec<Update> =
            removed.iter().flat_map(|name| decode::address_removed(name)).collect();
        for resource in added {
            match decode::address(&resource.body) {
                Ok(update) => updates.push(update),
                Err(error) => rejections.push(rejection(resource.name, &error)),
            }
        }
        self.publish(updates);
        rejections
    }

    fn policies(&mut self, added: Vec<Resource>, removed: &[String]) -> Vec<Rejection> {
        let mut rejections = Vec::new();
        let mut updates: Vec<Update> =
            removed.iter().filter_map(|name| decode::authorization_removed(name)).collect();
        for resource in added {
            match decode::authorization(&resource.name, &resource.body) {
                Ok(update) => updates.push(update),
                Err(error) => {
                    // What can't be understood can't be enforced: what it may guard is closed until it is mended.
                    updates.extend(error.update());
                    rejections.push(rejection(resource.name, &error));
                }
            }
        }
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
                Err(error) => rejections.push(rejection(resource.name, &error)),
            }
        }
        if self.all_enrolments {
            self.publish_verdicts();
        }
        rejections
    }

    fn publish_verdicts(&self) {
        self.wanted.send_replace(Some(Arc::new(self.enrolments.clone())));
    }
}

fn rejection(name: String, error: &dyn std::error::Error) -> Rejection {
    tracing::warn!(%name, %error, "a resource from the controller is refused");
    Rejection { name, reason: error.to_string() }
}

impl Sink for Discovery {
    fn apply(&mut self, kind: &str, added: Vec<Resource>, removed: Vec<String>) -> Vec<Rejection> {
        match kind {
            type_url::ADDRESS => self.addresses(added, &removed),
            type_url::AUTHORIZATION => self.policies(added, &removed),
            type_url::POD_ENROLMENT => self.verdicts(added, &removed),
            other => {
                tracing::warn!(kind = other, "the controller sent a kind of resource that was not asked for");
                Vec::new()
            }
        }
    }

    fn synced(&mut self, kind: &str) {
        if kind == type_url::POD_ENROLMENT && !self.all_enrolments {
            self.all_enrolments = true;
            self.publish_verdicts();
        }
        self.latches.remove(kind);
    }
}
