//! One request of any protocol and its response: carries out what was planned.
//!
//! Which endpoint, and whether once more, is `attempts`'; the protocol is `http1`'s, what the rules want `rules`'.

use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context as Task, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use model::l7::{Headers, RetryLedger, Rule, Session};
use model::route::Behind;
use model::service::Service;
use model::workload::WorkloadUid;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::attempts::UnderWay;
use super::balancing;
use super::forwarded::Introduction;
use super::mirror::{self, Copying};
use crate::data::upstream::choice::{How, LEAST_LOAD};
use crate::data::upstream::pool::Carrier;
use crate::data::{Asked, Context, authorization, time_of_day};
use crate::decide::{
    Answer, AnyRequest, AnyResponse, Exchange, Failed, Forward, Next, REPLAY_BYTES_MAX, Record, RequestEdits,
    Verdict,
};
use crate::refusal::Refusal;
use crate::rules::{Plan, Then, Way};
use crate::spans::Trace;
use crate::telemetry::{self, Cause, Done, Facts, Told};
use crate::watched::Steps;

/// One request and its response, sent over a `U`.
pub(crate) struct OneRequest<U> {
    pub(super) context: Arc<Context>,
    pub(super) asked: Arc<Asked>,
    pub(super) facts: Facts,
    introduction: Arc<Introduction>,
    /// A fault's delay and what follows it, until it is carried out.
    delay: Option<Duration>,
    then: Option<Then>,
    /// Where it is sent, once it is.
    pub(super) way: Box<Way>,
    pub(super) how: How,
    /// What is changed in the request, once it was sent.
    edits: Option<Arc<RequestEdits>>,
    pub(super) rule: Option<Arc<Rule>>,
    pub(super) ledger: Option<Arc<RetryLedger>>,
    /// When all of it has to be over.
    pub(super) deadline: Option<Instant>,
    pub(super) tried: Vec<WorkloadUid>,
    pub(super) under_way: Option<UnderWay>,
    /// Attempts that were made.
    pub(super) made: u32,
    /// How long to wait before the response that was just refused is asked for again.
    pub(super) wait: Option<Duration>,
    done: Done,
    /// The `x-request-id` that it is given, if it has none.
    given_id: Option<String>,
    trace: Option<Trace>,
    /// What has happened, if somebody looks on.
    steps: Option<Box<Steps>>,
    /// What the head of the response said of a gRPC call that was over with it.
    grpc_status: Option<u32>,
    /// Copies of which something is still to come.
    copies: Vec<Copying>,
    over: PhantomData<fn() -> U>,
}

impl<U: Carrier> OneRequest<U> {
    /// A request that has arrived, and what is to become of it.
    pub(crate) fn begin(
        context: &Arc<Context>,
        asked: &Arc<Asked>,
        (facts, introduction): (Facts, &Arc<Introduction>),
        (plan, request): (Plan, &dyn AnyRequest),
    ) -> Self {
        let mut steps = context.shared.watched.begin();
        if let Some(steps) = &mut steps {
            steps.planned(&plan);
        }
        let Plan { delay, mut then, rule, cause, ledger } = plan;
        if let Some(ledger) = &ledger {
            ledger.request(context.shared.since());
        }
        let how = match &mut then {
            Then::Forward(way) => balancing::of(way, request, &facts),
            Then::Abort | Then::Answer(_) => LEAST_LOAD,
        };
        let limit = rule.as_ref().and_then(|rule| rule.timeouts.request);
        let fields: &dyn Headers = request;
        Self {
            context: Arc::clone(context),
            asked: Arc::clone(asked),
            facts,
            introduction: Arc::clone(introduction),
            delay,
            then: Some(then),
            way: Box::default(),
            how,
            edits: None,
            rule,
            ledger,
            deadline: limit.map(|limit| Instant::now() + limit),
            tried: Vec::new(),
            under_way: None,
            made: 0,
            wait: None,
            given_id: fields.first(telemetry::REQUEST_ID).is_none().then(telemetry::new_id),
            steps,
            trace: context.shared.telemetry.trace(fields),
            done: Done { cause, was_delayed: delay.is_some(), is_late: false },
            grpc_status: None,
            copies: Vec::new(),
            over: PhantomData,
        }
    }

    /// Carries out what was planned, up to where it is sent; what we answer, if we do.
    async fn set_out(&mut self) -> Option<Next<U>> {
        if let Some(delay) = self.delay.take() {
            let until = Instant::now() + delay;
            sleep_until(self.deadline.map_or(until, |deadline| deadline.min(until))).await;
            if self.is_late(Duration::ZERO) {
                self.done.cause = Some(Cause::Late);
                return Some(Next::Answer(Answer::late()));
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
            self.done.cause = Some(Cause::BackendUnknown);
            return Some(Next::Answer(Answer::impossible()));
        };
        self.aim_at(service, port);
        None
    }

    /// From now on it is for a port of this service.
    pub(super) fn aim_at(&mut self, service: Arc<Service>, port: u16) {
        let dialled = match &self.asked.behind {
            Behind::Service(asked, _, dialled) if asked.id == service.id => *dialled,
            Behind::Service(..) | Behind::Workload(..) => None,
        };
        self.facts.service = Some(Arc::clone(&service));
        let behind = Behind::Service(service, port, dialled);
        self.asked = Arc::new(Asked { local: Arc::clone(&self.asked.local), behind });
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
        let (name, value) = kept.begin(Session::with(&service.id, endpoint, time_of_day()));
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(&value))
        {
            self.way.tell(name, value);
        }
    }

