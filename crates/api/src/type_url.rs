//! Names of the resource types, as discovery requests and `Any` carry them.

/// `istio.workload.Address`: a workload or a service.
pub const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
/// `istio.security.Authorization`: an L4 policy.
pub const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
/// Workloads as [`ADDRESS`] has them, which a waypoint asks for one by one by the addresses of its clients: it knows no others.
pub const CLIENT: &str = "type.googleapis.com/airglow.l7.v1.Client";
/// `airglow.l7.v1.Rule`: one rule of a route object.
pub const L7_RULE: &str = "type.googleapis.com/airglow.l7.v1.Rule";
/// `airglow.l7.v1.TrafficPolicy`: what a TrafficPolicy says about one of its targets.
pub const L7_POLICY: &str = "type.googleapis.com/airglow.l7.v1.TrafficPolicy";
/// `airglow.l7.v1.BackendTls`: the TLS that is begun towards the endpoints of a service.
pub const L7_BACKEND_TLS: &str = "type.googleapis.com/airglow.l7.v1.BackendTls";
/// `airglow.node.v1.PodEnrolment`: whether a pod of the asking node is to be captured.
pub const POD_ENROLMENT: &str = "type.googleapis.com/airglow.node.v1.PodEnrolment";
