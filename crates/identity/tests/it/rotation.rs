//! The rotation core under virtual time: tables for what it should do, random histories for what it never may.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use identity::rotation::{Config, Next, Now, Priority, Rotation};
use model::identity::Identity;
use proptest::prelude::*;

use crate::support::{DAY, HOUR, MINUTE, epoch, shop};

const SECOND: Duration = Duration::from_secs(1);

/// A rotation with its two clocks.
struct World {
    rotation: Rotation,
    now: Now,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            rotation: Rotation::new(Config::default(), seed),
            now: Now { wall: epoch(), uptime: Duration::ZERO },
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now = Now { wall: self.now.wall + time, uptime: self.now.uptime + time };
    }

    fn want(&mut self, account: &str, priority: Priority) {
        self.rotation.want(shop(account), priority, self.now);
    }

    fn poll(&mut self) -> Next {
        self.rotation.poll(self.now)
    }

    /// Everything that may start now, in order.
    fn starts(&mut self) -> Vec<Identity> {
        std::iter::from_fn(|| match self.poll() {
            Next::Sign(identity) => Some(identity),
            Next::Wait(_) => None,
        })
        .collect()
    }

    fn signed(&mut self, account: &str, life: Duration) -> bool {
        self.rotation.signed(&shop(account), self.now.wall + life, self.now)
    }

    fn failed(&mut self, account: &str) {
        self.rotation.failed(&shop(account), self.now);
    }

    fn wait(&mut self) -> Duration {
        let next = self.poll();
        let Next::Wait(Some(wait)) = next else { panic!("expected a timer, got {next:?}") };
        wait
    }

    /// One identity that fails `times` times, each attempt as early as the core allows.
    fn fail_often(&mut self, account: &str, times: usize) -> Vec<Duration> {
        self.want(account, Priority::WarmUp);
        let mut pauses = Vec::new();
        for _ in 0..times {
            assert_eq!(self.starts(), [shop(account)]);
            self.failed(account);
            let pause = self.wait();
            pauses.push(pause);
            self.pass(pause);
        }
        pauses
    }
}

#[test]
fn a_certificate_is_renewed_around_half_of_its_life() {
    let mut renewals = BTreeSet::new();
    for seed in 0..50 {
        let mut world = World::new(seed);
        world.want("a", Priority::WarmUp);
        assert_eq!(world.poll(), Next::Sign(shop("a")));
        assert!(world.signed("a", DAY));
        let wait = world.wait();
        assert!(wait >= DAY.mul_f64(0.45) && wait <= DAY.mul_f64(0.55), "{wait:?}");
        renewals.insert(wait);
        world.pass(wait - SECOND);
        assert_eq!(world.poll(), Next::Wait(Some(SECOND)));
        world.pass(SECOND);
        assert_eq!(world.poll(), Next::Sign(shop("a")));
    }
    assert!(renewals.len() > 40, "nodes that started together drift apart");
}

#[test]
fn the_same_seed_decides_the_same() {
    assert_eq!(World::new(7).fail_often("a", 10), World::new(7).fail_often("a", 10));
    assert_ne!(World::new(7).fail_often("a", 10), World::new(8).fail_often("a", 10));
}

#[test]
fn pauses_double_with_jitter_up_to_a_limit() {
    for seed in 0..20 {
        let pauses = World::new(seed).fail_often("a", 12);
        for (failures, pause) in pauses.iter().enumerate() {
            let full = (Duration::from_millis(500) * 2u32.pow(failures as u32)).min(MINUTE);
            assert!(*pause >= full / 2 && *pause <= full, "after {failures} failures: {pause:?} of {full:?}");
        }
    }
}

#[test]
fn a_waiting_connection_cuts_a_pause_short_but_not_below_a_second() {
    let mut world = World::new(1);
    world.fail_often("a", 12);
    assert_eq!(world.starts(), [shop("a")]);
    world.failed("a");
    assert!(world.wait() > 20 * SECOND);
    world.want("a", Priority::RealTime);
    assert_eq!(world.poll(), Next::Wait(Some(SECOND)));
    world.pass(SECOND);
    assert_eq!(world.poll(), Next::Sign(shop("a")));
    // The hurry was for one attempt; whoever still waits says so again.
    world.failed("a");
    assert!(world.wait() > 20 * SECOND);
}

