//! What a rule does to requests and responses.

use crate::l7::backend::{BackendTarget, Fraction};
use crate::l7::cors::Cors;
use crate::l7::text::{HeaderName, HeaderValue, Host, PathText};

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

/// Edits of a header. No name may be in it twice.
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
