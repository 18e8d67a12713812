//! One attempt at a request: it is sent, its response awaited and sent on, both at once where both are under way.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::{Response, StatusCode};
use tokio::time::Instant;

use super::exchange::Course;
use super::flow::{Broken, Flow};
use super::head::ResponseHead;
use super::limits::{HEAD_TIME, INTERIMS_MAX};
use super::link::Upstream;
use super::refusal::Refusal;
use super::stalls::Stall;
use crate::decide::{
    ATTEMPTS_MAX, Answer, AnyResponse, Exchange, Failed, Failure, FieldEdits, Forward, Outcome, Verdict,
    Watch,
};

/// The server's side of an attempt.
struct Leg {
    upstream: Upstream,
    send: SendStream<Bytes>,
    upload: Upload,
    /// Responses that preceded the final one.
    interims: u32,
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
    ClientGone(Reason),
    Failed(Failure),
    /// The server took its leave before it looked at the request.
    Left,
    /// The request's trailers break the rules.
    Refused(Refusal),
    /// The client is not let through any more.
    Revoked,
}

impl<X: Exchange<Upstream = Upstream>> Course<X> {
    /// Sends the request and its response on; fails as long as nothing of a final response was sent on.
    pub(super) async fn attempt(&mut self, forward: Forward<Upstream>) -> Result<Outcome, Failed> {
        let Forward { mut upstream, edits, respond_by, complete_by } = forward;
        let Some(request) = self.request.outgoing(&edits) else {
            return Ok(self.answer(Answer::status(Refusal::Target.status()), Outcome::Answered));
        };
        let over = self.upload.is_empty();
        let Ok((mut response, send)) = upstream.send.send_request(request, over) else {
            let (again, stale) = (self.kept.is_whole(), upstream.is_used());
            return Err(Failed { failure: Failure::Closed, again, stale, unsent: true });
        };
        let upload = if over { Upload::Sent } else { Upload::Open };
        if over {
            self.hooks.body_ended();
        }
        let mut leg = Leg { upstream, send, upload, interims: 0, respond_by, complete_by };
        let response = match poll_fn(|cx| self.poll_head(cx, &mut leg, &mut response)).await {
            Ok(response) => response,
            Err(Stop::ClientGone(reason)) => {
                leg.send.send_reset(passed_on(reason, Reason::CANCEL));
                return Ok(Outcome::ClientGone);
            }
            Err(Stop::Failed(failure)) => return Err(self.failed(failure, &leg)),
            Err(Stop::Left) => return Err(Failed { unsent: true, ..self.failed(Failure::Closed, &leg) }),
            Err(Stop::Refused(refusal)) => {
                let answer = Answer::status(refusal.status());
                return Ok(self.answer(answer, Outcome::Refused(refusal.into())));
            }
            Err(Stop::Revoked) => {
                leg.send.send_reset(Reason::CANCEL);
                return Ok(self.answer(Answer::status(403), Outcome::Answered));
            }
        };
        self.record.responded = Some(Instant::now());
        let (parts, body) = response.into_parts();
        let head = match ResponseHead::judge(parts, body.is_end_stream()) {
            Ok(head) => head,
            Err(refusal) => return Err(self.failed(Failure::Malformed(refusal.into()), &leg)),
        };
        leg.upstream.answered();
        let again = self.kept.is_whole() && self.record.attempts < ATTEMPTS_MAX;
        match self.hooks.response(&self.request, &head, again) {
            Verdict::Forward(edits) => Ok(self.respond(leg, (head, body), &edits).await),
            Verdict::Retry if again => Err(self.failed(Failure::Status(head.status()), &leg)),
            Verdict::Retry => Ok(self.respond(leg, (head, body), &FieldEdits::default()).await),
        }
    }

    fn failed(&self, failure: Failure, leg: &Leg) -> Failed {
        let lost = matches!(failure, Failure::Closed | Failure::Io(_));
        let stale = lost && leg.upstream.is_used() && leg.interims == 0;
        Failed { failure, again: self.kept.is_whole(), stale, unsent: false }
    }

