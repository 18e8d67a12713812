//! The pool: who shares a tunnel, who dials, who waits, who is told what, and that nothing is left behind.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hbone::{
    ClientLimits, DialError, OpenError, Pool, PoolLimits, PoolStats, ServerConnection, ServerLimits, Stream,
};
use http::HeaderMap;
use tokio::io::DuplexStream;
use tokio::sync::{Semaphore, mpsc};

use crate::support::*;

/// Streams that stay open until the test says so.
async fn hold(incoming: hbone::Incoming) {
    let mut stream = incoming.accept(HeaderMap::new()).unwrap();
    let _ = recv_all(&mut stream).await;
    let _ = stream.finish();
}

fn allow(max_streams: u32) -> ServerLimits {
    ServerLimits { max_streams, ..ServerLimits::default() }
}

#[tokio::test]
async fn five_hundred_streams_respect_the_peers_limit_of_a_hundred() {
    let pki = Pki::new();
    let far = listen(&pki, allow(100), hold).await;
    let pool = Pool::new(&PoolLimits::default());
    let opening: Vec<_> = (0..500)
        .map(|_| {
            let (pool, pki) = (pool.clone(), pki.clone());
            tokio::spawn(async move { open(&pool, &pki, far, to("10.0.0.1:80")).await })
        })
        .collect();
    let mut streams: Vec<Stream> = Vec::new();
    for task in opening {
        streams.push(soon("a stream", task).await.unwrap().unwrap());
    }
    assert_eq!(pool.stats(), PoolStats { keys: 1, tunnels: 5, streams: 500, waiting: 0 });
    for stream in &mut streams {
        stream.finish().unwrap();
        assert_eq!(recv_all(stream).await.unwrap(), b"");
    }
    drop(streams);
    assert_eq!(pool.stats(), PoolStats { keys: 1, tunnels: 5, streams: 0, waiting: 0 });
    // Places that came back are used again, before any new tunnel.
    let again = open(&pool, &pki, far, to("10.0.0.1:80")).await.unwrap();
    assert_eq!(pool.stats().tunnels, 5);
    drop(again);
}

#[tokio::test]
async fn when_every_tunnel_is_full_a_stream_waits_for_a_place() {
    let pki = Pki::new();
    let far = listen(&pki, allow(1), hold).await;
    let pool = Pool::new(&PoolLimits { max_tunnels: 2, max_waiting: 1, ..PoolLimits::default() });
    let first = open(&pool, &pki, far, to("10.0.0.1:80")).await.unwrap();
    let second = open(&pool, &pki, far, to("10.0.0.1:80")).await.unwrap();
    let waiting = {
        let (pool, pki) = (pool.clone(), pki.clone());
        tokio::spawn(async move { open(&pool, &pki, far, to("10.0.0.1:80")).await })
    };
    until("the third waits", || pool.stats().waiting == 1).await;
    let fourth = open(&pool, &pki, far, to("10.0.0.1:80")).await;
    assert!(matches!(fourth, Err(OpenError::TooManyWaiting(1))), "{fourth:?}");
    drop(first);
    let third = soon("the place of the first", waiting).await.unwrap().unwrap();
    assert_eq!(pool.stats(), PoolStats { keys: 1, tunnels: 2, streams: 2, waiting: 0 });
    drop((second, third));
}

