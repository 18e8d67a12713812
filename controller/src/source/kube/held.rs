//! What an API server said so far: lists and events of each kind in, differences out.
//!
//! Pure: no clock, no connection. Silent until every kind that is watched was listed once. Says which are to be watched:
//! docs/design/0014-tls-with-backends.md.

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
        self.complete = !Kind::ALL.into_iter().any(|kind| self.awaits(kind));
        if !self.complete {
            return Vec::new();
        }
        let objects = self.kinds.values().flat_map(|kind| kind.objects.values());
        objects.cloned().map(Event::Upsert).collect()
    }

    /// Whether `kind` is to be watched. A cluster may have very many ConfigMaps: nobody needs them where no policy may name one.
    pub(super) fn wants(&self, kind: Kind) -> bool {
        let policies = || self.kinds.get(&Kind::BackendTLSPolicy);
        kind != Kind::ConfigMap || policies().is_some_and(|of| !of.objects.is_empty())
    }

    /// Whether all objects of `kind` have to be known, as far as can be told, and are not.
    pub(super) fn awaits(&self, kind: Kind) -> bool {
        !self.is_listed(kind) && (self.wants(kind) || !self.is_listed(Kind::BackendTLSPolicy))
    }

    fn is_listed(&self, kind: Kind) -> bool {
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
            Said::Told(told) if !told.is_of_use() => self.take(kind, Said::Gone(told.name)),
            Said::Told(told) => self.told(told).into_iter().collect(),
            Said::Listed(mut all) => {
                all.retain(Told::is_of_use);
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

impl Told {
    /// A ConfigMap without certificates may as well not be there.
    fn is_of_use(&self) -> bool {
        !matches!(&self.object, Some(Object::ConfigMap(map)) if map.data.ca_crt.is_none())
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
                let of_use = Kind::ALL.len() - 1;
                assert_eq!(
                    events.len(),
                    of_use,
                    "all but the ConfigMap at once, when the last kind is listed"
                );
            } else {
                assert_eq!(events, [], "{kind}");
                held.take(kind, Said::Gone(plain(kind, "one").name));
                assert_eq!(held.take(kind, Said::Told(plain(kind, "one"))), [], "{kind}");
            }
        }
        assert!(held.is_complete());
    }

    #[test]
    fn config_maps_are_wanted_as_soon_as_a_policy_may_name_one() {
        let bundle = |name: &str, data: serde_json::Value| {
            let metadata = json!({"name": name, "namespace": "shop", "labels": {"a": "b"}});
            let object = from_json(Kind::ConfigMap, json!({"metadata": metadata, "data": data}));
            let name = ("shop".to_owned(), name.to_owned());
            Told { name, object: Some(object.expect("valid")), problem: None }
        };
        let others = || Kind::ALL.into_iter().filter(|kind| *kind != Kind::ConfigMap);
        let mut held = Held::default();
        for kind in others() {
            assert!(held.awaits(Kind::ConfigMap) != held.is_listed(Kind::BackendTLSPolicy), "{kind}");
            held.take(kind, Said::Listed(Vec::new()));
        }
        assert!(held.is_complete() && !held.wants(Kind::ConfigMap) && !held.awaits(Kind::ConfigMap));
        let policy = plain(Kind::BackendTLSPolicy, "tls");
        assert_eq!(words(held.take(Kind::BackendTLSPolicy, Said::Told(policy.clone()))), ["+tls"]);
        assert!(held.wants(Kind::ConfigMap) && held.awaits(Kind::ConfigMap));
        let (ca, other) = (json!({"ca.crt": "pem", "more": "text"}), json!({"more": "text"}));
        let listed = vec![bundle("ca", ca.clone()), bundle("other", other.clone())];
        assert_eq!(words(held.take(Kind::ConfigMap, Said::Listed(listed))), ["+ca"]);
        assert_eq!(words(held.take(Kind::ConfigMap, Said::Told(bundle("other", ca)))), ["+other"]);
        assert_eq!(words(held.take(Kind::ConfigMap, Said::Told(bundle("other", other)))), ["-other"]);

        // At start they are waited for.
        let mut held = Held::default();
        for kind in others() {
            let of = if kind == Kind::BackendTLSPolicy { vec![policy.clone()] } else { Vec::new() };
            held.take(kind, Said::Listed(of));
        }
        assert!(!held.is_complete() && held.wants(Kind::ConfigMap));
        assert_eq!(words(held.take(Kind::ConfigMap, Said::Listed(Vec::new()))), ["+tls"]);
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
