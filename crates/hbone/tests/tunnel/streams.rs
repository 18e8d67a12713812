//! One tunnel, its streams and the relay: bytes arrive whole, in order, and both ends learn how each direction ended.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use hbone::{Connect, Counters, OpenError, Reason, ServerLimits, StreamError};
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::support::*;

#[tokio::test]
async fn a_stream_carries_both_directions_and_ends() {
    let pki = Pki::new();
    let opener = tunnel(&pki, echo).await;
    let mut stream = opener.open(to("10.0.0.1:80")).await.unwrap();
    send(&mut stream, Bytes::from_static(b"hello")).await.unwrap();
    stream.finish().unwrap();
    assert_eq!(recv_all(&mut stream).await.unwrap(), b"hello");
}

#[tokio::test]
async fn early_bytes_travel_with_the_request() {
    let pki = Pki::new();
    let opener = tunnel(&pki, echo).await;
    let early = Bytes::from(pattern(7, 100_000));
    let request = Connect { early: early.clone(), ..to("10.0.0.1:80") };
    let mut stream = opener.open(request).await.unwrap();
    stream.finish().unwrap();
    assert!(recv_all(&mut stream).await.unwrap() == early);
}

#[tokio::test]
async fn headers_travel_both_ways() {
    let pki = Pki::new();
    let opener = tunnel(&pki, |incoming| async move {
        let mut headers = HeaderMap::new();
        headers.insert("baggage", incoming.headers["baggage"].clone());
        headers.insert("authority", HeaderValue::from_str(incoming.authority.as_str()).unwrap());
        let mut stream = incoming.accept(headers).unwrap();
        recv_all(&mut stream).await.unwrap();
        stream.finish().unwrap();
    })
    .await;
    for authority in ["10.0.0.1:80", "[fd00::1]:8080", "reviews.shop.svc.cluster.local:9080"] {
        let mut request = to(authority);
        request.headers.insert("baggage", HeaderValue::from_static("k8s.namespace.name=shop"));
        let mut stream = opener.open(request).await.unwrap();
        stream.finish().unwrap();
        assert_eq!(stream.headers()["baggage"], "k8s.namespace.name=shop");
        assert_eq!(stream.headers()["authority"], authority);
        assert_eq!(recv_all(&mut stream).await.unwrap(), b"");
    }
}

