//! Streams that nobody reads, more of them than the budget has windows for. The clock stands still while anything moves,
//! so a sleep lasts until nothing does: bytes are counted then, not timed.

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use hbone::{
    Budget, ClientLimits, Incoming, Opener, Reason, Received, ServerLimits, Stream, StreamError, TunnelLimits,
};
use http::HeaderMap;
use tokio::task::JoinSet;

use crate::raw::*;
use crate::support::*;

const MIB: usize = 1 << 20;
/// What a tunnel reads before its streams' tasks have a turn: it is not counted yet.
const UNDER_WAY: usize = MIB / 2;

/// Until nothing moves any more.
async fn quiet() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// What stalled readers have in hand, by their own account.
#[derive(Clone, Default)]
struct Hoard {
    held: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    reset: Arc<AtomicUsize>,
}

impl Hoard {
    /// Port 80 echoes. On another port takes what comes, as a relay does whose application does not read, until the
    /// stream breaks.
    async fn serve(self, incoming: Incoming) {
        if incoming.authority.port_u16() == Some(80) {
            return echo(incoming).await;
        }
        let mut stream = incoming.accept(HeaderMap::new()).unwrap();
        self.hoard(&mut stream).await;
    }

    async fn hoard(&self, stream: &mut Stream) {
        let mut batch = Vec::new();
        let mut mine = 0;
        loop {
            match poll_fn(|cx| stream.poll_recv(cx, &mut batch)).await {
                Ok(Received::Data(count)) => {
                    mine += count;
                    let now = self.held.fetch_add(count, SeqCst) + count;
                    self.most.fetch_max(now, SeqCst);
                }
                Ok(Received::End) => return pending().await,
                Err(error) => {
                    self.held.fetch_sub(mine, SeqCst);
                    self.reset.fetch_add(usize::from(error == StreamError::Hoarded), SeqCst);
                    return;
                }
            }
        }
    }
}

/// Several tunnels to one workload.
struct Workload {
    budget: Budget,
    hoard: Hoard,
    openers: Vec<Opener>,
}

async fn workload(budget: usize, tunnels: usize) -> Workload {
    let (pki, hoard) = (Pki::new(), Hoard::default());
    let budget = Budget::new(budget);
    let tunnel = TunnelLimits { budget: budget.clone(), ..TunnelLimits::default() };
    let limits = ServerLimits { tunnel, ..ServerLimits::default() };
    let mut openers = Vec::new();
    for _ in 0..tunnels {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (pki_there, limits, hoard) = (pki.clone(), limits.clone(), hoard.clone());
        tokio::spawn(async move {
            serve(far, &pki_there, &limits, move |incoming| hoard.clone().serve(incoming)).await
        });
        let limits = ClientLimits { max_streams: 200, ..ClientLimits::default() };
        openers.push(dial(near, &pki, &limits).await.unwrap());
    }
    Workload { budget, hoard, openers }
}

impl Workload {
    /// Sends on so many streams until their windows are full; each task ends when its stream breaks, and says how.
    async fn stall(&self, streams: usize) -> JoinSet<StreamError> {
        let mut tasks = JoinSet::new();
        for index in 0..streams {
            let mut stream = self.openers[index % self.openers.len()].open(to("10.0.0.1:83")).await.unwrap();
            tasks.spawn(async move {
                loop {
                    if let Err(error) = send(&mut stream, Bytes::from_static(&[7; 16 * 1024])).await {
                        return error;
                    }
                }
            });
        }
        quiet().await;
        tasks
    }

    fn check(&self, most: usize) {
        let held = self.hoard.held.load(SeqCst);
        assert_eq!(self.budget.held(), held, "what is counted is what is held");
        let peak = self.hoard.most.load(SeqCst);
        assert!(peak <= most + UNDER_WAY * self.openers.len(), "{peak} bytes were held, at most {most}");
    }
}