#[tokio::test]
async fn a_failed_dial_fails_all_its_waiters_at_once_and_only_them() {
    let pki = Pki::new();
    let far = listen(&pki, ServerLimits::default(), echo).await;
    let pool: Pool<SocketAddr> = Pool::new(&PoolLimits::default());
    let nowhere: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let (gate, dials) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let waiters: Vec<_> = (0..50)
        .map(|_| {
            let (pool, gate, dials) = (pool.clone(), gate.clone(), dials.clone());
            tokio::spawn(async move {
                let dial = move || {
                    let (gate, dials) = (gate.clone(), dials.clone());
                    async move {
                        dials.fetch_add(1, Ordering::SeqCst);
                        gate.acquire().await.unwrap().forget();
                        Err(DialError::from(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)))
                    }
                };
                pool.open(&nowhere, to("10.0.0.1:80"), dial).await
            })
        })
        .collect();
    until("all wait", || pool.stats().waiting == 50).await;
    // A stranger does not wait for that dial.
    drop(soon("a stranger", open(&pool, &pki, far, to("10.0.0.1:80"))).await.unwrap());
    gate.add_permits(1);
    for waiter in waiters {
        match soon("a waiter", waiter).await.unwrap() {
            Err(OpenError::Dial(DialError::Connect(error))) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(dials.load(Ordering::SeqCst), 1, "one dial for all");
    assert_eq!(
        pool.stats(),
        PoolStats { keys: 1, tunnels: 1, streams: 0, waiting: 0 },
        "the key is forgotten"
    );
}

#[tokio::test]
async fn the_dial_goes_on_when_the_one_who_asked_for_it_gives_up() {
    let pki = Pki::new();
    let far = listen(&pki, ServerLimits::default(), echo).await;
    let pool: Pool<SocketAddr> = Pool::new(&PoolLimits::default());
    let gate = Arc::new(Semaphore::new(0));
    let first = {
        let (pool, pki, gate) = (pool.clone(), pki.clone(), gate.clone());
        tokio::spawn(async move {
            let dial = move || {
                let (gate, pki) = (gate.clone(), pki.clone());
                async move {
                    gate.acquire().await.unwrap().forget();
                    dial_address(far, pki.tls()).await
                }
            };
            pool.open(&far, to("10.0.0.1:80"), dial).await
        })
    };
    until("the first waits", || pool.stats().waiting == 1).await;
    let second = {
        let (pool, pki) = (pool.clone(), pki.clone());
        tokio::spawn(async move { open(&pool, &pki, far, to("10.0.0.1:80")).await })
    };
    until("the second waits too", || pool.stats().waiting == 2).await;
    first.abort();
    until("the first is gone", || pool.stats().waiting == 1).await;
    gate.add_permits(1);
    drop(soon("the second", second).await.unwrap().unwrap());
}

#[tokio::test]
async fn a_place_that_comes_free_is_better_than_a_turn_to_dial() {
    let pki = Pki::new();
    let far = listen(&pki, allow(1), echo).await;
    let pool: Pool<SocketAddr> = Pool::new(&PoolLimits::default());
    let gate = Arc::new(Semaphore::new(0));
    let open = |authority: &'static str| {
        let (pool, pki, gate) = (pool.clone(), pki.clone(), gate.clone());
        let dial = move || {
            let (gate, pki) = (gate.clone(), pki.clone());
            async move {
                gate.acquire().await.unwrap().forget();
                dial_address(far, pki.tls()).await
            }
        };
        tokio::spawn(async move { pool.open(&far, to(authority), dial).await })
    };
    let (first, second) = (open("not an authority"), open("10.0.0.1:80"));
    until("both wait", || pool.stats().waiting == 2).await;
    // The first gets the one place, so the second is to dial; but the first has no use for it.
    gate.add_permits(1);
    let first = soon("the first", first).await.unwrap();
    assert!(matches!(first, Err(OpenError::BadRequest(_))), "{first:?}");
    drop(soon("the second", second).await.unwrap().unwrap());
    assert_eq!(pool.stats().tunnels, 1);
}

#[tokio::test]
async fn a_rejected_certificate_fails_the_dial_and_not_a_stream() {
    let pki = Pki::new();
    for (config, what) in [(pki.stranger.clone(), "another authority"), (pki.no_alpn.clone(), "no ALPN")] {
        let (near, far) = tokio::io::duplex(1 << 16);
        let served = pki.clone();
        let serving = tokio::spawn(async move {
            hbone::accept(far, served.server.clone(), &ServerLimits::default()).await.err()
        });
        let tls = hbone::ClientTls { config, ..pki.tls() };
        let connected = soon(what, hbone::connect(near, tls, &ClientLimits::default())).await;
        assert!(connected.is_err(), "{what}");
        assert!(soon(what, serving).await.unwrap().is_some(), "{what}: the server refuses too");
    }
}

