//! Live connections: what each one is, what it has carried, and whether it may go on.
//!
//! A flow that needs a permit is registered *before* policy is asked, so that no policy change falls between the two. The
//! registry judges every such flow again when policy changes. Counts bytes; owns no sockets, logs nothing.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use model::policy::{Denial, Permit};
use model::store::Mesh;
use model::workload::WorkloadUid;
use parking_lot::Mutex;
use proxy::mesh::MeshState;
use proxy::series::Series;
use tokio::sync::Notify;

use crate::refusal::Refusal;
use crate::telemetry::Facts;

/// Bytes that a connection has carried. Relaxed: each direction has one writer, readers want a recent value only.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    to_server: AtomicU64,
    to_client: AtomicU64,
}

impl Traffic {
    /// Request bytes, in the direction in which the connection was opened.
    pub(crate) fn add_to_server(&self, bytes: u64) {
        self.to_server.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Response bytes.
    pub(crate) fn add_to_client(&self, bytes: u64) {
        self.to_client.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn to_server(&self) -> u64 {
        self.to_server.load(Ordering::Relaxed)
    }

    pub(crate) fn to_client(&self) -> u64 {
        self.to_client.load(Ordering::Relaxed)
    }
}

/// One connection, from admission to close.
#[derive(Debug)]
pub(crate) struct Flow {
    /// Unique in this process.
    pub(crate) id: u64,
    /// Who talks to whom.
    pub(crate) facts: Facts,
    /// What it has carried.
    pub(crate) traffic: Arc<Traffic>,
    /// When it was opened, for people.
    pub(crate) since: SystemTime,
    /// When it was opened, for durations.
    pub(crate) opened: Instant,
    /// What was reported of its bytes already (request, response).
    pub(crate) reported: (AtomicU64, AtomicU64),
    /// Its series, once it has any.
    pub(crate) series: OnceLock<Arc<Series>>,
    /// The workload of this node whose policies judge it, if any.
    guarded_by: Option<WorkloadUid>,
    ending: OnceLock<Ending>,
    signal: Notify,
}

/// Why a flow must end before its ends want it to.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    /// Its pod leaves the mesh, or ztunnel stops.
    Cut(&'static str),
    /// Policy no longer allows it.
    Revoked(Denial),
}

impl From<Ending> for Refusal {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Cut(why) => Self::Drained(why),
            Ending::Revoked(denial) => Self::Revoked(denial),
        }
    }
}

impl Flow {
    /// Resolves when the flow must end.
    pub(crate) async fn ended(&self) -> Ending {
        loop {
            let signalled = self.signal.notified();
            if let Some(ending) = self.ending.get() {
                return ending.clone();
            }
            signalled.await;
        }
    }

    fn end(&self, ending: Ending) {
        // A second reason changes nothing: the flow is being closed.
        let _ = self.ending.set(ending);
        self.signal.notify_one();
    }

    fn judge(&self, mesh: &Mesh) {
        let Some(destination) = &self.guarded_by else { return };
        let Some(workload) = mesh.workload(destination) else { return };
        if let Err(denial) = mesh.authorize(&workload, self.facts.connection()).enforced {
            self.end(Ending::Revoked(denial));
        }
    }
}

/// Every flow of this process. Flows are registered and removed once each; the lock is never taken per byte.
#[derive(Debug)]
pub(crate) struct Flows {
    shards: Vec<Mutex<HashMap<u64, Arc<Flow>>>>,
    next: AtomicU64,
}

/// A registered flow; leaves the registry when dropped.
#[derive(Debug)]
pub(crate) struct Registered {
    flows: Arc<Flows>,
    flow: Arc<Flow>,
}

impl std::ops::Deref for Registered {
    type Target = Arc<Flow>;

    fn deref(&self) -> &Arc<Flow> {
        &self.flow
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.flows.shard(self.flow.id).lock().remove(&self.flow.id);
    }
}

impl Flows {
    /// More shards than threads, so that two of them rarely meet.
    const SHARDS: usize = 16;

    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            shards: (0..Self::SHARDS).map(|_| Mutex::default()).collect(),
            next: AtomicU64::new(1),
        })
    }

    /// Registers a flow that needs no permit here: outbound, judged at its destination.
    pub(crate) fn open(self: &Arc<Self>, facts: Facts, traffic: Arc<Traffic>) -> Registered {
        self.register(facts, traffic, None)
    }

    /// Registers a flow towards a workload of this node and asks policy. The permit is what the application's socket is
    /// opened with; the registration outlives it for as long as the connection does.
    ///
    /// # Errors
    /// The denial, with the registration, so that the refusal can be reported.
    pub(crate) fn admit(
        self: &Arc<Self>,
        mesh: &MeshState,
        destination: &WorkloadUid,
        facts: Facts,
        traffic: Arc<Traffic>,
    ) -> (Registered, Result<Permit, Denied>) {
        let connection = facts.connection();
        let flow = self.register(facts, traffic, Some(destination.clone()));
        let snapshot = mesh.snapshot();
        let verdict = match snapshot.workload(destination) {
            Some(workload) => {
                let verdict = snapshot.authorize(&workload, connection);
                if let Some(denial) = &verdict.dry_run {
                    tracing::info!(target: "policy", flow = flow.id, %denial, "a dry-run policy would refuse this connection");
                }
                verdict.enforced.map_err(Denied::Policy)
            }
            None => Err(Denied::WorkloadGone(destination.clone())),
        };
        (flow, verdict)
    }

    /// Judges guarded flows by the newest policies: all of them, or those towards the workloads given. Called after the
    /// snapshot with the change was published.
    pub(crate) fn judge(&self, mesh: &Mesh, towards: Option<&HashSet<WorkloadUid>>) {
        for flow in self.all() {
            let guard = flow.guarded_by.as_ref();
            if guard.is_some_and(|guard| towards.is_none_or(|workloads| workloads.contains(guard))) {
                flow.judge(mesh);
            }
        }
    }

    /// All flows, as of now.
    pub(crate) fn all(&self) -> Vec<Arc<Flow>> {
        self.shards.iter().flat_map(|shard| shard.lock().values().cloned().collect::<Vec<_>>()).collect()
    }

    /// Ends the flows of one enrolment of a pod, and says why.
    pub(crate) fn cut(&self, generation: u64, why: &'static str) {
        for flow in self.all().iter().filter(|flow| flow.facts.generation == generation) {
            flow.end(Ending::Cut(why));
        }
    }

    fn register(
        self: &Arc<Self>,
        facts: Facts,
        traffic: Arc<Traffic>,
        guarded_by: Option<WorkloadUid>,
    ) -> Registered {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let flow = Arc::new(Flow {
            id,
            facts,
            traffic,
            since: SystemTime::now(),
            opened: Instant::now(),
            reported: (AtomicU64::new(0), AtomicU64::new(0)),
            series: OnceLock::new(),
            guarded_by,
            ending: OnceLock::new(),
            signal: Notify::new(),
        });
        self.shard(id).lock().insert(id, Arc::clone(&flow));
        Registered { flows: Arc::clone(self), flow }
    }

    #[expect(clippy::cast_possible_truncation, reason = "only the low bits choose a shard")]
    fn shard(&self, id: u64) -> &Mutex<HashMap<u64, Arc<Flow>>> {
        &self.shards[id as usize % Self::SHARDS]
    }
}

/// Why a flow was not admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    /// Policy says no.
    #[error(transparent)]
    Policy(#[from] Denial),
    /// Discovery no longer knows the destination, so its policies are unknown.
    #[error("workload {0} is not known to discovery, so its policies can't be judged")]
    WorkloadGone(WorkloadUid),
}