    /// Sends the final response on, to its end.
    async fn respond(
        &mut self,
        mut leg: Leg,
        (head, body): (ResponseHead, RecvStream),
        edits: &FieldEdits,
    ) -> Outcome {
        let ResponseHead { parts, over } = head;
        let mut response = Response::from_parts(parts, ());
        edits.apply(response.headers_mut());
        self.record.status = Some(response.status().as_u16());
        if over {
            self.record.grpc_status = super::head::grpc_status(response.headers());
        }
        let Ok(mut to) = self.respond.send_response(response, over) else {
            leg.send.send_reset(Reason::CANCEL);
            return Outcome::ClientGone;
        };
        let stall = Stall::new(&self.stalls);
        let mut download =
            Download { flow: Flow::new(body, false), done: over, moved: Instant::now(), stall };
        let stop = poll_fn(|cx| self.poll_body(cx, &mut leg, &mut download, &mut to)).await;
        self.record.response_bytes = download.flow.bytes();
        match stop {
            Ok(()) => {
                self.hooks.give_back(leg.upstream);
                Outcome::Forwarded
            }
            Err(Stop::ClientGone(reason)) => {
                leg.send.send_reset(passed_on(reason, Reason::CANCEL));
                Outcome::ClientGone
            }
            Err(stop) => {
                let (reason, outcome) = lost(stop);
                to.send_reset(reason);
                outcome
            }
        }
    }

    /// The head of the final response.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        leg: &mut Leg,
        response: &mut ResponseFuture,
    ) -> Poll<Result<Response<RecvStream>, Stop>> {
        self.poll_upload(cx, leg)?;
        while let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
            self.interim(interim.map_err(broken)?, leg)?;
        }
        if let Poll::Ready(response) = Pin::new(response).poll(cx) {
            return Poll::Ready(response.map_err(broken));
        }
        if let Poll::Ready(reset) = self.respond.poll_reset(cx) {
            return Poll::Ready(Err(Stop::ClientGone(reset.unwrap_or(Reason::CANCEL))));
        }
        if self.hooks.poll_revoked(cx).is_ready() {
            return Poll::Ready(Err(Stop::Revoked));
        }
        let limits = [leg.respond_by, leg.complete_by, self.stall.deadline(&self.upload)];
        let Some(deadline) = limits.into_iter().flatten().min() else { return Poll::Pending };
        ready!(self.timer.poll(cx, deadline));
        Poll::Ready(Err(Stop::Failed(Failure::Timeout)))
    }

    /// Sends on what precedes a response.
    fn interim(&mut self, response: Response<()>, leg: &mut Leg) -> Result<(), Stop> {
        leg.interims += 1;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Stop::Failed(Failure::Unasked));
        }
        if leg.interims > INTERIMS_MAX {
            return Err(Stop::Failed(Failure::Malformed(Refusal::Interims.into())));
        }
        // A client that has gone is noticed elsewhere.
        let _ = self.respond.send_informational(response);
        Ok(())
    }

    /// The rest of an exchange whose response's head was sent on.
    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        leg: &mut Leg,
        download: &mut Download,
        to: &mut SendStream<Bytes>,
    ) -> Poll<Result<(), Stop>> {
        let passed = (download.flow.bytes(), self.upload.bytes());
        if !download.done {
            match download.flow.poll(cx, to, &mut self.record) {
                Poll::Ready(Ok(())) => download.done = true,
                Poll::Ready(Err(Broken::Source(error))) => return Poll::Ready(Err(broken(error))),
                Poll::Ready(Err(Broken::Malformed)) => {
                    let refusal = Refusal::Trailers.into();
                    return Poll::Ready(Err(Stop::Failed(Failure::Malformed(refusal))));
                }
                // The client has gone; it says below with which reason.
                Poll::Ready(Err(Broken::Sink)) => {}
                Poll::Pending => {}
            }
        }
        self.poll_upload(cx, leg)?;
        if let Poll::Ready(reset) = to.poll_reset(cx) {
            return Poll::Ready(Err(Stop::ClientGone(reset.unwrap_or(Reason::CANCEL))));
        }
        if download.done && leg.upload == Upload::Open && leg.send.poll_reset(cx).is_ready() {
            leg.upload = Upload::Dead;
        }
        if download.done && leg.upload != Upload::Open {
            return Poll::Ready(Ok(()));
        }
        if self.hooks.poll_revoked(cx).is_ready() {
            return Poll::Ready(Err(Stop::Revoked));
        }
        if passed != (download.flow.bytes(), self.upload.bytes()) {
            download.moved = Instant::now();
        }
        // A client that has its answer may not care to send the rest, and says nothing.
        let patience = download.done.then(|| download.moved + HEAD_TIME);
        let stalled = [download.stall.deadline(&download.flow), self.stall.deadline(&self.upload)];
        let limits = stalled.into_iter().chain([patience, leg.complete_by]);
        let Some(deadline) = limits.flatten().min() else { return Poll::Pending };
        ready!(self.timer.poll(cx, deadline));
        Poll::Ready(if download.done { Ok(()) } else { Err(Stop::Failed(Failure::Timeout)) })
    }

    /// Moves the request's body on.
    fn poll_upload(&mut self, cx: &mut Context<'_>, leg: &mut Leg) -> Result<(), Stop> {
        if leg.upload != Upload::Open {
            return Ok(());
        }
        let mut watch = Watch { hooks: &mut self.hooks, kept: &mut self.kept };
        match self.upload.poll(cx, &mut leg.send, &mut watch) {
            Poll::Ready(Ok(())) => {
                leg.upload = Upload::Sent;
                self.hooks.body_ended();
            }
            Poll::Ready(Err(Broken::Sink)) => leg.upload = Upload::Dead,
            Poll::Ready(Err(Broken::Malformed)) => return Err(Stop::Refused(Refusal::Trailers)),
            Poll::Ready(Err(Broken::Source(error))) => {
                let reason = error.reason().filter(|_| error.is_remote());
                return Err(Stop::ClientGone(reason.unwrap_or(Reason::CANCEL)));
            }
            Poll::Pending => {}
        }
        Ok(())
    }
}

