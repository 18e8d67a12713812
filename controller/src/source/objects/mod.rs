//! The Kubernetes objects that Airglow reads, trimmed to the fields that it uses.
//!
//! Plain data for serde, from a directory's YAML as from the API server's JSON. Unknown fields are tolerated, except in
//! the specs of policies: a misspelt condition there would widen access, so it is an error that names the field.
//! Owns no rules: what an object means is decided in `index`.

mod entries;
mod pods;
mod policies;
pub(crate) mod read;
mod services;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};

pub use entries::{
    EntryPort, EntrySelector, Location, Resolution, ServiceEntry, ServiceEntrySpec, WorkloadEntry,
    WorkloadEntrySpec,
};
pub use pods::{
    Condition, Container, ContainerPort, Namespace, Node, Pod, PodIp, PodSpec, PodStatus, ServiceAccount,
};
pub use policies::{
    AuthorizationPolicy, AuthorizationPolicySpec, From, Generation, MutualTls, MutualTlsMode, Operation,
    PeerAuthentication, PeerAuthenticationSpec, PolicyAction, PolicyCondition, PolicyRule, PolicyStatus,
    PolicyTarget, Provider, Source, To, When, WorkloadSelector,
};
pub use services::{
    Endpoint, EndpointConditions, EndpointPort, EndpointSlice, PortRef, Service, ServicePort, ServiceSpec,
    TargetRef,
};

/// String pairs, as labels, annotations and selectors are.
pub type Labels = BTreeMap<String, String>;

/// `null`, which manifests made by tools are full of, means the same as an absent field.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
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

/// Which kind an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each variant is the Kubernetes kind of that name")]
pub enum Kind {
    AuthorizationPolicy,
    EndpointSlice,
    Namespace,
    Node,
    PeerAuthentication,
    Pod,
    Service,
    ServiceAccount,
    ServiceEntry,
    WorkloadEntry,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::AuthorizationPolicy,
        Self::EndpointSlice,
        Self::Namespace,
        Self::Node,
        Self::PeerAuthentication,
        Self::Pod,
        Self::Service,
        Self::ServiceAccount,
        Self::ServiceEntry,
        Self::WorkloadEntry,
    ];

    /// The API group and version that it is read in: `v1` for the core group.
    #[must_use]
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node | Self::Pod | Self::Service | Self::ServiceAccount => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::AuthorizationPolicy | Self::PeerAuthentication => "security.istio.io/v1",
            Self::ServiceEntry | Self::WorkloadEntry => "networking.istio.io/v1",
        }
    }

    /// Older versions of the group, with the same fields, that manifests may name.
    #[must_use]
    pub fn older_versions(self) -> &'static [&'static str] {
        match self {
            Self::AuthorizationPolicy | Self::PeerAuthentication => &["security.istio.io/v1beta1"],
            Self::ServiceEntry | Self::WorkloadEntry => {
                &["networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"]
            }
            Self::EndpointSlice
            | Self::Namespace
            | Self::Node
            | Self::Pod
            | Self::Service
            | Self::ServiceAccount => &[],
        }
    }

    /// Its name in the API server's paths.
    #[must_use]
    pub fn plural(self) -> &'static str {
        match self {
            Self::AuthorizationPolicy => "authorizationpolicies",
            Self::EndpointSlice => "endpointslices",
            Self::Namespace => "namespaces",
            Self::Node => "nodes",
            Self::PeerAuthentication => "peerauthentications",
            Self::Pod => "pods",
            Self::Service => "services",
            Self::ServiceAccount => "serviceaccounts",
            Self::ServiceEntry => "serviceentries",
            Self::WorkloadEntry => "workloadentries",
        }
    }

    /// Whether objects of the kind live in a namespace.
    #[must_use]
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Which object: kind, namespace (empty for objects of the cluster) and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// Any object that is read. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the Kubernetes kind of that name")]
pub enum Object {
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
    EndpointSlice(Arc<EndpointSlice>),
    Namespace(Arc<Namespace>),
    Node(Arc<Node>),
    PeerAuthentication(Arc<PeerAuthentication>),
    Pod(Arc<Pod>),
    Service(Arc<Service>),
    ServiceAccount(Arc<ServiceAccount>),
    ServiceEntry(Arc<ServiceEntry>),
    WorkloadEntry(Arc<WorkloadEntry>),
}

impl Object {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Namespace(_) => Kind::Namespace,
            Self::Node(_) => Kind::Node,
            Self::PeerAuthentication(_) => Kind::PeerAuthentication,
            Self::Pod(_) => Kind::Pod,
            Self::Service(_) => Kind::Service,
            Self::ServiceAccount(_) => Kind::ServiceAccount,
            Self::ServiceEntry(_) => Kind::ServiceEntry,
            Self::WorkloadEntry(_) => Kind::WorkloadEntry,
        }
    }

    /// What every object carries.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        match self {
            Self::AuthorizationPolicy(object) => &object.metadata,
            Self::EndpointSlice(object) => &object.metadata,
            Self::Namespace(object) => &object.metadata,
            Self::Node(object) => &object.metadata,
            Self::PeerAuthentication(object) => &object.metadata,
            Self::Pod(object) => &object.metadata,
            Self::Service(object) => &object.metadata,
            Self::ServiceAccount(object) => &object.metadata,
            Self::ServiceEntry(object) => &object.metadata,
            Self::WorkloadEntry(object) => &object.metadata,
        }
    }

    /// The same, to be changed: copies the object if someone else holds it.
    pub(crate) fn metadata_mut(&mut self) -> &mut Metadata {
        match self {
            Self::AuthorizationPolicy(object) => &mut Arc::make_mut(object).metadata,
            Self::EndpointSlice(object) => &mut Arc::make_mut(object).metadata,
            Self::Namespace(object) => &mut Arc::make_mut(object).metadata,
            Self::Node(object) => &mut Arc::make_mut(object).metadata,
            Self::PeerAuthentication(object) => &mut Arc::make_mut(object).metadata,
            Self::Pod(object) => &mut Arc::make_mut(object).metadata,
            Self::Service(object) => &mut Arc::make_mut(object).metadata,
            Self::ServiceAccount(object) => &mut Arc::make_mut(object).metadata,
            Self::ServiceEntry(object) => &mut Arc::make_mut(object).metadata,
            Self::WorkloadEntry(object) => &mut Arc::make_mut(object).metadata,
        }
    }

    /// Which object it is.
    #[must_use]
    pub fn key(&self) -> Key {
        let Metadata { name, namespace, .. } = self.metadata();
        Key { kind: self.kind(), namespace: namespace.clone(), name: name.clone() }
    }
}

/// What a source says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The object is gone.
    Delete(Key),
    /// The object is new or different.
    Upsert(Object),
}
