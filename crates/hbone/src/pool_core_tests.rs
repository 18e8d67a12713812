//! The pool's decisions under random histories: nobody waits for nothing, nobody is forgotten, no limit is passed, and
//! nothing is left when everything has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use std::time::Instant;

use super::*;

const MAX_TUNNELS: usize = 3;
const MAX_WAITING: usize = 6;
const IDLE: Duration = Duration::from_secs(300);

#[derive(Debug, Clone)]
enum Op {
    Ask(u8),
    Cancel(usize),
    Dialled { key: u8, max: usize },
    DialFails(u8),
    Release(usize),
    Changed { tunnel: usize, max: usize, closing: bool },
    Gone(usize),
    Idle { tunnel: usize, seconds: u64 },
    CloseIdle,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..3u8).prop_map(Op::Ask),
        1 => any::<usize>().prop_map(Op::Cancel),
        4 => (0..3u8, 0..4usize).prop_map(|(key, max)| Op::Dialled { key, max }),
        1 => (0..3u8).prop_map(Op::DialFails),
        4 => any::<usize>().prop_map(Op::Release),
        1 => (any::<usize>(), 0..4usize, any::<bool>())
            .prop_map(|(tunnel, max, closing)| Op::Changed { tunnel, max, closing }),
        1 => any::<usize>().prop_map(Op::Gone),
        1 => (any::<usize>(), 0..600u64).prop_map(|(tunnel, seconds)| Op::Idle { tunnel, seconds }),
        1 => Just(Op::CloseIdle),
    ]
}

/// What a naive observer knows.
struct World {
    core: Core<u8>,
    now: Instant,
    waiting: BTreeMap<Ticket, u8>,
    /// Who was told to dial and has not been answered.
    dialling: BTreeMap<u8, Ticket>,
    /// One entry per place.
    places: Vec<TunnelId>,
    tunnels: BTreeMap<TunnelId, (u8, usize, bool)>,
}

impl World {
    fn new() -> World {
        let limits = PoolLimits { idle: IDLE, max_tunnels: MAX_TUNNELS, max_waiting: MAX_WAITING };
        World {
            core: Core::new(&limits),
            now: Instant::now(),
            waiting: BTreeMap::new(),
            dialling: BTreeMap::new(),
            places: Vec::new(),
            tunnels: BTreeMap::new(),
        }
    }

    fn take(&mut self, key: u8, tunnel: TunnelId) {
        let (owner, max, closing) = self.tunnels[&tunnel];
        assert_eq!(owner, key, "a stream never gets another key's tunnel");
        assert!(!closing, "a closing tunnel takes no streams");
        self.places.push(tunnel);
        assert!(self.used(tunnel) <= max, "the peer's limit is honoured");
    }

    fn used(&self, tunnel: TunnelId) -> usize {
        self.places.iter().filter(|place| **place == tunnel).count()
    }

    fn hear(&mut self, words: Words, failing: Option<u8>) {
        for (ticket, word) in words {
            let key = self.waiting[&ticket];
            match word {
                Word::Use(tunnel) => {
                    self.waiting.remove(&ticket);
                    self.take(key, tunnel);
                }
                Word::Dial => {
                    assert_eq!(self.dialling.insert(key, ticket), None, "one dial per key at a time");
                    assert_eq!(self.core.begin_dial(&key, ticket, &mut 1), Turn::Begun);
                }
                Word::Fail => {
                    assert_eq!(failing, Some(key), "strangers do not fail with somebody's dial");
                    self.waiting.remove(&ticket);
                }
            }
        }
    }

    fn tunnel(&self, index: usize) -> Option<TunnelId> {
        let count = self.tunnels.len();
        (count > 0).then(|| *self.tunnels.keys().nth(index % count).expect("the index is below the count"))
    }

    fn apply(&mut self, op: &Op) {
        let mut words = Words::new();
        let mut failing = None;
        match *op {
            Op::Ask(key) => match self.core.ask(&key, &mut words) {
                Answer::Use(tunnel) => self.take(key, tunnel),
                Answer::Wait(ticket) => drop(self.waiting.insert(ticket, key)),
                Answer::Full(count) => assert_eq!(count, MAX_WAITING),
            },
            Op::Cancel(index) => {
                let Some((ticket, key)) = nth(&self.waiting, index) else { return };
                self.waiting.remove(&ticket);
                self.core.cancel(&key, ticket, &mut words);
            }
            Op::Dialled { key, max } => {
                if self.dialling.remove(&key).is_none() {
                    return;
                }
                let tunnel = self.core.dialled(&key, max, self.now, &mut words);
                self.tunnels.insert(tunnel, (key, max, false));
            }
            Op::DialFails(key) => {
                if self.dialling.remove(&key).is_none() {
                    return;
                }
                failing = Some(key);
                self.core.dial_failed(&key, &mut words);
                assert!(
                    !self
                        .waiting
                        .iter()
                        .any(|(ticket, of)| *of == key && !words.contains(&(*ticket, Word::Fail))),
                    "all who waited for the dial are told at once"
                );
            }
            Op::Release(index) => {
                if self.places.is_empty() {
                    return;
                }
                let tunnel = self.places.swap_remove(index % self.places.len());
                self.core.released(tunnel, self.now, &mut words);
            }
            Op::Changed { tunnel, max, closing } => {
                let Some(tunnel) = self.tunnel(tunnel) else { return };
                let known = self.tunnels.get_mut(&tunnel).expect("just looked up");
                (known.1, known.2) = (max, known.2 || closing);
                self.core.changed(tunnel, max, closing, &mut words);
            }
            Op::Gone(index) => {
                let Some(tunnel) = self.tunnel(index) else { return };
                self.tunnels.remove(&tunnel);
                self.core.gone(tunnel, &mut words);
            }
            Op::Idle { tunnel, seconds } => self.idle(tunnel, seconds, &mut words),
            Op::CloseIdle => {
                let closed = self.core.close_idle(&mut words);
                for tunnel in closed {
                    assert_eq!(self.used(tunnel), 0, "a tunnel in use is not closed");
                    self.tunnels.remove(&tunnel);
                }
                assert!(self.tunnels.keys().all(|tunnel| self.used(*tunnel) > 0), "the others are in use");
            }
        }
        self.hear(words, failing);
    }

