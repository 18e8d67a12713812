//! The attempts at one request: which endpoint, over which connection, and whether once more when one has failed.
//!
//! Reads and writes nothing of a protocol.

use std::time::Duration;

use model::l7::{self, Attempt, Headers, Pushback};
use tokio::time::Instant;

use super::exchange::OneRequest;
use super::revoked::Judged;
use crate::balance::{Lease, Outcome};
use crate::data::upstream::pool::{Carrier, Key, key};
use crate::data::upstream::{self, ATTEMPTS, Aimed, choice};
use crate::decide::{AnyRequest, AnyResponse, Failed, Failure, is_grpc};
use crate::refusal::Refusal;

/// The codes with which gRPC servers say that they have too much to do, or can't for now.
const RESOURCE_EXHAUSTED: u32 = 8;
const UNAVAILABLE: u32 = 14;

/// A request that was sent, or is about to be.
pub(super) struct UnderWay {
    pub(super) key: Key,
    pub(super) lease: Option<Lease>,
    pub(super) since: Instant,
    /// By which policies its client is let through.
    pub(super) judged: Judged,
}

impl<U: Carrier> OneRequest<U> {
    /// Whether to try again after an attempt that failed, and after what wait.
    pub(super) fn again(&mut self, request: &dyn AnyRequest, failed: &Failed) -> Option<Duration> {
        let under_way = self.under_way.take()?;
        let outcome = match failed.failure {
            Failure::Status(_) => Outcome::Abandoned,
            _ if failed.stale => Outcome::Abandoned,
            // It may be well, and slower than the rule has patience for; or it has answered, though not as it should.
            Failure::Timeout | Failure::Reset(_) => Outcome::Answered(under_way.since.elapsed()),
            Failure::Refused => Outcome::Overloaded(None),
            Failure::Closed | Failure::Io(_) | Failure::Malformed(_) | Failure::Unasked => {
                Outcome::Unreachable
            }
        };
        self.ended(under_way.lease, outcome);
        if failed.is_free(request) {
            self.made -= 1;
            return Some(Duration::ZERO);
        }
        let (endpoint, ..) = under_way.key;
        self.tried.push(endpoint);
        let failure = match failed.failure {
            Failure::Status(_) => return self.wait.take(),
            Failure::Closed | Failure::Io(_) if failed.unsent => l7::Failure::NotSent,
            Failure::Closed | Failure::Io(_) => l7::Failure::Lost { reused: failed.stale },
            Failure::Refused => l7::Failure::Unprocessed,
            Failure::Reset(_) => l7::Failure::Lost { reused: false },
            Failure::Timeout => l7::Failure::Deadline,
            Failure::Malformed(_) | Failure::Unasked => return None,
        };
        let replayable = failed.again;
        self.granted(&Attempt {
            failure,
            method: request.method(),
            replayable,
            made: self.made,
            pushback: Pushback::None,
        })
    }

    /// The wait before another attempt, if the rule wants one and the budget has one left.
    fn granted(&self, attempt: &Attempt<'_>) -> Option<Duration> {
        let rule = self.rule.as_ref()?;
        let wait = l7::again(rule.retry.as_ref(), attempt, fastrand::u64(..))?;
        let spent = || self.ledger.as_ref().is_some_and(|ledger| ledger.spend(self.context.shared.since()));
        (!self.is_late(wait) && spent()).then_some(wait)
    }

    /// A connection to an endpoint; one that is kept, unless a fresh one is wanted.
    pub(super) async fn reach(&mut self, fresh: bool) -> Result<U, Refusal> {
        let mut failures = 0;
        let judged = Judged::begin(&self.context.revocations);
        loop {
            let found = self.endpoint();
            let (aimed, lease) = match found {
                Err(Refusal::NoRoute(_)) if !self.tried.is_empty() && self.turn() => continue,
                // Who has only endpoints that failed gets another chance at one of them, when the rule asks for it.
                Err(Refusal::NoRoute(_)) if failures == 0 && !self.tried.is_empty() => {
                    self.tried.clear();
                    self.endpoint()?
                }
                found => found?,
            };
            let target = &aimed.target;
            self.note(|| format!("endpoint {} at {}", target.workload.name, target.app));
            upstream::aim(&self.context, target, &mut self.facts)?;
            match U::reach(&self.context, &aimed, &mut self.facts, fresh).await {
                Ok(upstream) => {
                    let key = key(&aimed);
                    self.under_way = Some(UnderWay { key, lease, since: Instant::now(), judged });
                    return Ok(upstream);
                }
                Err(refusal) if refusal.is_endpoints_fault() => {
                    self.note(|| format!("it is not reached: {refusal}"));
                    self.ended(lease, Outcome::Unreachable);
                    self.tried.push(target.workload.uid.clone());
                    failures += 1;
                    if failures >= ATTEMPTS || !(target.alternatives || self.turn()) {
                        return Err(refusal);
                    }
                }
                Err(refusal) => return Err(refusal),
            }
        }
    }

    fn endpoint(&self) -> Result<(Aimed, Option<Lease>), Refusal> {
        choice::endpoint(&self.context, (&self.asked, &self.facts), self.how, &self.tried)
    }

    fn ended(&self, lease: Option<Lease>, outcome: Outcome) {
        if let Some(lease) = lease {
            lease.ended(outcome, self.context.shared.now());
        }
    }

    /// Learns from a response, and says whether it is to be dropped and asked for again.
    pub(super) fn refuses(
        &mut self,
        request: &dyn AnyRequest,
        response: &dyn AnyResponse,
        again: bool,
    ) -> bool {
        let grpc = response.grpc_status().filter(|_| is_grpc(request));
        if let Some(under_way) = &mut self.under_way {
            let now = Instant::now();
            let outcome = match (response.status(), grpc) {
                (429 | 503, _) | (_, Some(RESOURCE_EXHAUSTED | UNAVAILABLE)) => {
                    Outcome::Overloaded(retry_after(response))
                }
                _ => Outcome::Answered(now - under_way.since),
            };
            // It goes on counting as under way until the request is over.
            if let Some(lease) = &under_way.lease {
                lease.state().learn(outcome, self.context.shared.at(now));
            }
        }
        let attempt = Attempt {
            failure: grpc.map_or(l7::Failure::Status(response.status()), l7::Failure::Grpc),
            method: request.method(),
            replayable: again,
            made: self.made,
            pushback: Pushback::of(response),
        };
        self.wait = self.granted(&attempt);
        self.wait.is_some()
    }
}

/// How long an endpoint asks to be left alone, in its seconds; a date is not understood, and then the usual time counts.
fn retry_after(response: &dyn Headers) -> Option<Duration> {
    let seconds = response.first("retry-after")?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
