//! ReferenceGrants: who may refer to what in a namespace. Plain data, owns no rules.

use serde::Deserialize;

use super::{Metadata, nullable};

/// `gateway.networking.k8s.io` ReferenceGrant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ReferenceGrant {
    /// Its namespace is the one that is referred to.
    #[serde(default)]
    pub metadata: Metadata,
    /// The grant.
    #[serde(default, deserialize_with = "nullable")]
    pub spec: GrantSpec,
}

/// Any of those may refer to any of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct GrantSpec {
    /// Who.
    #[serde(default, deserialize_with = "nullable")]
    pub from: Vec<GrantFrom>,
    /// To what.
    #[serde(default, deserialize_with = "nullable")]
    pub to: Vec<GrantTo>,
}

/// Objects that refer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GrantFrom {
    /// Their API group.
    pub group: String,
    /// Their kind.
    pub kind: String,
    /// Their namespace.
    pub namespace: String,
}

/// Objects that are referred to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct GrantTo {
    /// Their API group; empty for the core group.
    #[serde(default, deserialize_with = "nullable")]
    pub group: String,
    /// Their kind.
    #[serde(default)]
    pub kind: String,
    /// One of them; all when unset.
    #[serde(default)]
    pub name: Option<String>,
}
