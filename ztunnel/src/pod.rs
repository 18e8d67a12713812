//! An enrolled pod as the data threads see it, and the registry in which one pod finds another.
//!
//! Owns no sockets and no enrolment state; the manager makes pods, the threads serve them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ebpf::Netns;
use model::Str;
use model::identity::Identity;
use model::workload::WorkloadUid;

/// One enrolled pod. Immutable: a pod that changes (its verdict, its addresses) is enrolled anew.
#[derive(Debug)]
pub(crate) struct Pod {
    /// Differs between two enrolments of one pod.
    pub(crate) generation: u64,
    /// The Kubernetes UID.
    pub(crate) uid: Str,
    /// Its name in discovery.
    pub(crate) workload: WorkloadUid,
    /// Who it is, as the controller and the sandbox agree.
    pub(crate) identity: Identity,
    /// Its addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// Its network namespace.
    pub(crate) netns: Arc<Netns>,
    /// What its connections may hold together in tunnels, unread or unsent, on all threads.
    pub(crate) budget: hbone::Budget,
    /// Why it must be captured but not served, if so: what is known of it does not fit together.
    pub(crate) refused: Option<String>,
}

impl Pod {
    /// Whether `ip` is this pod's.
    pub(crate) fn owns(&self, ip: IpAddr) -> bool {
        self.addresses.contains(&ip)
    }
}

/// The pods that this process serves.
#[derive(Debug, Default)]
pub(crate) struct Pods(ArcSwap<HashMap<WorkloadUid, Arc<Pod>>>);

impl Pods {
    /// The pod of this node that is `workload`, if it is enrolled and served.
    pub(crate) fn get(&self, workload: &WorkloadUid) -> Option<Arc<Pod>> {
        self.0.load().get(workload).cloned()
    }

    /// Replaces the registry. Only the manager calls this.
    pub(crate) fn publish(&self, pods: impl Iterator<Item = Arc<Pod>>) {
        self.0.store(Arc::new(pods.map(|pod| (pod.workload.clone(), pod)).collect()));
    }

    /// Every one of them.
    pub(crate) fn all(&self) -> Vec<Arc<Pod>> {
        self.0.load().values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.load().len()
    }
}
