//! Which pods are reached by tunnel only: those that were proven to be enrolled, by their nodes' reports, and those that
//! were to be enrolled when they first appeared. A new pod that its node fails to enrol is refused, not sent plaintext.
//!
//! A proof holds until the pod is gone or is not to be enrolled any more. That a node says less for a while (it
//! restarts, a repair is under way) does not end it: peers would be told to send plaintext to a pod of the mesh.
//! Owns no persistence.

use std::collections::BTreeMap;

use model::Str;

/// What a node says about one of its pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodState {
    /// The pod's Kubernetes uid.
    pub uid: String,
    /// How far it got.
    pub progress: Progress,
    /// What failed or is waited for.
    pub message: String,
    /// Why its certificate, which expires soon, can't be renewed; empty while it can, or there is time.
    pub certificate_failure: String,
}

/// How far enrolment of a pod got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Proven from kernel facts.
    Enrolled,
    /// Tried and failed.
    Failed,
    /// Being worked on.
    Pending,
    /// The node does not say.
    Unknown,
}

/// The pods that are reached by tunnel only: uid and the node that they are on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proven(BTreeMap<Str, Str>);

impl Proven {
    /// From what was kept over a restart.
    pub fn restore(kept: impl IntoIterator<Item = (Str, Str)>) -> Self {
        Self(kept.into_iter().collect())
    }

    /// What to keep over a restart: uid and node.
    pub fn entries(&self) -> impl Iterator<Item = (&Str, &Str)> {
        self.0.iter()
    }

    /// Whether the pod is reached by tunnel only, as one of `node`.
    #[must_use]
    pub fn contains(&self, uid: &str, node: &str) -> bool {
        self.0.get(uid).is_some_and(|by| &**by == node)
    }

    pub(crate) fn insert(&mut self, uid: Str, node: Str) -> bool {
        self.0.insert(uid, node.clone()).is_none_or(|before| before != node)
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&str, &str) -> bool) {
        self.0.retain(|uid, node| keep(uid, node));
    }

    pub(crate) fn remove(&mut self, uid: &str) {
        self.0.remove(uid);
    }
}