#[test]
fn the_more_urgent_goes_first_and_within_that_the_earlier() {
    let mut world = World::new(1);
    for account in ["z", "b"] {
        world.want(account, Priority::WarmUp);
    }
    world.want("r", Priority::RealTime);
    world.want("a", Priority::Background);
    world.want("b", Priority::Background);
    world.want("y", Priority::RealTime);
    assert_eq!(world.starts(), ["r", "y", "z", "b", "a"].map(shop));
}

#[test]
fn two_of_eight_slots_are_kept_for_waiting_connections() {
    let mut world = World::new(1);
    for n in 0..20 {
        world.want(&format!("w{n}"), Priority::WarmUp);
    }
    assert_eq!(world.starts().len(), 6);
    assert_eq!(world.poll(), Next::Wait(None), "an answer frees a slot, not a timer");
    for n in 15..20 {
        world.want(&format!("w{n}"), Priority::RealTime);
    }
    assert_eq!(world.starts(), [shop("w15"), shop("w16")]);
    world.failed("w15");
    assert_eq!(world.starts(), [shop("w17")]);
}

#[test]
fn a_renewal_that_fails_keeps_the_certificate_until_it_expires() {
    let mut world = World::new(1);
    world.want("a", Priority::WarmUp);
    world.starts();
    assert!(world.signed("a", DAY));
    world.pass(DAY.mul_f64(0.55));
    while world.now.wall < epoch() + DAY {
        assert!(world.rotation.holds_good(&shop("a"), world.now));
        assert_eq!(world.starts(), [shop("a")]);
        world.failed("a");
        let pause = world.wait();
        world.pass(pause);
    }
    assert!(!world.rotation.holds_good(&shop("a"), world.now));
    // The CA is back: the next attempt comes within the longest pause, and at once for whoever waits.
    assert_eq!(world.starts(), [shop("a")]);
    assert!(world.signed("a", DAY));
    assert!(world.rotation.holds_good(&shop("a"), world.now));
}

#[test]
fn what_was_forgotten_while_in_flight_is_dropped() {
    let mut world = World::new(1);
    world.want("a", Priority::WarmUp);
    world.starts();
    world.rotation.forget(&shop("a"));
    assert!(!world.rotation.wants(&shop("a")));
    assert!(!world.signed("a", DAY), "the answer must not be used");
    assert_eq!(world.poll(), Next::Wait(None));
}

#[test]
fn what_was_forgotten_and_wanted_again_is_not_asked_for_twice() {
    let mut world = World::new(1);
    world.want("a", Priority::WarmUp);
    world.starts();
    world.rotation.forget(&shop("a"));
    world.want("a", Priority::RealTime);
    assert_eq!(world.poll(), Next::Wait(None), "one request is in flight already");
    assert!(world.signed("a", DAY), "and its answer will do");
}

#[test]
fn a_wall_clock_that_jumps_neither_stalls_nor_spins() {
    let mut world = World::new(1);
    world.want("a", Priority::WarmUp);
    world.starts();
    assert!(world.signed("a", DAY));
    // Back by a year: renewed all the same, when half of the life has passed on the other clock.
    world.now.wall -= 365 * DAY;
    assert!(world.wait() <= DAY.mul_f64(0.55));
    // Forward by a year: due at once, once.
    world.now.wall += 2 * 365 * DAY;
    assert_eq!(world.starts(), [shop("a")]);
    // A CA whose clock lags grants what has expired already: asked again after a second, not at once.
    assert!(world.rotation.signed(&shop("a"), epoch(), world.now));
    assert_eq!(world.poll(), Next::Wait(Some(SECOND)));
}

/// What happens in a random history.
#[derive(Clone, Debug)]
enum Event {
    Want(u8, Priority),
    Forget(u8),
    /// The n-th request in flight ends.
    Answer(u8, bool),
    Pass(Duration),
    Jump(bool, Duration),
}

