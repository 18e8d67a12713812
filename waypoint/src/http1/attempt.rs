//! One attempt at a request: it is sent, its response awaited and sent on, both at once where both are under way.

use std::future::{Future, poll_fn};
use std::io;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::exchange::{After, Course};
use super::framing::Framing;
use super::head::Finder;
use super::pump::{Broken, Pump, Shape};
use super::refusal::Refusal;
use super::response::ResponseHead;
use super::tunnel;
use super::upstream::Upstream;
use super::write::{self, Persistence, Sending};
use crate::decide::{
    ATTEMPTS_MAX, Answer, AnyRequest, AnyResponse, Exchange, Failed, Failure, FieldEdits, Forward, Outcome,
    Verdict, Watch,
};

/// The server's side of an attempt.
struct Leg<Io> {
    upstream: Upstream<Io>,
    finder: Finder,
    upload: Upload,
    /// It is about to begin.
    fresh: bool,
    /// Something of a response came.
    heard: bool,
    /// The client was told to send the body.
    continued: bool,
    respond_by: Option<Instant>,
    complete_by: Option<Instant>,
}

/// How far the request's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upload {
    /// The server takes no more. It may have answered all the same.
    Dead,
    Open,
    Sent,
}

/// Why there is no response to go on with.
enum Stop {
    ClientGone,
    Failed(Failure),
    /// The request's body breaks the rules.
    Refused(Refusal),
    /// The client is not let through any more.
    Revoked,
}

