//! A pool and its peers in every order of events that a seed can make: each poll may be put off, reads and writes come
//! short, peers take their leave at any moment. Time stands still, so whoever needed a timer to go on was forgotten.

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use fastrand::Rng;
use hbone::{
    ClientLimits, ClientTls, ConnectError, DialError, Driver, OpenError, Opener, Pool, PoolLimits, PoolStats,
    Reason, RecordError, ServerConnection, ServerLimits, StreamError, TunnelError,
};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::support::*;

/// Orders of events per test: each costs some milliseconds.
const SEEDS: u64 = 200;

/// More tunnels than any test makes: five streams that dial nine times each.
const ENDS: usize = 64;

/// Puts off what it is asked for, as often as the dice say.
struct Whims {
    dice: Rng,
    /// One poll in so many is done at once.
    one_in: u32,
}

impl Whims {
    fn new(dice: &mut Rng) -> Whims {
        Whims { one_in: dice.u32(1..=4), dice: dice.fork() }
    }

    fn put_off(&mut self, cx: &mut Context<'_>) -> bool {
        let later = self.dice.u32(..self.one_in) > 0;
        if later {
            cx.waker().wake_by_ref();
        }
        later
    }
}

/// A future that is not always in the mood.
async fn dawdle<F: Future>(mut whims: Whims, future: F) -> F::Output {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| if whims.put_off(cx) { Poll::Pending } else { future.as_mut().poll(cx) }).await
}

/// A byte stream that is not always in the mood.
struct Fickle {
    io: DuplexStream,
    reads: Whims,
    writes: Whims,
    /// The most that one read or write takes.
    bite: usize,
}

impl Fickle {
    fn new(io: DuplexStream, dice: &mut Rng) -> Fickle {
        let (reads, writes) = (Whims::new(dice), Whims::new(dice));
        Fickle { io, reads, writes, bite: 1 << dice.u32(5..17) }
    }

    fn pair(dice: &mut Rng) -> (Fickle, Fickle) {
        let (near, far) = tokio::io::duplex(1 << dice.u32(6..17));
        (Fickle::new(near, dice), Fickle::new(far, dice))
    }
}

impl AsyncRead for Fickle {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if me.reads.put_off(cx) {
            return Poll::Pending;
        }
        let mut bytes = vec![0; buf.remaining().min(me.bite)];
        let mut short = ReadBuf::new(&mut bytes);
        let polled = Pin::new(&mut me.io).poll_read(cx, &mut short);
        buf.put_slice(short.filled());
        polled
    }
}

