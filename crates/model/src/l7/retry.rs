//! When to try a request again: what may be, by what is known of the attempt, and how often, by what was spent.
//!
//! Owns no timer, no body and no choice of an endpoint; who tries again excludes those that it tried.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::l7::request::Headers;

/// What a rule wants tried again, beyond failures before which nothing was sent: those are always tried elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Retry {
    /// How often, after the first attempt. At least 1.
    pub attempts: u32,
    /// The shortest wait before an attempt; doubled for each further one, with jitter. `None`: the proxy's own.
    pub backoff: Option<Duration>,
    /// Statuses of responses that are tried again.
    pub statuses: BTreeSet<u16>,
    /// gRPC codes of responses that are tried again, as long as no message was sent on to the client.
    pub grpc_codes: BTreeSet<u32>,
}

/// How many retries there may be, in relation to requests (GEP-3388).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RetryBudget {
    /// Retries per hundred requests of the last `interval`.
    pub percent: u32,
    /// What is looked back at.
    pub interval: Duration,
    /// So many retries per `min_interval` are allowed in any case.
    pub min_retries: u32,
    /// See `min_retries`.
    pub min_interval: Duration,
}

impl Default for RetryBudget {
    /// GEP-3388's: a fifth of the requests of 10 s, and 10 each second anyway.
    fn default() -> Self {
        Self {
            percent: 20,
            interval: Duration::from_secs(10),
            min_retries: 10,
            min_interval: Duration::from_secs(1),
        }
    }
}

/// How often a request goes elsewhere where no rule says so, after attempts that the application never saw. Two more
/// endpoints: if these refuse as well, the fault is seldom the endpoints'.
pub const SAFE_RETRIES: u32 = 2;

/// The longest wait that a server may ask for. A response that asks for more goes to the client, who can wait better.
pub const MAX_PUSHBACK: Duration = Duration::from_secs(10);

/// The longest of the growing waits, as a multiple of the first (as Envoy has it).
const MAX_BACKOFF_FACTOR: u32 = 10;

/// The first wait where a rule asks for retries and names none (as Envoy has it).
const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The time for one attempt was up.
    Deadline,
    /// The gRPC code of a response that has no message, in its header or its trailers.
    Grpc(u32),
    /// The connection broke before anything of the response came.
    Lost {
        /// It had served other requests before: it may have been closing already.
        reused: bool,
    },
    /// No byte of the request was sent: no connection, or no TLS.
    NotSent,
    /// Our own limits refused it. Trying again would add to what they are there for.
    Overload,
    /// It broke after something of the response was sent on.
    Started,
    /// The status of a response.
    Status(u16),
    /// The server says that it did nothing: REFUSED_STREAM, or a GOAWAY that leaves this stream out.
    Unprocessed,
}

/// An attempt that failed.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// How.
    pub failure: Failure,
    /// The request's method.
    pub method: &'a str,
    /// All of the body that was sent is still at hand.
    pub replayable: bool,
    /// How many attempts were made, this one included.
    pub made: u32,
    /// What the server asked for.
    pub pushback: Pushback,
}

/// What a response says about trying again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Pushback {
    /// Not before so long.
    After(Duration),
    /// Not at all.
    Never,
    /// Nothing.
    #[default]
    None,
}

impl Pushback {
    /// Reads `grpc-retry-pushback-ms` (gRFC A6) or else `retry-after` in seconds (RFC 9110, section 10.2.3). A date there
    /// says nothing here: there is no clock to compare it with.
    #[must_use]
    pub fn of(response: &dyn Headers) -> Self {
        if let Some(text) = response.first("grpc-retry-pushback-ms") {
            // What is no number means the same as a negative one.
            return text
                .trim()
                .parse()
                .map_or(Self::Never, |millis| Self::After(Duration::from_millis(millis)));
        }
        let seconds = response.first("retry-after").and_then(|text| text.trim().parse().ok());
        seconds.map_or(Self::None, |seconds| Self::After(Duration::from_secs(seconds)))
    }
}

