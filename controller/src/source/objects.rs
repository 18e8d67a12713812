//! The Kubernetes objects that Airglow reads, trimmed to the fields that it uses.
//!
//! Plain data for serde, from a directory's YAML as from the API server's JSON. Unknown fields are tolerated, except in
//! the specs of policies: a misspelt condition there would widen access, so it is an error that names the field.
//! Owns no rules: what an object means is decided in `index`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};

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

/// A namespace: labels and annotations are all that matters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Namespace {
    /// Names and labels.
    #[serde(default)]
    pub metadata: Metadata,
}

/// A node: its labels say where it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Node {
    /// Names and labels.
    #[serde(default)]
    pub metadata: Metadata,
}

/// A service account: that it exists is all that is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ServiceAccount {
    /// Names and labels.
    #[serde(default)]
    pub metadata: Metadata,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Pod {
    /// Names and labels.
    #[serde(default)]
    pub metadata: Metadata,
    /// What was asked for.
    #[serde(default)]
    pub spec: PodSpec,
    /// What is.
    #[serde(default, deserialize_with = "nullable")]
    pub status: PodStatus,
}

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    /// Empty until the pod is scheduled.
    #[serde(default, deserialize_with = "nullable")]
    pub node_name: String,
    /// Empty stands for `default`.
    #[serde(default, deserialize_with = "nullable")]
    pub service_account_name: String,
    /// The pod shares the node's network.
    #[serde(default, deserialize_with = "nullable")]
    pub host_network: bool,
    /// Containers.
    #[serde(default, deserialize_with = "nullable")]
    pub containers: Vec<Container>,
    /// Init containers; one that restarts always is a sidecar and its ports count.
    #[serde(default, deserialize_with = "nullable")]
    pub init_containers: Vec<Container>,
}

/// A container: its ports are all that matters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// Declared ports.
    #[serde(default, deserialize_with = "nullable")]
    pub ports: Vec<ContainerPort>,
    /// `Always` on an init container makes it a sidecar.
    #[serde(default)]
    pub restart_policy: Option<String>,
}

/// A declared port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerPort {
    /// What services may call it.
    #[serde(default, deserialize_with = "nullable")]
    pub name: String,
    /// Its number.
    pub container_port: u16,
    /// `TCP` when unset.
    #[serde(default)]
    pub protocol: Option<String>,
}

/// What is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    #[serde(default, deserialize_with = "nullable")]
    pub phase: String,
    /// The first address.
    #[serde(default, rename = "podIP", deserialize_with = "nullable")]
    pub pod_ip: String,
    /// All addresses.
    #[serde(default, rename = "podIPs", deserialize_with = "nullable")]
    pub pod_ips: Vec<PodIp>,
    /// `Ready` is the one that matters.
    #[serde(default, deserialize_with = "nullable")]
    pub conditions: Vec<Condition>,
}

/// One address of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct PodIp {
    /// The address.
    #[serde(default)]
    pub ip: String,
}

/// A condition of a status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Condition {
    /// What is judged.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    #[serde(default)]
    pub status: String,
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Service {
    /// Names and labels.
    #[serde(default)]
    pub metadata: Metadata,
    /// What was asked for.
    #[serde(default)]
    pub spec: ServiceSpec,
}

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// `ExternalName` or one that has endpoints.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// The first virtual address; `None` means headless.
    #[serde(default, rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    /// All virtual addresses.
    #[serde(default, rename = "clusterIPs", deserialize_with = "nullable")]
    pub cluster_ips: Vec<String>,
    /// `IPv4`, `IPv6`.
    #[serde(default, deserialize_with = "nullable")]
    pub ip_families: Vec<String>,
    /// Which pods back it; empty when endpoint slices alone say so.
    #[serde(default, deserialize_with = "nullable")]
    pub selector: Labels,
    /// Ports.
    #[serde(default, deserialize_with = "nullable")]
    pub ports: Vec<ServicePort>,
    /// `Local` keeps traffic on the node.
    #[serde(default)]
    pub internal_traffic_policy: Option<String>,
    /// `PreferClose`, `PreferSameZone`, `PreferSameNode`.
    #[serde(default)]
    pub traffic_distribution: Option<String>,
    /// Endpoints count before they are ready.
    #[serde(default, deserialize_with = "nullable")]
    pub publish_not_ready_addresses: bool,
}

