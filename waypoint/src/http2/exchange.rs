//! One request and its response: the decision, the attempts, an answer of our own. What an attempt does is in `attempt`.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use tokio::time::Instant;

use super::attempt::passed_on;
use super::flow::{Flow, Tap};
use super::head::{self, RequestHead};
use super::link::Upstream;
use super::stalls::{Stall, Stalls};
use crate::decide::{
    ATTEMPTS_MAX, Answer, AnyRequest, Decide, Exchange, Failed, Failure, Kept, Next, Outcome, Record, Watch,
    is_grpc,
};
use crate::timer::Timer;

/// What became of a request, as far as its connection is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    Answered,
    /// The client had no more use for it before it was answered.
    Cancelled,
}

/// What an exchange has in hand.
pub(super) struct Course<X> {
    pub(super) respond: SendResponse<Bytes>,
    pub(super) hooks: X,
    pub(super) request: RequestHead,
    pub(super) upload: Flow,
    pub(super) kept: Kept,
    pub(super) stalls: Arc<Stalls>,
    /// Of the request's body.
    pub(super) stall: Stall,
    pub(super) record: Record,
    pub(super) timer: Timer,
}

/// Runs one exchange to its end.
pub(super) async fn run<D>(
    decide: Arc<D>,
    (request, mut respond): (Request<RecvStream>, SendResponse<Bytes>),
    stalls: Arc<Stalls>,
) -> Over
where
    D: Decide<Upstream = Upstream>,
{
    let (parts, body) = request.into_parts();
    let request = match RequestHead::judge(parts) {
        Ok(request) => request,
        Err(refusal) => {
            decide.refused(refusal.into());
            send(&mut respond, Answer::status(refusal.status()), false);
            return Over::Answered;
        }
    };
    let hooks = decide.begin(&request);
    let began = Instant::now();
    let replay = hooks.replay();
    let mut course = Course {
        respond,
        upload: Flow::new(body, replay > 0),
        kept: Kept::new(replay),
        stall: Stall::new(&stalls),
        stalls,
        hooks,
        request,
        record: Record::begun(began),
        timer: Timer::default(),
    };
    let outcome = course.all().await;
    let Course { hooks, request, mut record, upload, .. } = course;
    record.outcome = outcome;
    record.request_bytes = upload.bytes();
    record.ended = Instant::now();
    let cancelled = matches!(record.outcome, Outcome::ClientGone) && record.status.is_none();
    hooks.end(&request, &record);
    if cancelled { Over::Cancelled } else { Over::Answered }
}

impl<X: Exchange<Upstream = Upstream>> Course<X> {
    async fn all(&mut self) -> Outcome {
        let mut failed: Option<Failed> = None;
        loop {
            let Some(next) = self.ask(failed.as_ref()).await else { return Outcome::ClientGone };
            let forward = match next {
                Next::Abort => {
                    self.respond.send_reset(Reason::INTERNAL_ERROR);
                    return Outcome::Aborted;
                }
                Next::Answer(answer) => {
                    self.record.failure = failed.map(|failed| failed.failure);
                    return self.answer(answer, Outcome::Answered);
                }
                Next::GiveUp => return self.give_up(failed),
                Next::Forward(forward) => forward,
            };
            if failed.as_ref().is_some_and(|failed| !failed.again) || self.record.attempts == ATTEMPTS_MAX {
                return self.give_up(failed);
            }
            if let Some(failed) = failed.take() {
                self.record.failure = Some(failed.failure);
                self.upload.again(Bytes::copy_from_slice(self.kept.bytes()));
            }
            self.record.attempts += 1;
            match self.attempt(forward).await {
                Ok(outcome) => return outcome,
                Err(attempt) => failed = Some(attempt),
            }
        }
    }

    /// Asks what to do next. `None` when the client leaves meanwhile.
    async fn ask(&mut self, failed: Option<&Failed>) -> Option<Next<Upstream>> {
        let mut next = pin!(self.hooks.next(&self.request, failed));
        let respond = &mut self.respond;
        poll_fn(|cx| match next.as_mut().poll(cx) {
            Poll::Ready(next) => Poll::Ready(Some(next)),
            Poll::Pending => respond.poll_reset(cx).map(|_| None),
        })
        .await
    }

    /// Tells the client of the failure: a reset as a reset.
    fn give_up(&mut self, failed: Option<Failed>) -> Outcome {
        let Some(failed) = failed else { return self.answer(Answer::status(503), Outcome::Answered) };
        let answer = failed.answer();
        if let Failure::Reset(code) = failed.failure {
            self.respond.send_reset(passed_on(code.into(), Reason::INTERNAL_ERROR));
            return Outcome::ResponseLost(failed.failure);
        }
        self.record.failure = Some(failed.failure);
        self.answer(answer, Outcome::Answered)
    }

    /// Answers ourselves.
    pub(super) fn answer(&mut self, answer: Answer, outcome: Outcome) -> Outcome {
        let answer = if is_grpc(&self.request) { answer.for_grpc() } else { answer };
        self.record.status = Some(answer.status);
        self.record.grpc_status = answer.grpc;
        self.record.response_bytes = send(&mut self.respond, answer, self.request.method() == "HEAD");
        outcome
    }
}

/// Sends an answer of our own, and says how long its body is. A client that has gone needs none.
fn send(respond: &mut SendResponse<Bytes>, answer: Answer, is_head: bool) -> u64 {
    let mut response = Response::new(());
    let status = StatusCode::from_u16(answer.status);
    *response.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let fields = response.headers_mut();
    answer.fields.apply(fields);
    if !answer.body.is_empty() {
        fields.insert(CONTENT_LENGTH, HeaderValue::from(answer.body.len()));
    }
    let bare = is_head || answer.body.is_empty() || matches!(answer.status, 204 | 304);
    let Ok(mut body) = respond.send_response(response, bare) else { return 0 };
    if bare {
        return 0;
    }
    let length = answer.body.len() as u64;
    // Small, so it may wait in memory for the client's window.
    let _ = body.send_data(answer.body, true);
    length
}

impl<X: Exchange> Tap for Watch<'_, X> {
    fn data(&mut self, bytes: &Bytes) {
        self.hooks.body(bytes);
        self.kept.keep(bytes);
    }

    fn trailers(&mut self, _: &HeaderMap) {}
}

/// Looks at a response's trailers for what they say of a gRPC call.
impl Tap for Record {
    fn data(&mut self, _: &Bytes) {}

    fn trailers(&mut self, fields: &HeaderMap) {
        self.grpc_status = head::grpc_status(fields);
    }
}
