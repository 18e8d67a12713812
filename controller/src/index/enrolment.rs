//! Which pods are to be enrolled, and why: labels, exclusions and their order.
//!
//! Owns no proof that a pod is enrolled; that is reported by its node and kept in `proven`.

use std::net::IpAddr;

use model::Str;
use model::identity::Identity;
use model::workload::WorkloadUid;

use super::Config;
use super::cluster::{Cluster, name_of};
use super::finding::{Finding, Reason};
use super::waypoint::{self, GATEWAY_NAME};
use super::workload::{account, addresses, is_terminal, uid};
use crate::source::objects::{Labels, Pod};

const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
const SIDECAR_STATUS: &str = "sidecar.istio.io/status";
const TUNNEL: &str = "networking.istio.io/tunnel";

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
    };
    (Some(enrolment), Vec::new())
}

/// Whether the pod terminates HBONE itself.
pub(crate) fn is_native(labels: &Labels) -> bool {
    labels.get(TUNNEL).is_some_and(|protocols| protocols.split(',').any(|protocol| protocol.trim() == "http"))
}

/// Whether the pod is to be enrolled. What can't be captured comes first, then the pod's word, then its namespace's.
pub(crate) fn verdict(config: &Config, cluster: &Cluster, pod: &Pod) -> Verdict {
    let metadata = &pod.metadata;
    let no = |reason: String| Verdict { enrol: false, reason: reason.into() };
    let yes = |reason: String| Verdict { enrol: true, reason: reason.into() };
    if pod.spec.host_network {
        return no("the pod shares the node's network (hostNetwork)".into());
    }
    if config.excludes(&metadata.namespace) {
        return no(format!("namespace {} is never enrolled", metadata.namespace));
    }
    if metadata.annotations.contains_key(SIDECAR_STATUS) {
        return no(format!("the pod has a sidecar (annotation {SIDECAR_STATUS})"));
    }
    if is_native(&metadata.labels) {
        return no(format!("the pod speaks HBONE itself (label {TUNNEL}=http)"));
    }
    if waypoint::is_instance(cluster, metadata) {
        return no(format!("the pod is a waypoint's (label {GATEWAY_NAME})"));
    }
    match metadata.labels.get(DATAPLANE_MODE).map(String::as_str) {
        Some("ambient") => return yes(format!("label {DATAPLANE_MODE}=ambient on the pod")),
        Some("none") => return no(format!("label {DATAPLANE_MODE}=none on the pod")),
        _ => {}
    }
    let namespace = cluster.namespace(&metadata.namespace);
    match namespace.and_then(|namespace| namespace.labels.get(DATAPLANE_MODE)).map(String::as_str) {
        Some("ambient") => yes(format!("label {DATAPLANE_MODE}=ambient on namespace {}", metadata.namespace)),
        Some("none") => no(format!("label {DATAPLANE_MODE}=none on namespace {}", metadata.namespace)),
        Some(other) => no(format!(
            "label {DATAPLANE_MODE}={other} on namespace {} is neither ambient nor none",
            metadata.namespace
        )),
        None => {
            no(format!("neither the pod nor namespace {} has a label {DATAPLANE_MODE}", metadata.namespace))
        }
    }
}