    /// Tells whoever looks on.
    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(steps) = &mut self.steps {
            steps.note(what());
        }
    }

    /// Whether the time for the whole request is up, or will be after this wait.
    pub(super) fn is_late(&self, wait: Duration) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() + wait >= deadline)
    }

    /// Begins the copies that the rule wants, when the request itself is about to be sent.
    fn copy(&mut self, request: &dyn AnyRequest, edits: &RequestEdits) {
        for (service, port) in std::mem::take(&mut self.way.copies) {
            let copied = request.copied(edits);
            let copying = mirror::begin(&self.context, (&service, port), (&self.asked, &self.facts), copied);
            self.copies.extend(copying);
        }
    }

    /// What is changed in the request, for whichever attempt.
    fn edits(&mut self) -> Arc<RequestEdits> {
        if let Some(edits) = &self.edits {
            return Arc::clone(edits);
        }
        let mut edits = std::mem::take(&mut self.way.request);
        self.introduction.say(&mut edits.fields);
        if let Some(mut id) = self.given_id.as_deref().and_then(|id| HeaderValue::from_str(id).ok()) {
            // It never comes again, so nobody's table of fields is to keep it.
            id.set_sensitive(true);
            edits.fields.set(HeaderName::from_static(telemetry::REQUEST_ID), id);
        }
        if let Some(trace) = &self.trace {
            trace.tell(&mut edits.fields);
        }
        Arc::clone(self.edits.insert(Arc::new(edits)))
    }
}

impl<U: Carrier> Exchange for OneRequest<U> {
    type Upstream = U;

    fn replay(&self) -> usize {
        let retries = self.rule.as_ref().is_some_and(|rule| rule.retry.is_some());
        if retries { REPLAY_BYTES_MAX } else { 0 }
    }

    async fn next(&mut self, request: &dyn AnyRequest, failed: Option<&Failed>) -> Next<U> {
        match failed {
            None => {
                if let Some(over) = self.set_out().await {
                    return over;
                }
            }
            Some(failed) => match self.again(request, failed) {
                Some(wait) => {
                    self.note(|| format!("{}: again after {wait:?}", failed.failure));
                    sleep(wait).await;
                }
                None => return Next::GiveUp,
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
                self.copy(request, &edits);
                Next::Forward(Forward { upstream, edits, respond_by: limit, complete_by: limit })
            }
            Ok(Err(refusal)) => {
                tracing::debug!(client = %self.facts.client, code = refusal.code(), %refusal, "a request is refused");
                self.done.cause = Some(Cause::from(&refusal));
                let status = if matches!(refusal, Refusal::Denied(_)) { 403 } else { 503 };
                Next::Answer(Answer::status(status))
            }
            Err(_) => {
                self.done.cause = Some(Cause::Late);
                Next::Answer(Answer::late())
            }
        }
    }

    fn poll_revoked(&mut self, cx: &mut Task<'_>) -> Poll<()> {
        let Some(under_way) = &mut self.under_way else { return Poll::Pending };
        let (true, Some(workload), Some(app)) =
            (under_way.judged.is_outdated(cx), &self.facts.destination.workload, self.facts.app)
        else {
            return Poll::Pending;
        };
        let Some(denial) = authorization::denied_now(&self.context, workload, app, &self.facts) else {
            return Poll::Pending;
        };
        let refusal = Refusal::from(denial);
        self.note(|| format!("is cut: {refusal}"));
        self.done.cause = Some(Cause::from(&refusal));
        Poll::Ready(())
    }

    fn body(&mut self, bytes: &[u8]) {
        if !self.copies.is_empty() {
            let bytes = Bytes::copy_from_slice(bytes);
            self.copies.retain_mut(|copy| copy.body(&bytes));
        }
    }

    fn body_ended(&mut self) {
        self.copies.drain(..).for_each(Copying::end);
    }

    fn response(&mut self, request: &dyn AnyRequest, response: &dyn AnyResponse, again: bool) -> Verdict {
        let refused = self.refuses(request, response, again);
        self.note(|| {
            format!("status {}{}", response.status(), if refused { ", to be tried again" } else { "" })
        });
        if refused {
            return Verdict::Retry;
        }
        self.begin_session();
        let fields: &dyn Headers = response;
        self.grpc_status = fields.first("grpc-status").and_then(|status| status.parse().ok());
        Verdict::Forward(self.way.take_response())
    }

    fn give_back(&mut self, upstream: U) {
        if let Some(under_way) = &self.under_way {
            upstream.keep(&self.context, under_way.key.clone(), self.facts.destination.identity.as_ref());
        }
    }

    fn end(self, request: &dyn AnyRequest, record: &Record) {
        let is_late = self.deadline.is_some_and(|deadline| record.ended >= deadline);
        let told = Told {
            facts: &self.facts,
            request: Some(request),
            protocol: U::PROTOCOL,
            rule: self.rule.as_ref(),
            record,
            grpc_status: record.grpc_status.or(self.grpc_status),
            done: Done { is_late, ..self.done },
            given_id: self.given_id.as_deref(),
            trace: self.trace.as_ref(),
        };
        let ended = self.context.shared.telemetry.request(&self.context.seen, &told);
        if let Some(steps) = &self.steps {
            self.context.shared.watched.end(steps, &told, &ended);
        }
    }
}
