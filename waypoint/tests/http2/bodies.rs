//! Large bodies, and readers that are slow: what is held is bounded, and costs nobody else anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::Response;
use waypoint::http2::limits::{SEND_BUFFER, STREAM_WINDOW};

use crate::support::{Router, call, soon, to};

/// A quarter of a GiB: enough for every window to be used up a thousand times.
const LARGE: u64 = 256 << 20;
const PIECE: usize = 64 * 1024;

/// FNV-1a over eight bytes at a time: order counts, and it costs little.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Sum {
    bytes: u64,
    hash: u64,
    rest: (u64, u32),
}

impl Sum {
    fn new() -> Self {
        Self { bytes: 0, hash: 0xcbf2_9ce4_8422_2325, rest: (0, 0) }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        for byte in bytes {
            self.rest = (self.rest.0 << 8 | u64::from(*byte), self.rest.1 + 1);
            if self.rest.1 == 8 {
                self.hash = (self.hash ^ self.rest.0).wrapping_mul(0x0100_0000_01b3);
                self.rest = (0, 0);
            }
        }
    }
}

/// Pieces that differ, from a table that is made once.
fn piece(number: u64) -> Bytes {
    static BYTES: std::sync::OnceLock<Bytes> = std::sync::OnceLock::new();
    let all = BYTES.get_or_init(|| {
        let mut state = 1_u64;
        let bytes = (0..PIECE + 4096).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        });
        bytes.collect()
    });
    let begin = (number * 37 % 4096) as usize;
    all.slice(begin..begin + PIECE)
}

async fn send_large(mut send: SendStream<Bytes>) -> Sum {
    let mut sum = Sum::new();
    for number in 0..LARGE / PIECE as u64 {
        let piece = piece(number);
        sum.add(&piece);
        send = crate::support::sent(send, piece, false).await.expect("room");
    }
    send.send_data(Bytes::new(), true).unwrap();
    sum
}

async fn sum(mut body: RecvStream) -> Sum {
    let mut sum = Sum::new();
    while let Some(piece) = soon("more", body.data()).await {
        let piece = piece.unwrap();
        sum.add(&piece);
        body.flow_control().release_capacity(piece.len()).unwrap();
    }
    sum
}

#[tokio::test]
async fn a_quarter_of_a_gib_passes_whole_both_ways_at_once() {
    let router = Router::default()
        .server(|request, mut respond| async move {
            let send = respond.send_response(Response::new(()), false).unwrap();
            let (up, down) = tokio::join!(sum(request.into_body()), send_large(send));
            assert_eq!(up, down, "both sides send the same");
        })
        .await;
    let mut client = router.client().await;
    let (response, send) = client.open(call("/large"), false).await;
    let body = soon("a head", response).await.unwrap().into_body();
    let (up, down) = tokio::join!(send_large(send), sum(body));
    assert_eq!(up, down);
    assert_eq!(
        router.logged(1).await,
        [format!("POST /large 200 Forwarded attempts=1 up={LARGE} down={LARGE}")]
    );
}

#[tokio::test]
async fn a_reader_that_stalls_costs_its_own_window_and_nobody_else_anything() {
    let given = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&given);
    let router = Router::default()
        .server(move |request, mut respond| {
            let stalls = request.uri().path() == "/stall";
            let given = Arc::clone(&counted);
            async move {
                let mut send = respond.send_response(Response::new(()), false).unwrap();
                for number in 0..64 {
                    let piece = piece(number);
                    let length = piece.len() as u64;
                    let Some(rest) = crate::support::sent(send, piece, false).await else { return };
                    send = rest;
                    if stalls {
                        given.fetch_add(length, Relaxed);
                    }
                }
                send.send_data(Bytes::new(), true).unwrap();
            }
        })
        .await;
    let mut windows = h2::client::Builder::new();
    windows.initial_connection_window_size(4 << 20);
    let mut slow = router.client_of(windows, std::future::pending()).await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        let (response, _) = slow.open(to("GET", "/stall", &[]), true).await;
        stalled.push(soon("a head", response).await.unwrap().into_body());
    }
    // Another client, whose requests go over the same connection to the server.
    let mut quick = router.client().await;
    for _ in 0..10 {
        let answer = quick.ask(to("GET", "/", &[]), b"").await.unwrap();
        assert_eq!(answer.body.len(), 64 * PIECE);
    }
    // What they were sent: the client's windows, ours, and what waits between.
    let (own, theirs) = (u64::from(STREAM_WINDOW), 65_535);
    let most = 20 * (own + theirs + SEND_BUFFER as u64 + 2 * PIECE as u64);
    assert!(given.load(Relaxed) <= most, "{} of {most}", given.load(Relaxed));
    // The first who reads on gets all of it.
    let whole = sum(stalled.swap_remove(3)).await;
    assert_eq!(whole.bytes, 64 * PIECE as u64);
    drop(stalled);
    assert!(router.logged(30).await.len() == 30);
}

#[tokio::test]
async fn a_server_that_does_not_read_holds_up_its_own_request_only() {
    let router = Router::default()
        .server(|request, mut respond| async move {
            if request.uri().path() == "/deaf" {
                std::future::pending::<()>().await;
            }
            respond.send_response(Response::new(()), true).unwrap();
            drop(request);
        })
        .await;
    let mut client = router.client().await;
    let (_deaf, send) = client.open(to("POST", "/deaf", &[]), false).await;
    let upload = tokio::spawn(crate::support::sent(send, Bytes::from(vec![0; 8 << 20]), true));
    for _ in 0..10 {
        let answer = client.ask(to("GET", "/", &[]), b"").await.unwrap();
        assert_eq!(answer.status, 200);
    }
    let held = tokio::time::timeout(Duration::from_millis(50), upload).await;
    assert!(held.is_err(), "eight MiB are more than all windows together");
}