impl AsyncWrite for Fickle {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        if me.writes.put_off(cx) {
            return Poll::Pending;
        }
        Pin::new(&mut me.io).poll_write(cx, &buf[..buf.len().min(me.bite)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write(cx, bufs.iter().find(|buf| !buf.is_empty()).map_or(&[], |buf| buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.writes.put_off(cx) { Poll::Pending } else { Pin::new(&mut self.io).poll_shutdown(cx) }
    }
}

/// What the weather is like.
struct Plan {
    /// So many peers take their leave; those after them stay.
    leaving: usize,
    /// Peers that leave are cut off in the middle of it.
    cut: bool,
    /// Some streams are given up at any moment.
    giving_up: bool,
}

/// The peers behind one key: each dial reaches the next one.
struct Peers {
    pki: Pki,
    plan: Plan,
    limits: ServerLimits,
    dice: Mutex<Rng>,
    dials: AtomicUsize,
    ends: mpsc::Sender<Option<TunnelError>>,
}

impl Peers {
    async fn dial(self: Arc<Self>) -> Result<(Opener, Driver), DialError> {
        let (near, far) = Fickle::pair(&mut self.dice.lock());
        let leaves = self.dials.fetch_add(1, Ordering::Relaxed) < self.plan.leaving;
        let leaves_in = leaves.then(|| self.any_moment());
        tokio::spawn(dawdle(self.whims(), self.clone().serve(far, leaves_in)));
        let (opener, driver, _) = hbone::connect(near, self.pki.tls(), &ClientLimits::default()).await?;
        Ok((opener, driver))
    }

    /// Echoes, and takes its leave after so many polls.
    async fn serve(self: Arc<Self>, far: Fickle, leaves_in: Option<usize>) {
        let cut = self.plan.cut.then(|| self.any_moment());
        let serving = async {
            let mut leaves_in = leaves_in;
            let accepted = hbone::accept(far, self.pki.server.clone(), &self.limits).await;
            let Ok((mut connection, _)) = accepted else { return None };
            while let Some(incoming) = next(&mut connection, &mut leaves_in).await {
                match incoming {
                    Ok(incoming) => drop(tokio::spawn(dawdle(self.whims(), echo(incoming)))),
                    Err(error) => return Some(error),
                }
            }
            None
        };
        let end = match cut {
            Some(polls) if leaves_in.is_some() => give_up(polls, serving).await.flatten(),
            _ => serving.await,
        };
        self.ends.send(end).await.unwrap();
    }

    fn whims(&self) -> Whims {
        Whims::new(&mut self.dice.lock())
    }

    /// So many polls away, from none to many.
    fn any_moment(&self) -> usize {
        let mut dice = self.dice.lock();
        let most = 1 << dice.u32(..9);
        dice.usize(..most)
    }
}

async fn next(
    connection: &mut ServerConnection<Fickle>,
    leaves_in: &mut Option<usize>,
) -> Option<Result<hbone::Incoming, TunnelError>> {
    std::future::poll_fn(|cx| {
        match leaves_in {
            Some(0) => {
                *leaves_in = None;
                connection.drain();
            }
            Some(polls) => {
                *polls -= 1;
                cx.waker().wake_by_ref();
            }
            None => {}
        }
        connection.poll_next(cx)
    })
    .await
}

/// A future that is dropped after so many polls.
async fn give_up<F: Future>(mut polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        if polls == 0 {
            return Poll::Ready(None);
        }
        polls -= 1;
        cx.waker().wake_by_ref();
        future.as_mut().poll(cx).map(Some)
    })
    .await
}

/// Why an exchange failed.
#[derive(Debug)]
#[expect(dead_code, reason = "a failed test shows what is in it")]
enum Failure {
    Open(OpenError),
    Stream(StreamError),
}

impl From<StreamError> for Failure {
    fn from(error: StreamError) -> Self {
        Self::Stream(error)
    }
}

/// One exchange, from its place in the pool to its end. `None` when it was given up.
async fn request(pool: Pool<()>, peers: Arc<Peers>) -> Option<Result<(), Failure>> {
    let len = 1 << peers.dice.lock().u32(..17);
    let exchange = async {
        let dial = {
            let peers = peers.clone();
            move || dawdle(peers.whims(), peers.clone().dial())
        };
        let mut stream = pool.open(&(), to("10.0.0.1:80"), dial).await.map_err(Failure::Open)?;
        let (sent, mut got) = (Bytes::from(pattern(1, len)), Vec::new());
        let mut rest = sent.clone();
        while !rest.is_empty() {
            let room = std::future::poll_fn(|cx| stream.poll_capacity(cx, rest.len())).await?;
            stream.send(rest.split_to(room))?;
            let batch = recv(&mut stream).await?.unwrap();
            batch.iter().for_each(|chunk| got.extend_from_slice(chunk));
        }
        stream.finish()?;
        got.extend(recv_all(&mut stream).await?);
        assert!(got == sent, "{} of {len} bytes came back", got.len());
        Ok(())
    };
    if peers.plan.giving_up && peers.dice.lock().bool() {
        return give_up(peers.any_moment(), exchange).await;
    }
    Some(exchange.await)
}

/// What came of one order of events.
#[derive(Debug)]
struct Outcome {
    requests: Vec<Option<Result<(), Failure>>>,
    dials: usize,
    ends: Vec<Option<TunnelError>>,
}

/// Some streams at once, with such peers.
async fn play(pki: Pki, mut dice: Rng, plan: impl Fn(&mut Rng) -> Plan) -> Outcome {
    let began = Instant::now();
    let plan = plan(&mut dice);
    let limits = PoolLimits { max_tunnels: dice.usize(1..=3), ..PoolLimits::default() };
    let pool = Pool::new(&limits);
    let (ends, mut ended) = mpsc::channel(ENDS);
    let limits = ServerLimits { max_streams: dice.u32(1..=3), ..ServerLimits::default() };
    let streams = dice.u32(1..=5);
    let dice = Mutex::new(dice);
    let peers = Arc::new(Peers { pki, plan, limits, dice, dials: AtomicUsize::new(0), ends });
    let opening: Vec<_> = (0..streams)
        .map(|_| tokio::spawn(dawdle(peers.whims(), request(pool.clone(), peers.clone()))))
        .collect();
    let mut requests = Vec::new();
    for task in opening {
        requests.push(soon("a request", task).await.unwrap());
    }
    let PoolStats { streams, waiting, .. } = pool.stats();
    assert_eq!((streams, waiting), (0, 0));
    drop(pool);
    let dials = peers.dials.load(Ordering::Relaxed);
    drop(peers);
    let mut ends = Vec::new();
    while let Some(end) = soon("the ends", ended.recv()).await {
        ends.push(end);
    }
    assert_eq!(began.elapsed(), std::time::Duration::ZERO, "somebody waited for a timer");
    Outcome { requests, dials, ends }
}

/// Plays every seed on a runtime of its own, with a clock that moves only when nothing else does.
fn every_seed<T: Debug, F: Future<Output = T>>(play: impl Fn(Pki, Rng) -> F, judge: impl Fn(&T) -> bool) {
    let pki = Pki::new();
    for seed in 0..SEEDS {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        let playing = || runtime.block_on(play(pki.clone(), Rng::with_seed(seed)));
        match catch_unwind(AssertUnwindSafe(playing)) {
            Ok(outcome) => assert!(judge(&outcome), "seed {seed}: {outcome:?}"),
            Err(_) => panic!("seed {seed}"),
        }
    }
}

/// All that was not given up was served, and all tunnels ended by agreement.
fn all_is_well(outcome: &Outcome) -> bool {
    let served = |request: &Option<Result<(), Failure>>| !matches!(request, Some(Err(_)));
    outcome.requests.iter().all(served) && outcome.ends.iter().all(Option::is_none)
}

#[test]
fn peers_that_leave_at_any_moment_cost_no_request() {
    // A stream is tried three times, so the third peer has to stay.
    let plan = |dice: &mut Rng| Plan { leaving: dice.usize(..=2), cut: false, giving_up: false };
    every_seed(|pki, dice| play(pki, dice, plan), all_is_well);
}

#[test]
fn a_stream_that_is_given_up_harms_no_other() {
    let plan = |dice: &mut Rng| Plan { leaving: dice.usize(..=2), cut: false, giving_up: true };
    every_seed(|pki, dice| play(pki, dice, plan), all_is_well);
}

#[test]
fn peers_that_only_ever_leave_serve_a_stream_or_refuse_it_unprocessed() {
    let plan = |_: &mut Rng| Plan { leaving: usize::MAX, cut: false, giving_up: false };
    let fair = |request: &Option<Result<(), Failure>>| match request {
        None | Some(Ok(()) | Err(Failure::Open(OpenError::Unprocessed))) => true,
        Some(Err(Failure::Open(OpenError::Dial(DialError::Tunnel(error))))) => {
            matches!(**error, ConnectError::Tunnel(TunnelError::Closed(Reason::NO_ERROR)))
        }
        Some(Err(_)) => false,
    };
    every_seed(
        |pki, dice| play(pki, dice, plan),
        |outcome| {
            outcome.requests.iter().all(fair)
                && outcome.dials <= 9 * outcome.requests.len()
                && outcome.ends.iter().all(Option::is_none)
        },
    );
}

#[test]
fn a_tunnel_that_is_cut_at_any_moment_leaves_nobody_waiting() {
    let plan = |dice: &mut Rng| Plan { leaving: dice.usize(..=9), cut: true, giving_up: true };
    every_seed(|pki, dice| play(pki, dice, plan), |_| true);
}

#[test]
fn a_refused_certificate_is_told_from_a_broken_connection() {
    let refused = async |pki: Pki, mut dice: Rng| {
        let (near, far) = tokio::io::duplex(1 << 16);
        let server = pki.server.clone();
        tokio::spawn(async move { hbone::accept(far, server, &ServerLimits::default()).await.err() });
        let tls = ClientTls { config: pki.stranger.clone(), ..pki.tls() };
        // We may still be sending when the peer has closed its end.
        let near = Fickle::new(near, &mut dice);
        hbone::connect(near, tls, &ClientLimits::default()).await.err()
    };
    every_seed(refused, |error| {
        matches!(
            error,
            Some(ConnectError::Tunnel(TunnelError::Records(RecordError::Tls(rustls::Error::AlertReceived(
                _
            )))))
        )
    });
}
