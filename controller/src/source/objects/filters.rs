//! Filters of routes: what is done with requests and responses on their way. Plain data, owns no rules.

use serde::Deserialize;

use super::nullable;
use super::routes::{ObjectRef, Unknown};

/// One filter. `kind` says which of the parts counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Filter {
    /// The part's name, in upper camel case.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// Changes the request's headers.
    #[serde(default)]
    pub request_header_modifier: Option<HeaderModifier>,
    /// Changes the response's headers.
    #[serde(default)]
    pub response_header_modifier: Option<HeaderModifier>,
    /// Sends a copy somewhere else.
    #[serde(default)]
    pub request_mirror: Option<Mirror>,
    /// Answers that the client should ask somewhere else.
    #[serde(default)]
    pub request_redirect: Option<Redirect>,
    /// Changes host and path.
    #[serde(default)]
    pub url_rewrite: Option<Rewrite>,
    /// Says which origins may read the response.
    #[serde(default)]
    pub cors: Option<Cors>,
}

/// Changes of headers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct HeaderModifier {
    /// Replaced, or added when absent.
    #[serde(default, deserialize_with = "nullable")]
    pub set: Vec<Header>,
    /// Added to what is there.
    #[serde(default, deserialize_with = "nullable")]
    pub add: Vec<Header>,
    /// Taken out.
    #[serde(default, deserialize_with = "nullable")]
    pub remove: Vec<String>,
    /// Changes that are not known.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Header {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its value.
    #[serde(default)]
    pub value: String,
}

/// Sends a copy of requests somewhere else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mirror {
    /// Where.
    #[serde(default, deserialize_with = "nullable")]
    pub backend_ref: ObjectRef,
    /// Of how many in a hundred; of all of them when neither is set.
    #[serde(default)]
    pub percent: Option<u32>,
    /// Of how many in how many.
    #[serde(default)]
    pub fraction: Option<Fraction>,
}

/// Some of how many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Fraction {
    /// Some.
    #[serde(default)]
    pub numerator: u32,
    /// Of how many; 100 when unset.
    #[serde(default)]
    pub denominator: Option<u32>,
}

/// Answers that the client should ask somewhere else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Redirect {
    /// `http` or `https`; as it was asked when unset.
    #[serde(default)]
    pub scheme: Option<String>,
    /// The host; as it was asked when unset.
    #[serde(default)]
    pub hostname: Option<String>,
    /// The path; as it was asked when unset.
    #[serde(default)]
    pub path: Option<PathModifier>,
    /// The port; the scheme's when unset.
    #[serde(default)]
    pub port: Option<u16>,
    /// 302 when unset.
    #[serde(default)]
    pub status_code: Option<u16>,
    /// Parts that are not known.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Changes host and path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Rewrite {
    /// The host; as it was when unset.
    #[serde(default)]
    pub hostname: Option<String>,
    /// The path; as it was when unset.
    #[serde(default)]
    pub path: Option<PathModifier>,
    /// Parts that are not known.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Changes a path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathModifier {
    /// `ReplaceFullPath` or `ReplacePrefixMatch`.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// The path.
    #[serde(default)]
    pub replace_full_path: Option<String>,
    /// What takes the place of the prefix that was matched.
    #[serde(default)]
    pub replace_prefix_match: Option<String>,
}

/// Which origins may read the response.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cors {
    /// Origins, or `*`.
    #[serde(default, deserialize_with = "nullable")]
    pub allow_origins: Vec<String>,
    /// Whether requests may carry credentials.
    #[serde(default, deserialize_with = "nullable")]
    pub allow_credentials: bool,
    /// Methods, or `*`.
    #[serde(default, deserialize_with = "nullable")]
    pub allow_methods: Vec<String>,
    /// Headers of requests, or `*`.
    #[serde(default, deserialize_with = "nullable")]
    pub allow_headers: Vec<String>,
    /// Headers of responses, or `*`.
    #[serde(default, deserialize_with = "nullable")]
    pub expose_headers: Vec<String>,
    /// Seconds that the answer may be remembered for; 5 when unset.
    #[serde(default)]
    pub max_age: Option<u32>,
}