/// Whether to try again, and after what wait; `random` is uniform over all of `u64`. The budget is asked apart.
#[must_use]
pub fn again(retry: Option<&Retry>, attempt: &Attempt<'_>, random: u64) -> Option<Duration> {
    let Attempt { failure, method, replayable, made, pushback } = *attempt;
    let asked_for = match failure {
        Failure::NotSent | Failure::Unprocessed => true,
        Failure::Lost { reused } => idempotent(method) && (reused || retry.is_some()),
        Failure::Deadline => retry.is_some(),
        Failure::Status(status) => retry.is_some_and(|retry| retry.statuses.contains(&status)),
        Failure::Grpc(code) => retry.is_some_and(|retry| retry.grpc_codes.contains(&code)),
        Failure::Overload | Failure::Started => false,
    };
    let unseen = matches!(failure, Failure::NotSent | Failure::Unprocessed | Failure::Lost { .. });
    let allowed = retry.map_or(0, |retry| retry.attempts).max(if unseen { SAFE_RETRIES } else { 0 });
    let least = match pushback {
        Pushback::Never => return None,
        Pushback::After(wait) if wait > MAX_PUSHBACK => return None,
        Pushback::After(wait) => wait,
        Pushback::None => Duration::ZERO,
    };
    // Elsewhere at once the first time, where nobody was bothered.
    let at_once = unseen && made <= 1;
    let wait = if at_once { Duration::ZERO } else { backoff(retry, made, random) };
    (asked_for && replayable && made <= allowed).then_some(wait.max(least))
}

/// Methods of which two requests have the effect of one (RFC 9110, section 9.2.2).
fn idempotent(method: &str) -> bool {
    ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"].contains(&method)
}

/// Twice as long for each attempt, up to a limit, and up to half as long again, so that those who failed together do not
/// come back together. Never less than what the rule says.
fn backoff(retry: Option<&Retry>, made: u32, random: u64) -> Duration {
    let first = retry.and_then(|retry| retry.backoff).unwrap_or(DEFAULT_BACKOFF);
    let factor = 1_u32.checked_shl(made.saturating_sub(1)).unwrap_or(u32::MAX).clamp(1, MAX_BACKOFF_FACTOR);
    let wait = first.saturating_mul(factor);
    let jitter = u32::try_from(random >> 48).expect("16 bits");
    wait.saturating_add((wait / 2 / (1 << 16)).saturating_mul(jitter))
}

/// What was spent on retries of one service, by all threads. Times are since any one moment.
#[derive(Debug)]
pub struct RetryLedger {
    budget: RetryBudget,
    requests: Ring,
    retries: Ring,
    /// The retries again, over the interval of the least rate.
    recent: Ring,
}

impl RetryLedger {
    /// Nothing spent yet.
    #[must_use]
    pub fn new(budget: RetryBudget) -> Self {
        Self {
            requests: Ring::new(budget.interval),
            retries: Ring::new(budget.interval),
            recent: Ring::new(budget.min_interval),
            budget,
        }
    }

    /// Notes a request (not a retry of one).
    pub fn request(&self, now: Duration) {
        self.requests.add(now);
    }

    /// Takes one retry, if there is one left. Threads that ask at the same moment may take one more each than there are.
    #[must_use]
    pub fn spend(&self, now: Duration) -> bool {
        let share = self.requests.sum(now).saturating_mul(self.budget.percent.into()) / 100;
        let left = self.retries.sum(now) < share || self.recent.sum(now) < self.budget.min_retries.into();
        if left {
            self.retries.add(now);
            self.recent.add(now);
        }
        left
    }
}

/// Parts of a window. Ten forget a tenth of it at a time: exact enough, and one cache line or two.
const SLOTS: usize = 10;

/// A count over a moving window. Each slot has the number of its part of time in the upper half, and a count in the lower.
#[derive(Debug)]
struct Ring {
    width: Duration,
    slots: [AtomicU64; SLOTS],
}

impl Ring {
    fn new(window: Duration) -> Self {
        let width = (window / u32::try_from(SLOTS).expect("few")).max(Duration::from_nanos(1));
        Self { width, slots: Default::default() }
    }

    /// Which part of time it is, from 1: slots that were never used are of part 0, which is always over.
    fn part(&self, now: Duration) -> u64 {
        let part = now.as_nanos() / self.width.as_nanos() + SLOTS as u128;
        u64::from(u32::try_from(part).unwrap_or(u32::MAX))
    }

    fn add(&self, now: Duration) {
        let part = self.part(now);
        let slot = &self.slots[usize::try_from(part % SLOTS as u64).expect("few")];
        // Nothing else is published with a count, so no order is needed. A slot of a part before this one is over; one of a
        // part after it belongs to a thread that looked at the clock later.
        let next = |packed: u64| if packed >> 32 >= part { packed.wrapping_add(1) } else { part << 32 | 1 };
        let updated = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| Some(next(packed)));
        debug_assert!(updated.is_ok(), "the closure always has a next value");
    }

    fn sum(&self, now: Duration) -> u64 {
        let first = self.part(now) - (SLOTS as u64 - 1);
        let packed = self.slots.iter().map(|slot| slot.load(Ordering::Relaxed));
        packed.filter(|packed| packed >> 32 >= first).map(|packed| packed & u64::from(u32::MAX)).sum()
    }
}
