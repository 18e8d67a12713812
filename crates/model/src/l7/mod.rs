//! L7 routing as waypoints do it: rules, what requests they match, and what is done with those.
//!
//! A [`Rule`] is one rule of a route object, with all that it says; what belongs to several of them (faults) is a [`Policy`]
//! of its own. Every decision is a function of its arguments: time and random numbers are given. Semantics are the
//! Gateway API's (HTTPRoute, GRPCRoute, and GAMMA for services as parents); where it leaves a choice, the item says which
//! one is ours. Owns no connection, no endpoint choice and no wire form.

mod backend;
mod backend_tls;
mod balancing;
mod cors;
mod duration;
mod fault;
mod filter;
mod matching;
mod merge;
mod request;
mod retry;
mod routes;
mod session;
mod text;

use std::fmt;

pub use backend::{Backend, BackendTarget, Fraction, drawn};
pub use backend_tls::{BackendTls, PortTls, Roots, ServerTls, SubjectName};
pub use balancing::{Balancing, HashKey};
pub use cors::{Cors, CorsAnswer, List, Origin, OriginHost};
pub use duration::{InvalidDuration, duration, duration_text};
pub use fault::{
    Abort, AbortAnswer, Client, Delay, Fault, Injected, Policy, PolicyName, PolicyTarget, Trigger,
};
pub use filter::{Asked, Edits, Filter, HeaderEdits, Mirror, PathModifier, Redirect, Scheme, UrlRewrite};
pub use matching::{
    HeaderMatch, MAX_PATTERN_SIZE, Match, PathMatch, Pattern, QueryMatch, SniMatch, TextMatch,
};
pub use merge::{Place, Settings};
pub use request::{Headers, Request};
pub use retry::{
    Attempt, Failure, MAX_PUSHBACK, Pushback, Retry, RetryBudget, RetryLedger, SAFE_RETRIES, again,
};
pub use routes::{Routes, Selected};
pub use session::{Lifetime, Session, SessionCarrier, SessionPersistence, cookie};
pub use text::{CookieName, HeaderName, HeaderValue, Host, InvalidText, MAX_PATH, PathText};

use crate::Str;
use crate::service::ServiceName;

/// A point in time: nanoseconds since 1970 (UTC).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Moment(pub u64);

/// One rule of a route object, as its author sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Unique in the mesh.
    pub key: RuleKey,
    /// What its author calls it, if anything (`name` of the rule).
    pub name: Option<Str>,
    /// The services whose traffic it is about.
    pub parents: Vec<Parent>,
    /// When its object was made: among equals, the oldest wins.
    pub created: Moment,
    /// Any of these. A rule without a match matches nothing: the API's default, the prefix `/`, is written out.
    pub matches: Vec<Match>,
    /// What to do with a request that matches, in the author's order.
    pub filters: Vec<Filter>,
    /// Where to send it, by weight.
    pub backends: Vec<Backend>,
    /// How long it may take.
    pub timeouts: Timeouts,
    /// When to try again, beyond what is always safe.
    pub retry: Option<Retry>,
    /// Whether the requests of a session stay together.
    pub session: Option<SessionPersistence>,
    /// Why the rule can't be carried out as it is meant. What matches it is answered with 500 (gRPC: UNAVAILABLE) rather
    /// than by another rule.
    pub refusal: Option<Str>,
}

/// Which rule of which object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleKey {
    /// What kind of object.
    pub kind: RouteKind,
    /// The object's namespace.
    pub namespace: Str,
    /// The object's name.
    pub name: Str,
    /// The rule's place in the object, from 0: among equals of one object, the first wins.
    pub index: u32,
}

/// `HTTPRoute/shop/reviews/0`, the form in which discovery names a rule.
impl fmt::Display for RuleKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name, index } = self;
        write!(f, "{kind}/{namespace}/{name}/{index}")
    }
}

/// What kind of route object. On one port of a service the first of these that is there decides alone, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    /// GRPCRoute.
    Grpc,
    /// HTTPRoute.
    Http,
    /// TLSRoute.
    Tls,
    /// TCPRoute.
    Tcp,
}

/// The kind's name in Kubernetes.
impl fmt::Display for RouteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Grpc => "GRPCRoute",
            Self::Http => "HTTPRoute",
            Self::Tls => "TLSRoute",
            Self::Tcp => "TCPRoute",
        })
    }
}

/// A service that a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Parent {
    /// Which service.
    pub service: ServiceName,
    /// Only this port of it; `None`: every port.
    pub port: Option<u16>,
    /// For which clients.
    pub scope: Scope,
}

/// For which clients of a service a rule holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// For those of the rule's own namespace. Where there are such rules for a client, no producer's rule is looked at.
    Consumer,
    /// For all: the rule lives in the namespace of the service.
    Producer,
}

/// How long a request may take. `None`: no limit of the rule's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Timeouts {
    /// From the first byte of the request to the last of the response, all attempts included. After it: 504.
    pub request: Option<std::time::Duration>,
    /// The same for each attempt.
    pub backend_request: Option<std::time::Duration>,
}
