//! What the build made of `proto/`, one module per package. Owns nothing by hand.
//!
//! Packages refer to each other as siblings, hence one file for all of them.

macro_rules! package {
    ($(#[doc = $doc:literal] $module:ident = $package:literal;)*) => {$(
        #[doc = $doc]
        #[allow(
            missing_docs,
            unreachable_pub,
            clippy::all,
            clippy::allow_attributes_without_reason,
            clippy::disallowed_methods,
            clippy::too_many_arguments,
            clippy::too_many_lines,
            clippy::unwrap_used,
            clippy::wildcard_enum_match_arm,
            reason = "generated code is documented in the .proto files and styled by its generator"
        )]
        pub mod $module {
            tonic::include_proto!($package);
        }
    )*};
}

package! {
    /// `istio.v1.auth`: the certificate authority.
    ca = "istio.v1.auth";
    /// `runtime.v1`: the container runtime's own, as far as we ask it.
    cri = "runtime.v1";
    /// `envoy.service.discovery.v3`: delta discovery.
    discovery = "envoy.service.discovery.v3";
    /// `airglow.l7.v1`: routes and traffic policies, between our controller and our waypoints.
    l7 = "airglow.l7.v1";
    /// `airglow.node.v1`: enrolment, between our controller and our node proxy.
    node = "airglow.node.v1";
    /// `opentelemetry.proto.collector.trace.v1`: spans, as far as we speak it.
    otlp = "opentelemetry.proto.collector.trace.v1";
    /// `istio.security`: L4 policy.
    security = "istio.security";
    /// `istio.workload`: workloads and services.
    workload = "istio.workload";
}
