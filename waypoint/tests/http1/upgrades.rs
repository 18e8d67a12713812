//! Connections that change their protocol.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Router, expect, send};

const ASKED: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly";
const SENT: &str = "GET /chat HTTP/1.1\r\nhost: a\r\nUpgrade: websocket\r\nconnection: upgrade\r\n\r\n";
const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nconnection: upgrade\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn an_upgraded_connection_carries_bytes_both_ways_and_each_end_by_itself() {
    let router = Router::default().server(|mut io| async move {
        expect(&mut io, SENT).await;
        send(
            &mut io,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello",
        )
        .await;
        expect(&mut io, "early\r\n\r\n").await;
        send(&mut io, "more").await;
        io.shutdown().await.expect("it is in memory");
        // Our direction has ended, the client's has not.
        expect(&mut io, "late").await;
        assert_eq!(io.read(&mut [0]).await.expect("an end, no error"), 0);
    });
    let mut client = router.client();
    client.send(ASKED).await;
    client.expect(SWITCHED).await;
    client.expect("hello").await;
    client.send("\r\n\r\n").await;
    assert_eq!(client.rest().await, "more");
    client.send("late").await;
    client.finish().await;
    while router.log().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(router.log(), ["GET /chat 101 Forwarded attempts=1 up=13 down=9"]);
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_that_is_not_wanted_is_an_ordinary_request() {
    let router = Router::default().server(|mut io| async move {
        for _ in 0..2 {
            expect(&mut io, SENT).await;
            send(&mut io, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno").await;
        }
        let _ = io.read(&mut [0]).await;
    });
    let mut client = router.client();
    for _ in 0..2 {
        client.send(ASKED.strip_suffix("early").expect("it is there")).await;
        client.expect("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno").await;
    }
}

#[tokio::test(start_paused = true)]
async fn connect_becomes_a_tunnel_when_it_is_granted() {
    let router = Router::default().server(|mut io| async move {
        expect(&mut io, "CONNECT b:443 HTTP/1.1\r\nhost: b:443\r\n\r\n").await;
        send(&mut io, "HTTP/1.1 200 Go\r\nContent-Length: 0\r\n\r\n").await;
        expect(&mut io, "ping").await;
        send(&mut io, "pong").await;
    });
    let mut client = router.client();
    client.send("CONNECT b:443 HTTP/1.1\r\nHost: c\r\n\r\n").await;
    client.expect("HTTP/1.1 200 Go\r\n\r\n").await;
    client.send("ping").await;
    client.finish().await;
    assert_eq!(client.rest().await, "pong");
}
