//! Which requests a rule matches. Owns the conditions and their comparison; the order in which rules are asked is
//! the compiled routes' affair.

use std::fmt;
use std::hash::{Hash, Hasher};

use regex::bytes::{Regex, RegexBuilder};

use crate::Str;
use crate::l7::request::Headers;
use crate::l7::text::{HeaderName, Host, InvalidText, PathText};

/// The compiled size of one pattern, in bytes. A tenth of what the regex crate allows: patterns for paths and headers take
/// a few KB, and there may be thousands of them.
pub const MAX_PATTERN_SIZE: usize = 1 << 20;

/// Conditions on one request. All that are given must hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Match {
    /// The path.
    pub path: PathMatch,
    /// Header fields, each another one: of several conditions on a name the API counts the first.
    pub headers: Vec<HeaderMatch>,
    /// Parameters of the query, each another one.
    pub query: Vec<QueryMatch>,
    /// The method, exactly.
    pub method: Option<Str>,
    /// The name that a TLS client asks for (TLSRoute).
    pub sni: Option<SniMatch>,
    /// Its wire form held a condition that this version does not understand. The rule is refused, and this match stands
    /// before all others of its path, since nobody knows how particular the condition is.
    pub unintelligible: bool,
}

impl Default for Match {
    /// Every request: what a rule that names no match means.
    fn default() -> Self {
        Self {
            path: PathMatch::Prefix(PathText::root()),
            headers: Vec::new(),
            query: Vec::new(),
            method: None,
            sni: None,
            unintelligible: false,
        }
    }
}

/// A condition on the path. In order of precedence; a path is compared as it was sent, without decoding.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathMatch {
    /// The wire form held a kind of condition that this version does not know: it may be meant for any path.
    Unintelligible,
    /// Equal.
    Exact(PathText),
    /// The path of a gRPC call, `/service/method`. `None` is any.
    Grpc {
        /// The service, with its package.
        service: Option<TextMatch>,
        /// The method.
        method: Option<TextMatch>,
    },
    /// The whole path matches. The API leaves its place open: ours is after exact paths and before prefixes, the longest
    /// pattern first, so that a pattern is not hidden by the `/` of another rule.
    Regex(Pattern),
    /// The path's first segments; slashes at the end of the prefix do not count.
    Prefix(PathText),
}

/// A condition on a text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TextMatch {
    /// Equal.
    Exact(Str),
    /// The whole text matches.
    Regex(Pattern),
}

/// A condition on a header field. Several values of one name are compared joined by commas.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderMatch {
    /// Which field; it has to be there.
    pub name: HeaderName,
    /// Its value.
    pub value: TextMatch,
}

/// A condition on a parameter of the query. Of several of one name, the first counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct QueryMatch {
    /// Which parameter, exactly; it has to be there.
    pub name: Str,
    /// Its value, decoded as HTML forms are (`+` and `%20` are a space).
    pub value: TextMatch,
}

/// A condition on the name that a TLS client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SniMatch {
    /// Equal.
    Exact(Host),
    /// One or more labels and then this (`*.example.com` is written without its `*.`).
    Below(Host),
}

/// A regular expression that has to match the whole text. Classes such as `\d` and `\w` are ASCII's, as RE2 has them, and
/// it never backtracks.
#[derive(Clone)]
pub struct Pattern {
    source: Str,
    whole: Regex,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// When it is not a pattern of the regex crate, would take more than [`MAX_PATTERN_SIZE`] or needs Unicode's tables.
    pub fn new(source: &str) -> Result<Self, InvalidText> {
        let build = |pattern: &str| {
            RegexBuilder::new(pattern)
                .unicode(false)
                .dot_matches_new_line(true)
                .size_limit(MAX_PATTERN_SIZE)
                .build()
                .map_err(|why| InvalidText::Pattern { pattern: source.to_owned(), why: why.to_string() })
        };
        // Alone first: a pattern such as `a)|(b` is none, and would become one inside the group.
        build(source)?;
        Ok(Self { source: source.into(), whole: build(&whole(source))? })
    }

    /// What was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// Whether all of `text` matches.
    #[must_use]
    pub fn matches(&self, text: &[u8]) -> bool {
        self.whole.is_match(text)
    }
}

impl TextMatch {
    /// Whether `text` is what it asks for.
    #[must_use]
    pub fn matches(&self, text: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_bytes() == text,
            Self::Regex(pattern) => pattern.matches(text),
        }
    }
}

impl HeaderMatch {
    /// Whether the field is there, with a value that is asked for.
    #[must_use]
    pub fn holds(&self, headers: &dyn Headers) -> bool {
        headers.joined(self.name.as_str()).is_some_and(|value| self.value.matches(&value))
    }
}

/// The pattern that matches where `source` matches everything.
pub(super) fn whole(source: &str) -> String {
    format!(r"\A(?:{source})\z")
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Pattern {}

impl Hash for Pattern {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.source.hash(state);
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.source)
    }
}