/// A port that clients dial.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Its name; endpoint slices and ServiceEntries refer to it.
    #[serde(default, deserialize_with = "nullable")]
    pub name: String,
    /// What clients dial.
    pub port: u16,
    /// Where pods listen; the same number when unset.
    #[serde(default)]
    pub target_port: Option<PortRef>,
    /// `TCP` when unset.
    #[serde(default)]
    pub protocol: Option<String>,
    /// What is spoken, such as `http` or `kubernetes.io/h2c`.
    #[serde(default)]
    pub app_protocol: Option<String>,
}

/// A port by number, or by the name that a container gives it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum PortRef {
    /// The number.
    Number(u16),
    /// A container port's name.
    Name(String),
}

/// Addresses that back a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    /// Names and labels; `kubernetes.io/service-name` names the service.
    #[serde(default)]
    pub metadata: Metadata,
    /// `IPv4`, `IPv6` or `FQDN`.
    #[serde(default, deserialize_with = "nullable")]
    pub address_type: String,
    /// Who backs the service.
    #[serde(default, deserialize_with = "nullable")]
    pub endpoints: Vec<Endpoint>,
    /// Where they listen.
    #[serde(default, deserialize_with = "nullable")]
    pub ports: Vec<EndpointPort>,
}

/// Someone who backs a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Addresses.
    #[serde(default, deserialize_with = "nullable")]
    pub addresses: Vec<String>,
    /// Whether it is ready.
    #[serde(default, deserialize_with = "nullable")]
    pub conditions: EndpointConditions,
    /// The object behind the address.
    #[serde(default)]
    pub target_ref: Option<TargetRef>,
    /// The node it runs on.
    #[serde(default, deserialize_with = "nullable")]
    pub node_name: String,
}

/// Whether an endpoint is ready.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct EndpointConditions {
    /// Unset means ready.
    #[serde(default)]
    pub ready: Option<bool>,
}

/// The object behind an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct TargetRef {
    /// `Pod`, usually.
    #[serde(default)]
    pub kind: String,
    /// Its namespace.
    #[serde(default)]
    pub namespace: String,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its uid.
    #[serde(default)]
    pub uid: String,
}

/// Where endpoints listen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct EndpointPort {
    /// The service port's name.
    #[serde(default, deserialize_with = "nullable")]
    pub name: String,
    /// The number; unset means all ports.
    #[serde(default)]
    pub port: Option<u16>,
    /// `TCP` when unset.
    #[serde(default)]
    pub protocol: Option<String>,
}

/// `security.istio.io` AuthorizationPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct AuthorizationPolicy {
    /// Names, labels and the dry-run annotation.
    #[serde(default)]
    pub metadata: Metadata,
    /// The policy.
    #[serde(default, deserialize_with = "nullable")]
    pub spec: AuthorizationPolicySpec,
}

/// The policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// Which workloads; all of the namespace when unset.
    #[serde(default)]
    pub selector: Option<WorkloadSelector>,
    /// Attaches to a Gateway or Service: a waypoint's business.
    #[serde(default)]
    pub target_ref: Option<PolicyTarget>,
    /// Several of them.
    #[serde(default, deserialize_with = "nullable")]
    pub target_refs: Vec<PolicyTarget>,
    /// Any of these. None: matches nothing.
    #[serde(default, deserialize_with = "nullable")]
    pub rules: Vec<PolicyRule>,
    /// ALLOW when unset.
    #[serde(default, deserialize_with = "nullable")]
    pub action: PolicyAction,
    /// Who decides, for CUSTOM.
    #[serde(default)]
    pub provider: Option<Provider>,
}

