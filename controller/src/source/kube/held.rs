//! What an API server said so far: lists and events of each kind in, differences out.
//!
//! Pure: no clock, no connection. Silent until every kind was listed once.

use std::collections::{BTreeMap, BTreeSet};

use super::super::Misunderstood;
use super::super::objects::{Event, Key, Kind, Object};

/// Namespace and name.
pub(super) type Name = (String, String);

/// One object as it was told.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Told {
    pub(super) name: Name,
    /// What is to be taken for it. `None`: what was known before stays.
    pub(super) object: Option<Object>,
    /// What can't be understood of it.
    pub(super) problem: Option<String>,
}

/// What a watch says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Said {
    /// An object is gone.
    Gone(Name),
    /// All objects of the kind.
    Listed(Vec<Told>),
    /// An object is new or different, perhaps only in what we do not read.
    Told(Told),
}

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Held {
    kinds: BTreeMap<Kind, OfKind>,
    complete: bool,
}

#[derive(Debug, Default)]
struct OfKind {
    objects: BTreeMap<Name, Object>,
    problems: BTreeMap<Name, String>,
}

impl Held {
    /// Takes in what was said of `kind`, and says what is different.
    pub(super) fn take(&mut self, kind: Kind, said: Said) -> Vec<Event> {
        let listed = matches!(said, Said::Listed(_));
        if !listed && !self.is_listed(kind) {
            // A watch lists before it says anything else.
            return Vec::new();
        }
        let events = self.kinds.entry(kind).or_default().take(kind, said);
        if self.complete {
            return events;
        }
        self.complete = Kind::ALL.iter().all(|kind| self.kinds.contains_key(kind));
        if !self.complete {
            return Vec::new();
        }
        let objects = self.kinds.values().flat_map(|kind| kind.objects.values());
        objects.cloned().map(Event::Upsert).collect()
    }

    /// Whether all objects of `kind` are known.
    pub(super) fn is_listed(&self, kind: Kind) -> bool {
        self.kinds.contains_key(&kind)
    }

    /// Whether all objects of all kinds are.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// What can't be understood, in the order of kinds and names.
    pub(super) fn misunderstood(&self) -> Vec<Misunderstood> {
        let of = |kind: Kind, (name, message): (&Name, &String)| Misunderstood {
            key: key(kind, name),
            message: message.clone(),
        };
        let kinds = self.kinds.iter();
        kinds.flat_map(|(kind, held)| held.problems.iter().map(move |problem| of(*kind, problem))).collect()
    }
}

impl OfKind {
    fn take(&mut self, kind: Kind, said: Said) -> Vec<Event> {
        match said {
            Said::Gone(name) => {
                self.problems.remove(&name);
                self.objects.remove(&name).map(|_| Event::Delete(key(kind, &name))).into_iter().collect()
            }
            Said::Told(told) => self.told(told).into_iter().collect(),
            Said::Listed(all) => {
                self.problems.clear();
                let there: BTreeSet<&Name> = all.iter().map(|told| &told.name).collect();
                let gone = self.objects.extract_if(.., |name, _| !there.contains(name));
                let mut events: Vec<_> = gone.map(|(name, _)| Event::Delete(key(kind, &name))).collect();
                events.extend(all.into_iter().filter_map(|told| self.told(told)));
                events
            }
        }
    }

    fn told(&mut self, Told { name, object, problem }: Told) -> Option<Event> {
        match problem {
            Some(problem) => self.problems.insert(name.clone(), problem),
            None => self.problems.remove(&name),
        };
        // Most changes are in what is not read, a node's heartbeat for one.
        let object = object.filter(|object| self.objects.get(&name) != Some(object))?;
        self.objects.insert(name, object.clone());
        Some(Event::Upsert(object))
    }
}

fn key(kind: Kind, (namespace, name): &Name) -> Key {
    Key { kind, namespace: namespace.clone(), name: name.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::objects::read::from_json;
    use serde_json::json;

    fn told(kind: Kind, name: &str, labels: serde_json::Value) -> Told {
        let object = from_json(kind, json!({"metadata": {"name": name, "labels": labels}})).expect("valid");
        let place = if kind.is_namespaced() { "default" } else { "" };
        Told { name: (place.to_owned(), name.to_owned()), object: Some(object), problem: None }
    }

    fn plain(kind: Kind, name: &str) -> Told {
        told(kind, name, json!({}))
    }

    fn words(events: Vec<Event>) -> Vec<String> {
        let word = |event| match event {
            Event::Delete(key) => format!("-{}", key.name),
            Event::Upsert(object) => format!("+{}", object.key().name),
        };
        events.into_iter().map(word).collect()
    }

    /// Everything is listed; nodes `a` and `b` are there.
    fn complete() -> Held {
        let mut held = Held::default();
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Node) {
            assert_eq!(held.take(kind, Said::Listed(Vec::new())), []);
        }
        let nodes = vec![plain(Kind::Node, "a"), plain(Kind::Node, "b")];
        assert_eq!(words(held.take(Kind::Node, Said::Listed(nodes))), ["+a", "+b"]);
        held
    }

    #[test]
    fn silent_until_every_kind_is_listed() {
        let mut held = Held::default();
        for kind in Kind::ALL {
            assert!(!held.is_complete() && !held.is_listed(kind), "{kind}");
            let events = held.take(kind, Said::Listed(vec![plain(kind, "one")]));
            if Kind::ALL.last() == Some(&kind) {
                assert_eq!(events.len(), Kind::ALL.len(), "all at once, when the last kind is listed");
            } else {
                assert_eq!(events, [], "{kind}");
                held.take(kind, Said::Gone(plain(kind, "one").name));
                assert_eq!(held.take(kind, Said::Told(plain(kind, "one"))), [], "{kind}");
            }
        }
        assert!(held.is_complete());
    }

    #[test]
    fn only_differences_are_said() {
        let mut held = complete();
        assert_eq!(held.take(Kind::Node, Said::Told(plain(Kind::Node, "a"))), [], "a heartbeat");
        let zone = told(Kind::Node, "a", json!({"topology.kubernetes.io/zone": "z"}));
        assert_eq!(words(held.take(Kind::Node, Said::Told(zone.clone()))), ["+a"]);
        assert_eq!(words(held.take(Kind::Node, Said::Gone(zone.name.clone()))), ["-a"]);
        assert_eq!(held.take(Kind::Node, Said::Gone(zone.name)), [], "gone already");
    }

    #[test]
    fn a_list_after_a_gap_tells_what_is_gone() {
        let mut held = complete();
        let now = vec![plain(Kind::Node, "b"), plain(Kind::Node, "c")];
        assert_eq!(words(held.take(Kind::Node, Said::Listed(now.clone()))), ["-a", "+c"]);
        assert_eq!(held.take(Kind::Node, Said::Listed(now)), []);
    }

    #[test]
    fn what_is_not_understood_keeps_what_was() {
        let mut held = complete();
        let broken = Told { object: None, problem: Some("bad".into()), ..plain(Kind::Node, "a") };
        assert_eq!(held.take(Kind::Node, Said::Told(broken.clone())), []);
        assert_eq!(held.misunderstood().len(), 1);
        assert_eq!(
            held.take(Kind::Node, Said::Listed(vec![broken, plain(Kind::Node, "b")])),
            [],
            "still there"
        );
        assert_eq!(held.take(Kind::Node, Said::Told(plain(Kind::Node, "a"))), [], "mended, as it was");
        assert_eq!(held.misunderstood(), []);
    }
}
