//! Whatever happens in between, in the end the client holds what the server's world says, and nobody waits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proptest::prelude::*;
use xds::client_core::DemandError;
use xds::server_core::View;

use crate::pair::{BAD, NAMED, Pair, TYPES};

/// Few names, so that things meet. `s/web` comes with `web/1` and `web/2`.
const NAMES: [&str; 5] = ["a", "b", "s/web", "web/1", "web/2"];

const KEYS: [&str; 7] = ["a", "ip/a", "b", "s/web", "ip/s/web", "web/1", "ip/web/2"];

#[derive(Clone, Debug)]
enum Step {
    Set(usize, usize, u8),
    Remove(usize, usize),
    ToServer(usize),
    ToClient(usize),
    DoubledToServer(usize),
    DoubledToClient(usize),
    Demand(usize),
    Connect,
    Disconnect,
    RestartClient,
    Advance(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let kind = || 0..TYPES.len();
    let name = || 0..NAMES.len();
    let content = prop_oneof![4 => 0..3u8, 1 => Just(BAD)];
    prop_oneof![
        6 => (kind(), name(), content).prop_map(|(kind, name, content)| Step::Set(kind, name, content)),
        3 => (kind(), name()).prop_map(|(kind, name)| Step::Remove(kind, name)),
        8 => kind().prop_map(Step::ToServer),
        8 => kind().prop_map(Step::ToClient),
        1 => kind().prop_map(Step::DoubledToServer),
        1 => kind().prop_map(Step::DoubledToClient),
        4 => (0..KEYS.len()).prop_map(Step::Demand),
        2 => Just(Step::Connect),
        1 => Just(Step::Disconnect),
        1 => Just(Step::RestartClient),
        1 => (0..4000u64).prop_map(Step::Advance),
    ]
}

/// The next message of that type is on the wire twice.
fn double<T: Clone>(wire: &mut BTreeMap<String, VecDeque<T>>, kind: &str) {
    if let Some(queue) = wire.get_mut(kind)
        && let Some(message) = queue.front().cloned()
    {
        queue.push_front(message);
    }
}

/// A pair, and the keys that its client asked for since it started.
struct Run {
    pair: Pair,
    keys: BTreeSet<&'static str>,
}

impl Run {
    fn step(&mut self, step: &Step) {
        let pair = &mut self.pair;
        match *step {
            Step::Set(kind, name, content) => pair.set(TYPES[kind], NAMES[name], content),
            Step::Remove(kind, name) => pair.remove(TYPES[kind], NAMES[name]),
            Step::ToServer(kind) => drop(pair.step_to_server(TYPES[kind])),
            Step::ToClient(kind) => drop(pair.step_to_client(TYPES[kind])),
            Step::DoubledToServer(kind) => double(&mut pair.to_server, TYPES[kind]),
            Step::DoubledToClient(kind) => double(&mut pair.to_client, TYPES[kind]),
            Step::Demand(key) => {
                self.keys.insert(KEYS[key]);
                pair.demand(NAMED, KEYS[key]);
            }
            Step::Connect => pair.connect(),
            Step::Disconnect => pair.disconnect(),
            Step::RestartClient => {
                self.keys.clear();
                pair.restart_client();
            }
            Step::Advance(ms) => pair.advance(Duration::from_millis(ms)),
        }
    }

    /// What the client should hold of a type: `None` where its content is refused and any earlier one, or none, will do.
    fn expected(&self, kind: &str) -> BTreeMap<String, Option<u8>> {
        let world = &self.pair.world;
        let visible: Vec<_> = match kind {
            NAMED => self.keys.iter().flat_map(|key| world.lookup(kind, key)).collect(),
            _ => world.snapshot(kind).iter().cloned().collect(),
        };
        let content = |body: &prost_types::Any| (body.value[0] != BAD).then_some(body.value[0]);
        visible.iter().map(|resource| (resource.name.clone(), content(&resource.body))).collect()
    }

    fn check(&mut self) {
        for kind in TYPES {
            let expected = self.expected(kind);
            let held = self.pair.store.held.get(kind).cloned().unwrap_or_default();
            let stray: Vec<_> = held.keys().filter(|name| !expected.contains_key(*name)).collect();
            assert!(stray.is_empty(), "{kind}: {stray:?} should be gone");
            for (name, content) in expected {
                let acknowledged = self.pair.status(kind).acknowledged(&name).is_some();
                assert_eq!(
                    acknowledged,
                    content.is_some(),
                    "{kind} {name}: what the server knows of the client"
                );
                if let Some(content) = content {
                    assert_eq!(held.get(&name), Some(&content), "{kind} {name}");
                }
            }
        }
        for waiter in 1..=self.pair.waiters {
            let outcome =
                self.pair.woken.get(&waiter).unwrap_or_else(|| panic!("waiter {waiter} still waits"));
            assert_ne!(outcome, &Err(DemandError::Unavailable));
        }
        assert_eq!(self.pair.client.next_deadline(), None);
        // Nothing is left to say, and looking again does not change that.
        let server = self.pair.server.as_mut().expect("connected");
        server.changed();
        assert_eq!(server.poll(&self.pair.world), None);
    }
}

proptest! {
    // What went wrong here so far took ten thousands of schedules to find: `make soak` tries more of them.
    #![proptest_config(ProptestConfig::with_cases(16 * ProptestConfig::default().cases))]

    #[test]
    fn every_schedule_converges(
        steps in prop::collection::vec(step(), 0..120),
        small_responses in any::<bool>(),
    ) {
        let limit = if small_responses { 200 } else { usize::MAX };
        let mut run = Run { pair: Pair::new(limit), keys: BTreeSet::new() };
        for step in &steps {
            run.step(step);
        }
        if run.pair.server.is_none() {
            run.pair.connect();
        }
        run.pair.settle();
        run.check();
        // And once more from a new connection, which must not need more than it says.
        run.pair.connect();
        run.pair.settle();
        run.check();
    }
}
