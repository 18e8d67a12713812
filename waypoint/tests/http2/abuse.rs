//! What costs us more than its sender: noticed, and the connection ended, while others go on.

use std::future::pending;

use h2::Reason;
use http::Response;
use waypoint::http2::limits::{CANCELLED_BURST, STALLED_ANYWAY, STREAMS_MAX};

use crate::raw::{
    CONTINUATION, END_HEADERS, END_STREAM, End, HEADERS, PING, RST_STREAM, Raw, SETTINGS, fields, frame,
};
use crate::support::{Router, to};

async fn router() -> Router {
    Router::default()
        .server(|request, mut respond| async move {
            if request.uri().path() == "/never" {
                let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                return;
            }
            let _ = respond.send_response(Response::new(()), true);
        })
        .await
}

fn request(stream: u32, path: &str) -> Vec<u8> {
    let block = fields(&[(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "shop")]);
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)
}

/// Sends what `make` says, with a number each time, until the connection is ended.
async fn flood(mut make: impl FnMut(u32) -> Vec<u8> + Send + 'static) -> End {
    let router = router().await;
    let mut other = router.client().await;
    let io = router.client_io(pending());
    let Raw(io) = Raw::begin(io).await;
    let (read, mut write) = tokio::io::split(io);
    let flooding = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        for number in 0..200_000 {
            if write.write_all(&make(number)).await.is_err() {
                return;
            }
            if number % 16 == 0 {
                tokio::task::yield_now().await;
            }
        }
    });
    let end = ended(read).await;
    flooding.abort();
    assert_eq!(other.ask(to("GET", "/", &[]), b"").await.unwrap().status, 200, "others go on");
    end
}

/// How the connection ends, whatever becomes of streams before.
async fn ended(mut read: impl tokio::io::AsyncRead + Unpin) -> End {
    use tokio::io::AsyncReadExt;
    loop {
        let mut head = [0; 9];
        if crate::support::soon("the end", read.read_exact(&mut head)).await.is_err() {
            return End::Closed;
        }
        let [a, b, c, kind, ..] = head;
        let mut payload = vec![0; usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)];
        read.read_exact(&mut payload).await.unwrap();
        if kind == 7 {
            return End::GoAway(Reason::from(u32::from_be_bytes(payload[4..8].try_into().unwrap())));
        }
    }
}

const CALM: End = End::GoAway(Reason::ENHANCE_YOUR_CALM);

#[tokio::test]
async fn floods_of_frames_that_carry_nothing_end_the_connection() {
    assert_eq!(flood(|_| frame(PING, 0, 0, &[0; 8])).await, CALM, "PING");
    assert_eq!(flood(|_| frame(SETTINGS, 0, 0, &[])).await, CALM, "SETTINGS");
}

#[tokio::test]
async fn streams_that_are_opened_only_to_be_reset_end_the_connection() {
    let end = flood(|number: u32| {
        let stream = 2 * number + 1;
        let reset = frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
        [request(stream, "/never"), reset].concat()
    });
    assert_eq!(end.await, CALM);
    // A pause between makes each of them a request of its own.
    let router = router().await;
    let mut client = router.client().await;
    let most = CANCELLED_BURST as usize + 60 * STREAMS_MAX as usize;
    let mut refused = false;
    for _ in 0..most {
        if std::future::poll_fn(|cx| client.send.poll_ready(cx)).await.is_err() {
            refused = true;
            break;
        }
        let (response, mut send) = client.send.send_request(to("GET", "/never", &[]), true).unwrap();
        tokio::task::yield_now().await;
        send.send_reset(Reason::CANCEL);
        drop(response);
        tokio::task::yield_now().await;
    }
    assert!(refused, "{most} requests were cancelled");
}

#[tokio::test]
async fn streams_that_make_us_reset_them_end_the_connection() {
    // A window update of nothing on each (made you reset).
    let end = flood(|number: u32| {
        let stream = 2 * number + 1;
        [request(stream, "/never"), frame(8, 0, stream, &[0; 4])].concat()
    });
    let end = end.await;
    assert!(matches!(end, End::GoAway(_)), "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn clients_that_do_not_read_hold_so_much_together_and_no_more() {
    let router = Router::default()
        .server(|_request, mut respond| async move {
            let send = respond.send_response(Response::new(()), false).unwrap();
            crate::support::sent(send, bytes::Bytes::from_static(&[7; 16 << 10]), true).await;
        })
        .await;
    let clients = STALLED_ANYWAY.div_ceil(STREAMS_MAX as usize) + 1;
    let mut stalled = Vec::new();
    for _ in 0..clients {
        let mut client = router.client().await;
        for _ in 0..STREAMS_MAX {
            stalled.push(client.open(to("GET", "/", &[]), true).await.0);
        }
    }
    // A client's own window takes three of its answers whole: what is left is too many, and is cut when it has waited long enough.
    let served = 3;
    let waiting = clients * (STREAMS_MAX as usize - served);
    let log = router.logged(clients * served + waiting - STALLED_ANYWAY).await;
    let cut = log.iter().filter(|line| line.contains("TimedOut")).count();
    assert_eq!(cut, waiting - STALLED_ANYWAY, "{log:?}");
    let mut whole = 0;
    for reader in
        stalled.into_iter().map(|response| tokio::spawn(crate::support::whole(response))).collect::<Vec<_>>()
    {
        whole += usize::from(reader.await.unwrap().is_ok_and(|all| all.body.len() == 16 << 10));
    }
    assert_eq!(whole, clients * served + STALLED_ANYWAY, "all others are read to their end");
}

#[tokio::test]
async fn a_head_without_an_end_ends_the_connection() {
    let block = fields(&[("x-padding", &"a".repeat(100))]);
    let end = flood(move |number| match number {
        0 => frame(HEADERS, END_STREAM, 1, &fields(&[(":method", "GET")])),
        _ => frame(CONTINUATION, 0, 1, &block),
    });
    let end = end.await;
    assert!(matches!(end, End::GoAway(_) | End::Closed), "{end:?}");
}
