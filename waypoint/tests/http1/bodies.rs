//! Bodies and what frames them: each kind in each direction, and no more in memory than a window.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::support::{PIPE, Router, Script, expect, script, send};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const GET_SENT: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// One request over one connection, and what the client sees until the end.
async fn through(request: &str, pairs: Script) -> String {
    let router = Router::default().server(script(pairs));
    let mut client = router.client();
    client.send(request).await;
    client.finish().await;
    client.rest().await
}

#[tokio::test(start_paused = true)]
async fn responses_without_a_body_have_none_whatever_their_fields_say() {
    let cases: [(&str, Script, &str); 4] = [
        (
            "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
            &[("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")],
            "HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n",
        ),
        (
            "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
            &[(
                "HEAD / HTTP/1.1\r\nhost: a\r\n\r\n",
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            )],
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        ),
        (
            GET,
            &[(GET_SENT, "HTTP/1.1 304 Same\r\nContent-Length: 500\r\nETag: x\r\n\r\n")],
            "HTTP/1.1 304 Same\r\nETag: x\r\ncontent-length: 500\r\n\r\n",
        ),
        (GET, &[(GET_SENT, "HTTP/1.1 204 No\r\nContent-Length: 500\r\n\r\n")], "HTTP/1.1 204 No\r\n\r\n"),
    ];
    for (request, pairs, answer) in cases {
        assert_eq!(through(request, pairs).await, answer);
    }
}

#[tokio::test(start_paused = true)]
async fn chunks_and_trailers_pass_without_their_extensions() {
    let post = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n3;e=1\r\nabc\r\n0\r\nX: y\r\n\r\n";
    let sent = "POST / HTTP/1.1\r\nhost: a\r\nTrailer: X\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n";
    let router = Router::default().server(move |mut io| async move {
        expect(&mut io, sent).await;
        send(
            &mut io,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;z\r\nd\r\n0;z\r\nDigest: q\r\n\r\n",
        )
        .await;
        let _ = io.read(&mut [0]).await;
    });
    let mut client = router.client();
    client.send(post).await;
    client
        .expect("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nd\r\n0\r\nDigest: q\r\n\r\n")
        .await;
    assert_eq!(router.tapped(), b"abc");
    client.finish().await;
    client.rest().await;
    assert_eq!(router.log(), ["POST / 200 Forwarded attempts=1 up=3 down=1"]);
    assert_eq!(router.idle(), 1);
}

#[tokio::test(start_paused = true)]
async fn clients_of_http_1_0_get_what_they_understand() {
    let request = "GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nExpect: 100-continue\r\n\r\n";
    let cases: [(Script, &str); 3] = [
        (
            &[(
                GET_SENT,
                "HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nX: y\r\n\r\n",
            )],
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc",
        ),
        (
            &[(GET_SENT, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab")],
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nab",
        ),
        (&[(GET_SENT, "HTTP/1.0 200 OK\r\n\r\nab")], "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nab"),
    ];
    for (pairs, answer) in cases {
        assert_eq!(through(request, pairs).await, answer);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_ends_with_its_connection_is_chunked_so_that_its_end_is_known() {
    let whole = through(GET, &[(GET_SENT, "HTTP/1.1 200 OK\r\n\r\nabc")]).await;
    assert!(whole.starts_with("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"), "{whole}");
    assert!(whole.ends_with("abc\r\n0\r\n\r\n"), "{whole}");
}

#[tokio::test(start_paused = true)]
async fn a_response_that_breaks_off_does_not_look_whole() {
    let cut = through(GET, &[(GET_SENT, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")]).await;
    assert_eq!(cut, "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc");
    let cut =
        through(GET, &[(GET_SENT, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc")]).await;
    assert_eq!(cut, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nabc");
}

#[tokio::test(start_paused = true)]
async fn requests_sent_at_once_are_answered_in_order() {
    let router = Router::default().server(|mut io| async move {
        for n in 0..100 {
            expect(
                &mut io,
                &format!("PUT /{n} HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{:02}", n % 100),
            )
            .await;
            send(&mut io, &format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{n:02}")).await;
        }
        let _ = io.read(&mut [0]).await;
    });
    let mut client = router.client();
    let all: Vec<_> = (0..100)
        .map(|n| format!("\r\nPUT /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{n:02}"))
        .collect();
    client.send(&all.concat()).await;
    for n in 0..100 {
        client.expect(&format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{n:02}")).await;
    }
    assert_eq!(router.idle(), 1, "all over one connection");
}

#[tokio::test(start_paused = true)]
async fn an_expectation_is_passed_on_and_so_is_the_leave() {
    let router = Router::default().server(|mut io| async move {
        let head = "PUT / HTTP/1.1\r\nhost: a\r\nExpect: 100-continue\r\ncontent-length: 3\r\n\r\n";
        expect(&mut io, head).await;
        send(&mut io, "HTTP/1.1 100 Continue\r\n\r\n").await;
        expect(&mut io, "abc").await;
        send(
            &mut io,
            "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        )
        .await;
        let _ = io.read(&mut [0]).await;
    });
    let mut client = router.client();
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n").await;
    client.expect("HTTP/1.1 100 Continue\r\n\r\n").await;
    client.send("abc").await;
    client
        .expect("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert_eq!(router.idle(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_refused_before_it_sends_is_not_waited_for() {
    let router = Router::default().server(|mut io| async move {
        let head = "PUT / HTTP/1.1\r\nhost: a\r\nExpect: 100-continue\r\ncontent-length: 3\r\n\r\n";
        expect(&mut io, head).await;
        send(&mut io, "HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n").await;
        let _ = io.read(&mut [0]).await;
    });
    let mut client = router.client();
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n").await;
    let answer = client.rest().await;
    assert_eq!(answer, "HTTP/1.1 417 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    assert_eq!(router.idle(), 0, "the server waits for a body");
}

#[tokio::test(start_paused = true)]
async fn an_early_answer_arrives_though_the_request_is_not_over() {
    // The server answers, stops reading, and goes; the client is in the middle of its body.
    let router = Router::default().server(|mut io| async move {
        expect(&mut io, "PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n").await;
        send(&mut io, "HTTP/1.1 413 Too much\r\nContent-Length: 2\r\n\r\nno").await;
    });
    let mut client = router.client();
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n").await;
    client.send(&"x".repeat(PIPE / 2)).await;
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.1 413 Too much\r\n") && answer.ends_with("\r\n\r\nno"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_costs_a_window_and_no_more() {
    let (told, sent) = oneshot::channel();
    let router = Router::default().server(|mut io| async move {
        expect(&mut io, GET_SENT).await;
        send(&mut io, "HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").await;
        let mut sent = 0;
        let piece = [b'x'; 4096];
        // Under paused time this passes only when nothing else can move any more.
        while let Ok(Ok(count)) = timeout(Duration::from_secs(1), io.write(&piece)).await {
            sent += count;
        }
        let _ = told.send(sent);
    });
    let mut client = router.client();
    client.send(GET).await;
    let sent = sent.await.expect("the server tells");
    // One pipe on each side, and one window of ours, which grows to 64 KiB when reads come back full.
    assert!((2 * PIPE - 4096..=2 * PIPE + 64 * 1024).contains(&sent), "{sent}");
    let got = client.rest().await;
    assert!(got.len() > sent, "all of it arrives: {} of {sent}", got.len());
    assert!(router.log()[0].contains("ResponseLost"), "{:?}", router.log());
}