/// A pool whose tunnels end in this test's hands: every dial sends the accepted side here.
struct Hands {
    pool: Pool<&'static str>,
    pki: Pki,
    accepted: mpsc::Receiver<ServerConnection<DuplexStream>>,
    sender: mpsc::Sender<ServerConnection<DuplexStream>>,
}

impl Hands {
    fn new() -> Hands {
        let (sender, accepted) = mpsc::channel(16);
        Hands { pool: Pool::new(&PoolLimits::default()), pki: Pki::new(), accepted, sender }
    }

    fn open(&self) -> tokio::task::JoinHandle<Result<Stream, OpenError>> {
        let (pool, pki, sender) = (self.pool.clone(), self.pki.clone(), self.sender.clone());
        tokio::spawn(async move {
            let dial = move || {
                let (pki, sender) = (pki.clone(), sender.clone());
                async move {
                    let (near, far) = tokio::io::duplex(1 << 16);
                    let server = pki.server.clone();
                    tokio::spawn(async move {
                        let accepted = hbone::accept(far, server, &ServerLimits::default()).await;
                        sender.send(accepted.unwrap().0).await.unwrap();
                    });
                    let (opener, driver, _) =
                        hbone::connect(near, pki.tls(), &ClientLimits::default()).await?;
                    Ok((opener, driver))
                }
            };
            pool.open(&"peer", to("10.0.0.1:80"), dial).await
        })
    }

    async fn accepted(&mut self) -> ServerConnection<DuplexStream> {
        soon("an accepted tunnel", self.accepted.recv()).await.unwrap()
    }
}

#[tokio::test]
async fn a_draining_peer_answers_what_was_on_its_way_and_is_replaced() {
    let mut hands = Hands::new();
    let first = hands.open();
    let mut old = hands.accepted().await;
    let incoming = old.next().await.unwrap().unwrap();
    let mut kept = incoming.accept(HeaderMap::new()).unwrap();
    // The request is on its way, and the peer has not seen it, when the peer begins to drain.
    let racing = hands.open();
    until("it has been sent", || hands.pool.stats().streams == 2).await;
    old.drain();
    let old = tokio::spawn(serve_connection(old, echo));
    let mut held = soon("the first", first).await.unwrap().unwrap();
    let mut raced = soon("the one that raced", racing).await.unwrap().unwrap();
    raced.finish().unwrap();
    assert_eq!(soon("its answer", recv_all(&mut raced)).await.unwrap(), b"", "it was accepted and served");
    until("the pool knows", || hands.pool.stats().tunnels == 1).await;
    // New streams go elsewhere, while the old one's stream goes on.
    let next = hands.open();
    let new = tokio::spawn(serve_connection(hands.accepted().await, echo));
    drop(soon("a stream in a new tunnel", next).await.unwrap().unwrap());
    send(&mut held, Bytes::from_static(b"still here")).await.unwrap();
    held.finish().unwrap();
    assert_eq!(recv_all(&mut kept).await.unwrap(), b"still here");
    kept.finish().unwrap();
    assert_eq!(recv_all(&mut held).await.unwrap(), b"");
    drop((held, kept, raced));
    assert_none(soon("the old tunnel ends", old).await.unwrap());
    until("only the new one is left", || hands.pool.stats().tunnels == 1).await;
    drop(hands);
    assert_none(soon("the new tunnel ends", new).await.unwrap());
}

