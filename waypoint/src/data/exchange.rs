//! One request of HTTP/1.1 and its response: carries out what was planned, on endpoints of its own choice.
//!
//! Decides about attempts and their time; the protocol is `http1`'s, what the rules want `rules`'.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use model::l7::{self, Attempt, Pushback, RetryLedger, Rule, Session};
use model::route::{Behind, Target};
use model::workload::WorkloadUid;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::how::{self, How};
use super::io::{Io, TunnelIo};
use super::kept::Key;
use super::stream::Asked;
use super::upstream::{self, Upstream as Reached};
use super::{Context, opaque, requests};
use crate::balance::{Lease, Outcome};
use crate::http1::limits::REPLAY_BYTES_MAX;
use crate::http1::{
    Answer, Exchange, Failed, Failure, Forward, Next, Record, RequestEdits, RequestHead, ResponseHead,
    Upstream, Verdict,
};
use crate::refusal::Refusal;
use crate::rules::{Plan, Then, Way};
use crate::telemetry::Facts;

/// Endpoints tried for one request before anything of it was sent: two that fail are bad luck, three are an outage that a fourth
/// won't mend.
const ATTEMPTS: usize = 3;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// One request and its response.
pub(crate) struct OneRequest {
    context: Arc<Context>,
    asked: Arc<Asked>,
    facts: Facts,
    /// A fault's delay and what follows it, until it is carried out.
    delay: Option<Duration>,
    then: Option<Then>,
    /// Where it is sent, once it is.
    way: Box<Way>,
    how: How,
    rule: Option<Arc<Rule>>,
    ledger: Option<Arc<RetryLedger>>,
    /// When all of it has to be over.
    deadline: Option<Instant>,
    tried: Vec<WorkloadUid>,
    under_way: Option<UnderWay>,
    /// Attempts that were made.
    made: u32,
    /// How long to wait before the response that was just refused is asked for again.
    wait: Option<Duration>,
}

/// A request that was sent, or is about to be.
struct UnderWay {
    key: Key,
    lease: Option<Lease>,
    since: Instant,
}

impl OneRequest {
    /// A request that has arrived, and what is to become of it.
    pub(crate) fn begin(
        context: &Arc<Context>,
        asked: &Arc<Asked>,
        facts: Facts,
        (plan, request): (Plan, &RequestHead),
    ) -> Self {
        let Plan { delay, mut then, rule, ledger } = plan;
        if let Some(ledger) = &ledger {
            ledger.request(context.shared.since());
        }
        let how = match &mut then {
            Then::Forward(way) => how::of(way, request, &facts),
            Then::Abort | Then::Answer(_) => how::LEAST_LOAD,
        };
        let limit = rule.as_ref().and_then(|rule| rule.timeouts.request);
        Self {
            context: Arc::clone(context),
            asked: Arc::clone(asked),
            facts,
            delay,
            then: Some(then),
            way: Box::default(),
            how,
            rule,
            ledger,
            deadline: limit.map(|limit| Instant::now() + limit),
            tried: Vec::new(),
            under_way: None,
            made: 0,
            wait: None,
        }
    }

    /// Carries out what was planned, up to where it is sent; what we answer, if we do.
    async fn set_out(&mut self) -> Option<Next<Io>> {
        if let Some(delay) = self.delay.take() {
            let until = Instant::now() + delay;
            sleep_until(self.deadline.map_or(until, |deadline| deadline.min(until))).await;
            if self.is_late(Duration::ZERO) {
                return Some(Next::Answer(Answer::status(504)));
            }
        }
        match self.then.take() {
            Some(Then::Abort) => return Some(Next::Abort),
            Some(Then::Answer(answer)) => return Some(Next::Answer(answer)),
            Some(Then::Forward(way)) => self.way = way,
            None => return None,
        }
        let (name, port) = self.way.to.clone()?;
        let Some(service) = self.context.shared.mesh.snapshot().service_named(&name).cloned() else {
            tracing::debug!(backend = %name, "a rule's backend is not known");
            return Some(Next::Answer(Answer::status(500)));
        };
        let dialled = match &self.asked.behind {
            Behind::Service(asked, _, dialled) if asked.id == service.id => *dialled,
            Behind::Service(..) | Behind::Workload(..) => None,
        };
        self.facts.service = Some(Arc::clone(&service));
        let behind = Behind::Service(service, port, dialled);
        self.asked = Arc::new(Asked { local: Arc::clone(&self.asked.local), behind });
        None
    }