impl<Io, To, F, X> Course<'_, '_, Io, F, X>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    To: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = ()>,
    X: Exchange<Upstream = Upstream<To>>,
{
    /// Sends the request and its response on; fails as long as nothing of a final response was sent on.
    pub(super) async fn attempt(
        &mut self,
        forward: Forward<Upstream<To>>,
    ) -> Result<(Outcome, After), Failed> {
        let Forward { mut upstream, edits, respond_by, complete_by } = forward;
        if upstream.is_used() && !upstream.is_usable() {
            let again = self.kept.is_whole();
            return Err(Failed { failure: Failure::Closed, again, stale: true, unsent: true });
        }
        write::request(&mut upstream.wire.out, &self.request, &edits);
        let kept = self.kept.bytes();
        // The last of it was not sent yet.
        upstream.wire.out.extend_from_slice(&kept[..kept.len() - self.upload.unwritten()]);
        let mut leg = Leg {
            upstream,
            finder: Finder::response(),
            upload: Upload::Open,
            fresh: true,
            heard: false,
            continued: false,
            respond_by,
            complete_by,
        };
        loop {
            let response = match poll_fn(|cx| self.poll_head(cx, &mut leg)).await {
                Ok(response) => response,
                Err(Stop::ClientGone) => return Ok((Outcome::ClientGone, After::Over)),
                Err(Stop::Failed(failure)) => return Err(self.failed(failure, &leg)),
                Err(Stop::Refused(refusal)) => {
                    let answer = Answer { close: true, ..Answer::status(refusal.status()) };
                    return Ok(self.answer(answer, Outcome::Refused(refusal.into())).await);
                }
                Err(Stop::Revoked) => return Ok(self.answer(Answer::status(403), Outcome::Answered).await),
            };
            if response.status() == 101 && !self.request.upgrades() {
                return Err(self.failed(Failure::Unasked, &leg));
            }
            if response.is_interim() {
                self.interim(&response, &mut leg);
                continue;
            }
            self.record.responded = Some(Instant::now());
            let again = self.kept.is_whole() && self.record.attempts < ATTEMPTS_MAX;
            match self.hooks.response(&self.request, &response, again) {
                Verdict::Forward(edits) => return Ok(self.respond(leg, &response, &edits).await),
                Verdict::Retry if again => return Err(self.failed(Failure::Status(response.status()), &leg)),
                Verdict::Retry => return Ok(self.respond(leg, &response, &FieldEdits::default()).await),
            }
        }
    }

    fn failed(&self, failure: Failure, leg: &Leg<To>) -> Failed {
        let lost = matches!(failure, Failure::Closed | Failure::Io(_));
        let stale = lost && leg.upstream.is_used() && !leg.heard;
        Failed { failure, again: self.kept.is_whole(), stale, unsent: false }
    }

    /// Sends on what precedes a response. Clients of HTTP/1.0 know no such thing.
    fn interim(&mut self, response: &ResponseHead, leg: &mut Leg<To>) {
        leg.finder = Finder::response();
        if self.request.is_old() {
            return;
        }
        leg.continued |= response.status() == 100;
        let sending = Sending {
            request: &self.request,
            edits: &FieldEdits::default(),
            persistence: Persistence::Implied,
            chunked: false,
        };
        write::response(&mut self.client.wire.out, response, &sending);
    }

    /// Sends the final response on, to its end.
    async fn respond(
        &mut self,
        mut leg: Leg<To>,
        response: &ResponseHead,
        edits: &FieldEdits,
    ) -> (Outcome, After) {
        let framing = response.framing(&self.request);
        let old = self.request.is_old();
        let tunnel = response.is_tunnel(&self.request);
        let unframed = matches!(framing, Framing::Chunked | Framing::UntilClose);
        let waits = self.is_waiting() && !leg.continued;
        let draining = self.is_draining().await;
        let goes_on = self.request.keeps_alive()
            && !draining
            && !waits
            && leg.upload != Upload::Dead
            && !(old && unframed);
        let persistence = if tunnel { Persistence::Implied } else { self.persistence(goes_on) };
        let chunked = !old && (unframed || (response.is_chunked() && self.request.method() == "HEAD"));
        let sending = Sending { request: &self.request, edits, persistence, chunked };
        write::response(&mut self.client.wire.out, response, &sending);
        self.record.status = Some(response.status());
        if tunnel {
            return self.tunnel(leg).await;
        }
        let shape = match framing {
            Framing::Chunked if old => Shape::Payload,
            Framing::UntilClose if !old => Shape::Chunked,
            Framing::Chunked | Framing::Length(_) | Framing::None | Framing::UntilClose => Shape::AsItIs,
        };
        let mut body = Download { pump: Pump::new(framing, shape), done: false, waits };
        let outcome = poll_fn(|cx| self.poll_body(cx, &mut leg, &mut body)).await;
        self.record.response_bytes = body.pump.payload();
        if !matches!(outcome, Outcome::Forwarded) {
            return (outcome, After::Over);
        }
        let sent = leg.upload == Upload::Sent;
        if sent && response.keeps_alive() {
            self.hooks.give_back(leg.upstream.rested());
        }
        (outcome, if goes_on && sent { After::Next } else { After::Close })
    }

    async fn tunnel(&mut self, leg: Leg<To>) -> (Outcome, After) {
        let mut upstream = leg.upstream;
        let (outcome, bytes) = tunnel::relay(self.client, &mut upstream.wire, &mut self.hooks).await;
        (self.record.request_bytes, self.record.response_bytes) = bytes;
        (outcome, After::Over)
    }

    /// The next head of a response.
    fn poll_head(&mut self, cx: &mut Context<'_>, leg: &mut Leg<To>) -> Poll<Result<ResponseHead, Stop>> {
        let mut moved = std::mem::take(&mut leg.fresh);
        self.poll_upload(cx, leg, &mut moved)?;
        // What precedes a response goes out first: this bounds how much of it there can be.
        let told = self.client.wire.poll_flush(cx).map_err(|_: io::Error| Stop::ClientGone)?;
        while told.is_ready() {
            let input = &mut leg.upstream.wire.input;
            let found = leg.finder.find(input.filled()).map_err(malformed)?;
            if let Some(range) = found {
                let end = range.end;
                let response = ResponseHead::parse(input.filled(), range).map_err(malformed);
                input.consume(end);
                return Poll::Ready(response);
            }
            match leg.upstream.wire.poll_fill(cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(Stop::Failed(Failure::Closed))),
                Poll::Ready(Ok(_)) => (moved, leg.heard) = (true, true),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Stop::Failed(Failure::Io(error)))),
                Poll::Pending => break,
            }
        }
        if self.hooks.poll_revoked(cx).is_ready() {
            return Poll::Ready(Err(Stop::Revoked));
        }
        let deadline = [leg.respond_by, leg.complete_by].into_iter().flatten().min();
        ready!(self.poll_idle(cx, moved, deadline));
        Poll::Ready(Err(Stop::Failed(Failure::Timeout)))
    }

    /// The rest of an exchange whose response's head was written.
    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        leg: &mut Leg<To>,
        download: &mut Download,
    ) -> Poll<Outcome> {
        let mut moved = false;
        if !download.done {
            let wires = (&mut leg.upstream.wire, &mut self.client.wire);
            match download.pump.poll(cx, wires, &mut (), &mut moved) {
                Poll::Ready(Ok(())) => download.done = true,
                Poll::Ready(Err(broken)) => return Poll::Ready(lost(broken)),
                Poll::Pending => {}
            }
        }
        match self.poll_upload(cx, leg, &mut moved) {
            Ok(()) => {}
            Err(Stop::ClientGone) => return Poll::Ready(Outcome::ClientGone),
            Err(Stop::Refused(refusal)) => return Poll::Ready(Outcome::Refused(refusal.into())),
            Err(Stop::Failed(failure)) => return Poll::Ready(Outcome::ResponseLost(failure)),
            Err(Stop::Revoked) => return Poll::Ready(Outcome::Aborted),
        }
        if download.done && (leg.upload != Upload::Open || download.waits) {
            return Poll::Ready(Outcome::Forwarded);
        }
        if self.hooks.poll_revoked(cx).is_ready() {
            return Poll::Ready(Outcome::Aborted);
        }
        // A client that has its answer may wait for us to close instead of sending the rest.
        let patience = download.done.then(|| self.moved + self.client.timeouts.head);
        let deadline = [patience, leg.complete_by].into_iter().flatten().min();
        ready!(self.poll_idle(cx, moved, deadline));
        Poll::Ready(if download.done { Outcome::Forwarded } else { Outcome::TimedOut })
    }

    /// Moves the request's body on, or watches for a client that leaves.
    fn poll_upload(&mut self, cx: &mut Context<'_>, leg: &mut Leg<To>, moved: &mut bool) -> Result<(), Stop> {
        if leg.upload == Upload::Open {
            let wires = (&mut self.client.wire, &mut leg.upstream.wire);
            let mut watch = Watch { hooks: &mut self.hooks, kept: &mut self.kept };
            match self.upload.poll(cx, wires, &mut watch, moved) {
                Poll::Ready(Ok(())) => leg.upload = Upload::Sent,
                Poll::Ready(Err(Broken::Sink(_))) => leg.upload = Upload::Dead,
                Poll::Ready(Err(Broken::Malformed(refusal))) => return Err(Stop::Refused(refusal)),
                Poll::Ready(Err(Broken::Source(_) | Broken::Truncated)) => return Err(Stop::ClientGone),
                Poll::Pending => return Ok(()),
            }
        }
        match self.client.wire.poll_gone(cx) {
            Poll::Ready(_) => Err(Stop::ClientGone),
            Poll::Pending => Ok(()),
        }
    }

    /// Resolves when nothing has moved for too long, or the deadline has passed.
    fn poll_idle(&mut self, cx: &mut Context<'_>, moved: bool, deadline: Option<Instant>) -> Poll<()> {
        if moved {
            self.moved = Instant::now();
        }
        let idle = self.moved + self.client.timeouts.exchange;
        self.client.timer.poll(cx, deadline.map_or(idle, |deadline| deadline.min(idle)))
    }
}

/// A response's body on its way to the client.
struct Download {
    pump: Pump,
    done: bool,
    /// The client never began to send the body, and will not.
    waits: bool,
}

fn malformed(refusal: Refusal) -> Stop {
    Stop::Failed(Failure::Malformed(refusal.into()))
}

fn lost(broken: Broken) -> Outcome {
    match broken {
        Broken::Malformed(refusal) => Outcome::ResponseLost(Failure::Malformed(refusal.into())),
        Broken::Sink(_) => Outcome::ClientGone,
        Broken::Source(error) => Outcome::ResponseLost(Failure::Io(error)),
        Broken::Truncated => Outcome::ResponseLost(Failure::Closed),
    }
}