#[tokio::test]
async fn a_peer_that_leaves_before_the_first_stream_is_dialled_again() {
    for _ in 0..50 {
        let mut hands = Hands::new();
        let opening = hands.open();
        let serving = tokio::spawn(async move {
            for leaves in [true, true, false] {
                let mut connection = hands.accepted().await;
                if leaves {
                    // What it says of its limits and that it leaves arrive together, or one after the other.
                    connection.drain();
                }
                tokio::spawn(serve_connection(connection, echo));
            }
        });
        drop(soon("a stream", opening).await.unwrap().unwrap());
        serving.abort();
    }
}

#[tokio::test]
async fn a_peer_that_only_ever_leaves_is_given_up() {
    let pki = Pki::new();
    let dials = Arc::new(AtomicUsize::new(0));
    let pool: Pool<&'static str> = Pool::new(&PoolLimits::default());
    let counted = dials.clone();
    let dial = move || {
        counted.fetch_add(1, Ordering::SeqCst);
        let (near, far) = tokio::io::duplex(1 << 16);
        let pki = pki.clone();
        async move {
            let server = pki.server.clone();
            tokio::spawn(async move {
                let (mut connection, _) = hbone::accept(far, server, &ServerLimits::default()).await.unwrap();
                connection.drain();
                while let Some(Ok(incoming)) = connection.next().await {
                    drop(incoming);
                }
            });
            let (opener, driver, _) = hbone::connect(near, pki.tls(), &ClientLimits::default()).await?;
            Ok((opener, driver))
        }
    };
    let opened = soon("an end", pool.open(&"peer", to("10.0.0.1:80"), dial)).await;
    assert!(opened.is_err());
    assert!(dials.load(Ordering::SeqCst) <= 9, "three dials, each as often as the peer takes its leave");
}

#[tokio::test]
async fn two_hundred_drains_under_load_fail_no_request() {
    let pki = Pki::new();
    let pool: Pool<&'static str> = Pool::new(&PoolLimits::default());
    let (sender, mut drained) = mpsc::channel::<()>(1);
    let drainer = tokio::spawn(async move { while drained.recv().await.is_some() {} });
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let (pool, pki, sender) = (pool.clone(), pki.clone(), sender.clone());
        tasks.push(tokio::spawn(async move {
            for _ in 0..200 {
                let (pki, sender) = (pki.clone(), sender.clone());
                let dial = move || dial_short_lived(pki.clone(), sender.clone());
                let opened = pool.open(&"peer", to("10.0.0.1:80"), dial).await;
                let mut stream = opened.unwrap();
                send(&mut stream, Bytes::from_static(b"ping")).await.unwrap();
                stream.finish().unwrap();
                assert_eq!(recv_all(&mut stream).await.unwrap(), b"ping");
            }
        }));
    }
    for task in tasks {
        soon("requests", task).await.unwrap();
    }
    drop(sender);
    soon("all tunnels have ended", drainer).await.unwrap();
}

/// A peer that begins to drain with its third request.
async fn dial_short_lived(
    pki: Pki,
    alive: mpsc::Sender<()>,
) -> Result<(hbone::Opener, hbone::Driver), DialError> {
    let (near, far) = tokio::io::duplex(1 << 16);
    let server = pki.server.clone();
    tokio::spawn(async move {
        let (mut connection, _) = hbone::accept(far, server, &ServerLimits::default()).await.unwrap();
        let mut served = 0;
        while let Some(incoming) = connection.next().await {
            tokio::spawn(echo(incoming.unwrap()));
            served += 1;
            if served == 3 {
                connection.drain();
            }
        }
        drop(alive);
    });
    let (opener, driver, _) = hbone::connect(near, pki.tls(), &ClientLimits::default()).await?;
    Ok((opener, driver))
}

