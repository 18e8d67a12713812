//! What the controller tells this waypoint: the mesh.
//!
//! The sink of the discovery client: applies what is valid, names what is not. Decides nothing.

use std::collections::BTreeMap;

use api::type_url;
use daemon::readiness::Latch;
use proxy::feed::{self, Batch};
use proxy::mesh::MeshWriter;
use tokio::sync::watch;
use xds::{Rejection, Resource, Sink};

/// Applies what discovery delivers.
#[derive(Debug)]
pub(crate) struct Discovery {
    writer: MeshWriter,
    /// Told when policies have changed, after the mesh with the change was published.
    policies: watch::Sender<u64>,
    /// Released, by type, with the first complete answer.
    latches: BTreeMap<&'static str, Latch>,
}

impl Discovery {
    /// Fills a mesh. `latches` has one for each type.
    pub(crate) fn new(
        writer: MeshWriter,
        policies: watch::Sender<u64>,
        latches: BTreeMap<&'static str, Latch>,
    ) -> Self {
        Self { writer, policies, latches }
    }

    fn take(&mut self, Batch { updates, rejections }: Batch) -> Vec<Rejection> {
        if !updates.is_empty() && self.writer.apply(updates).policies {
            self.policies.send_modify(|version| *version += 1);
        }
        rejections
    }
}

impl Sink for Discovery {
    fn apply(&mut self, kind: &str, added: Vec<Resource>, removed: Vec<String>) -> Vec<Rejection> {
        match kind {
            type_url::ADDRESS => self.take(feed::addresses(added, &removed)),
            type_url::AUTHORIZATION => self.take(feed::policies(added, &removed)),
            other => feed::unasked(other),
        }
    }

    fn synced(&mut self, kind: &str) {
        self.latches.remove(kind);
    }
}