#[tokio::test(start_paused = true)]
async fn two_hundred_stalled_streams_share_a_budget_and_none_is_reset() {
    let workload = workload(32 * MIB, 2).await;
    let mut stalled = workload.stall(200).await;
    workload.check(32 * MIB);
    assert!(stalled.try_join_next().is_none(), "smaller windows sufficed");
    assert!(workload.hoard.held.load(SeqCst) >= 200 * 16 * 1024, "and each has a frame at least");
    for opener in &workload.openers {
        echo_once(opener, 10 * MIB).await;
    }
    workload.check(32 * MIB);
    stalled.shutdown().await;
    quiet().await;
    assert_eq!(workload.budget.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn when_small_windows_do_not_suffice_the_longest_stalled_streams_are_reset() {
    let workload = workload(2 * MIB, 2).await;
    let mut first = workload.stall(10).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut second = workload.stall(200).await;
    workload.check(2 * MIB);
    assert!(!workload.budget.is_exceeded());
    for _ in 0..10 {
        let error = soon("the first are reset", first.join_next()).await.unwrap().unwrap();
        assert_eq!(error, StreamError::Reset(Reason::CONNECT_ERROR), "not to be taken for an end");
    }
    let mut gone = 10;
    while let Some(error) = second.try_join_next() {
        assert_eq!(error.unwrap(), StreamError::Reset(Reason::CONNECT_ERROR));
        gone += 1;
    }
    assert_eq!(workload.hoard.reset.load(SeqCst), gone);
    assert!(gone < 150, "{gone} of 210 were reset, which are more than needed");
    for opener in &workload.openers {
        echo_once(opener, 10 * MIB).await;
    }
}

/// One that has no window left, to which the stalled ones come back.
#[tokio::test(start_paused = true)]
async fn windows_recover_when_the_stalled_streams_have_gone() {
    let workload = workload(4 * MIB, 1).await;
    let mut stalled = workload.stall(100).await;
    workload.check(4 * MIB);
    stalled.shutdown().await;
    for _ in 0..4 {
        // Somebody uses the tunnel, and a second passes.
        echo_once(&workload.openers[0], MIB).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(workload.budget.held(), 0);
    let one = workload.stall(1).await;
    assert_eq!(workload.hoard.held.load(SeqCst), MIB, "its whole window");
    drop(one);
}

/// Streams side by side have credits kept back when the windows shrink, or have used most of their window and are about to
/// be given more: none may wait for ever.
#[tokio::test(start_paused = true)]
async fn streams_that_were_idle_while_windows_shrank_go_on() {
    let workload = workload(16 * MIB, 1).await;
    let opener = &workload.openers[0];
    let mut busy = Vec::new();
    for _ in 0..8 {
        busy.push(opener.open(to("10.0.0.1:80")).await.unwrap());
    }
    let mut rounds = Vec::new();
    for size in [3 * MIB, 600_000, 1000] {
        let mut turn = JoinSet::new();
        for (index, mut stream) in busy.drain(..).enumerate() {
            turn.spawn(async move {
                exchange(&mut stream, size + index * 50_000).await;
                stream
            });
        }
        busy = soon("every stream goes on", turn.join_all()).await;
        rounds.push(workload.stall(40).await);
    }
    workload.check(16 * MIB);
    assert_eq!(workload.hoard.reset.load(SeqCst), 0);
    for mut stream in busy {
        soon("each goes on by itself", exchange(&mut stream, 2 * MIB)).await;
    }
}

/// Sends so many bytes to an echo and waits for them.
async fn exchange(stream: &mut Stream, len: usize) {
    let sent = pattern(len as u64, len);
    let (mut rest, mut got) = (Bytes::from(sent.clone()), Vec::new());
    while got.len() < len {
        if !rest.is_empty() {
            let room = poll_fn(|cx| stream.poll_capacity(cx, rest.len())).await.unwrap().min(50_000);
            stream.send(rest.split_to(room)).unwrap();
        }
        for chunk in recv(stream).await.unwrap().unwrap() {
            got.extend_from_slice(&chunk);
        }
    }
    assert!(got == sent, "{len} bytes come back");
}

/// The peer gave windows, and then does not even read its socket.
#[tokio::test(start_paused = true)]
async fn what_a_peer_does_not_take_is_bounded_too() {
    let pki = Pki::new();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let served = pki.clone();
    tokio::spawn(async move {
        let (mut connection, _) =
            hbone::accept(far, served.server.clone(), &ServerLimits::default()).await.unwrap();
        let mut streams = Vec::new();
        tokio::select! {
            () = async {
                while let Some(Ok(incoming)) = connection.next().await {
                    streams.push(incoming.accept(HeaderMap::new()).unwrap());
                }
            } => {}
            // It has answered everybody, and turns bad.
            () = tokio::time::sleep(Duration::from_secs(1)) => pending().await,
        }
    });
    let budget = Budget::new(8 * MIB);
    let tunnel = TunnelLimits { budget: budget.clone(), ..TunnelLimits::default() };
    let opener = dial(near, &pki, &ClientLimits { tunnel, max_streams: 200 }).await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..100 {
        streams.push(opener.open(to("10.0.0.1:83")).await.unwrap());
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut tasks = JoinSet::new();
    for (index, mut stream) in streams.into_iter().enumerate() {
        tasks.spawn(async move {
            loop {
                let room = poll_fn(|cx| stream.poll_capacity(cx, 16 * 1024)).await?;
                // Whole buffers, and messages that are copied out of theirs.
                let count = if index % 2 == 0 { room } else { room.min(1000) };
                let sent = stream.send_with(room, |buffer| {
                    buffer[..count].fill(7);
                    Ok(count)
                });
                assert!(sent.is_ok(), "{sent:?}");
            }
            #[expect(unreachable_code, reason = "it says what the task ends with")]
            Ok::<(), StreamError>(())
        });
    }
    quiet().await;
    assert!(budget.held() <= 8 * MIB, "{}", budget.held());
    assert!(budget.held() >= 4 * MIB, "{} is what 100 streams hold, and they wanted more", budget.held());
    assert!(tasks.try_join_next().is_none(), "smaller buffers sufficed");
    tasks.shutdown().await;
    drop(opener);
}

/// To the engine its windows stay as they were, because it never acknowledges that they have shrunk.
#[tokio::test]
async fn a_peer_that_is_deaf_to_settings_loses_its_streams() {
    let (pki, hoard) = (Pki::new(), Hoard::default());
    let budget = Budget::new(8 * MIB);
    let tunnel = TunnelLimits { budget: budget.clone(), ..TunnelLimits::default() };
    let limits = ServerLimits { tunnel, ..ServerLimits::default() };
    let serving = hoard.clone();
    let address = listen(&pki, limits, move |incoming| serving.clone().serve(incoming)).await;
    let attack = tokio::task::spawn_blocking(move || {
        let mut raw = Raw::tunnel(address, &pki.client, &[]);
        let connect = block(&[(":method", "CONNECT"), (":authority", "10.0.0.1:83")]);
        let streams = || (0..200_u32).map(|stream| stream * 2 + 1);
        for stream in streams() {
            raw.write(&frame(HEADERS, END_HEADERS, stream, &connect)).unwrap();
        }
        for stream in (0..64).flat_map(|_| streams()) {
            raw.write(&frame(DATA, 0, stream, &[7; 16_384])).unwrap();
        }
        raw
    });
    let raw = soon("all was sent", attack).await.unwrap();
    until("the budget is kept", || hoard.reset.load(SeqCst) > 0 && !budget.is_exceeded()).await;
    let most = hoard.most.load(SeqCst);
    assert!(most <= 8 * MIB + UNDER_WAY, "{most} of 200 MiB were held at once");
    drop(raw);
    until("nothing is held for a peer that has gone", || budget.held() == 0).await;
}
