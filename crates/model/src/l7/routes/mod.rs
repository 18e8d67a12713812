//! The rules of one port of a service, compiled: which of them a request or a connection meets.
//!
//! Built once, then only read. What a request costs does not grow with the number of rules: exact paths are looked up in
//! a table, prefixes in a trie of segments, patterns all at once. Only rules that share a path are asked one by one, in the
//! order of precedence. Owns no policy and no store.

mod index;
mod order;
mod query;
mod sni;

use std::collections::HashMap;
use std::sync::Arc;

use crate::Str;
use crate::identity::Identity;
use crate::l7::request::Request;
use crate::l7::routes::index::Index;
use crate::l7::routes::order::Candidate;
use crate::l7::routes::sni::Names;
use crate::l7::{Match, Parent, RouteKind, Rule, Scope};
use crate::service::ServiceName;

/// The rules of one port of a service.
#[derive(Debug, Default)]
pub struct Routes {
    /// Those of the service's own namespace.
    producer: Option<Group>,
    /// Those of other namespaces, for clients there.
    consumers: HashMap<Str, Group>,
}

/// What becomes of a request or a connection.
#[derive(Clone, Copy, Debug)]
pub enum Selected<'a> {
    /// No route is about this port, as far as the client is concerned: on to the service's own endpoints.
    Implicit,
    /// This rule decides.
    Rule {
        /// The rule.
        rule: &'a Arc<Rule>,
        /// What of it matched.
        by: &'a Match,
    },
    /// There are routes, and no rule matches: a request gets 404 (gRPC: UNIMPLEMENTED), a connection is closed.
    Unmatched,
}

impl Routes {
    /// Compiles the rules among `rules` that are about `port` of `service`, in whatever order they come.
    #[must_use]
    pub fn of<'a>(service: &ServiceName, port: u16, rules: impl IntoIterator<Item = &'a Arc<Rule>>) -> Self {
        let concerns =
            |parent: &&Parent| parent.service == *service && parent.port.is_none_or(|own| own == port);
        let mut producer = Vec::new();
        let mut consumers: HashMap<Str, Vec<Arc<Rule>>> = HashMap::new();
        for rule in rules {
            let scopes = || rule.parents.iter().filter(concerns).map(|parent| parent.scope);
            if scopes().any(|scope| scope == Scope::Producer) {
                producer.push(Arc::clone(rule));
            }
            if scopes().any(|scope| scope == Scope::Consumer) {
                consumers.entry(Str::clone(&rule.key.namespace)).or_default().push(Arc::clone(rule));
            }
        }
        let consumers = consumers.into_iter();
        Self {
            producer: Group::of(producer),
            consumers: consumers.filter_map(|(ns, rules)| Some((ns, Group::of(rules)?))).collect(),
        }
    }

    /// The rule for a request. Where the routes are about connections, so is the answer.
    #[must_use]
    pub fn select(&self, request: &Request<'_>) -> Selected<'_> {
        let Some(group) = self.group(request.client) else { return Selected::Implicit };
        let chosen = match &group.rules {
            Rules::Connections(names) => names.find(None),
            Rules::Requests(index) => index.find(request),
        };
        Selected::from(chosen)
    }

    /// The rule for a connection that is not HTTP, by the name that a TLS client asks for. A port with rules for requests
    /// has none for it.
    #[must_use]
    pub fn select_connection(&self, client: Option<&Identity>, sni: Option<&str>) -> Selected<'_> {
        let Some(group) = self.group(client) else { return Selected::Implicit };
        Selected::from(match &group.rules {
            Rules::Connections(names) => names.find(sni),
            Rules::Requests(_) => None,
        })
    }

    /// What kind of route decides for this client; `None` where there is no route.
    #[must_use]
    pub fn kind(&self, client: Option<&Identity>) -> Option<RouteKind> {
        Some(self.group(client)?.kind)
    }

    /// Whether no route is about the port.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.producer.is_none() && self.consumers.is_empty()
    }

    /// A client's own namespace decides alone where it has rules. Who has no identity has no namespace.
    fn group(&self, client: Option<&Identity>) -> Option<&Group> {
        client.and_then(|client| self.consumers.get(&client.namespace)).or(self.producer.as_ref())
    }
}

impl<'a> From<Option<&'a Candidate>> for Selected<'a> {
    fn from(candidate: Option<&'a Candidate>) -> Self {
        candidate
            .map_or(Self::Unmatched, |candidate| Self::Rule { rule: candidate.rule(), by: candidate.by() })
    }
}

/// The rules that decide together: of one kind, and for the same clients.
#[derive(Debug)]
struct Group {
    kind: RouteKind,
    rules: Rules,
}

#[derive(Debug)]
enum Rules {
    Connections(Names),
    Requests(Index),
}

impl Group {
    /// Keeps the rules of the kind that goes first; `None` without rules.
    fn of(mut rules: Vec<Arc<Rule>>) -> Option<Self> {
        let kind = rules.iter().map(|rule| rule.key.kind).min()?;
        rules.retain(|rule| rule.key.kind == kind);
        let candidates = order::candidates(&rules);
        let rules = match kind {
            RouteKind::Grpc | RouteKind::Http => Rules::Requests(Index::of(candidates)),
            RouteKind::Tls | RouteKind::Tcp => Rules::Connections(Names::of(candidates)),
        };
        Some(Self { kind, rules })
    }
}