/// Which workloads a policy guards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSelector {
    /// All of these labels.
    #[serde(default, deserialize_with = "nullable")]
    pub match_labels: Labels,
}

/// What a policy attaches to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct PolicyTarget {
    /// API group; empty for core.
    #[serde(default, deserialize_with = "nullable")]
    pub group: String,
    /// `Gateway`, `Service`, ...
    #[serde(default)]
    pub kind: String,
    /// Its name.
    #[serde(default)]
    pub name: String,
}

/// Who decides, for CUSTOM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Provider {
    /// An extension provider of the mesh configuration.
    #[serde(default)]
    pub name: String,
}

/// What a match means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PolicyAction {
    /// One ALLOW policy must match.
    #[default]
    Allow,
    /// Only recorded.
    Audit,
    /// Someone else decides.
    Custom,
    /// Refuse.
    Deny,
}

/// Matches when a source, an operation and all conditions do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRule {
    /// Any of these sources.
    #[serde(default, deserialize_with = "nullable")]
    pub from: Vec<From>,
    /// Any of these operations.
    #[serde(default, deserialize_with = "nullable")]
    pub to: Vec<To>,
    /// All of these conditions.
    #[serde(default, deserialize_with = "nullable")]
    pub when: Vec<When>,
}

/// One source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct From {
    /// Who.
    #[serde(default, deserialize_with = "nullable")]
    pub source: Source,
}

/// Who connects. All kinds that are given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "the fields are those of istio.io's Source, whose reference says what each one means"
)]
pub struct Source {
    #[serde(default, deserialize_with = "nullable")]
    pub principals: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub not_principals: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub request_principals: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub not_request_principals: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub namespaces: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub not_namespaces: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub ip_blocks: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub not_ip_blocks: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub remote_ip_blocks: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub not_remote_ip_blocks: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub service_accounts: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub not_service_accounts: Vec<String>,
}

/// One operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct To {
    /// What.
    #[serde(default, deserialize_with = "nullable")]
    pub operation: Operation,
}

/// What is asked for. All kinds that are given must hold; only ports are known without reading the stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "the fields are those of istio.io's Operation, whose reference says what each one means"
)]
pub struct Operation {
    #[serde(default, deserialize_with = "nullable")]
    pub hosts: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub not_hosts: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub ports: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub not_ports: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub methods: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub not_methods: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub paths: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub not_paths: Vec<String>,
}

/// A condition on an attribute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct When {
    /// The attribute, such as `source.ip`.
    pub key: String,
    /// Any of these.
    #[serde(default, deserialize_with = "nullable")]
    pub values: Vec<String>,
    /// None of these.
    #[serde(default, deserialize_with = "nullable")]
    pub not_values: Vec<String>,
}

/// `security.istio.io` PeerAuthentication.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct PeerAuthentication {
    /// Names and labels.
    #[serde(default)]
    pub metadata: Metadata,
    /// The policy.
    #[serde(default, deserialize_with = "nullable")]
    pub spec: PeerAuthenticationSpec,
}

/// The policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerAuthenticationSpec {
    /// Which workloads; all of the namespace when unset.
    #[serde(default)]
    pub selector: Option<WorkloadSelector>,
    /// Whether plaintext is refused.
    #[serde(default, deserialize_with = "nullable")]
    pub mtls: MutualTls,
    /// The same for single ports of the application.
    #[serde(default, deserialize_with = "nullable")]
    pub port_level_mtls: BTreeMap<u16, MutualTls>,
}

/// Whether plaintext is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MutualTls {
    /// The mode.
    #[serde(default, deserialize_with = "nullable")]
    pub mode: MutualTlsMode,
}

/// Whether plaintext is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MutualTlsMode {
    /// Taken as `PERMISSIVE`: the tunnel does not ask the application.
    Disable,
    /// Plaintext is accepted.
    Permissive,
    /// Plaintext is refused.
    Strict,
    /// As the level above says.
    #[default]
    Unset,
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
}

impl Kind {
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
