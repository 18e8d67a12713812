//! One request and its response: the decision, the attempts, an answer of our own. What an attempt does is in `attempt`.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::client::Client;
use super::framing::Framing;
use super::limits::DISCARDED_BYTES_MAX;
use super::pump::{Pump, Shape, Tap};
use super::request::RequestHead;
use super::upstream::Upstream;
use super::write::{self, Persistence};
use crate::decide::{ATTEMPTS_MAX, Answer, AnyRequest, Exchange, Failed, Kept, Next, Outcome, Record, Watch};

/// What becomes of the client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// It is ended, so that everything written arrives.
    Close,
    /// Another request may come.
    Next,
    /// It is dropped: nothing is left to do, or it is to look broken.
    Over,
}

/// What an exchange has in hand.
pub(super) struct Course<'c, 'a, Io, F, X> {
    pub(super) client: &'c mut Client<'a, Io, F>,
    pub(super) hooks: X,
    pub(super) request: RequestHead,
    pub(super) upload: Pump,
    pub(super) kept: Kept,
    pub(super) record: Record,
    /// When a byte last moved.
    pub(super) moved: Instant,
}

/// Runs one exchange, whose request began to arrive at `began`, to its end; when that was.
pub(super) async fn run<Io, To, F, X>(
    client: &mut Client<'_, Io, F>,
    hooks: X,
    (request, began): (RequestHead, Instant),
) -> (After, Instant)
where
    Io: AsyncRead + AsyncWrite + Unpin,
    To: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = ()>,
    X: Exchange<Upstream = Upstream<To>>,
{
    let mut course = Course {
        client,
        upload: Pump::new(request.framing(), Shape::AsItIs),
        kept: Kept::new(hooks.replay()),
        hooks,
        request,
        record: Record::begun(began),
        moved: began,
    };
    let (outcome, after) = course.all().await;
    let Course { hooks, request, mut record, upload, .. } = course;
    record.outcome = outcome;
    record.request_bytes += upload.payload();
    record.ended = Instant::now();
    hooks.end(&request, &record);
    (after, record.ended)
}

impl<Io, To, F, X> Course<'_, '_, Io, F, X>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    To: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = ()>,
    X: Exchange<Upstream = Upstream<To>>,
{
    async fn all(&mut self) -> (Outcome, After) {
        let mut failed: Option<Failed> = None;
        loop {
            let Some(next) = self.ask(failed.as_ref()).await else {
                return (Outcome::ClientGone, After::Over);
            };
            let forward = match next {
                Next::Abort => return (Outcome::Aborted, After::Over),
                Next::Answer(answer) => {
                    self.record.failure = failed.map(|failed| failed.failure);
                    return self.answer(answer, Outcome::Answered).await;
                }
                Next::GiveUp => {
                    let answer = failed.as_ref().map_or_else(|| Answer::status(503), Failed::answer);
                    self.record.failure = failed.map(|failed| failed.failure);
                    return self.answer(answer, Outcome::Answered).await;
                }
                Next::Forward(forward) => forward,
            };
            if let Some(failed) = failed.take() {
                if !failed.again || self.record.attempts == ATTEMPTS_MAX {
                    self.hooks.give_back(forward.upstream);
                    let answer = failed.answer();
                    self.record.failure = Some(failed.failure);
                    return self.answer(answer, Outcome::Answered).await;
                }
                self.record.failure = Some(failed.failure);
            }
            self.record.attempts += 1;
            match self.attempt(forward).await {
                Ok(over) => return over,
                Err(attempt) => failed = Some(attempt),
            }
        }
    }

    /// Asks what to do next. `None` when the client leaves meanwhile.
    async fn ask(&mut self, failed: Option<&Failed>) -> Option<Next<Upstream<To>>> {
        let mut next = pin!(self.hooks.next(&self.request, failed));
        let wire = &mut self.client.wire;
        poll_fn(|cx| match next.as_mut().poll(cx) {
            Poll::Ready(next) => Poll::Ready(Some(next)),
            Poll::Pending => wire.poll_gone(cx).map(|_| None),
        })
        .await
    }

    /// Answers ourselves. The connection goes on if what is left of the request is small.
    pub(super) async fn answer(&mut self, answer: Answer, outcome: Outcome) -> (Outcome, After) {
        let large = matches!(self.request.framing(), Framing::Length(length) if length > DISCARDED_BYTES_MAX);
        let draining = self.is_draining().await;
        let goes_on =
            !large && !answer.close && !draining && !self.is_waiting() && self.request.keeps_alive();
        let bare = matches!(answer.status, 204 | 304);
        let length = (!bare).then_some(answer.body.len() as u64);
        let persistence = self.persistence(goes_on);
        let out = &mut self.client.wire.out;
        write::answer(out, answer.status, &answer.fields, length, persistence);
        if !bare && self.request.method() != "HEAD" {
            out.extend_from_slice(&answer.body);
            self.record.response_bytes = answer.body.len() as u64;
        }
        self.record.status = Some(answer.status);
        if !goes_on {
            return (outcome, After::Close);
        }
        let until = Instant::now() + self.client.timeouts.head;
        match poll_fn(|cx| self.poll_rest(cx, until)).await {
            Ok(after) => (outcome, after),
            Err(_) => (Outcome::ClientGone, After::Over),
        }
    }

    /// Writes the answer, and throws away what is left of the request: both at once, for the client may do one only
    /// after the other.
    fn poll_rest(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<io::Result<After>> {
        let written = self.client.wire.poll_flush(cx)?;
        match self.upload.poll_discard(cx, &mut self.client.wire, DISCARDED_BYTES_MAX) {
            Poll::Ready(Ok(true)) if written.is_ready() => Poll::Ready(Ok(After::Next)),
            Poll::Ready(Ok(true)) | Poll::Pending => {
                self.client.timer.poll(cx, until).map(|()| Ok(After::Close))
            }
            Poll::Ready(Ok(false) | Err(_)) => Poll::Ready(Ok(After::Close)),
        }
    }

    /// Whether the client waits for leave to send the body, and did not send any of it yet.
    pub(super) fn is_waiting(&self) -> bool {
        self.request.expects_continue() && self.upload.payload() == 0 && self.client.wire.input.is_empty()
    }

    pub(super) async fn is_draining(&mut self) -> bool {
        poll_fn(|cx| Poll::Ready(self.client.poll_draining(cx))).await
    }

    pub(super) fn persistence(&self, goes_on: bool) -> Persistence {
        match goes_on {
            true if self.request.is_old() => Persistence::KeepAlive,
            true => Persistence::Implied,
            false => Persistence::Close,
        }
    }
}

impl<X: Exchange> Tap for Watch<'_, X> {
    fn payload(&mut self, bytes: &[u8]) {
        self.hooks.body(bytes);
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.kept.keep(bytes);
    }

    fn ended(&mut self) {
        self.hooks.body_ended();
    }
}