/// A response's body on its way to the client.
struct Download {
    flow: Flow,
    done: bool,
    /// When a byte last moved.
    moved: Instant,
    stall: Stall,
}

/// What the engine says of a stream to a server.
fn broken(error: h2::Error) -> Stop {
    Stop::Failed(match error.reason() {
        Some(_) if error.is_go_away() && error.is_remote() => return Stop::Left,
        Some(Reason::REFUSED_STREAM) if error.is_remote() => Failure::Refused,
        Some(reason) if error.is_reset() && error.is_remote() => Failure::Reset(reason.into()),
        Some(_) if error.is_library() => Failure::Malformed(Refusal::Protocol.into()),
        _ if error.is_io() => {
            Failure::Io(error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()))
        }
        _ => Failure::Closed,
    })
}

/// How an exchange ends whose response breaks off, and with which reason the client hears of it.
fn lost(stop: Stop) -> (Reason, Outcome) {
    match stop {
        Stop::ClientGone(reason) => (reason, Outcome::ClientGone),
        Stop::Failed(Failure::Timeout) => (Reason::CANCEL, Outcome::TimedOut),
        Stop::Failed(Failure::Reset(code)) => {
            (passed_on(code.into(), Reason::INTERNAL_ERROR), Outcome::ResponseLost(Failure::Reset(code)))
        }
        Stop::Failed(failure) => (Reason::INTERNAL_ERROR, Outcome::ResponseLost(failure)),
        Stop::Left => (Reason::INTERNAL_ERROR, Outcome::ResponseLost(Failure::Closed)),
        Stop::Refused(refusal) => (Reason::PROTOCOL_ERROR, Outcome::Refused(refusal.into())),
        // What gRPC reads as PERMISSION_DENIED.
        Stop::Revoked => (Reason::INADEQUATE_SECURITY, Outcome::Aborted),
    }
}

/// The reason that one side is told when the other has reset a request. What is about the other's own connection with us is not
/// about this one's, and there would look like its fault: it is told something else `instead`.
pub(super) fn passed_on(reason: Reason, instead: Reason) -> Reason {
    match reason {
        Reason::NO_ERROR
        | Reason::PROTOCOL_ERROR
        | Reason::FLOW_CONTROL_ERROR
        | Reason::SETTINGS_TIMEOUT
        | Reason::STREAM_CLOSED
        | Reason::FRAME_SIZE_ERROR
        | Reason::REFUSED_STREAM
        | Reason::COMPRESSION_ERROR => instead,
        reason => reason,
    }
}
