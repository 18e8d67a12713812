//! What decisions change in a head. Framing, and what concerns one connection only, is not theirs to change.

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Changes of fields, in the order in which they were asked for.
#[derive(Debug, Clone, Default)]
pub struct FieldEdits {
    /// Fields of the original that are not kept.
    dropped: Vec<HeaderName>,
    /// Nor are those whose names begin so, in lower case.
    dropped_prefix: Option<&'static str>,
    added: Vec<(HeaderName, HeaderValue)>,
}

impl FieldEdits {
    /// Adds a value to those that are there.
    pub fn add(&mut self, name: HeaderName, value: HeaderValue) {
        if is_ours_to_change(&name) {
            self.added.push((name, value));
        }
    }

    /// Takes every value away.
    pub fn remove(&mut self, name: HeaderName) {
        if is_ours_to_change(&name) {
            self.added.retain(|(added, _)| *added != name);
            if !self.dropped.contains(&name) {
                self.dropped.push(name);
            }
        }
    }

    /// Takes away what the original has of every field whose name begins so (in lower case).
    pub fn remove_all(&mut self, prefix: &'static str) {
        self.dropped_prefix = Some(prefix);
    }

    /// Makes this the only value.
    pub fn set(&mut self, name: HeaderName, value: HeaderValue) {
        self.remove(name.clone());
        self.add(name, value);
    }

    /// Whether a field of the original is not kept.
    pub(crate) fn drops(&self, name: &[u8]) -> bool {
        let begins = |prefix: &str| {
            name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
        };
        self.dropped.iter().any(|dropped| dropped.as_str().as_bytes().eq_ignore_ascii_case(name))
            || self.dropped_prefix.is_some_and(begins)
    }

    /// Makes the changes.
    pub(crate) fn apply(&self, fields: &mut HeaderMap) {
        for name in &self.dropped {
            fields.remove(name);
        }
        if let Some(prefix) = self.dropped_prefix {
            let begins = |name: &&HeaderName| name.as_str().starts_with(prefix);
            let found: Vec<_> = fields.keys().filter(begins).cloned().collect();
            found.iter().for_each(|name| {
                fields.remove(name);
            });
        }
        for (name, value) in &self.added {
            fields.append(name.clone(), value.clone());
        }
    }

    /// The names of the fields that are not kept; a prefix stands for those that begin so.
    pub(crate) fn dropped(&self) -> impl Iterator<Item = &str> {
        self.dropped.iter().map(HeaderName::as_str).chain(self.dropped_prefix)
    }

    pub(crate) fn drops_any(&self) -> bool {
        !self.dropped.is_empty() || self.dropped_prefix.is_some()
    }

    pub(crate) fn added(&self) -> &[(HeaderName, HeaderValue)] {
        &self.added
    }
}

/// What frames a message is written by the forwarder alone; a request's Host is [`RequestEdits::authority`].
fn is_ours_to_change(name: &HeaderName) -> bool {
    const FORWARDERS: [HeaderName; 7] = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::EXPECT,
        header::HOST,
        header::TE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    !FORWARDERS.contains(name)
}

/// Changes of a request's head.
#[derive(Debug, Clone, Default)]
pub struct RequestEdits {
    /// Instead of the target's path and query.
    pub target: Option<PathAndQuery>,
    /// Instead of the host that the request is for.
    pub authority: Option<Authority>,
    /// Of the fields.
    pub fields: FieldEdits,
}