#[tokio::test]
async fn a_refusal_is_its_status() {
    let pki = Pki::new();
    for status in [StatusCode::UNAUTHORIZED, StatusCode::SERVICE_UNAVAILABLE, StatusCode::NO_CONTENT] {
        let opener = tunnel(&pki, move |incoming| async move { incoming.refuse(status) }).await;
        for _ in 0..3 {
            let request = Connect { early: Bytes::from_static(b"dropped"), ..to("10.0.0.1:80") };
            match opener.open(request).await {
                Err(OpenError::Refused(refused)) => assert_eq!(refused, status),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn what_cannot_be_asked_for_is_an_error_and_harms_nobody() {
    let pki = Pki::new();
    let opener = tunnel(&pki, echo).await;
    for authority in ["", "http://10.0.0.1:80/", "/path", "white space:80"] {
        let refused = opener.open(to(authority)).await;
        assert!(matches!(refused, Err(OpenError::BadRequest(_))), "{authority:?}: {refused:?}");
    }
    let mut request = to("10.0.0.1:80");
    request.headers.insert("connection", HeaderValue::from_static("close"));
    let refused = opener.open(request).await;
    assert!(matches!(refused, Err(OpenError::BadRequest(_))), "{refused:?}");
    echo_once(&opener, 5000).await;
}

#[tokio::test]
async fn a_dropped_request_is_noticed_by_the_other_end() {
    let pki = Pki::new();
    let (sender, mut heard) = mpsc::channel(2);
    let opener = tunnel(&pki, move |mut incoming| {
        let sender = sender.clone();
        async move {
            sender.send("the request").await.unwrap();
            incoming.cancelled().await;
            sender.send("that it was dropped").await.unwrap();
        }
    })
    .await;
    let asking = tokio::spawn(async move { opener.open(to("10.0.0.1:80")).await.map(drop) });
    assert_eq!(soon("the request", heard.recv()).await, Some("the request"));
    asking.abort();
    assert_eq!(soon("the server learns of it", heard.recv()).await, Some("that it was dropped"));
}

#[tokio::test]
async fn a_reset_arrives_with_its_reason() {
    let pki = Pki::new();
    let opener = tunnel(&pki, |incoming| async move {
        let mut stream = incoming.accept(HeaderMap::new()).unwrap();
        recv(&mut stream).await.unwrap();
        stream.reset(Reason::CONNECT_ERROR);
    })
    .await;
    let mut stream = opener.open(to("10.0.0.1:80")).await.unwrap();
    send(&mut stream, Bytes::from_static(b"now")).await.unwrap();
    let error = recv_all(&mut stream).await.unwrap_err();
    assert_eq!(error, StreamError::Reset(Reason::CONNECT_ERROR));
    let error = std::future::poll_fn(|cx| stream.poll_capacity(cx, 1)).await.unwrap_err();
    assert_eq!(error, StreamError::Reset(Reason::CONNECT_ERROR));
}

#[tokio::test]
async fn a_byte_stream_may_be_cut_anywhere() {
    let pki = Pki::new();
    for room in [1, 2, 7, 100, 1000, 16_400, 100_000] {
        let (near, far) = tokio::io::duplex(room);
        let served = pki.clone();
        tokio::spawn(async move { serve(far, &served, &ServerLimits::default(), echo).await });
        let opener = soon("tunnel", dial(near, &pki, &hbone::ClientLimits::default())).await.unwrap();
        soon("echo", echo_once(&opener, 20_000.min(room * 1000))).await;
    }
}

/// A proxied path: whoever connects to the address that this returns reaches `app` through two relays and a tunnel.
async fn path(pki: &Pki, app: std::net::SocketAddr) -> std::net::SocketAddr {
    let far = listen(pki, ServerLimits::default(), proxy).await;
    let pool = hbone::Pool::new(&hbone::PoolLimits::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = listener.local_addr().unwrap();
    let pki = pki.clone();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (pki, pool) = (pki.clone(), pool.clone());
            tokio::spawn(async move {
                let stream = open(&pool, &pki, far, to(app)).await.unwrap();
                let _ = hbone::relay(tcp, stream, &Counters::default()).await;
            });
        }
    });
    near
}

/// Sends `up` while it reads to the end, in random pieces, and returns what it read.
async fn exchange(mut tcp: TcpStream, up: Vec<u8>, seed: u64, first_read: bool) -> Vec<u8> {
    let mut down = Vec::new();
    if first_read {
        tcp.read_to_end(&mut down).await.unwrap();
        tcp.write_all(&up).await.unwrap();
        tcp.shutdown().await.unwrap();
        return down;
    }
    let (mut reader, mut writer) = tcp.split();
    let sending = async {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut rest = &up[..];
        while !rest.is_empty() {
            let most = [1, 100, 5_000, 300_000][random.usize(..4)];
            let (piece, tail) = rest.split_at(random.usize(1..=most).min(rest.len()));
            writer.write_all(piece).await.unwrap();
            rest = tail;
        }
        writer.shutdown().await.unwrap();
    };
    let ((), read) = tokio::join!(sending, reader.read_to_end(&mut down));
    read.unwrap();
    down
}

async fn transfer(
    near: std::net::SocketAddr,
    app: &TcpListener,
    (up, down): (usize, usize),
    seed: u64,
    half: Half,
) {
    let (upwards, downwards) = (pattern(seed, up), pattern(seed + 1, down));
    let client = TcpStream::connect(near).await.unwrap();
    let (server, _) = app.accept().await.unwrap();
    let (got_down, got_up) = soon("transfer", async {
        tokio::join!(
            exchange(client, upwards.clone(), seed, half == Half::ServerFirst),
            exchange(server, downwards.clone(), seed + 2, half == Half::ClientFirst),
        )
    })
    .await;
    assert!(got_up == upwards, "{} of {up} bytes up, seed {seed}", got_up.len());
    assert!(got_down == downwards, "{} of {down} bytes down, seed {seed}", got_down.len());
}

#[derive(Clone, Copy, PartialEq)]
enum Half {
    Both,
    /// The client finishes before the server begins to answer.
    ClientFirst,
    ServerFirst,
}

#[tokio::test]
async fn sixty_four_mebibytes_arrive_whole_both_ways() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = path(&Pki::new(), app.local_addr().unwrap()).await;
    transfer(near, &app, (64 << 20, 64 << 20), 11, Half::Both).await;
}

#[tokio::test]
async fn half_closes_pass_in_either_order() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = path(&Pki::new(), app.local_addr().unwrap()).await;
    for half in [Half::ClientFirst, Half::ServerFirst, Half::Both] {
        for sizes in [(0, 0), (0, 100_000), (100_000, 0), (1, 1), (70_000, 3_000_000)] {
            transfer(near, &app, sizes, 3, half).await;
        }
    }
}

#[tokio::test]
async fn two_hundred_random_transfers_side_by_side() {
    let app = Arc::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
    let near = path(&Pki::new(), app.local_addr().unwrap()).await;
    let mut random = fastrand::Rng::with_seed(160);
    for round in 0..20u64 {
        // Ten at a time share the tunnel; each tells its server side who it is, since accept order is not dial order.
        let mut tasks = Vec::new();
        for index in 0..10u64 {
            let most = [0, 1, 1000, 70_000, 2_000_000][random.usize(..5)];
            let seed = round * 100 + index * 3;
            let (up, down) = (random.usize(..=most), random.usize(..=most));
            tasks.push(tokio::spawn(one_of_many(near, up, down, seed)));
        }
        for _ in 0..10 {
            let (server, _) = app.accept().await.unwrap();
            tokio::spawn(mirror(server));
        }
        for task in tasks {
            soon("random transfer", task).await.unwrap();
        }
    }
}

