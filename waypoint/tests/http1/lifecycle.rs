//! Connections over time: used again, gone stale, tried again, given up, drained.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use waypoint::decide::Answer;
use waypoint::http1::limits::Timeouts;

use crate::support::{Router, Script, expect, script, send};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const OK_SENT: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

const PUT_SENT: &str = "PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc";

const FAILING: Script = &[(PUT_SENT, "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy")];

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

fn put(path: &str) -> String {
    format!("PUT {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_closed_while_idle_costs_no_request() {
    // The first server closes after its answer: that is seen before a POST is sent.
    let router = Router::default()
        .server(script(&[("GET /1 HTTP/1.1\r\nhost: a\r\n\r\n", OK)]))
        .server(script(&[("POST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc", OK)]));
    let mut client = router.client();
    client.send(&get("/1")).await;
    client.expect(OK_SENT).await;
    client.send("POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc").await;
    client.expect(OK_SENT).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_closes_on_the_next_request_costs_only_requests_that_must_not_be_repeated() {
    let closes_on_second = |mut io: tokio::io::DuplexStream| async move {
        expect(&mut io, "GET /1 HTTP/1.1\r\nhost: a\r\n\r\n").await;
        send(&mut io, OK).await;
        let _ = io.read(&mut [0]).await;
    };
    let router = Router::default()
        .server(closes_on_second)
        .server(script(&[("GET /2 HTTP/1.1\r\nhost: a\r\n\r\n", OK)]));
    let mut client = router.client();
    client.send(&get("/1")).await;
    client.expect(OK_SENT).await;
    client.send(&get("/2")).await;
    client.expect(OK_SENT).await;

    let router = Router::default().server(closes_on_second).server(script(&[("nothing must arrive", "")]));
    let mut client = router.client();
    client.send(&get("/1")).await;
    client.expect(OK_SENT).await;
    client.send("POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
    client.expect("HTTP/1.1 503 Service Unavailable\r\n").await;
}

#[tokio::test(start_paused = true)]
async fn a_request_is_sent_again_with_its_body_if_it_was_kept() {
    let router = Router::default()
        .retrying(&[503])
        .replaying(1024)
        .server(script(FAILING))
        .server(script(FAILING))
        .server(script(&[(PUT_SENT, OK)]));
    let mut client = router.client();
    client.send(&put("/")).await;
    client.expect(OK_SENT).await;
    client.finish().await;
    client.rest().await;
    assert_eq!(router.log(), ["PUT / 200 Forwarded attempts=3 up=3 down=2"]);
    assert_eq!(router.tapped(), b"abc", "a mirror sees it once");

    // Not kept, or not wholly: the failure is passed on.
    for replay in [0, 2] {
        let router = Router::default().retrying(&[503]).replaying(replay).server(script(FAILING));
        let mut client = router.client();
        client.send(&put("/")).await;
        client.expect("HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_still_arrives_goes_to_the_attempt_that_is_under_way() {
    let head = "PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let router = Router::default()
        .retrying(&[503])
        .replaying(1024)
        .server(move |mut io| async move {
            expect(&mut io, head).await;
            expect(&mut io, "3\r\nabc\r\n").await;
            send(&mut io, "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").await;
            let _ = io.read(&mut [0]).await;
        })
        .server(move |mut io| async move {
            expect(&mut io, head).await;
            expect(&mut io, "3\r\nabc\r\n").await;
            send(&mut io, "HTTP/1.1 100 Continue\r\n\r\n").await;
            expect(&mut io, "1\r\nd\r\n0\r\n\r\n").await;
            send(&mut io, OK).await;
            let _ = io.read(&mut [0]).await;
        });
    let mut client = router.client();
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    client.expect("HTTP/1.1 100 Continue\r\n\r\n").await;
    client.send("1\r\nd\r\n0\r\n\r\n").await;
    client.expect(OK_SENT).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_our_own_keeps_the_connection_if_little_is_left_to_read() {
    let answer = Answer { status: 429, body: Bytes::from_static(b"later"), ..Answer::default() };
    let router = Router::default().answering(answer);
    let mut client = router.client();
    let text = "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 5\r\n\r\nlater";
    client.send(&put("/1")).await;
    client.expect(text).await;
    client.send(&get("/2")).await;
    client.expect(text).await;
    client.send("HEAD /3 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.expect("HTTP/1.1 429 Too Many Requests\r\ncontent-length: 5\r\n\r\n").await;
    client.send("PUT /4 HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n").await;
    assert_eq!(
        client.rest().await,
        "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 5\r\nconnection: close\r\n\r\nlater"
    );
    assert_eq!(router.log().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_in_time_is_given_up() {
    let router = Router::default().respond_within(Duration::from_secs(3)).server(|mut io| async move {
        let _ = io.read_to_end(&mut Vec::new()).await;
    });
    let mut client = router.client();
    let began = tokio::time::Instant::now();
    client.send(&get("/")).await;
    client.expect("HTTP/1.1 504 Gateway Timeout\r\ncontent-length: 0\r\n\r\n").await;
    assert!((3..4).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_gone_is_answered_for() {
    let router = Router::default().server(|io| async move { drop(io) });
    let mut client = router.client();
    client.send(&get("/")).await;
    client.expect("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
    client.send(&get("/")).await;
    client.expect("HTTP/1.1 503 Service Unavailable\r\n").await;
}

#[tokio::test(start_paused = true)]
async fn slow_heads_are_answered_and_idle_connections_end_in_silence() {
    let router = Router::default();
    let timeouts = Timeouts::default();
    for (text, after, answer) in [
        (
            "GET / HT",
            timeouts.head,
            "HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        ),
        ("", timeouts.idle, ""),
        ("\r\n", timeouts.head, ""),
    ] {
        let mut client = router.client();
        let began = tokio::time::Instant::now();
        client.send(text).await;
        assert_eq!(client.rest().await, answer);
        assert!(began.elapsed() >= after && began.elapsed() < after + Duration::from_secs(5), "{text:?}");
    }
    assert_eq!(router.log(), ["refused http1-head-timeout"]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_takes_its_request_along() {
    let (told, gone) = oneshot::channel();
    let router = Router::default().server(|mut io| async move {
        expect(&mut io, "PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc").await;
        let mut rest = Vec::new();
        let _ = io.read_to_end(&mut rest).await;
        told.send(rest).expect("the test waits");
    });
    let mut client = router.client();
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc").await;
    client.finish().await;
    assert_eq!(gone.await.expect("the server is told"), b"");
    assert_eq!(client.rest().await, "");
    assert_eq!(router.log(), ["PUT / - ClientGone attempts=1 up=3 down=0"]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_only_ends_its_direction_is_answered() {
    let router = Router::default().server(|mut io| async move {
        expect(&mut io, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        send(&mut io, OK).await;
        let _ = io.read(&mut [0]).await;
    });
    let mut client = router.client();
    client.send(&get("/")).await;
    client.finish().await;
    assert_eq!(client.rest().await, OK_SENT);
}

#[tokio::test(start_paused = true)]
async fn draining_ends_a_connection_with_the_response_that_is_under_way() {
    let (begin, begun) = oneshot::channel();
    let router = Router::default().server(|mut io| async move {
        expect(&mut io, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        begin.send(()).expect("the forwarder waits");
        tokio::time::sleep(Duration::from_secs(1)).await;
        send(&mut io, OK).await;
        let _ = io.read(&mut [0]).await;
    });
    let mut client = router.client_with(Timeouts::default(), async {
        let _ = begun.await;
    });
    client.send(&get("/")).await;
    assert_eq!(client.rest().await, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");

    // An idle one is left open for a request that may be on its way.
    let mut client = Router::default().client_with(Timeouts::default(), async {});
    let began = tokio::time::Instant::now();
    assert_eq!(client.rest().await, "");
    let draining = Timeouts::default().draining;
    assert!(began.elapsed() >= draining && began.elapsed() < draining + Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn an_exchange_in_which_nothing_moves_is_cut() {
    let router = Router::default().server(|mut io| async move {
        expect(&mut io, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        send(&mut io, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
        let _ = io.read(&mut [0]).await;
        let _ = io.shutdown().await;
    });
    let mut client = router.client();
    client.send(&get("/")).await;
    client.expect("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc").await;
    tokio::time::sleep(Timeouts::default().exchange + Duration::from_secs(5)).await;
    assert_eq!(router.log(), ["GET / 200 TimedOut attempts=1 up=0 down=3"]);
}
