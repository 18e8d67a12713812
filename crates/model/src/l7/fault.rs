//! Policies that stand beside rules, and the faults that they inject. Owns no timer: a delay is a length of time.

use std::fmt;
use std::time::Duration;

use crate::Str;
use crate::identity::Identity;
use crate::l7::backend::Fraction;
use crate::l7::balancing::Balancing;
use crate::l7::matching::HeaderMatch;
use crate::l7::request::Headers;
use crate::l7::{Moment, RuleKey};
use crate::service::ServiceName;

/// `namespace/name` of a [`Policy`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyName {
    /// The namespace it was made in.
    pub namespace: Str,
    /// Its name there.
    pub name: Str,
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a TrafficPolicy says about one of its targets.
///
/// Where several policies have a say about a request, each setting is taken from the one whose target is the narrowest
/// (rule, route, service, waypoint), and among those from the oldest, then from the first by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Unique in the mesh, together with `target`.
    pub name: PolicyName,
    /// What it is about.
    pub target: PolicyTarget,
    /// When it was made.
    pub created: Moment,
    /// What to break on purpose.
    pub fault: Option<Fault>,
    /// How endpoints are chosen.
    pub balancing: Option<Balancing>,
}

/// What a policy is about, from the narrowest to the widest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyTarget {
    /// One rule of a route.
    Rule(RuleKey),
    /// All rules of a route.
    Route {
        /// What kind of object.
        kind: super::RouteKind,
        /// Its namespace.
        namespace: Str,
        /// Its name.
        name: Str,
    },
    /// All that is asked of a service.
    Service(ServiceName),
    /// All that passes a waypoint.
    Waypoint {
        /// The Gateway's namespace.
        namespace: Str,
        /// Its name.
        name: Str,
    },
}

/// What is broken on purpose, for whom, and until when.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// Any of these. None: every request.
    pub triggers: Vec<Trigger>,
    /// Makes requests wait.
    pub delay: Option<Delay>,
    /// Answers in place of the backend. Decided apart from the delay, so that both may befall a request.
    pub abort: Option<Abort>,
    /// When it ends by itself, so that an experiment can't be forgotten.
    pub until: Moment,
}

/// Which requests a fault is meant for: all of the conditions, of which there is at least one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Trigger {
    /// Header fields.
    pub headers: Vec<HeaderMatch>,
    /// Any of these clients. None: whoever it is.
    pub clients: Vec<Client>,
}

/// A client by its proven identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// Exactly this one.
    Identity(Identity),
    /// Everyone of a namespace.
    Namespace(Str),
    /// A service account, in any trust domain.
    ServiceAccount {
        /// Its namespace.
        namespace: Str,
        /// Its name.
        name: Str,
    },
}

/// A wait before a request is sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Delay {
    /// How many of the requests.
    pub share: Fraction,
    /// How long.
    pub duration: Duration,
}

/// An answer in place of the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Abort {
    /// How many of the requests.
    pub share: Fraction,
    /// What they get.
    pub answer: AbortAnswer,
}

/// What an aborted request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AbortAnswer {
    /// A gRPC status code, with HTTP status 200.
    Grpc(u32),
    /// An HTTP status.
    Http(u16),
    /// The connection is reset (in HTTP/2, the stream).
    Reset,
}

/// What befalls one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Injected {
    /// It waits so long first.
    pub delay: Option<Duration>,
    /// Then it gets this answer.
    pub abort: Option<AbortAnswer>,
}

impl Fault {
    /// What befalls a request of this client with these header fields at `now`. `random` are two numbers, uniform over all
    /// of `u64`: for the delay and for the abort.
    #[must_use]
    pub fn inject(
        &self,
        headers: &dyn Headers,
        client: Option<&Identity>,
        now: Moment,
        random: [u64; 2],
    ) -> Injected {
        let meant = || self.triggers.iter().any(|trigger| trigger.holds(headers, client));
        if now >= self.until || !(self.triggers.is_empty() || meant()) {
            return Injected::default();
        }
        let delay = self.delay.filter(|delay| delay.share.takes(random[0]));
        let abort = self.abort.filter(|abort| abort.share.takes(random[1]));
        Injected { delay: delay.map(|delay| delay.duration), abort: abort.map(|abort| abort.answer) }
    }
}

impl Trigger {
    fn holds(&self, headers: &dyn Headers, client: Option<&Identity>) -> bool {
        let named = || client.is_some_and(|client| self.clients.iter().any(|named| named.is(client)));
        (self.clients.is_empty() || named()) && self.headers.iter().all(|header| header.holds(headers))
    }
}

impl Client {
    fn is(&self, client: &Identity) -> bool {
        match self {
            Self::Identity(identity) => identity == client,
            Self::Namespace(namespace) => *namespace == client.namespace,
            Self::ServiceAccount { namespace, name } => {
                *namespace == client.namespace && *name == client.service_account
            }
        }
    }
}
