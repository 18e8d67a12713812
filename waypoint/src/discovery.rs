//! What the controller tells this waypoint: what of the mesh it may connect to, the routes and traffic policies that it follows, and who
//! its clients are.
//!
//! The sink of the discovery client: applies what is valid, names what is not. Decides nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{ReceivedRule, decode, type_url};
use arc_swap::ArcSwap;
use daemon::readiness::Latch;
use proxy::feed::{self, Batch};
use proxy::mesh::MeshWriter;
use tokio::sync::watch;
use xds::{Rejection, Resource, Sink};

use crate::rules::{Book, Change, Rules};

/// Applies what discovery delivers.
#[derive(Debug)]
pub(crate) struct Discovery {
    writer: MeshWriter,
    /// Of workloads that were looked up as clients.
    clients: MeshWriter,
    rules: Rules,
    /// What requests are held against.
    book: Arc<ArcSwap<Book>>,
    /// Told when policies have changed, after the mesh with the change was published.
    policies: watch::Sender<u64>,
    /// Released, by type, with the first complete answer.
    latches: BTreeMap<&'static str, Latch>,
}

impl Discovery {
    /// Fills a mesh, another one of clients, and a book of rules. `latches` has one for each type.
    pub(crate) fn new(
        (writer, clients): (MeshWriter, MeshWriter),
        (rules, book): (Rules, Arc<ArcSwap<Book>>),
        policies: watch::Sender<u64>,
        latches: BTreeMap<&'static str, Latch>,
    ) -> Self {
        Self { writer, clients, rules, book, policies, latches }
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
            type_url::L7_BACKEND_TLS => self.follow(backend_tls(added, &removed)),
            type_url::CLIENT => {
                let Batch { updates, rejections } = feed::addresses(added, &removed);
                self.clients.apply(updates);
                rejections
            }
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

/// TLS towards endpoints. Where it is not understood, nothing is sent: plaintext was not meant.
fn backend_tls(added: Vec<Resource>, removed: &[String]) -> (Vec<Change>, Vec<Rejection>) {
    let mut changes: Vec<_> = removed
        .iter()
        .filter_map(|name| decode::service_named(name))
        .map(Change::BackendTlsRemoved)
        .collect();
    let mut rejections = Vec::new();
    for resource in added {
        match decode::backend_tls(&resource.name, &resource.body) {
            Ok(tls) => changes.push(Change::BackendTls(tls)),
            Err(error) => {
                let service = decode::service_named(&resource.name);
                changes.extend(service.map(|it| Change::BackendTlsRefused(it, error.to_string().into())));
                rejections.push(feed::rejection(resource.name, &error));
            }
        }
    }
    (changes, rejections)
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

#[cfg(test)]
mod tests {
    use api::encode;
    use model::l7::{Request, Selected};
    use model::store::Mesh;
    use proxy::mesh::MeshState;

    use super::*;
    use crate::made;

    /// Why the rule that `GET /a` meets is refused.
    fn refusal(book: &ArcSwap<Book>) -> Option<String> {
        let request = Request { method: "GET", path: "/a", query: None, headers: &(), client: None };
        let book = book.load();
        match book.of(&made::service_name("web")).routes(80).select(&request) {
            Selected::Rule { rule, .. } => rule.refusal.as_deref().map(str::to_owned),
            Selected::Implicit | Selected::Unmatched => panic!("it meets no rule"),
        }
    }

    #[test]
    fn a_rule_that_is_not_understood_is_rejected_and_closes_what_it_is_about() {
        let [(_, writer), (_, clients)] = [(); 2].map(|()| MeshState::new(Mesh::default()));
        let book = Arc::new(ArcSwap::from_pointee(Book::default()));
        let rules = Rules::new(("shop".into(), "waypoint".into()));
        let mut sink = Discovery::new(
            (writer, clients),
            (rules, Arc::clone(&book)),
            watch::channel(0).0,
            BTreeMap::new(),
        );
        let sound = encode::rule(&made::rule(0, "/a", &[("one", 1)]));
        let resource = |value: Vec<u8>| {
            let mut body = sound.body.clone();
            body.value = value;
            Resource::new(sound.name.clone(), Vec::new(), body)
        };
        let mut tell = |value: Vec<u8>| sink.apply(type_url::L7_RULE, vec![resource(value)], Vec::new());
        let good = sound.body.value.clone();

        assert!(tell(good.clone()).is_empty());
        assert_eq!(refusal(&book), None);
        // A field that no version has yet.
        let newer = [&good[..], &[0xfa, 0x7f, 0x01, b'x']].concat();
        let rejected = tell(newer);
        assert_eq!(rejected.len(), 1, "{rejected:?}");
        assert!(refusal(&book).is_some());
        assert!(tell(good).is_empty());
        assert_eq!(refusal(&book), None, "mended");
        assert_eq!(tell(vec![0xff; 4]).len(), 1);
        assert!(refusal(&book).is_some(), "what it matched until now");
    }
}
