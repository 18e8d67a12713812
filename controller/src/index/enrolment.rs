//! What each node is told of its pods. Whether one is to be enrolled is for `model::membership` to say.
//!
//! Owns no proof that a pod is enrolled; that is reported by its node and kept in `proven`.

use std::net::IpAddr;

use model::Str;
use model::identity::Identity;
use model::membership::{Candidate, DATAPLANE_MODE};
use model::workload::WorkloadUid;

use super::Config;
use super::cluster::{Cluster, name_of};
use super::finding::{Finding, Reason};
use super::waypoint;
use super::workload::{account, addresses, is_terminal, uid};
use crate::source::objects::Pod;

/// What a node is told about one of its pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolment {
    /// The pod's Kubernetes uid.
    pub uid: Str,
    /// The node that it runs on.
    pub node: Str,
    /// Its name.
    pub name: Str,
    /// Who it is. Its namespace is the identity's.
    pub identity: Identity,
    /// Its addresses, as far as they are known.
    pub addresses: Vec<IpAddr>,
    /// Its workload.
    pub workload: WorkloadUid,
    /// Whether its traffic is to be captured.
    pub verdict: Verdict,
    /// Whether it is a waypoint's, and so has a proof of its own rather than its node's.
    pub is_waypoint: bool,
    /// What services call the waypoint, if it is one's.
    pub guards_as: Vec<Str>,
}

/// Whether a pod is to be enrolled, with the reason for a person to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether its traffic is to be captured.
    pub enrol: bool,
    /// Why.
    pub reason: Str,
}

/// What the pod's node is told about it; nothing before it is scheduled or after it has ended.
pub(crate) fn of(config: &Config, cluster: &Cluster, pod: &Pod) -> (Option<Enrolment>, Vec<Finding>) {
    let metadata = &pod.metadata;
    if is_terminal(pod) || pod.spec.node_name.is_empty() {
        return (None, Vec::new());
    }
    let verdict = verdict(config, cluster, pod);
    let name = name_of(metadata);
    let refused = |enrol: bool, message: String| {
        // Not worth a remark for a pod that nobody wants in the mesh.
        (None, if enrol { vec![Finding::refused(Reason::Incomplete, message)] } else { Vec::new() })
    };
    if metadata.uid.is_empty() {
        return refused(
            verdict.enrol,
            "the pod has no metadata.uid to recognise its sandbox by; add it".into(),
        );
    }
    if let Some(other) = cluster.pods_with_uid(&metadata.uid).find(|other| **other != name) {
        let message =
            format!("metadata.uid is also that of pod {}/{}; give each pod its own", other.0, other.1);
        return refused(verdict.enrol, message);
    }
    let identity = match Identity::new(config.trust_domain.clone(), metadata.namespace.as_str(), account(pod))
    {
        Ok(identity) => identity,
        Err(error) => return refused(verdict.enrol, format!("the pod can't have an identity: {error}")),
    };
    let enrolment = Enrolment {
        uid: metadata.uid.as_str().into(),
        node: pod.spec.node_name.as_str().into(),
        name: metadata.name.as_str().into(),
        identity,
        addresses: addresses(pod).0,
        workload: uid(config, &name),
        verdict,
        is_waypoint: waypoint::is_instance(cluster, metadata),
        guards_as: waypoint::names(config, cluster, metadata),
    };
    (Some(enrolment), Vec::new())
}

/// Whether the pod is to be enrolled.
pub(crate) fn verdict(config: &Config, cluster: &Cluster, pod: &Pod) -> Verdict {
    let metadata = &pod.metadata;
    let namespace = cluster.namespace(&metadata.namespace);
    let mode = namespace.and_then(|namespace| namespace.labels.get(DATAPLANE_MODE));
    let candidate = Candidate {
        namespace: &metadata.namespace,
        namespace_mode: mode.map(String::as_str),
        is_excluded: config.excludes(&metadata.namespace),
        host_network: pod.spec.host_network,
        is_waypoint: waypoint::is_instance(cluster, metadata),
        labels: &metadata.labels,
        annotations: &metadata.annotations,
    };
    let reason = candidate.judge();
    Verdict { enrol: reason.is_in(), reason: reason.to_string().into() }
}
