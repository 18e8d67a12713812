//! Inner HTTP/1.1: each request goes to an endpoint of its own choice, over connections that are kept.
//!
//! Owns the decisions; the protocol is `http1`'s.

use std::sync::Arc;

use bytes::Bytes;
use hbone::{Incoming, Received, Stream, StreamError};
use http::{HeaderName, HeaderValue};
use model::route::Target;
use model::workload::WorkloadUid;
use proxy::headers;
use tokio::time::{Instant, timeout};

use super::io::{Io, TunnelIo};
use super::kept::Key;
use super::stream::Asked;
use super::upstream::{self, Upstream as Reached};
use super::{Context, classify, opaque};
use crate::balance::{Lease, Outcome, Strategy};
use crate::http1::limits::Timeouts;
use crate::http1::{
    self, Answer, Decide, Exchange, Failed, FieldEdits, Forward, Next, Record, RequestEdits, RequestHead,
    ResponseHead, Upstream, Verdict,
};
use crate::refusal::Refusal;
use crate::telemetry::Facts;

/// Endpoints tried for one request before anything of it was sent: two that fail are bad luck, three are an outage that a fourth
/// won't mend.
const ATTEMPTS: usize = 3;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Serves a stream whose port declares HTTP.
pub(crate) async fn serve(context: &Arc<Context>, incoming: Incoming, asked: Asked, facts: Facts) {
    let telemetry = &context.shared.telemetry;
    let mut stream = match incoming.accept(headers::answer(Some(&asked.local))) {
        Ok(stream) => stream,
        Err(error) => return telemetry.refused(&facts, &error.into()),
    };
    let timeouts = Timeouts::default();
    let first = timeout(timeouts.idle, first_bytes(&mut stream)).await;
    let (said, is_http2) = match first {
        Ok(Ok(first)) => first,
        // Nothing was asked.
        Ok(Err(_)) | Err(_) => return,
    };
    if is_http2 {
        return opaque::carry(context, (stream, said), &asked, facts).await;
    }
    let decide = Requests { context: Arc::clone(context), asked: Arc::new(asked), facts: facts.clone() };
    let live = telemetry.opened(facts);
    let mut drain = context.shared.drain.clone();
    http1::serve(TunnelIo::new(stream, said), &decide, &timeouts, async move { drain.begun().await }).await;
    telemetry.closed(&live, Ok(()));
}

/// What a client says first, and whether it is HTTP/2.
async fn first_bytes(stream: &mut Stream) -> Result<(Vec<Bytes>, bool), StreamError> {
    let mut said = Vec::new();
    loop {
        let received = std::future::poll_fn(|cx| stream.poll_recv(cx, &mut said)).await?;
        let told = classify::is_http2(&said.concat());
        match (told, received) {
            (Some(is_http2), _) => return Ok((said, is_http2)),
            (None, Received::End) => return Ok((said, false)),
            (None, Received::Data(_)) => {}
        }
    }
}

/// Decides for the requests of one connection.
struct Requests {
    context: Arc<Context>,
    asked: Arc<Asked>,
    facts: Facts,
}

impl Decide for Requests {
    type Io = Io;
    type Exchange = OneRequest;

    fn begin(&self, _: &RequestHead) -> OneRequest {
        OneRequest {
            context: Arc::clone(&self.context),
            asked: Arc::clone(&self.asked),
            facts: self.facts.clone(),
            tried: Vec::new(),
            under_way: None,
        }
    }

    fn refused(&self, refusal: http1::Refusal) {
        tracing::debug!(client = %self.facts.client, code = refusal.code(), "a malformed request is refused");
        self.context.shared.telemetry.request(&self.facts, refusal.status());
    }
}

/// One request and its response.
struct OneRequest {
    context: Arc<Context>,
    asked: Arc<Asked>,
    facts: Facts,
    tried: Vec<WorkloadUid>,
    under_way: Option<UnderWay>,
}

/// A request that was sent, or is about to be.
struct UnderWay {
    key: Key,
    lease: Option<Lease>,
    since: Instant,
}

impl OneRequest {
    /// A connection to an endpoint; one that is kept, unless a fresh one is wanted.
    async fn reach(&mut self, fresh: bool) -> Result<Upstream<Io>, Refusal> {
        loop {
            let (target, lease) =
                opaque::endpoint(&self.context, (&self.asked, &self.facts), Strategy::PeakEwma, &self.tried)?;
            match self.connect(&target, fresh).await {
                Ok(upstream) => {
                    let key = (target.workload.uid.clone(), target.app.0);
                    self.under_way = Some(UnderWay { key, lease, since: Instant::now() });
                    return Ok(upstream);
                }
                Err(refusal) if refusal.is_endpoints_fault() => {
                    self.ended(lease, Outcome::Unreachable);
                    self.tried.push(target.workload.uid.clone());
                    if self.tried.len() >= ATTEMPTS || !target.alternatives {
                        return Err(refusal);
                    }
                }
                Err(refusal) => return Err(refusal),
            }
        }
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
        let mut edits = RequestEdits::default();
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

    async fn next(&mut self, request: &RequestHead, failed: Option<&Failed>) -> Next<Io> {
        if let Some(failed) = failed {
            let under_way = self.under_way.take();
            let lease = under_way.and_then(|under_way| under_way.lease);
            let outcome = if failed.stale { Outcome::Abandoned } else { Outcome::Unreachable };
            self.ended(lease, outcome);
            if !failed.is_free(request) {
                return Next::Answer(failed.answer());
            }
        }
        match self.reach(failed.is_some()).await {
            Ok(upstream) => Next::Forward(Forward { edits: self.edits(), ..Forward::over(upstream) }),
            Err(refusal) => {
                tracing::debug!(client = %self.facts.client, code = refusal.code(), %refusal, "a request is refused");
                let status = if matches!(refusal, Refusal::Denied(_)) { 403 } else { 503 };
                Next::Answer(Answer::status(status))
            }
        }
    }

    fn response(&mut self, _: &RequestHead, response: &ResponseHead, _: bool) -> Verdict {
        if let Some(under_way) = &mut self.under_way {
            let outcome = match response.status() {
                429 | 503 => Outcome::Overloaded(retry_after(response)),
                _ => Outcome::Answered(under_way.since.elapsed()),
            };
            let lease = under_way.lease.take();
            if let Some(lease) = lease {
                // It goes on counting as under way until the request is over.
                lease.state().learn(outcome, self.context.shared.now());
                under_way.lease = Some(lease);
            }
        }
        Verdict::Forward(FieldEdits::default())
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
fn retry_after(response: &ResponseHead) -> Option<std::time::Duration> {
    let value = response.fields().get("retry-after")?;
    let seconds = std::str::from_utf8(value).ok()?.trim().parse().ok()?;
    Some(std::time::Duration::from_secs(seconds))
}