fn event() -> impl Strategy<Value = Event> {
    let priority = prop_oneof![Just(Priority::Background), Just(Priority::WarmUp), Just(Priority::RealTime)];
    let time = prop_oneof![0u64..2_000, 0u64..120_000, 0u64..100_000_000].prop_map(Duration::from_millis);
    prop_oneof![
        4 => (0u8..24, priority).prop_map(|(who, priority)| Event::Want(who, priority)),
        1 => (0u8..24).prop_map(Event::Forget),
        6 => (any::<u8>(), any::<bool>()).prop_map(|(which, ok)| Event::Answer(which, ok)),
        4 => time.clone().prop_map(Event::Pass),
        1 => (any::<bool>(), time).prop_map(|(forward, by)| Event::Jump(forward, by)),
    ]
}

/// A naive bookkeeper of the same history.
#[derive(Default)]
struct Ledger {
    wanted: BTreeSet<Identity>,
    flying: Vec<Identity>,
    last_failure: std::collections::BTreeMap<Identity, Duration>,
}

impl Ledger {
    fn started(&mut self, identity: Identity, uptime: Duration) {
        assert!(self.wanted.contains(&identity), "{identity} is not wanted");
        assert!(!self.flying.contains(&identity), "{identity} is in flight already");
        if let Some(end) = self.last_failure.get(&identity) {
            let least = Duration::from_millis(250);
            assert!(uptime >= *end + least, "{identity} is asked for without a pause");
        }
        self.flying.push(identity);
        assert!(self.flying.len() <= Config::default().concurrency, "too many in flight");
    }
}

proptest! {
    #[test]
    fn no_history_breaks_the_rules(seed: u64, events in proptest::collection::vec(event(), 1..200)) {
        let mut world = World::new(seed);
        let mut ledger = Ledger::default();
        for event in events {
            match event {
                Event::Want(who, priority) => {
                    world.want(&who.to_string(), priority);
                    ledger.wanted.insert(shop(&who.to_string()));
                }
                Event::Forget(who) => {
                    let identity = shop(&who.to_string());
                    world.rotation.forget(&identity);
                    ledger.wanted.remove(&identity);
                    if !ledger.flying.contains(&identity) {
                        ledger.last_failure.remove(&identity);
                    }
                }
                Event::Answer(which, ok) if !ledger.flying.is_empty() => {
                    let identity = ledger.flying.remove(usize::from(which) % ledger.flying.len());
                    answer(&mut world, &mut ledger, &identity, ok);
                }
                Event::Answer(..) => {}
                Event::Pass(time) => world.pass(time),
                Event::Jump(true, by) => world.now.wall += by,
                Event::Jump(false, by) => world.now.wall -= by,
            }
            for identity in world.starts() {
                ledger.started(identity, world.now.uptime);
            }
            prop_assert!(world.rotation.wanted().eq(ledger.wanted.iter()));
        }
        settle(&mut world, &mut ledger);
    }
}

fn answer(world: &mut World, ledger: &mut Ledger, identity: &Identity, ok: bool) {
    let wanted = ledger.wanted.contains(identity);
    if ok {
        let not_after: SystemTime = world.now.wall + HOUR;
        assert_eq!(world.rotation.signed(identity, not_after, world.now), wanted, "{identity}");
        assert_eq!(world.rotation.holds_good(identity, world.now), wanted);
    } else {
        let before = world.rotation.holds_good(identity, world.now);
        world.rotation.failed(identity, world.now);
        assert_eq!(world.rotation.holds_good(identity, world.now), before, "a failure changes nothing held");
    }
    ledger.last_failure.remove(identity);
    if wanted && !ok {
        ledger.last_failure.insert(identity.clone(), world.now.uptime);
    }
}

/// The CA answers everything from now on: within the longest pause, all that is wanted holds a certificate.
fn settle(world: &mut World, ledger: &mut Ledger) {
    let deadline = world.now.uptime + MINUTE;
    loop {
        while let Some(identity) = ledger.flying.pop() {
            answer(world, ledger, &identity, true);
        }
        for identity in world.starts() {
            ledger.started(identity, world.now.uptime);
        }
        if !ledger.flying.is_empty() {
            continue;
        }
        let missing: Vec<_> =
            ledger.wanted.iter().filter(|it| !world.rotation.holds_good(it, world.now)).collect();
        if missing.is_empty() {
            return;
        }
        let Next::Wait(Some(wait)) = world.poll() else {
            panic!("no timer although {missing:?} lack certificates")
        };
        world.pass(wait);
        assert!(world.now.uptime <= deadline, "{missing:?} still lack certificates");
    }
}
