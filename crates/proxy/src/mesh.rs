//! The mesh as this process knows it: the one writer of the snapshot, and what readers wait for.
//!
//! Readers load an immutable snapshot without waiting; the writer (discovery) publishes the next. Converts what discovery
//! delivers; decides nothing about pods or connections.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use model::store::{Changes, Mesh, Update};
use model::workload::{Workload, WorkloadUid};
use tokio::sync::watch;

/// How long a connection waits for discovery to know the pod it belongs to. A new pod's first connection overtakes its own
/// announcement: kubelet tells the API server a pod's address only after its containers have started, within a second or
/// two, or ten on a node that starts many pods. Most clients wait half a minute for an answer.
pub const WORKLOAD_WAIT: Duration = Duration::from_secs(20);

/// The current snapshot.
#[derive(Debug)]
pub struct MeshState {
    current: ArcSwap<Mesh>,
    version: watch::Sender<u64>,
}

/// The only one who may change it.
#[derive(Debug)]
pub struct MeshWriter {
    mesh: Mesh,
    state: Arc<MeshState>,
}

impl MeshState {
    /// The state that begins as `mesh`, and its writer.
    pub fn new(mesh: Mesh) -> (Arc<Self>, MeshWriter) {
        let state =
            Arc::new(Self { current: ArcSwap::from_pointee(mesh.clone()), version: watch::Sender::new(0) });
        let writer = MeshWriter { mesh, state: Arc::clone(&state) };
        (state, writer)
    }

    /// The mesh as of now.
    pub fn snapshot(&self) -> Guard<Arc<Mesh>> {
        self.current.load()
    }

    /// Told whenever a new snapshot is published.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// The workload of a pod that this process serves, waiting up to [`WORKLOAD_WAIT`] for discovery to know it.
    pub async fn local_workload(&self, uid: &WorkloadUid) -> Option<Arc<Workload>> {
        if let Some(workload) = self.snapshot().workload(uid) {
            return Some(workload);
        }
        let mut changes = self.changes();
        let known = changes.wait_for(|_| self.snapshot().workload(uid).is_some());
        let _ = tokio::time::timeout(WORKLOAD_WAIT, known).await;
        self.snapshot().workload(uid)
    }
}

impl MeshWriter {
    /// Applies a batch and publishes the result as one snapshot.
    pub fn apply(&mut self, updates: impl IntoIterator<Item = Update>) -> Changes {
        let changes = self.mesh.apply(updates);
        self.state.current.store(Arc::new(self.mesh.clone()));
        self.state.version.send_modify(|version| *version += 1);
        changes
    }
}