    /// Tells the client who it is with from now on, unless it knows.
    fn begin_session(&mut self) {
        let kept = self.rule.as_ref().and_then(|rule| rule.session.as_ref());
        let (Some(kept), Some(under_way), Behind::Service(service, ..)) =
            (kept, &self.under_way, &self.asked.behind)
        else {
            return;
        };
        let endpoint = &under_way.key.0;
        if self.way.session.is_some_and(|session| session.is_with(&service.id, endpoint)) {
            return;
        }
        let (name, value) = kept.begin(Session::with(&service.id, endpoint, requests::now()));
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(&value))
        {
            self.way.tell(name, value);
        }
    }

    /// Whether the time for the whole request is up, or will be after this wait.
    fn is_late(&self, wait: Duration) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() + wait >= deadline)
    }

    /// Whether to try again after an attempt that failed, and after what wait.
    fn again(&mut self, request: &RequestHead, failed: &Failed) -> Option<Duration> {
        let under_way = self.under_way.take()?;
        let outcome = match failed.failure {
            Failure::Status(_) => Outcome::Abandoned,
            _ if failed.stale => Outcome::Abandoned,
            // It may be well, and slower than the rule has patience for.
            Failure::Timeout => Outcome::Answered(under_way.since.elapsed()),
            Failure::Closed | Failure::Io(_) | Failure::Malformed(_) | Failure::Unasked => {
                Outcome::Unreachable
            }
        };
        self.ended(under_way.lease, outcome);
        if failed.is_free(request) {
            self.made -= 1;
            return Some(Duration::ZERO);
        }
        let (endpoint, _) = under_way.key;
        self.tried.push(endpoint);
        let failure = match failed.failure {
            Failure::Status(_) => return self.wait.take(),
            Failure::Closed | Failure::Io(_) if failed.unsent => l7::Failure::NotSent,
            Failure::Closed | Failure::Io(_) => l7::Failure::Lost { reused: failed.stale },
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
    async fn reach(&mut self, fresh: bool) -> Result<Upstream<Io>, Refusal> {
        let mut failures = 0;
        loop {
            let found = self.endpoint();
            let (target, lease) = match found {
                // Who has only endpoints that failed gets another chance at one of them, when the rule asks for it.
                Err(Refusal::NoRoute(_)) if failures == 0 && !self.tried.is_empty() => {
                    self.tried.clear();
                    self.endpoint()?
                }
                found => found?,
            };
            match self.connect(&target, fresh).await {
                Ok(upstream) => {
                    let key = (target.workload.uid.clone(), target.app.0);
                    self.under_way = Some(UnderWay { key, lease, since: Instant::now() });
                    return Ok(upstream);
                }
                Err(refusal) if refusal.is_endpoints_fault() => {
                    self.ended(lease, Outcome::Unreachable);
                    self.tried.push(target.workload.uid.clone());
                    failures += 1;
                    if failures >= ATTEMPTS || !target.alternatives {
                        return Err(refusal);
                    }
                }
                Err(refusal) => return Err(refusal),
            }
        }
    }

    fn endpoint(&self) -> Result<(Target, Option<Lease>), Refusal> {
        opaque::endpoint(&self.context, (&self.asked, &self.facts), self.how, &self.tried)
    }

    async fn connect(&mut self, target: &Target, fresh: bool) -> Result<Upstream<Io>, Refusal> {
        self.facts.destination.workload = Some(Arc::clone(&target.workload));
        self.facts.app = Some(target.app);
        if let Some(denial) = opaque::denied(&self.context, target, &self.facts) {
            return Err(denial.into());
        }
        let kept = (!fresh).then(|| self.context.kept.take(&(target.workload.uid.clone(), target.app.0)));
        if let Some(upstream) = kept.flatten() {
            return Ok(upstream);
        }
        let io = match upstream::connect(&self.context, target, &self.facts).await? {
            Reached::Tcp(tcp) => Io::Tcp(tcp),
            Reached::Tunnel(opened) => {
                self.facts.destination.identity = Some(opened.identity);
                Io::Tunnel(Box::new(TunnelIo::new(opened.stream, Vec::new())))
            }
        };
        Ok(Upstream::new(io))
    }

    fn ended(&self, lease: Option<Lease>, outcome: Outcome) {
        if let Some(lease) = lease {
            lease.ended(outcome, self.context.shared.now());
        }
    }

    /// Who the client is, as the endpoint's application hears it.
    fn edits(&self) -> RequestEdits {
        let mut edits = self.way.request.clone();
        let own = &self.context.shared.own.identity;
        let client = self.facts.source.identity.as_ref();
        let certificate = client.map(|client| format!("By={own};URI={client}"));
        // What the client wrote itself proves nothing.
        match certificate.and_then(|text| HeaderValue::from_str(&text).ok()) {
            Some(value) => edits.fields.set(CLIENT_CERT, value),
            None => edits.fields.remove(CLIENT_CERT),
        }
        if let Ok(address) = HeaderValue::from_str(&self.facts.client.0.ip().to_string()) {
            edits.fields.add(FORWARDED_FOR, address);
        }
        edits
    }
}

impl Exchange for OneRequest {
    type Io = Io;

    fn replay(&self) -> usize {
        let retries = self.rule.as_ref().is_some_and(|rule| rule.retry.is_some());
        if retries { REPLAY_BYTES_MAX } else { 0 }
    }

    async fn next(&mut self, request: &RequestHead, failed: Option<&Failed>) -> Next<Io> {
        match failed {
            None => {
                if let Some(over) = self.set_out().await {
                    return over;
                }
            }
            Some(failed) => match self.again(request, failed) {
                Some(wait) => sleep(wait).await,
                None => return Next::Answer(failed.answer()),
            },
        }
        self.made += 1;
        let each = self.rule.as_ref().and_then(|rule| rule.timeouts.backend_request);
        let limits = [self.deadline, each.map(|each| Instant::now() + each)];
        let limit = limits.into_iter().flatten().min();
        let stale = failed.is_some_and(|failed| failed.stale);
        let reached = match limit {
            Some(limit) => timeout_at(limit, self.reach(stale)).await,
            None => Ok(self.reach(stale).await),
        };
        match reached {
            Ok(Ok(upstream)) => {
                let edits = self.edits();
                Next::Forward(Forward { upstream, edits, respond_by: limit, complete_by: limit })
            }
            Ok(Err(refusal)) => {
                tracing::debug!(client = %self.facts.client, code = refusal.code(), %refusal, "a request is refused");
                let status = if matches!(refusal, Refusal::Denied(_)) { 403 } else { 503 };
                Next::Answer(Answer::status(status))
            }
            Err(_) => Next::Answer(Answer::status(504)),
        }
    }

    fn response(&mut self, request: &RequestHead, response: &ResponseHead, again: bool) -> Verdict {
        if let Some(under_way) = &mut self.under_way {
            let outcome = match response.status() {
                429 | 503 => Outcome::Overloaded(retry_after(response)),
                _ => Outcome::Answered(under_way.since.elapsed()),
            };
            // It goes on counting as under way until the request is over.
            if let Some(lease) = &under_way.lease {
                lease.state().learn(outcome, self.context.shared.now());
            }
        }
        let attempt = Attempt {
            failure: l7::Failure::Status(response.status()),
            method: request.method(),
            replayable: again,
            made: self.made,
            pushback: Pushback::of(response.fields()),
        };
        self.wait = self.granted(&attempt);
        if self.wait.is_some() {
            return Verdict::Retry;
        }
        self.begin_session();
        Verdict::Forward(self.way.response(response))
    }

    fn give_back(&mut self, upstream: Upstream<Io>) {
        if let Some(under_way) = &self.under_way {
            self.context.kept.put(under_way.key.clone(), upstream);
        }
    }

    fn end(self, _: &RequestHead, record: &Record) {
        // 0 is what dashboards know for a request without an answer.
        self.context.shared.telemetry.request(&self.facts, record.status.unwrap_or(0));
    }
}

/// How long an endpoint asks to be left alone, in its seconds; a date is not understood, and then the usual time counts.
fn retry_after(response: &ResponseHead) -> Option<Duration> {
    let value = response.fields().get("retry-after")?;
    let seconds = std::str::from_utf8(value).ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
