//! What the two session cores say to each other. Owns no encoding (`wire`).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::resource::Resource;

/// The name that stands for all resources of a type.
pub const WILDCARD: &str = "*";

/// From client to server, about one type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Which type.
    pub type_url: String,
    /// Names that the client wants from now on.
    pub subscribe: Vec<String>,
    /// Names that it no longer wants.
    pub unsubscribe: Vec<String>,
    /// What it holds, with versions. Only in the first request of a type on a connection. An empty version stands for
    /// "asked for and not answered", or "may hold something of that name".
    pub held: BTreeMap<String, String>,
    /// Which response this answers; empty for none.
    pub nonce: String,
    /// What was wrong with that response: `name: reason`, joined by `; `.
    pub error: Option<String>,
}

/// From server to client, about one type.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Response {
    /// Which type.
    pub type_url: String,
    /// To be named by the answer.
    pub nonce: String,
    /// New and changed resources.
    pub resources: Vec<Arc<Resource>>,
    /// Names of resources that are gone, or that were asked for and do not exist.
    pub removed: Vec<String>,
    /// The change goes on in the next response of this type.
    pub more: bool,
}

/// A resource that can't be used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The resource's name.
    pub name: String,
    /// For the person who can mend it.
    pub reason: String,
}

/// Between the rejections of one response.
const SEPARATOR: &str = "; ";

/// The longest reason that is sent, in bytes: thousands of resources may be wrong in the same way.
const MAX_REASON_BYTES: usize = 512;

/// The text of a refusal, for [`Request::error`].
pub(crate) fn refusal(rejections: &[Rejection]) -> Option<String> {
    let line = |Rejection { name, reason }: &Rejection| {
        let end = (0..=MAX_REASON_BYTES.min(reason.len())).rev().find(|&end| reason.is_char_boundary(end));
        format!("{name}: {}", &reason[..end.unwrap_or(0)])
    };
    let lines: Vec<String> = rejections.iter().map(line).collect();
    (!lines.is_empty()).then(|| lines.join(SEPARATOR))
}

/// What a refusal says of each resource that is one, by `is_known`. A piece that names none goes on with what was said before.
pub(crate) fn reasons(error: &str, is_known: impl Fn(&str) -> bool) -> BTreeMap<String, String> {
    let mut found: Vec<(String, String)> = Vec::new();
    for piece in error.split(SEPARATOR) {
        match (piece.split_once(": ").filter(|(name, _)| is_known(name)), found.last_mut()) {
            (Some((name, reason)), _) => found.push((name.to_owned(), reason.to_owned())),
            (None, Some((_, reason))) => *reason = format!("{reason}{SEPARATOR}{piece}"),
            (None, None) => {}
        }
    }
    found.into_iter().collect()
}
