//! When to ask for which certificate: half life, back-off, priorities, a bound on concurrency.
//!
//! A pure core: it is told the time and answers what to do. It signs nothing, holds no certificate, and sleeps never.
//! What it decides from a seed it decides the same way every time.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use model::identity::Identity;

/// The time, twice: certificates live by the wall clock, which may jump; retries live by a clock that does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The wall clock.
    pub wall: SystemTime,
    /// Time since an arbitrary start, never going back.
    pub uptime: Duration,
}

/// How urgent a certificate is. A higher one goes first; within one, first come, first served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A renewal while the present certificate is still good.
    Background,
    /// A workload has appeared, and will need it soon.
    WarmUp,
    /// A connection is waiting.
    RealTime,
}

/// The numbers of a rotation. [`Config::default`] is what production uses.
#[derive(Clone, Debug)]
pub struct Config {
    /// Requests in flight at most.
    pub concurrency: usize,
    /// How many of them only real-time requests may use.
    pub reserved: usize,
    /// The pause after a first failure; it doubles with each further one.
    pub backoff_min: Duration,
    /// The longest pause.
    pub backoff_max: Duration,
    /// The pause that a real-time request cannot cut short.
    pub hurry: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            // Enough to fill a CA's pipe from one node, few enough that a thousand nodes do not flood it at once.
            concurrency: 8,
            // Eight renewals that hang until their deadline must not keep a waiting connection from being tried.
            reserved: 2,
            backoff_min: Duration::from_millis(500),
            // A CA that was away for long is found again within a minute, also when no connection waits for it.
            backoff_max: Duration::from_secs(60),
            // A waiting connection may press for an attempt each second: noticed by people, harmless for a CA.
            hurry: Duration::from_secs(1),
        }
    }
}

/// What the shell should do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Ask for this certificate, then report [`Rotation::signed`] or [`Rotation::failed`]; and poll again at once.
    Sign(Identity),
    /// Poll again after this time, or when anything was called. `None`: only when anything was called.
    Wait(Option<Duration>),
}

/// A certificate is renewed at half of its life, give or take this part of it: the certificates that a restart or an
/// outage made at the same moment drift apart by a tenth of their life with each renewal.
const JITTER: f64 = 0.05;

/// Renewals of one identity are at least this far apart, whatever validity the CA grants.
const RENEWAL_MIN: Duration = Duration::from_secs(1);

/// The state of all wanted identities.
#[derive(Debug)]
pub struct Rotation {
    config: Config,
    random: fastrand::Rng,
    entries: BTreeMap<Identity, Entry>,
    in_flight: usize,
    turns: u64,
}

#[derive(Debug)]
struct Entry {
    phase: Phase,
    priority: Priority,
    /// False for what was forgotten while its request is in flight: the entry stays until the answer is in.
    wanted: bool,
    /// When it entered its phase, counted in turns: first come, first served.
    turn: u64,
    failures: u32,
    /// When the certificate in use expires.
    not_after: Option<SystemTime>,
}

#[derive(Debug)]
enum Phase {
    /// Waits for a free slot.
    Due,
    InFlight,
    /// Waits after a failure. A real-time request may go from `hurry` on.
    BackingOff {
        hurry: Duration,
        until: Duration,
    },
    /// Has a certificate. Both clocks are watched, so that a wall clock set back does not put the renewal off.
    Holding {
        renew_at: SystemTime,
        renew_by: Duration,
    },
}

impl Phase {
    /// How long until a request may start; zero if now, `None` if time alone changes nothing.
    fn wait(&self, priority: Priority, now: Now) -> Option<Duration> {
        match self {
            Self::Due => Some(Duration::ZERO),
            Self::InFlight => None,
            Self::BackingOff { hurry, until } => {
                let from = if priority == Priority::RealTime { hurry.min(until) } else { until };
                Some(from.saturating_sub(now.uptime))
            }
            Self::Holding { renew_at, renew_by } => {
                let wall = renew_at.duration_since(now.wall).unwrap_or(Duration::ZERO);
                Some(wall.min(renew_by.saturating_sub(now.uptime)))
            }
        }
    }
}

impl Rotation {
    /// Nothing wanted yet. `seed` decides all jitter.
    pub fn new(config: Config, seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { config, random, entries: BTreeMap::new(), in_flight: 0, turns: 0 }
    }

    /// Keep a certificate for `identity` from now on. Saying it again changes nothing, except that a higher priority
    /// counts until the next attempt has ended; it is ignored while a good certificate is held.
    pub fn want(&mut self, identity: Identity, priority: Priority, now: Now) {
        let turn = self.turn();
        let entry = self.entries.entry(identity).or_insert(Entry {
            phase: Phase::Due,
            priority,
            wanted: true,
            turn,
            failures: 0,
            not_after: None,
        });
        entry.wanted = true;
        let served = matches!(entry.phase, Phase::Holding { .. }) && entry.holds_good(now);
        if !served {
            entry.priority = entry.priority.max(priority);
        }
    }

