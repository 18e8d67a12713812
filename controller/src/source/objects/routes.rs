//! Routes of the Gateway API: where requests and connections to a Service go. Plain data, owns no rules.
//!
//! What is a choice of words in the API is text here: a word that we do not know costs the rule that it is in, and the author
//! learns so from the status. Of a match and a filter, fields that we do not know are noticed, because leaving out a
//! condition would widen what it matches.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use super::filters::Filter;
use super::policies::PolicyCondition;
use super::{Metadata, lenient, nullable};

/// The names of fields that are not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unknown(pub BTreeSet<String>);

impl<'de> Deserialize<'de> for Unknown {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Self(BTreeMap::<String, IgnoredAny>::deserialize(from)?.into_keys().collect()))
    }
}

macro_rules! routes {
    ($($(#[$doc:meta])* $name:ident: $rule:ident,)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
        pub struct $name {
            /// Names and age.
            #[serde(default)]
            pub metadata: Metadata,
            /// The route.
            #[serde(default, deserialize_with = "nullable")]
            pub spec: RouteSpec<$rule>,
            /// What was said about it.
            #[serde(default, deserialize_with = "lenient")]
            pub status: RouteStatus,
        }
    )*};
}

routes! {
    /// A route of HTTP requests.
    HTTPRoute: HttpRule,
    /// A route of gRPC calls.
    GRPCRoute: GrpcRule,
    /// A route of connections.
    TCPRoute: ConnectionRule,
    /// A route of connections of TLS that is not terminated.
    TLSRoute: ConnectionRule,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "R: Deserialize<'de>"))]
pub struct RouteSpec<R> {
    /// What it is attached to.
    #[serde(default, deserialize_with = "nullable")]
    pub parent_refs: Vec<ParentRef>,
    /// Hosts, which count on a Gateway only, and in a TLSRoute.
    #[serde(default, deserialize_with = "nullable")]
    pub hostnames: Vec<String>,
    /// Rules. Absent: one that matches everything and leads nowhere.
    #[serde(default)]
    pub rules: Option<Vec<R>>,
}

impl<R> Default for RouteSpec<R> {
    fn default() -> Self {
        Self { parent_refs: Vec::new(), hostnames: Vec::new(), rules: None }
    }
}

/// What a route is attached to, as its author wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// `gateway.networking.k8s.io` when unset; empty for the core group.
    #[serde(default)]
    pub group: Option<String>,
    /// `Gateway` when unset.
    #[serde(default)]
    pub kind: Option<String>,
    /// The route's own when unset.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// A part of it.
    #[serde(default)]
    pub section_name: Option<String>,
    /// One of its ports; all of them when unset.
    #[serde(default)]
    pub port: Option<u16>,
}

/// A rule of an HTTPRoute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRule {
    /// Unique in the route.
    #[serde(default)]
    pub name: Option<String>,
    /// Any of these. None: every request.
    #[serde(default, deserialize_with = "nullable")]
    pub matches: Vec<HttpMatch>,
    /// What is done with requests and responses, in this order.
    #[serde(default, deserialize_with = "nullable")]
    pub filters: Vec<Filter>,
    /// Where requests go.
    #[serde(default, deserialize_with = "nullable")]
    pub backend_refs: Vec<BackendRef>,
    /// How long it may take.
    #[serde(default, deserialize_with = "nullable")]
    pub timeouts: Timeouts,
    /// When a request is sent again.
    #[serde(default)]
    pub retry: Option<Retry>,
    /// How a client stays with an endpoint.
    #[serde(default)]
    pub session_persistence: Option<SessionPersistence>,
}

/// All of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpMatch {
    /// The path; every path when unset.
    #[serde(default)]
    pub path: Option<ValueMatch>,
    /// Headers.
    #[serde(default, deserialize_with = "nullable")]
    pub headers: Vec<NamedMatch>,
    /// Parameters of the query.
    #[serde(default, deserialize_with = "nullable")]
    pub query_params: Vec<NamedMatch>,
    /// The method.
    #[serde(default)]
    pub method: Option<String>,
    /// Conditions that are not known.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// How a value is compared. Absent parts are the kind's defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ValueMatch {
    /// `Exact`, `PathPrefix` or `RegularExpression`.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// What it is compared with.
    #[serde(default)]
    pub value: Option<String>,
}

/// How the value of that name is compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct NamedMatch {
    /// `Exact`, the default, or `RegularExpression`.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// Of a header or a parameter.
    #[serde(default)]
    pub name: String,
    /// What it is compared with.
    #[serde(default)]
    pub value: String,
}

