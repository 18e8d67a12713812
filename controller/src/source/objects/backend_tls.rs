//! BackendTLSPolicies, and the ConfigMaps with the certificates that they name. Plain data, owns no rules.
//!
//! The spec refuses unknown fields: a misspelt condition of whom to trust would trust others.

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use super::traffic::AncestorsStatus;
use super::{Metadata, lenient, nullable};

/// `gateway.networking.k8s.io` BackendTLSPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct BackendTLSPolicy {
    /// Names and age.
    #[serde(default)]
    pub metadata: Metadata,
    /// The policy.
    #[serde(default, deserialize_with = "nullable")]
    pub spec: BackendTlsSpec,
    /// What was said about it.
    #[serde(default, deserialize_with = "lenient")]
    pub status: AncestorsStatus,
}

/// The policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendTlsSpec {
    /// What it is attached to, in its own namespace.
    #[serde(default, deserialize_with = "nullable")]
    pub target_refs: Vec<BackendTlsTarget>,
    /// What servers have to prove.
    #[serde(default)]
    pub validation: Option<BackendTlsValidation>,
    /// Settings of other implementations; none of them is ours.
    #[serde(default, deserialize_with = "ignored")]
    pub options: (),
}

/// A Service, or a port of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendTlsTarget {
    /// Empty for a Service.
    #[serde(default, deserialize_with = "nullable")]
    pub group: String,
    /// `Service`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The name of one of its ports; all of them when unset.
    #[serde(default)]
    pub section_name: Option<String>,
}

/// What servers have to prove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendTlsValidation {
    /// Where the certificates are of who may certify them.
    #[serde(default, deserialize_with = "nullable")]
    pub ca_certificate_refs: Vec<CertificateRef>,
    /// In place of these, a set that everybody knows.
    #[serde(default, rename = "wellKnownCACertificates")]
    pub well_known_ca_certificates: Option<String>,
    /// The name that they are asked for, and prove.
    #[serde(default)]
    pub hostname: String,
    /// Where there are any, they prove one of these instead.
    #[serde(default, deserialize_with = "nullable")]
    pub subject_alt_names: Vec<SubjectAltName>,
}

/// An object with certificates, in the policy's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateRef {
    /// Empty for a ConfigMap.
    #[serde(default, deserialize_with = "nullable")]
    pub group: String,
    /// `ConfigMap`.
    #[serde(default)]
    pub kind: String,
    /// Its name.
    #[serde(default)]
    pub name: String,
}

/// A name in a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubjectAltName {
    /// `Hostname` or `URI`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Of a `Hostname`.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Of a `URI`.
    #[serde(default)]
    pub uri: Option<String>,
}

/// A ConfigMap, of which nothing is kept but a CA bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ConfigMap {
    /// Names.
    #[serde(default)]
    pub metadata: Metadata,
    /// What it holds.
    #[serde(default, deserialize_with = "nullable")]
    pub data: CaBundle,
}

/// What is kept of a ConfigMap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct CaBundle {
    /// PEM.
    #[serde(default, rename = "ca.crt")]
    pub ca_crt: Option<String>,
}

fn ignored<'de, D: Deserializer<'de>>(from: D) -> Result<(), D::Error> {
    Option::<IgnoredAny>::deserialize(from).map(drop)
}