    fn idle(&mut self, index: usize, seconds: u64, words: &mut Words) {
        self.now += Duration::from_secs(seconds);
        let Some(tunnel) = self.tunnel(index) else { return };
        let used = self.used(tunnel);
        match self.core.idle(tunnel, self.now, words) {
            Idle::Close => {
                assert_eq!(used, 0, "a tunnel in use is not closed");
                self.tunnels.remove(&tunnel);
            }
            Idle::Until(at) => assert!(at > self.now && at <= self.now + IDLE),
        }
    }

    fn check(&self) {
        let mut keys = BTreeSet::new();
        for key in 0..3u8 {
            let open: Vec<_> = self.tunnels.iter().filter(|(_, of)| of.0 == key && !of.2).collect();
            let waiting = self.waiting.values().filter(|of| **of == key).count();
            let room = open.iter().any(|(id, (_, max, _))| self.used(**id) < *max);
            let dialling = self.dialling.contains_key(&key);
            if waiting > 0 {
                assert!(!room, "nobody waits beside a free place");
                assert!(dialling || open.len() >= MAX_TUNNELS, "nobody waits for nothing");
            }
            if waiting > 0 || dialling || !open.is_empty() {
                keys.insert(key);
            }
        }
        let stats = self.core.stats();
        assert_eq!(stats.keys, keys.len(), "keys without anything are forgotten");
        assert_eq!(stats.waiting, self.waiting.len());
        assert_eq!(stats.tunnels, self.tunnels.len());
        let known = self.places.iter().filter(|place| self.tunnels.contains_key(place)).count();
        assert_eq!(stats.streams, known);
    }

    /// Everything ends: every dial succeeds generously, every stream ends, every tunnel closes.
    fn finish(mut self) {
        for _ in 0..10_000 {
            let op = if let Some(key) = self.dialling.keys().next() {
                Op::Dialled { key: *key, max: 100 }
            } else if !self.places.is_empty() {
                Op::Release(0)
            } else if !self.tunnels.is_empty() {
                Op::Gone(0)
            } else {
                break;
            };
            self.apply(&op);
            self.check();
        }
        assert_eq!(self.waiting, BTreeMap::new(), "every waiting stream was served in the end");
        assert_eq!(self.core.stats(), PoolStats::default(), "nothing is left");
    }
}

fn nth(map: &BTreeMap<Ticket, u8>, index: usize) -> Option<(Ticket, u8)> {
    let count = map.len();
    (count > 0).then(|| map.iter().nth(index % count).map(|(ticket, key)| (*ticket, *key))).flatten()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_history_breaks_the_pool(ops in proptest::collection::vec(op(), 0..120)) {
        let mut world = World::new();
        for op in &ops {
            world.apply(op);
            world.check();
        }
        world.finish();
    }
}

#[test]
fn a_waiter_that_was_told_to_dial_and_gives_up_passes_it_on() {
    let mut core = Core::new(&PoolLimits::default());
    let mut words = Words::new();
    let (Answer::Wait(first), Answer::Wait(second)) = (core.ask(&1, &mut words), core.ask(&1, &mut words))
    else {
        panic!("there is no tunnel");
    };
    assert_eq!(std::mem::take(&mut words), [(first, Word::Dial)]);
    core.cancel(&1, first, &mut words);
    assert_eq!(words, [(second, Word::Dial)]);
    assert_eq!(core.begin_dial(&1, first, &mut 1), Turn::Over);
    assert_eq!(core.begin_dial(&1, second, &mut 0), Turn::Declined);
    assert_eq!(core.begin_dial(&1, second, &mut 1), Turn::Begun);
}

#[test]
fn a_turn_to_dial_is_over_when_a_place_comes_free_first() {
    let mut core = Core::new(&PoolLimits::default());
    let (mut words, now) = (Words::new(), Instant::now());
    let (Answer::Wait(first), Answer::Wait(second)) = (core.ask(&1, &mut words), core.ask(&1, &mut words))
    else {
        panic!("there is no tunnel");
    };
    assert_eq!(core.begin_dial(&1, first, &mut 1), Turn::Begun);
    words.clear();
    let tunnel = core.dialled(&1, 1, now, &mut words);
    assert_eq!(std::mem::take(&mut words), [(first, Word::Use(tunnel)), (second, Word::Dial)]);
    core.released(tunnel, now, &mut words);
    assert_eq!(words, [(second, Word::Use(tunnel))]);
    let mut left = 1;
    assert_eq!(core.begin_dial(&1, second, &mut left), Turn::Over);
    assert_eq!(left, 1, "it has not dialled");
}
