//! One connection of a client, from its preface to its end: each request is a task of its own, on the same thread.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::Reason;
use h2::server::{Builder, Connection, SendResponse};
use hbone::{Allowance, Guard};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::exchange::{self, Over};
use super::io::{self, Control, Gathered};
use super::limits::{
    CANCELLED_BURST, CANCELLED_PER_SECOND, CLIENT_STREAMS_MAX, CLIENT_WINDOW, DRAINING_IDLE, FRAME, GOODBYE,
    HEAD_BYTES_MAX, HEAD_TIME, IDLE, PENDING_RESETS, REMEMBERED_RESETS, REQUESTS_AT_ONCE, SEND_BUFFER,
    STREAM_WINDOW,
};
use super::link::Upstream;
use super::stalls::Stalls;
use crate::decide::Decide;
use crate::timer::Timer;

/// Serves the requests of one connection, which shares `stalls` with others, until either side ends it. When `drain` resolves, no more requests are taken, and those
/// that are under way go on.
///
/// An `io` that is dropped without a shutdown must look broken to its peer, not ended. A future that is dropped cuts what is under
/// way, without [`Exchange::end`](crate::decide::Exchange::end).
pub async fn serve<Io, D>(io: Io, (decide, stalls): (Arc<D>, Arc<Stalls>), drain: impl Future<Output = ()>)
where
    Io: AsyncRead + AsyncWrite + Unpin,
    D: Decide<Upstream = Upstream> + Send + 'static,
    D::Exchange: 'static,
{
    let (engine, control) = io::split(io, Guard::forwarder(Instant::now()));
    let mut begin = pin!(builder().handshake(engine));
    let begun = poll_fn(|cx| {
        let polled = begin.as_mut().poll(cx);
        // A failed flush makes the engine's next read or write fail too.
        let _ = control.flush(cx);
        polled
    });
    let Ok(Ok(connection)) = timeout(HEAD_TIME, begun).await else { return };
    let allowance = Allowance::new(CANCELLED_BURST, CANCELLED_PER_SECOND, Instant::now());
    let mut served = Served {
        connection,
        control,
        requests: JoinSet::new(),
        stalls,
        allowance,
        phase: Phase::Open,
        rested: Instant::now(),
        timer: Timer::default(),
    };
    let mut drain = pin!(drain);
    poll_fn(|cx| served.poll(cx, &decide, drain.as_mut())).await;
    let Served { connection, mut requests, .. } = served;
    // What is still under way hears of the end by it, and reports.
    drop(connection);
    while requests.join_next().await.is_some() {}
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(CLIENT_STREAMS_MAX)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CLIENT_WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(HEAD_BYTES_MAX)
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        // The engine counts these for life, which a long-lived connection would use up: the guard counts them by time.
        .max_local_error_reset_streams(None);
    builder
}

/// Whether the client has reset a request already.
fn is_reset(respond: &mut SendResponse<Bytes>) -> bool {
    respond.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready()
}

enum Phase {
    Open,
    /// The client was told that no more requests are taken.
    Draining,
    /// The client is told why it is thrown out, until then.
    Leaving(Instant),
}

struct Served<Io> {
    connection: Connection<Gathered<Io>, Bytes>,
    control: Control<Io>,
    requests: JoinSet<Over>,
    stalls: Arc<Stalls>,
    /// Of requests that are cancelled before they are answered.
    allowance: Allowance,
    phase: Phase,
    /// When the last request was over.
    rested: Instant,
    timer: Timer,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Served<Io> {
    /// Moves everything on; resolves when the connection is over.
    fn poll<D>(
        &mut self,
        cx: &mut Context<'_>,
        decide: &Arc<D>,
        drain: Pin<&mut impl Future<Output = ()>>,
    ) -> Poll<()>
    where
        D: Decide<Upstream = Upstream> + Send + 'static,
        D::Exchange: 'static,
    {
        if matches!(self.phase, Phase::Open) && drain.poll(cx).is_ready() {
            self.leave();
        }
        let polled = self.poll_engine(cx, decide);
        let flushed = self.control.flush(cx);
        self.poll_requests(cx);
        if self.control.abuse().is_some() {
            self.throw_out(cx);
        }
        if polled.is_ready() || flushed.is_err() { Poll::Ready(()) } else { self.poll_patience(cx) }
    }

    fn poll_engine<D>(&mut self, cx: &mut Context<'_>, decide: &Arc<D>) -> Poll<()>
    where
        D: Decide<Upstream = Upstream> + Send + 'static,
        D::Exchange: 'static,
    {
        for _ in 0..REQUESTS_AT_ONCE {
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, mut respond)))) => {
                    if is_reset(&mut respond) {
                        // It came with its own end: nobody should work for it.
                        self.cancelled(cx);
                        continue;
                    }
                    // Boxed before it is a task's: it is large, and a task is moved several times.
                    self.requests.spawn(Box::pin(exchange::run(
                        Arc::clone(decide),
                        (request, respond),
                        Arc::clone(&self.stalls),
                    )));
                }
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, "a connection broke");
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// The client had no more use for a request before it was answered.
    fn cancelled(&mut self, cx: &mut Context<'_>) {
        self.rested = Instant::now();
        if !self.allowance.spend(1.0, self.rested) {
            self.throw_out(cx);
        }
    }

    /// Takes leave of requests that are over.
    fn poll_requests(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(over)) = self.requests.poll_join_next(cx) {
            self.rested = Instant::now();
            match over {
                Ok(Over::Answered) => {}
                Ok(Over::Cancelled) => self.cancelled(cx),
                Err(error) => tracing::error!(%error, "a request ended by a fault of ours; please report it"),
            }
        }
    }

    fn leave(&mut self) {
        self.connection.graceful_shutdown();
        self.phase = Phase::Draining;
        self.rested = Instant::now();
    }

    fn throw_out(&mut self, cx: &mut Context<'_>) {
        if !matches!(self.phase, Phase::Leaving(_)) {
            self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            self.phase = Phase::Leaving(Instant::now() + GOODBYE);
            cx.waker().wake_by_ref();
        }
    }

    /// Resolves when nothing is to be waited for any more.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = match self.phase {
            Phase::Leaving(until) => until,
            Phase::Open | Phase::Draining if !self.requests.is_empty() => return Poll::Pending,
            Phase::Open => self.rested + IDLE,
            Phase::Draining => self.rested + DRAINING_IDLE,
        };
        match self.phase {
            _ if self.timer.poll(cx, deadline).is_pending() => Poll::Pending,
            Phase::Open => {
                self.leave();
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Phase::Draining | Phase::Leaving(_) => Poll::Ready(()),
        }
    }
}
