//! Services and endpoint slices: what is dialled, and who answers. Plain data, owns no rules.

use serde::Deserialize;

use super::policies::PolicyStatus;
use super::{Labels, Metadata, lenient, nullable};

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Service {
    /// Names and labels.
    #[serde(default)]
    pub metadata: Metadata,
    /// What was asked for.
    #[serde(default)]
    pub spec: ServiceSpec,
    /// What was said about it.
    #[serde(default, deserialize_with = "lenient")]
    pub status: PolicyStatus,
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
    /// `ClientIP` keeps a client with one endpoint.
    #[serde(default)]
    pub session_affinity: Option<String>,
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
