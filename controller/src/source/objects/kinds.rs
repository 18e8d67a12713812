//! The kinds that are read, one line each: versions, plural, scope, and whether somebody has to define the kind first.
//!
//! What differs from kind to kind is here or in its own type, and nowhere else in `source`.

use std::fmt;
use std::sync::Arc;

use super::read::Form;
use super::{
    AuthorizationPolicy, BackendTLSPolicy, ConfigMap, EndpointSlice, GRPCRoute, Gateway, GatewayClass,
    HTTPRoute, Metadata, Namespace, Node, PeerAuthentication, Pod, ReferenceGrant, Service, ServiceAccount,
    ServiceEntry, TCPRoute, TLSRoute, TrafficPolicy, WorkloadEntry,
};

/// Versions are listed newest first, and differ in nothing that is read.
macro_rules! kinds {
    ($($kind:ident $plural:literal $scope:ident $origin:ident [$($version:literal),+];)*) => {
        /// Which kind an object is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[expect(missing_docs, reason = "each variant is the Kubernetes kind of that name")]
        pub enum Kind {
            $($kind,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: [Self; [$(Self::$kind),*].len()] = [$(Self::$kind),*];

            /// The API groups and versions that it may be read in, newest first: `v1` for the core group.
            #[must_use]
            pub fn versions(self) -> &'static [&'static str] {
                match self { $(Self::$kind => &[$($version),+],)* }
            }

            /// Its name in the API server's paths.
            #[must_use]
            pub fn plural(self) -> &'static str {
                match self { $(Self::$kind => $plural,)* }
            }

            fn scope(self) -> Scope {
                match self { $(Self::$kind => Scope::$scope,)* }
            }

            fn origin(self) -> Origin {
                match self { $(Self::$kind => Origin::$origin,)* }
            }
        }

        /// Any object that is read. Cheap to clone.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each variant is the Kubernetes kind of that name")]
        pub enum Object {
            $($kind(Arc<$kind>),)*
        }

        impl Object {
            /// Its kind.
            #[must_use]
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)* }
            }

            /// What every object carries.
            #[must_use]
            pub fn metadata(&self) -> &Metadata {
                match self { $(Self::$kind(object) => &object.metadata,)* }
            }

            /// The same, to be changed: copies the object if someone else holds it.
            pub(crate) fn metadata_mut(&mut self) -> &mut Metadata {
                match self { $(Self::$kind(object) => &mut Arc::make_mut(object).metadata,)* }
            }

            /// Reads the fields of an object whose kind is known already, and nothing more.
            pub(super) fn of<F: Form>(kind: Kind, form: F) -> Result<Self, F::Error> {
                Ok(match kind { $(Kind::$kind => Self::$kind(Arc::new(form.read()?)),)* })
            }
        }
    };
}

kinds! {
    AuthorizationPolicy "authorizationpolicies" Namespaced Defined ["security.istio.io/v1", "security.istio.io/v1beta1"];
    BackendTLSPolicy "backendtlspolicies" Namespaced Defined
        ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha3"];
    ConfigMap "configmaps" Namespaced BuiltIn ["v1"];
    EndpointSlice "endpointslices" Namespaced BuiltIn ["discovery.k8s.io/v1"];
    Gateway "gateways" Namespaced Defined ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"];
    GatewayClass "gatewayclasses" OfCluster Defined
        ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"];
    GRPCRoute "grpcroutes" Namespaced Defined ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha2"];
    HTTPRoute "httproutes" Namespaced Defined ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"];
    Namespace "namespaces" OfCluster BuiltIn ["v1"];
    Node "nodes" OfCluster BuiltIn ["v1"];
    PeerAuthentication "peerauthentications" Namespaced Defined ["security.istio.io/v1", "security.istio.io/v1beta1"];
    Pod "pods" Namespaced BuiltIn ["v1"];
    ReferenceGrant "referencegrants" Namespaced Defined
        ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"];
    Service "services" Namespaced BuiltIn ["v1"];
    ServiceAccount "serviceaccounts" Namespaced BuiltIn ["v1"];
    ServiceEntry "serviceentries" Namespaced Defined
        ["networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"];
    TCPRoute "tcproutes" Namespaced Defined ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha2"];
    TLSRoute "tlsroutes" Namespaced Defined
        ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha3", "gateway.networking.k8s.io/v1alpha2"];
    TrafficPolicy "trafficpolicies" Namespaced Defined ["airglow.dev/v1alpha1"];
    WorkloadEntry "workloadentries" Namespaced Defined
        ["networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"];
}

/// Where objects of a kind live.
#[derive(PartialEq, Eq)]
enum Scope {
    Namespaced,
    OfCluster,
}

/// Whether a kind is part of Kubernetes.
#[derive(PartialEq, Eq)]
enum Origin {
    BuiltIn,
    Defined,
}

impl Kind {
    /// The API group and version that it is written in.
    #[must_use]
    pub fn api_version(self) -> &'static str {
        self.versions()[0]
    }

    /// Whether objects of the kind live in a namespace.
    #[must_use]
    pub fn is_namespaced(self) -> bool {
        self.scope() == Scope::Namespaced
    }

    /// Whether a cluster may lack the kind: it is defined by an object that someone has to install.
    #[must_use]
    pub fn is_optional(self) -> bool {
        self.origin() == Origin::Defined
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

impl Object {
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