/// Announces how much it wants back and with which seed, sends `up` bytes, checks what comes back.
async fn one_of_many(near: std::net::SocketAddr, up: usize, down: usize, seed: u64) {
    let client = TcpStream::connect(near).await.unwrap();
    let mut message = [(down as u64).to_le_bytes(), seed.to_le_bytes()].concat();
    message.extend(pattern(seed, up));
    let got = exchange(client, message, seed, false).await;
    let sum = got.len().checked_sub(8).map(|at| u64::from_le_bytes(got[at..].try_into().unwrap()));
    assert_eq!(got.len(), down + 8, "seed {seed}");
    assert!(got[..down] == pattern(seed + 1, down), "seed {seed}");
    assert_eq!(sum, Some(checksum(&pattern(seed, up))), "what the server saw, seed {seed}");
}

/// The other end of [`one_of_many`]: answers while it still receives, and then says what it received.
async fn mirror(mut tcp: TcpStream) {
    let mut head = [0; 16];
    tcp.read_exact(&mut head).await.unwrap();
    let down = u64::from_le_bytes(head[..8].try_into().unwrap()) as usize;
    let seed = u64::from_le_bytes(head[8..].try_into().unwrap());
    let (mut reader, mut writer) = tcp.split();
    let mut got = Vec::new();
    let answer = pattern(seed + 1, down);
    let (read, wrote) = tokio::join!(reader.read_to_end(&mut got), writer.write_all(&answer));
    read.unwrap();
    wrote.unwrap();
    writer.write_all(&checksum(&got).to_le_bytes()).await.unwrap();
    writer.shutdown().await.unwrap();
}

#[tokio::test]
async fn single_bytes_are_not_held_back() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = path(&Pki::new(), app.local_addr().unwrap()).await;
    let mut client = TcpStream::connect(near).await.unwrap();
    client.set_nodelay(true).unwrap();
    let (mut server, _) = app.accept().await.unwrap();
    server.set_nodelay(true).unwrap();
    soon("ping-pong", async {
        for round in 0..2000u32 {
            client.write_all(&[round as u8]).await.unwrap();
            assert_eq!(server.read_u8().await.unwrap(), round as u8);
            server.write_all(&[!round as u8]).await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), !round as u8);
        }
    })
    .await;
}

#[tokio::test]
async fn urgent_data_does_not_hold_back_what_follows_it() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let opener = tunnel(&Pki::new(), proxy).await;
    let stream = opener.open(to(app.local_addr().unwrap())).await.unwrap();
    let (mut server, _) = app.accept().await.unwrap();
    let (mut client, tcp) = tcp_pair().await;
    client.set_nodelay(true).unwrap();
    // All of it is there, and announced, at once. The kernel ends a read before the urgent byte, although there is more.
    client.write_all(b"before").await.unwrap();
    socket2::SockRef::from(&client).send_out_of_band(b"!").unwrap();
    client.write_all(b"after").await.unwrap();
    tokio::task::yield_now().await;
    soon("the announcement", tcp.readable()).await.unwrap();
    tokio::spawn(async move { hbone::relay(tcp, stream, &Counters::default()).await });
    let mut got = [0; 11];
    soon("what follows", server.read_exact(&mut got)).await.unwrap();
    assert_eq!(
        &got, b"beforeafter",
        "the urgent byte itself travels apart from the stream, and only to the proxy"
    );
}

#[tokio::test]
async fn an_application_that_aborts_is_an_abort_at_the_other_end() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = path(&Pki::new(), app.local_addr().unwrap()).await;
    for abort_by_client in [true, false] {
        let mut client = TcpStream::connect(near).await.unwrap();
        let (mut server, _) = app.accept().await.unwrap();
        client.write_all(b"x").await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'x');
        let (aborts, mut sees) = if abort_by_client { (client, server) } else { (server, client) };
        aborts.set_zero_linger().unwrap();
        drop(aborts);
        let seen = soon("the abort", sees.read_u8()).await.unwrap_err();
        assert_eq!(seen.kind(), std::io::ErrorKind::ConnectionReset, "not a quiet end");
    }
}

