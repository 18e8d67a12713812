//! Cross-origin requests (WHATWG Fetch, section 3.2): which origins may ask for what.

use std::time::Duration;

use crate::Str;
use crate::l7::text::HeaderName;

/// What other origins may do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cors {
    /// Which origins.
    pub origins: List<Origin>,
    /// Whether their requests may carry credentials.
    pub credentials: bool,
    /// With which methods, besides GET, HEAD and POST; case-sensitive.
    pub methods: List<Str>,
    /// With which header fields, besides those that are always allowed.
    pub headers: List<HeaderName>,
    /// Which header fields of the response scripts may read.
    pub expose: List<HeaderName>,
    /// How long a browser may remember the answer.
    pub max_age: Duration,
}

/// Some, or all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum List<T> {
    /// `*`.
    All,
    /// These.
    Only(Vec<T>),
}

/// Origins that a list names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// In lower case, without `://`.
    pub scheme: Str,
    /// In lower case; a bracketed IPv6 address keeps its brackets.
    pub host: OriginHost,
    /// The scheme's default is written out; `None` for a scheme that has none.
    pub port: Option<u16>,
}

/// The host of an origin.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OriginHost {
    /// Any (`https://*`).
    Any,
    /// One or more labels and then this (`https://*.example.com` is written without its `*.`).
    Below(Str),
    /// Equal.
    Exact(Str),
}
