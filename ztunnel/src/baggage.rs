//! The `baggage` header: what a workload says of itself in a tunnel, for telemetry only.
//!
//! Written in Istio's keys and order. Never read for a decision: a peer can write what it likes.

use model::workload::Workload;

/// The header's name (W3C Baggage).
pub(crate) const HEADER: &str = "baggage";

/// What `workload` says of itself; parts that are unknown are left out.
pub(crate) fn of(workload: &Workload) -> String {
    let owner = format!("k8s.{}.name", workload.workload_type.as_str());
    let parts = [
        ("k8s.cluster.name", &workload.cluster_id),
        ("k8s.namespace.name", workload.namespace()),
        (owner.as_str(), &workload.workload_name),
        ("service.name", &workload.canonical_name),
        ("service.version", &workload.canonical_revision),
        ("cloud.region", &workload.locality.region),
        ("cloud.availability_zone", &workload.locality.zone),
    ];
    let mut text = String::with_capacity(160);
    for (key, value) in parts {
        // A value that could be taken for the next entry is left out rather than escaped: readers do not unescape.
        if value.is_empty() || !value.bytes().all(|b| b.is_ascii_graphic() && !b",;=\"\\".contains(&b)) {
            continue;
        }
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(key);
        text.push('=');
        text.push_str(value);
    }
    text
}
