//! What a rule does to requests and responses. Paths and queries are never decoded: what is kept is kept byte for byte.

use std::borrow::Cow;

use crate::l7::PathMatch;
use crate::l7::backend::{BackendTarget, Fraction};
use crate::l7::cors::Cors;
use crate::l7::text::{HeaderName, HeaderValue, Host, InvalidText, PathText};

/// One thing that a rule, or a backend of it, does.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// Answers cross-origin questions, and marks the answers to cross-origin requests.
    Cors(Cors),
    /// Sends copies elsewhere; the only kind that may stand there several times.
    Mirror(Mirror),
    /// Answers with another address.
    Redirect(Redirect),
    /// Edits the request's header.
    RequestHeaders(HeaderEdits),
    /// Edits the response's header.
    ResponseHeaders(HeaderEdits),
    /// Edits the request's target.
    Rewrite(UrlRewrite),
}

/// Edits of a header. No name may be in it twice, and none may be one that [`HeaderEdits::check`] refuses.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct HeaderEdits {
    /// Replaces whatever values there are.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// One more value, after those that there are.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Removes all values.
    pub remove: Vec<HeaderName>,
}

/// Edits of the request's target.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct UrlRewrite {
    /// The authority that the backend sees.
    pub host: Option<Host>,
    /// The path that the backend sees. The query stays.
    pub path: Option<PathModifier>,
}

/// Another path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathModifier {
    /// This one.
    ReplaceFull(PathText),
    /// This one instead of the prefix that matched; what follows the prefix stays, byte for byte.
    ReplacePrefix(PathText),
}

/// An answer with another address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Redirect {
    /// `None`: the request's.
    pub scheme: Option<Scheme>,
    /// `None`: the request's.
    pub host: Option<Host>,
    /// `None`: the scheme's default where a scheme is given, else the port that was asked.
    pub port: Option<u16>,
    /// `None`: the request's.
    pub path: Option<PathModifier>,
    /// 301, 302 (what the API defaults to), 303, 307 or 308.
    pub status: u16,
}

/// How a client is to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// Over TLS.
    Https,
}

/// Copies of requests. Their responses are thrown away, and nobody waits for them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mirror {
    /// Where to.
    pub target: BackendTarget,
    /// How many of the requests.
    pub share: Fraction,
}

/// Fields that say how a message is framed and where it goes. An edit of one would make the message another one for the
/// next server than it was for policy. (`host` is for [`UrlRewrite`].)
const FRAMING: [&str; 10] = [
    "connection",
    "content-length",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

impl HeaderEdits {
    /// Whether it edits only what may be edited.
    ///
    /// # Errors
    /// When it names a field that belongs to the proxy.
    pub fn check(&self) -> Result<(), InvalidText> {
        let Self { set, add, remove } = self;
        let names = set.iter().chain(add).map(|(name, _)| name).chain(remove);
        let framing = names.map(HeaderName::as_str).find(|name| FRAMING.contains(name));
        framing.map_or(Ok(()), |name| Err(InvalidText::Framing(name.to_owned())))
    }
}

/// Header edits one after the other, made into one: which fields to leave out, and which to write after the others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Edits {
    dropped: Vec<HeaderName>,
    appended: Vec<(HeaderName, HeaderValue)>,
}

impl Edits {
    /// The effect of `all`, in order: a rule's, then its backend's.
    #[must_use]
    pub fn of<'a>(all: impl IntoIterator<Item = &'a HeaderEdits>) -> Self {
        let mut edits = Self::default();
        for HeaderEdits { set, add, remove } in all {
            for name in set.iter().map(|(name, _)| name).chain(remove) {
                edits.appended.retain(|(own, _)| own != name);
                if !edits.dropped.contains(name) {
                    edits.dropped.push(name.clone());
                }
            }
            edits.appended.extend(set.iter().chain(add).cloned());
        }
        edits
    }

    /// Whether fields of this name, in whatever case, are left out.
    #[must_use]
    pub fn drops(&self, name: &str) -> bool {
        self.dropped.iter().any(|dropped| dropped.is(name))
    }

    /// What is written after the fields that stay, each as a line of its own.
    #[must_use]
    pub fn appended(&self) -> &[(HeaderName, HeaderValue)] {
        &self.appended
    }

    /// Whether everything stays as it is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.dropped.is_empty() && self.appended.is_empty()
    }
}

impl PathModifier {
    /// The other path. `by` is what matched; where it is no prefix, the whole path counts as one.
    #[must_use]
    pub fn apply(&self, path: &str, by: &PathMatch) -> String {
        let replacement = match self {
            Self::ReplaceFull(full) => return full.as_str().to_owned(),
            Self::ReplacePrefix(replacement) => replacement.trimmed(),
        };
        let rest = match by {
            PathMatch::Prefix(prefix) => path.strip_prefix(prefix.trimmed()).unwrap_or_default(),
            PathMatch::Exact(_)
            | PathMatch::Grpc { .. }
            | PathMatch::Regex(_)
            | PathMatch::Unintelligible => "",
        };
        if replacement.is_empty() && rest.is_empty() {
            "/".to_owned()
        } else {
            format!("{replacement}{rest}")
        }
    }
}

/// What a redirect starts from.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// How the client asked.
    pub scheme: Scheme,
    /// The host that it named, with or without a port; may be empty.
    pub authority: &'a str,
    /// The port of the service that it asked.
    pub port: u16,
    /// As it was sent, without the query.
    pub path: &'a str,
    /// What follows the `?`, if there is one.
    pub query: Option<&'a str>,
    /// What matched the path.
    pub by: &'a PathMatch,
}

impl Redirect {
    /// What the field `Location` says.
    #[must_use]
    pub fn location(&self, asked: &Asked<'_>) -> String {
        let scheme = self.scheme.unwrap_or(asked.scheme);
        let host = self.host.as_ref().map_or_else(|| without_port(asked.authority), Host::as_str);
        let port = self.port.unwrap_or(if self.scheme.is_some() { scheme.port() } else { asked.port });
        let port = if port == scheme.port() { String::new() } else { format!(":{port}") };
        let path = match &self.path {
            Some(path) => Cow::Owned(path.apply(asked.path, asked.by)),
            None => Cow::Borrowed(asked.path),
        };
        let query = asked.query.map(|query| format!("?{query}")).unwrap_or_default();
        // Who names no host stays where it is.
        let origin =
            if host.is_empty() { String::new() } else { format!("{}://{host}{port}", scheme.as_str()) };
        format!("{origin}{path}{query}")
    }
}

/// A bracketed address keeps its brackets.
fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

impl Scheme {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}
