//! Policies: who may connect, and whether in plaintext. Plain data, owns no rules. Their specs refuse unknown fields.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Labels, Metadata, lenient, nullable};

/// `security.istio.io` AuthorizationPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct AuthorizationPolicy {
    /// Names, labels and the dry-run annotation.
    #[serde(default)]
    pub metadata: Metadata,
    /// The policy.
    #[serde(default, deserialize_with = "nullable")]
    pub spec: AuthorizationPolicySpec,
    /// What was said about it.
    #[serde(default, deserialize_with = "lenient")]
    pub status: PolicyStatus,
}

/// The policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
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

/// What was said about a policy, by whoever writes its status. Nothing that is enforced depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct PolicyStatus {
    /// One per type.
    #[serde(default, deserialize_with = "nullable")]
    pub conditions: Vec<PolicyCondition>,
}

/// One thing that was said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyCondition {
    /// What is judged.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Why, in a word.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// Which change of the spec was judged.
    pub observed_generation: Option<Generation>,
    /// Since when it has been so.
    pub last_transition_time: Option<String>,
}

/// A count of changes; protobuf writes large numbers as text.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Generation {
    /// As Kubernetes writes it.
    Number(i64),
    /// As protobuf does.
    Text(String),
}

impl Generation {
    /// The number.
    #[must_use]
    pub fn number(&self) -> Option<i64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(text) => text.parse().ok(),
        }
    }
}

/// Which workloads a policy guards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSelector {
    /// All of these labels.
    #[serde(default, deserialize_with = "nullable")]
    pub match_labels: Labels,
}

/// What a policy attaches to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
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
    /// Always the policy's own; here so that another one can be refused rather than overlooked.
    #[serde(default)]
    pub namespace: Option<String>,
}

/// Who decides, for CUSTOM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub struct Provider {
    /// An extension provider of the mesh configuration.
    #[serde(default)]
    pub name: String,
}

/// What a match means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct From {
    /// Who.
    #[serde(default, deserialize_with = "nullable")]
    pub source: Source,
}

/// Who connects. All kinds that are given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct To {
    /// What.
    #[serde(default, deserialize_with = "nullable")]
    pub operation: Operation,
}

/// What is asked for. All kinds that are given must hold; only ports are known without reading the stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
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
    /// What was said about it.
    #[serde(default, deserialize_with = "lenient")]
    pub status: PolicyStatus,
}

/// The policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MutualTls {
    /// The mode.
    #[serde(default, deserialize_with = "nullable")]
    pub mode: MutualTlsMode,
}

/// Whether plaintext is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
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
