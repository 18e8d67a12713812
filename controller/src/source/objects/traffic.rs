//! TrafficPolicy, our own kind: what befalls requests on purpose, and how endpoints are chosen. Plain data, owns no rules.
//!
//! Each member of the spec is a setting of its own that is merged by itself, so that further ones (limits, circuit
//! breaking, ejection of outliers) can stand beside these. The spec refuses unknown fields: a misspelt condition of a fault
//! would let it befall everyone.

use schemars::JsonSchema;
use serde::Deserialize;

use super::policies::PolicyCondition;
use super::{Metadata, lenient, nullable};

/// `airglow.dev` TrafficPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct TrafficPolicy {
    /// Names and age.
    #[serde(default)]
    pub metadata: Metadata,
    /// The policy.
    #[serde(default, deserialize_with = "nullable")]
    pub spec: TrafficPolicySpec,
    /// What was said about it.
    #[serde(default, deserialize_with = "lenient")]
    pub status: AncestorsStatus,
}

/// The policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicySpec {
    /// What it is attached to, in its own namespace.
    #[serde(default, deserialize_with = "nullable")]
    pub target_refs: Vec<TrafficTarget>,
    /// What befalls requests on purpose.
    #[serde(default)]
    pub fault: Option<Fault>,
    /// How an endpoint is chosen.
    #[serde(default)]
    pub balancing: Option<Balancing>,
}

/// A Service, a route or a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficTarget {
    /// Empty for a Service, `gateway.networking.k8s.io` for the others.
    #[serde(default, deserialize_with = "nullable")]
    pub group: String,
    /// `Service`, `HTTPRoute`, `GRPCRoute`, `TCPRoute`, `TLSRoute` or `Gateway`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Of a route, the name of one of its rules.
    #[serde(default)]
    pub section_name: Option<String>,
}

/// What befalls some requests on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// When it ends, so that it can't be forgotten: RFC 3339, such as `2026-12-01T18:00:00Z`.
    pub until: String,
    /// Only requests that are any of these; every request when unset.
    #[serde(default, deserialize_with = "nullable")]
    pub matches: Vec<FaultMatch>,
    /// Holds requests back.
    #[serde(default)]
    pub delay: Option<Delay>,
    /// Answers requests in place of the backend, after the delay if there is one.
    #[serde(default)]
    pub abort: Option<Abort>,
}

/// All of these conditions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FaultMatch {
    /// All of these headers.
    #[serde(default, deserialize_with = "nullable")]
    pub headers: Vec<FaultHeader>,
    /// Any of these clients.
    #[serde(default, deserialize_with = "nullable")]
    pub clients: Vec<FaultClient>,
}

/// A header that a request has to have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FaultHeader {
    /// `Exact` when unset.
    #[serde(default, rename = "type", deserialize_with = "nullable")]
    pub kind: HeaderMatchType,
    /// Its name.
    pub name: String,
    /// What its value is compared with.
    pub value: String,
}

/// How a header's value is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum HeaderMatchType {
    /// Letter by letter.
    #[default]
    Exact,
    /// The whole of it with a regular expression.
    RegularExpression,
}

/// Whose requests, by proven identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultClient {
    /// The policy's own when unset.
    #[serde(default)]
    pub namespace: Option<String>,
    /// All of the namespace when unset.
    #[serde(default)]
    pub service_account: Option<String>,
}

/// Holds requests back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Delay {
    /// For how long, such as `1s500ms`.
    pub duration: String,
    /// How many of a hundred requests; all of them when neither this nor `fraction` is set.
    #[serde(default)]
    pub percent: Option<u32>,
    /// How many of how many requests.
    #[serde(default)]
    pub fraction: Option<FaultFraction>,
}

/// Answers requests: one of the three ways.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Abort {
    /// With this status of HTTP.
    #[serde(default)]
    pub http_status: Option<u16>,
    /// With this status of gRPC, by its name, such as `UNAVAILABLE`.
    #[serde(default)]
    pub grpc_status: Option<String>,
    /// By resetting the client's connection, or of HTTP/2 its stream.
    #[serde(default)]
    pub reset: Option<bool>,
    /// How many of a hundred requests; all of them when neither this nor `fraction` is set.
    #[serde(default)]
    pub percent: Option<u32>,
    /// How many of how many requests.
    #[serde(default)]
    pub fraction: Option<FaultFraction>,
}

/// Some of how many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FaultFraction {
    /// Some.
    pub numerator: u32,
    /// Of how many; 100 when unset.
    #[serde(default)]
    pub denominator: Option<u32>,
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Balancing {
    /// `LeastLoad` when unset.
    #[serde(default, deserialize_with = "nullable")]
    pub algorithm: Algorithm,
    /// What `RingHash` and `Maglev` hash.
    #[serde(default)]
    pub hash: Option<HashKey>,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Algorithm {
    /// The better of two that are drawn, by latency and requests in flight.
    #[default]
    LeastLoad,
    /// The better of two that are drawn, by requests in flight.
    LeastRequest,
    /// By a hash, in a table.
    Maglev,
    /// Any.
    Random,
    /// By a hash, on a ring.
    RingHash,
    /// One after the other.
    RoundRobin,
}

/// What is hashed. One of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HashKey {
    /// The value of a header.
    #[serde(default)]
    pub header: Option<String>,
    /// A cookie, which is set when it is not there.
    #[serde(default)]
    pub cookie: Option<HashCookie>,
    /// The client's address.
    #[serde(default)]
    pub source: Option<bool>,
}

/// A cookie.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HashCookie {
    /// Its name.
    pub name: String,
    /// How long the client keeps it, such as `1h`; for its session when unset.
    #[serde(default)]
    pub ttl: Option<String>,
}

/// What was said about a policy, by every controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct AncestorsStatus {
    /// One for each target and controller.
    #[serde(default, deserialize_with = "nullable")]
    pub ancestors: Vec<AncestorStatus>,
}

/// What a controller said about an attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AncestorStatus {
    /// Which attachment.
    pub ancestor_ref: super::routes::ParentRef,
    /// Who said so.
    pub controller_name: String,
    /// One per type.
    #[serde(deserialize_with = "nullable")]
    pub conditions: Vec<PolicyCondition>,
}