#[tokio::test(start_paused = true)]
async fn an_unused_tunnel_is_closed_after_five_minutes_and_its_key_forgotten() {
    let mut hands = Hands::new();
    let first = hands.open();
    let serving = tokio::spawn(serve_connection(hands.accepted().await, echo));
    drop(first.await.unwrap().unwrap());
    tokio::time::sleep(Duration::from_secs(290)).await;
    assert_eq!(hands.pool.stats(), PoolStats { keys: 1, tunnels: 1, streams: 0, waiting: 0 });
    drop(hands.open().await.unwrap().unwrap());
    tokio::time::sleep(Duration::from_secs(290)).await;
    assert_eq!(hands.pool.stats().tunnels, 1, "a use begins the time anew");
    let started = tokio::time::Instant::now();
    assert_none(serving.await.unwrap());
    assert!(started.elapsed() <= Duration::from_secs(20), "{:?}", started.elapsed());
    until("forgotten", || hands.pool.stats() == PoolStats::default()).await;
}

#[tokio::test]
async fn unused_tunnels_are_closed_when_asked_and_used_ones_are_not() {
    let mut hands = Hands::new();
    let opening = hands.open();
    let serving = tokio::spawn(serve_connection(hands.accepted().await, echo));
    let stream = opening.await.unwrap().unwrap();
    hands.pool.close_idle();
    assert_eq!(hands.pool.stats(), PoolStats { keys: 1, tunnels: 1, streams: 1, waiting: 0 });
    drop(stream);
    until("its place is free", || hands.pool.stats().streams == 0).await;
    hands.pool.close_idle();
    assert_eq!(hands.pool.stats(), PoolStats::default());
    assert_none(soon("the tunnel ends", serving).await.unwrap());
    let again = hands.open();
    tokio::spawn(serve_connection(hands.accepted().await, echo));
    drop(soon("a new tunnel", again).await.unwrap().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_with_a_quiet_stream_stays() {
    let mut hands = Hands::new();
    let first = hands.open();
    let serving = tokio::spawn(serve_connection(hands.accepted().await, echo));
    let mut stream = first.await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    send(&mut stream, Bytes::from_static(b"good morning")).await.unwrap();
    stream.finish().unwrap();
    assert_eq!(recv_all(&mut stream).await.unwrap(), b"good morning");
    assert!(!serving.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_vanishes_is_noticed_within_forty_seconds() {
    let mut hands = Hands::new();
    let first = hands.open();
    let mut vanishing = hands.accepted().await;
    let incoming = vanishing.next().await.unwrap().unwrap();
    let _answered = incoming.accept(HeaderMap::new()).unwrap();
    let answering = tokio::spawn(async move {
        // Lives long enough to answer, and then is not heard of any more: nothing is closed, nothing moves.
        let _ = tokio::time::timeout(Duration::from_millis(100), vanishing.next()).await;
        vanishing
    });
    let mut stream = first.await.unwrap().unwrap();
    let _vanished = answering.await.unwrap();
    let started = tokio::time::Instant::now();
    let error = recv(&mut stream).await.unwrap_err();
    assert!(matches!(error, hbone::StreamError::Lost(_)), "{error:?}");
    assert!(started.elapsed() <= Duration::from_secs(40), "{:?}", started.elapsed());
    drop(stream);
    until("forgotten", || hands.pool.stats() == PoolStats::default()).await;
}

#[tokio::test]
async fn a_closed_pool_lets_its_streams_finish_and_takes_no_more() {
    let mut hands = Hands::new();
    let first = hands.open();
    let serving = tokio::spawn(serve_connection(hands.accepted().await, echo));
    let mut stream = first.await.unwrap().unwrap();
    hands.pool.close();
    let refused = hands.open().await.unwrap();
    assert!(matches!(refused, Err(OpenError::PoolClosed)), "{refused:?}");
    send(&mut stream, Bytes::from_static(b"last words")).await.unwrap();
    stream.finish().unwrap();
    assert_eq!(recv_all(&mut stream).await.unwrap(), b"last words");
    drop(stream);
    assert_none(soon("the tunnel ends", serving).await.unwrap());
}

/// A tunnel that ended by agreement.
fn assert_none(error: Option<hbone::TunnelError>) {
    assert!(error.is_none(), "{error:?}");
}
