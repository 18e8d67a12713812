//! ServiceEntries and WorkloadEntries: services and workloads that Kubernetes does not know. Plain data, owns no rules.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::policies::PolicyStatus;
use super::{Labels, Metadata, lenient, nullable};

/// `networking.istio.io` ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ServiceEntry {
    /// Names and labels.
    #[serde(default)]
    pub metadata: Metadata,
    /// The services.
    #[serde(default, deserialize_with = "nullable")]
    pub spec: ServiceEntrySpec,
    /// What was said about it.
    #[serde(default, deserialize_with = "lenient")]
    pub status: PolicyStatus,
}

/// Services by name: one for each host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntrySpec {
    /// DNS names of the services; the first label may be `*`.
    #[serde(default, deserialize_with = "nullable")]
    pub hosts: Vec<String>,
    /// Virtual addresses, also CIDR blocks.
    #[serde(default, deserialize_with = "nullable")]
    pub addresses: Vec<String>,
    /// What clients dial.
    #[serde(default, deserialize_with = "nullable")]
    pub ports: Vec<EntryPort>,
    /// Whether it is outside the mesh.
    #[serde(default, deserialize_with = "nullable")]
    pub location: Location,
    /// How endpoints are found.
    #[serde(default, deserialize_with = "nullable")]
    pub resolution: Resolution,
    /// Who serves it.
    #[serde(default, deserialize_with = "nullable")]
    pub endpoints: Vec<WorkloadEntrySpec>,
    /// Which pods and WorkloadEntries of the namespace serve it, instead of `endpoints`.
    #[serde(default)]
    pub workload_selector: Option<EntrySelector>,
    /// The namespaces that see it: `.` is its own, `*` all of them.
    #[serde(default, deserialize_with = "nullable")]
    pub export_to: Vec<String>,
    /// Further identities that may answer for it.
    #[serde(default, deserialize_with = "nullable")]
    pub subject_alt_names: Vec<String>,
}

/// A port that clients dial.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EntryPort {
    /// What clients dial.
    pub number: u16,
    /// What is spoken, such as `HTTP`, `HTTPS`, `GRPC`, `TLS` or `TCP`.
    #[serde(default, deserialize_with = "nullable")]
    pub protocol: String,
    /// Its name; endpoints refer to it.
    pub name: String,
    /// Where endpoints listen; the same number when unset.
    #[serde(default)]
    pub target_port: Option<u16>,
}

/// Whether a service is outside the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    /// It is outside.
    #[default]
    MeshExternal,
    /// It is inside.
    MeshInternal,
}

/// How endpoints are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    /// By the DNS names of endpoints, or else of the hosts.
    Dns,
    /// Likewise, and one answer at a time.
    DnsRoundRobin,
    /// By the name that each request asks for.
    DynamicDns,
    /// Not at all: connections go where they were dialled to.
    #[default]
    None,
    /// They are listed.
    Static,
}

/// Which workloads serve a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub struct EntrySelector {
    /// All of these labels.
    #[serde(default, deserialize_with = "nullable")]
    pub labels: Labels,
}

/// `networking.istio.io` WorkloadEntry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct WorkloadEntry {
    /// Names and labels.
    #[serde(default)]
    pub metadata: Metadata,
    /// The workload.
    #[serde(default, deserialize_with = "nullable")]
    pub spec: WorkloadEntrySpec,
    /// What was said about it.
    #[serde(default, deserialize_with = "lenient")]
    pub status: PolicyStatus,
}

/// A workload that is no pod: a program on another machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadEntrySpec {
    /// Its address, or a DNS name.
    #[serde(default, deserialize_with = "nullable")]
    pub address: String,
    /// Where it listens, by the name of the service's port.
    #[serde(default, deserialize_with = "nullable")]
    pub ports: BTreeMap<String, u16>,
    /// What selectors look for.
    #[serde(default, deserialize_with = "nullable")]
    pub labels: Labels,
    /// The network that its address belongs to; the mesh's own when empty.
    #[serde(default, deserialize_with = "nullable")]
    pub network: String,
    /// Region, zone and subzone, with slashes.
    #[serde(default, deserialize_with = "nullable")]
    pub locality: String,
    /// Its share of connections, relative to others'; 1 when unset.
    #[serde(default, deserialize_with = "nullable")]
    pub weight: u32,
    /// The service account that it runs as.
    #[serde(default, deserialize_with = "nullable")]
    pub service_account: String,
}
