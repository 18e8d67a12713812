//! What could be read in two ways reaches no server: it is answered with a status, and the connection ends.

use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;

use crate::support::{Router, expect, script, send};

/// Sends it to a forwarder whose server would not understand anything; the status line and the log.
async fn refused(text: &str) -> (String, Vec<String>) {
    let router = Router::default().server(script(&[("nothing must arrive", "")]));
    let mut client = router.client();
    client.send(text).await;
    client.finish().await;
    let answer = client.rest().await;
    assert!(answer.ends_with("\r\n\r\n") && answer.contains("connection: close\r\n"), "{answer:?}");
    assert_eq!(
        answer.matches("HTTP/1.1 ").count(),
        1,
        "one answer, and the rest is not looked at: {answer:?}"
    );
    (answer[9..12].to_owned(), router.log())
}

#[tokio::test(start_paused = true)]
async fn smuggled_requests_are_refused_with_a_status_and_a_reason() {
    let behind = "0\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n";
    let post = |fields: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n{behind}");
    let cases = [
        (
            post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
            "400",
            "http1-length-and-transfer-encoding",
        ),
        (
            post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
            "400",
            "http1-length-and-transfer-encoding",
        ),
        (post("Content-Length: 5\r\nContent-Length: 6\r\n"), "400", "http1-content-length"),
        (post("Content-Length: 5\r\nContent-Length: 5\r\n"), "400", "http1-content-length"),
        (post("Content-Length: 5,5\r\n"), "400", "http1-content-length"),
        (post("Content-Length: -5\r\n"), "400", "http1-content-length"),
        (post("Transfer-Encoding: identity, chunked\r\n"), "501", "http1-transfer-encoding-unknown"),
        (post("Transfer-Encoding: chunked, identity\r\n"), "400", "http1-transfer-encoding"),
        (post("Transfer-Encoding: xchunked\r\n"), "400", "http1-transfer-encoding"),
        (post("Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n"), "400", "http1-transfer-encoding"),
        (post("Transfer-Encoding : chunked\r\n"), "400", "http1-field-name"),
        (post("Transfer-Encoding\t: chunked\r\n"), "400", "http1-field-name"),
        (post(" Transfer-Encoding: chunked\r\n"), "400", "http1-folded"),
        (post("X: y\r\n Transfer-Encoding: chunked\r\n"), "400", "http1-folded"),
        (post("X: y\nTransfer-Encoding: chunked\r\n"), "400", "http1-bare-line-feed"),
        (post("X: y\rTransfer-Encoding: chunked\r\n"), "400", "http1-field-value"),
        (post("Transfer-Encoding:\u{b}chunked\r\n"), "400", "http1-field-value"),
        (post("Host: b\r\n"), "400", "http1-host"),
        (format!("GET / HTTP/1.1\r\n\r\n{behind}"), "400", "http1-host"),
        (format!("GET / HTTP/1.1\nHost: a\n\n{behind}"), "400", "http1-bare-line-feed"),
        (format!("GET / HTTP/1.1 \r\nHost: a\r\n\r\n{behind}"), "400", "http1-start-line"),
        (format!("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n{behind}"), "400", "http1-start-line"),
        (format!("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n{behind}"), "400", "http1-target"),
        (format!("GET / HTTP/3.0\r\nHost: a\r\n\r\n{behind}"), "505", "http1-version"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), "505", "http1-version"),
        (format!("GET /{} HTTP/1.1\r\n", "a".repeat(33_000)), "414", "http1-target-too-long"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "a".repeat(62_000)), "431", "http1-head-too-large"),
        (
            format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "a: b\r\n".repeat(100)),
            "431",
            "http1-fields-too-many",
        ),
    ];
    for (text, status, code) in cases {
        let (found, log) = refused(&text).await;
        assert_eq!((found.as_str(), log), (status, vec![format!("refused {code}")]), "{text:.200}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_broken_body_is_refused_and_never_completed() {
    let cases = [
        "5 \r\nhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5;\nhello\r\n0\r\n\r\n",
        "0\r\nContent-Length: 9\r\n\r\n",
        "fffffffffffffffff\r\n",
    ];
    for body in cases {
        let (begin, begun) = oneshot::channel();
        let (told, seen) = oneshot::channel();
        let router = Router::default().server(|mut io| async move {
            expect(&mut io, "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
                .await;
            let _ = begin.send(());
            let mut seen = String::new();
            let _ = io.read_to_string(&mut seen).await;
            let _ = told.send(seen);
        });
        let mut client = router.client();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n").await;
        begun.await.expect("what is good passes");
        client.send(body).await;
        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{body:?}: {answer:?}");
        let seen = seen.await.expect("the server's connection ends");
        assert!(!seen.ends_with("0\r\n\r\n"), "it looks like a whole body: {seen:?}");
        assert!(router.log()[0].contains("Refused("), "{:?}", router.log());
    }
}

#[tokio::test(start_paused = true)]
async fn a_malformed_response_is_answered_for_and_its_connection_not_used_again() {
    for response in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nA: b\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        "SSH-2.0-x\r\n\r\n",
    ] {
        let router = Router::default().server(move |mut io| async move {
            expect(&mut io, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            send(&mut io, response).await;
            let _ = tokio::io::copy(&mut io, &mut tokio::io::sink()).await;
        });
        let mut client = router.client();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.expect("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n").await;
        client.finish().await;
        assert_eq!((client.rest().await.as_str(), router.idle()), ("", 0));
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_behind_a_response_are_nobodys() {
    let router = Router::default()
        .server(script(&[(
            "GET /1 HTTP/1.1\r\nhost: a\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
        )]))
        .server(script(&[("GET /2 HTTP/1.1\r\nhost: a\r\n\r\n", "HTTP/1.1 204 No\r\n\r\n")]));
    let mut client = router.client();
    client.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.expect("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx").await;
    client.send("GET /2 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.expect("HTTP/1.1 204 No\r\n\r\n").await;
}
