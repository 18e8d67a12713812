//! Texts that end up in requests and responses, checked when they are made so that nothing can be smuggled with them.
//!
//! Owns no meaning: what a header or a host is for is said where it is used.

use std::cmp::Ordering;
use std::fmt;

use crate::Str;

/// Bytes of a path in a route: the API's own limit. Prefixes are looked up segment by segment, so it also bounds how deep.
pub const MAX_PATH: usize = 1024;

/// Why a text can't be what it should be. Quotes it with escapes, so it is safe to log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidText {
    /// Not the name of a cookie.
    #[error("{0:?} is not the name of a cookie: letters, digits and !#$%&'*+-.^_`|~ only")]
    CookieName(String),
    /// A field that says how a message is framed or where it goes.
    #[error("the header {0:?} belongs to the proxy: it can't be edited (for \"host\" there is URLRewrite)")]
    Framing(String),
    /// Not a field name.
    #[error("{0:?} is not a header name: letters, digits and !#$%&'*+-.^_`|~ only (RFC 9110, section 5.1)")]
    HeaderName(String),
    /// Would break the line it stands in.
    #[error("the header value {0:?} has a control character or surrounding spaces")]
    HeaderValue(String),
    /// Not a host name.
    #[error("{0:?} is not a host name: letters, digits, '-' and '.', labels of 1 to 63, 253 in all")]
    Host(String),
    /// Not an origin.
    #[error(
        "{0:?} is not an origin: scheme://host or scheme://host:port, where the host may be or begin with '*'"
    )]
    Origin(String),
    /// Not a path.
    #[error(
        "{0:?} is not a path: it begins with '/' and has neither spaces nor '?', '#' or non-ASCII letters"
    )]
    Path(String),
    /// Not a regular expression.
    #[error("{pattern:?} is not a regular expression that can be used here: {why}")]
    Pattern {
        /// What was given.
        pattern: String,
        /// What the parser says.
        why: String,
    },
}

/// The name of a header field, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderName(http::HeaderName);

impl HeaderName {
    /// A name in any case.
    ///
    /// # Errors
    /// When it is empty or has a character that field names do not have.
    pub fn new(name: &str) -> Result<Self, InvalidText> {
        let parsed = http::HeaderName::from_bytes(name.as_bytes());
        parsed.map(Self).map_err(|_| InvalidText::HeaderName(name.to_owned()))
    }

    /// In lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// As those who edit heads have it.
    #[must_use]
    pub fn http(&self) -> &http::HeaderName {
        &self.0
    }

    /// Whether `name` is this one, in whatever case.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        self.as_str().eq_ignore_ascii_case(name)
    }
}

impl PartialOrd for HeaderName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for HeaderName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

/// `tchar` of RFC 9110, section 5.6.2.
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The name of a cookie. Its case counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CookieName(Str);

impl CookieName {
    /// A name.
    ///
    /// # Errors
    /// When it is empty or has a character that cookie names do not have (RFC 6265, section 4.1.1).
    pub fn new(name: &str) -> Result<Self, InvalidText> {
        if !name.is_empty() && name.bytes().all(is_token) {
            Ok(Self(name.into()))
        } else {
            Err(InvalidText::CookieName(name.to_owned()))
        }
    }

    /// As it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The value of a header field.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HeaderValue(http::HeaderValue);

impl HeaderValue {
    /// A value that can stand in one line.
    ///
    /// # Errors
    /// When it has control characters (a tab inside is fine), or begins or ends with white space.
    pub fn new(value: &str) -> Result<Self, InvalidText> {
        let parsed = http::HeaderValue::from_bytes(value.as_bytes()).ok();
        let parsed = parsed.filter(|_| value.trim_matches([' ', '\t']) == value);
        parsed.map(Self).ok_or_else(|| InvalidText::HeaderValue(value.to_owned()))
    }

    /// As it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        str::from_utf8(self.0.as_bytes()).expect("it was made of a text")
    }

    /// As those who edit heads have it.
    #[must_use]
    pub fn http(&self) -> &http::HeaderValue {
        &self.0
    }
}

/// A host name without a port, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(Str);

impl Host {
    /// A host name in any case.
    ///
    /// # Errors
    /// When it is not made of labels (RFC 1123, section 2.1).
    pub fn new(host: &str) -> Result<Self, InvalidText> {
        let label = |label: &str| {
            let inside = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            (1..=63).contains(&label.len()) && inside && !label.starts_with('-') && !label.ends_with('-')
        };
        if host.len() <= 253 && host.split('.').all(label) {
            Ok(Self(host.to_ascii_lowercase().into()))
        } else {
            Err(InvalidText::Host(host.to_owned()))
        }
    }

    /// In lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A path as it stands in a request line: it begins with `/`, has no query, and is never decoded or encoded.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathText(Str);

impl PathText {
    /// A path, percent-encoded where it has to be.
    ///
    /// # Errors
    /// When it does not begin with `/`, has what ends a path in a request line, or is longer than [`MAX_PATH`].
    pub fn new(path: &str) -> Result<Self, InvalidText> {
        let fine = |byte: u8| byte.is_ascii_graphic() && byte != b'?' && byte != b'#';
        if path.starts_with('/') && path.len() <= MAX_PATH && path.bytes().all(fine) {
            Ok(Self(path.into()))
        } else {
            Err(InvalidText::Path(path.to_owned()))
        }
    }

    /// `/`.
    #[must_use]
    pub fn root() -> Self {
        Self("/".into())
    }

    /// As it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Without the slashes at its end; empty for `/`. Prefixes are compared and replaced in this form.
    #[must_use]
    pub fn trimmed(&self) -> &str {
        self.0.trim_end_matches('/')
    }
}

macro_rules! display_as_text {
    ($($name:ident)*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    )*};
}
display_as_text!(CookieName HeaderName HeaderValue Host PathText);