#[tokio::test]
async fn a_relay_that_is_given_up_is_an_abort_at_both_ends() {
    let pki = Pki::new();
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let opener = tunnel(&pki, proxy).await;
    let stream = opener.open(to(app.local_addr().unwrap())).await.unwrap();
    let (mut server, _) = app.accept().await.unwrap();
    let (mut client, tcp) = tcp_pair().await;
    let relaying = tokio::spawn(async move { hbone::relay(tcp, stream, &Counters::default()).await });
    client.write_all(b"x").await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'x');
    relaying.abort();
    for (name, end) in [("near", &mut client), ("far", &mut server)] {
        let seen = soon("the abort", end.read_u8()).await.unwrap_err();
        assert_eq!(seen.kind(), std::io::ErrorKind::ConnectionReset, "{name}: not a quiet end");
    }
}

#[tokio::test]
async fn a_stalled_stream_does_not_hold_up_its_siblings() {
    let pki = Pki::new();
    let opener = tunnel(&pki, echo).await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        // The echo comes back and nobody reads it, until both windows are full and the stream stands still.
        let mut stream = opener.open(to("10.0.0.1:80")).await.unwrap();
        let stuck = send(&mut stream, Bytes::from(vec![1; 8 << 20]));
        assert!(tokio::time::timeout(Duration::from_millis(100), stuck).await.is_err(), "windows bound it");
        stalled.push(stream);
    }
    for _ in 0..5 {
        soon("a sibling", echo_once(&opener, 3_000_000)).await;
    }
    let mut last = stalled.pop().unwrap();
    drop(stalled);
    soon("a sibling after the resets", echo_once(&opener, 3_000_000)).await;
    assert!(recv(&mut last).await.unwrap().is_some(), "what it had is still there");
}

#[tokio::test]
async fn a_relay_counts_what_it_carries() {
    let pki = Pki::new();
    let opener = tunnel(&pki, echo).await;
    let stream = opener.open(to("10.0.0.1:80")).await.unwrap();
    let (app, tcp) = tcp_pair().await;
    let counters = Arc::new(Counters::default());
    let counting = counters.clone();
    let relaying = tokio::spawn(async move { hbone::relay(tcp, stream, &*counting).await });
    assert_eq!(exchange(app, pattern(5, 1_000_000), 9, false).await.len(), 1_000_000);
    soon("relay", relaying).await.unwrap().unwrap();
    assert_eq!(counters.to_tunnel.load(Ordering::Relaxed), 1_000_000);
    assert_eq!(counters.to_tcp.load(Ordering::Relaxed), 1_000_000);
}

#[tokio::test]
async fn a_cancelled_stream_is_an_ordinary_end_for_the_application() {
    let pki = Pki::new();
    for reason in [Reason::CANCEL, Reason::NO_ERROR] {
        let opener = tunnel(&pki, move |incoming| async move {
            let mut stream = incoming.accept(HeaderMap::new()).unwrap();
            send(&mut stream, Bytes::from_static(b"bye")).await.unwrap();
            recv(&mut stream).await.unwrap();
            stream.reset(reason);
        })
        .await;
        let stream = opener.open(to("10.0.0.1:80")).await.unwrap();
        let (mut app, tcp) = tcp_pair().await;
        let relaying = tokio::spawn(async move { hbone::relay(tcp, stream, &Counters::default()).await });
        let mut got = [0; 3];
        app.read_exact(&mut got).await.unwrap();
        app.write_all(b"thanks").await.unwrap();
        assert_eq!(soon("the end", app.read(&mut got)).await.unwrap(), 0, "{reason:?}");
        drop(app);
        soon("relay", relaying).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn streams_outlive_a_move_to_another_thread() {
    // The tunnels run here; the streams are opened here too, and relayed by a runtime of another thread.
    let (hand_over, mut taken) = tokio::sync::mpsc::channel::<(std::net::TcpStream, hbone::Stream)>(16);
    let elsewhere = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut relays = tokio::task::JoinSet::new();
            while let Some((tcp, stream)) = taken.recv().await {
                let tcp = TcpStream::from_std(tcp).unwrap();
                relays.spawn(async move { hbone::relay(tcp, stream, &Counters::default()).await });
            }
            while let Some(relayed) = relays.join_next().await {
                relayed.unwrap().unwrap();
            }
        });
    });
    let pki = Pki::new();
    let opener = tunnel(&pki, echo).await;
    let mut transfers = Vec::new();
    for seed in 0..20u64 {
        let (app, tcp) = tcp_pair().await;
        let stream = opener.open(to("10.0.0.1:80")).await.unwrap();
        hand_over.send((tcp.into_std().unwrap(), stream)).await.unwrap();
        transfers.push(tokio::spawn(async move {
            assert!(exchange(app, pattern(seed, 700_000), seed, false).await == pattern(seed, 700_000));
        }));
    }
    drop(hand_over);
    for transfer in transfers {
        soon("transfer", transfer).await.unwrap();
    }
    soon("the other thread", tokio::task::spawn_blocking(|| elsewhere.join())).await.unwrap().unwrap();
}