    /// Stop caring. A request in flight is let run, its answer dropped.
    pub fn forget(&mut self, identity: &Identity) {
        if let Some(entry) = self.entries.get_mut(identity) {
            entry.wanted = false;
            if !matches!(entry.phase, Phase::InFlight) {
                self.entries.remove(identity);
            }
        }
    }

    /// What to do now. Never asks for an identity whose last request was not answered.
    pub fn poll(&mut self, now: Now) -> Next {
        let best = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.wait(now) == Some(Duration::ZERO) && self.has_slot(entry.priority))
            .max_by_key(|(_, entry)| (entry.priority, std::cmp::Reverse(entry.turn)))
            .map(|(identity, _)| identity.clone());
        let Some(identity) = best else {
            // What is due and only lacks a slot needs no timer: an answer frees the slot.
            let waits = self.entries.values().filter_map(|entry| entry.wait(now));
            return Next::Wait(waits.filter(|wait| !wait.is_zero()).min());
        };
        if let Some(entry) = self.entries.get_mut(&identity) {
            entry.phase = Phase::InFlight;
            self.in_flight += 1;
        }
        Next::Sign(identity)
    }

    /// A certificate was obtained. False: it was forgotten meanwhile, and must not be used.
    #[must_use]
    pub fn signed(&mut self, identity: &Identity, not_after: SystemTime, now: Now) -> bool {
        let life = not_after.duration_since(now.wall).unwrap_or(Duration::ZERO);
        let share = 0.5 - JITTER + 2.0 * JITTER * self.random.f64();
        let wait = life.mul_f64(share).max(RENEWAL_MIN);
        self.answered(identity, |entry, _| {
            entry.phase = Phase::Holding { renew_at: now.wall + wait, renew_by: now.uptime + wait };
            entry.not_after = Some(not_after);
            entry.priority = Priority::Background;
            entry.failures = 0;
        })
    }

    /// No certificate was obtained. The one in use stays in use; the next attempt backs off.
    pub fn failed(&mut self, identity: &Identity, now: Now) {
        let jitter = 0.5 + 0.5 * self.random.f64();
        let _: bool = self.answered(identity, |entry, config| {
            let doubled = config.backoff_min.saturating_mul(1 << entry.failures.min(20));
            let pause = doubled.min(config.backoff_max).mul_f64(jitter);
            entry.phase = Phase::BackingOff { hurry: now.uptime + config.hurry, until: now.uptime + pause };
            entry.failures = entry.failures.saturating_add(1);
            entry.priority = if entry.holds_good(now) { Priority::Background } else { Priority::WarmUp };
        });
    }

    /// Whether a certificate is held that has not expired.
    pub fn holds_good(&self, identity: &Identity, now: Now) -> bool {
        self.entries.get(identity).is_some_and(|entry| entry.wanted && entry.holds_good(now))
    }

    /// Whether `identity` is wanted.
    pub fn wants(&self, identity: &Identity) -> bool {
        self.entries.get(identity).is_some_and(|entry| entry.wanted)
    }

    /// All wanted identities, in order.
    pub fn wanted(&self) -> impl Iterator<Item = &Identity> {
        self.entries.iter().filter(|(_, entry)| entry.wanted).map(|(identity, _)| identity)
    }

    /// Frees the slot; applies `then` if the identity is still wanted, and says whether it is.
    fn answered(&mut self, identity: &Identity, then: impl FnOnce(&mut Entry, &Config)) -> bool {
        let turn = self.turn();
        let asked = self.entries.get_mut(identity).filter(|entry| matches!(entry.phase, Phase::InFlight));
        let entry = asked.expect("only what poll() said to sign is answered, once; it stays until then");
        self.in_flight -= 1;
        if !entry.wanted {
            self.entries.remove(identity);
            return false;
        }
        entry.turn = turn;
        then(entry, &self.config);
        true
    }

    fn has_slot(&self, priority: Priority) -> bool {
        let reserved = if priority == Priority::RealTime { 0 } else { self.config.reserved };
        self.in_flight < self.config.concurrency.saturating_sub(reserved)
    }

    fn turn(&mut self) -> u64 {
        self.turns += 1;
        self.turns
    }
}

impl Entry {
    fn wait(&self, now: Now) -> Option<Duration> {
        if self.wanted { self.phase.wait(self.priority, now) } else { None }
    }

    fn holds_good(&self, now: Now) -> bool {
        self.not_after.is_some_and(|not_after| now.wall < not_after)
    }
}
