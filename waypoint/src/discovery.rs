//! What the controller tells this waypoint: the mesh, and the routes and traffic policies that it follows.
//!
//! The sink of the discovery client: applies what is valid, names what is not. Decides nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{ReceivedRule, decode, type_url};
use arc_swap::ArcSwap;
use daemon::readiness::Latch;
use model::l7::{Filter, Rule};
use proxy::feed::{self, Batch};
use proxy::mesh::MeshWriter;
use tokio::sync::watch;
use xds::{Rejection, Resource, Sink};

use crate::rules::{Book, Change, Rules};

/// Applies what discovery delivers.
#[derive(Debug)]
pub(crate) struct Discovery {
    writer: MeshWriter,
    rules: Rules,
    /// What requests are held against.
    book: Arc<ArcSwap<Book>>,
    /// Told when policies have changed, after the mesh with the change was published.
    policies: watch::Sender<u64>,
    /// Released, by type, with the first complete answer.
    latches: BTreeMap<&'static str, Latch>,
}

impl Discovery {
    /// Fills a mesh and a book of rules. `latches` has one for each type.
    pub(crate) fn new(
        writer: MeshWriter,
        (rules, book): (Rules, Arc<ArcSwap<Book>>),
        policies: watch::Sender<u64>,
        latches: BTreeMap<&'static str, Latch>,
    ) -> Self {
        Self { writer, rules, book, policies, latches }
    }

    fn take(&mut self, Batch { updates, rejections }: Batch) -> Vec<Rejection> {
        if !updates.is_empty() && self.writer.apply(updates).policies {
            self.policies.send_modify(|version| *version += 1);
        }
        rejections
    }

    fn follow(&mut self, (changes, rejections): (Vec<Change>, Vec<Rejection>)) -> Vec<Rejection> {
        if !changes.is_empty() {
            self.book.store(Arc::new(self.rules.apply(changes)));
        }
        rejections
    }
}

impl Sink for Discovery {
    fn apply(&mut self, kind: &str, added: Vec<Resource>, removed: Vec<String>) -> Vec<Rejection> {
        match kind {
            type_url::ADDRESS => self.take(feed::addresses(added, &removed)),
            type_url::AUTHORIZATION => self.take(feed::policies(added, &removed)),
            type_url::L7_RULE => self.follow(rules(added, &removed)),
            type_url::L7_POLICY => self.follow(policies(added, removed)),
            other => feed::unasked(other),
        }
    }

    fn synced(&mut self, kind: &str) {
        self.latches.remove(kind);
    }
}

/// Rules. One that is not understood keeps what it matches, or what it matched, and answers it with an error: otherwise its requests
/// would fall through to another rule.
fn rules(added: Vec<Resource>, removed: &[String]) -> (Vec<Change>, Vec<Rejection>) {
    let mut changes: Vec<_> =
        removed.iter().filter_map(|name| decode::rule_removed(name)).map(Change::Removed).collect();
    let mut rejections = Vec::new();
    for resource in added {
        match decode::rule(&resource.name, &resource.body) {
            Ok(ReceivedRule { rule, problem }) => {
                rejections.extend(problem.map(|why| feed::rejection(resource.name, &why)));
                warn_of_mirrors(&rule);
                changes.push(Change::Rule(Box::new(rule)));
            }
            Err(error) => {
                let why = error.to_string();
                changes.extend(error.key.clone().map(|key| Change::Refused(key, why.into())));
                rejections.push(feed::rejection(resource.name, &error));
            }
        }
    }
    (changes, rejections)
}

/// What the rule's author would wait for in vain.
fn warn_of_mirrors(rule: &Rule) {
    let filters = rule.filters.iter().chain(rule.backends.iter().flat_map(|backend| &backend.filters));
    if filters.into_iter().any(|filter| matches!(filter, Filter::Mirror(_))) {
        tracing::warn!(rule = %rule.key, "copies of requests (RequestMirror) are not sent; the rest of the rule is followed");
    }
}

/// Traffic policies. One that is not understood changes nothing.
fn policies(added: Vec<Resource>, removed: Vec<String>) -> (Vec<Change>, Vec<Rejection>) {
    let mut changes: Vec<_> = removed.into_iter().map(Change::PolicyRemoved).collect();
    let mut rejections = Vec::new();
    for resource in added {
        match decode::traffic_policy(&resource.name, &resource.body) {
            Ok(policy) => changes.push(Change::Policy(resource.name, Box::new(policy))),
            Err(error) => rejections.push(feed::rejection(resource.name, &error)),
        }
    }
    (changes, rejections)
}
