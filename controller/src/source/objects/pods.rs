//! Namespaces, nodes, service accounts and pods: who runs where. Plain data, owns no rules.

use serde::Deserialize;

use super::{Metadata, nullable};

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