/// Where a share of requests or connections goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRef {
    /// What receives it.
    #[serde(flatten)]
    pub target: ObjectRef,
    /// Its share, relative to the others'; 1 when unset.
    #[serde(default)]
    pub weight: Option<i32>,
    /// What is done with requests that go there, and with their responses.
    #[serde(default, deserialize_with = "nullable")]
    pub filters: Vec<Filter>,
}

/// What receives requests or connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ObjectRef {
    /// Empty for the core group.
    #[serde(default, deserialize_with = "nullable")]
    pub group: String,
    /// `Service` when unset.
    #[serde(default)]
    pub kind: Option<String>,
    /// The route's own when unset.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its port.
    #[serde(default)]
    pub port: Option<u16>,
}

/// How long it may take, in the Gateway API's notation of durations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// From the client's view.
    #[serde(default)]
    pub request: Option<String>,
    /// Each attempt.
    #[serde(default)]
    pub backend_request: Option<String>,
}

/// When a request is sent again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Retry {
    /// After these statuses, besides connections that fail.
    #[serde(default, deserialize_with = "nullable")]
    pub codes: Vec<u16>,
    /// How often, besides the first time.
    #[serde(default)]
    pub attempts: Option<u32>,
    /// The shortest pause.
    #[serde(default)]
    pub backoff: Option<String>,
}

/// How a client stays with an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionPersistence {
    /// `Cookie`, the default, or `Header`.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// The name of the cookie or header, as it was until Gateway API 1.6.
    #[serde(default)]
    pub session_name: Option<String>,
    /// How long a session lasts.
    #[serde(default)]
    pub absolute_timeout: Option<String>,
    /// The cookie.
    #[serde(default, deserialize_with = "nullable")]
    pub cookie: SessionName,
    /// The header.
    #[serde(default, deserialize_with = "nullable")]
    pub header: SessionName,
    /// The cookie, as it was until Gateway API 1.6.
    #[serde(default, deserialize_with = "nullable")]
    pub cookie_config: SessionName,
}

/// The cookie or header that tells a session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionName {
    /// Its name.
    #[serde(default)]
    pub name: Option<String>,
    /// Of a cookie; `/` when unset.
    #[serde(default)]
    pub path: Option<String>,
    /// Of a cookie: `Session`, the default, or `Permanent`.
    #[serde(default)]
    pub lifetime_type: Option<String>,
}

/// A rule of a GRPCRoute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GrpcRule {
    /// Unique in the route.
    #[serde(default)]
    pub name: Option<String>,
    /// Any of these. None: every call.
    #[serde(default, deserialize_with = "nullable")]
    pub matches: Vec<GrpcMatch>,
    /// What is done with calls, in this order.
    #[serde(default, deserialize_with = "nullable")]
    pub filters: Vec<Filter>,
    /// Where calls go.
    #[serde(default, deserialize_with = "nullable")]
    pub backend_refs: Vec<BackendRef>,
    /// How a client stays with an endpoint.
    #[serde(default)]
    pub session_persistence: Option<SessionPersistence>,
}

/// All of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct GrpcMatch {
    /// The method; every method when unset.
    #[serde(default)]
    pub method: Option<MethodMatch>,
    /// Headers.
    #[serde(default, deserialize_with = "nullable")]
    pub headers: Vec<NamedMatch>,
    /// Conditions that are not known.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A method of gRPC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct MethodMatch {
    /// `Exact`, the default, or `RegularExpression`.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// The service.
    #[serde(default)]
    pub service: Option<String>,
    /// Its method.
    #[serde(default)]
    pub method: Option<String>,
}

/// A rule of a TCPRoute or TLSRoute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionRule {
    /// Unique in the route.
    #[serde(default)]
    pub name: Option<String>,
    /// Where connections go.
    #[serde(default, deserialize_with = "nullable")]
    pub backend_refs: Vec<BackendRef>,
}

/// What was said about a route, by every controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct RouteStatus {
    /// One for each parent and controller.
    #[serde(default, deserialize_with = "nullable")]
    pub parents: Vec<ParentStatus>,
}

/// What a controller said about an attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ParentStatus {
    /// Which attachment.
    pub parent_ref: ParentRef,
    /// Who said so.
    pub controller_name: String,
    /// One per type.
    #[serde(deserialize_with = "nullable")]
    pub conditions: Vec<PolicyCondition>,
}
