//! The Kubernetes objects that Airglow reads, trimmed to the fields that it uses.
//!
//! Plain data for serde, from a directory's YAML as from the API server's JSON. Unknown fields are tolerated, except in
//! the specs of policies: a misspelt condition there would widen access, so it is an error that names the field.
//! Owns no rules: what an object means is decided in `index`.

mod backend_tls;
mod entries;
mod filters;
mod gateways;
mod grants;
mod kinds;
mod pods;
mod policies;
pub(crate) mod read;
mod routes;
mod services;
mod traffic;

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

pub use backend_tls::{
    BackendTLSPolicy, BackendTlsSpec, BackendTlsTarget, BackendTlsValidation, CaBundle, CertificateRef,
    ConfigMap, SubjectAltName,
};
pub use entries::{
    EntryPort, EntrySelector, Location, Resolution, ServiceEntry, ServiceEntrySpec, WorkloadEntry,
    WorkloadEntrySpec,
};
pub use filters::{Cors, Filter, Fraction, Header, HeaderModifier, Mirror, PathModifier, Redirect, Rewrite};
pub use gateways::{
    AllowedRoutes, Expression, Feature, Gateway, GatewayClass, GatewayClassSpec, GatewayClassStatus,
    GatewaySpec, GatewayStatus, Infrastructure, LabelSelector, Listener, ListenerStatus, Reach,
    RouteNamespaces, StatusAddress,
};
pub use grants::{GrantFrom, GrantSpec, GrantTo, ReferenceGrant};
pub use kinds::{Event, Key, Kind, Object};
pub use pods::{
    Condition, Container, ContainerPort, Namespace, Node, Pod, PodIp, PodSpec, PodStatus, ServiceAccount,
};
pub use policies::{
    AuthorizationPolicy, AuthorizationPolicySpec, From, Generation, MutualTls, MutualTlsMode, Operation,
    PeerAuthentication, PeerAuthenticationSpec, PolicyAction, PolicyCondition, PolicyRule, PolicyStatus,
    PolicyTarget, Provider, Source, To, When, WorkloadSelector,
};
pub use routes::{
    BackendRef, ConnectionRule, GRPCRoute, GrpcMatch, GrpcRule, HTTPRoute, HttpMatch, HttpRule, MethodMatch,
    NamedMatch, ObjectRef, ParentRef, ParentStatus, Retry, RouteSpec, RouteStatus, SessionName,
    SessionPersistence, TCPRoute, TLSRoute, Timeouts, Unknown, ValueMatch,
};
pub use services::{
    Endpoint, EndpointConditions, EndpointPort, EndpointSlice, PortRef, Service, ServicePort, ServiceSpec,
    TargetRef,
};
pub use traffic::{
    Abort, Algorithm, AncestorStatus, AncestorsStatus, Balancing, Delay, Fault, FaultClient, FaultFraction,
    FaultHeader, FaultMatch, HashCookie, HashKey, HeaderMatchType, TrafficPolicy, TrafficPolicySpec,
    TrafficTarget,
};

/// String pairs, as labels, annotations and selectors are.
pub type Labels = BTreeMap<String, String>;

/// `null`, which manifests made by tools are full of, means the same as an absent field.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// What is said about an object must not make the object unintelligible, whatever else is found in its place.
fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(from: D) -> Result<T, D::Error> {
    let found = serde_json::Value::deserialize(from)?;
    Ok(serde_json::from_value(found).unwrap_or_default())
}

/// What every object carries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Unique within kind and namespace.
    #[serde(default)]
    pub name: String,
    /// Empty for objects of the cluster.
    #[serde(default, deserialize_with = "nullable")]
    pub namespace: String,
    /// Unique over time: a new object of the same name has another one.
    #[serde(default, deserialize_with = "nullable")]
    pub uid: String,
    /// Labels.
    #[serde(default, deserialize_with = "nullable")]
    pub labels: Labels,
    /// Annotations.
    #[serde(default, deserialize_with = "nullable")]
    pub annotations: Labels,
    /// RFC 3339 in UTC, so that text order is time order.
    #[serde(default)]
    pub creation_timestamp: Option<String>,
    /// Set while the object is being deleted.
    #[serde(default)]
    pub deletion_timestamp: Option<String>,
    /// Counts changes of the spec.
    #[serde(default)]
    pub generation: Option<i64>,
    /// What made the object.
    #[serde(default, deserialize_with = "nullable")]
    pub owner_references: Vec<OwnerReference>,
}

/// What made an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct OwnerReference {
    /// `ReplicaSet`, `Job`, ...
    #[serde(default)]
    pub kind: String,
    /// The owner's name, in the object's namespace.
    #[serde(default)]
    pub name: String,
    /// The one owner that manages the object.
    #[serde(default)]
    pub controller: Option<bool>,
}
