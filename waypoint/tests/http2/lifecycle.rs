//! Ends: of requests, by either side and in whatever order, and of connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::Response;
use tokio::sync::{mpsc, oneshot};

use crate::support::{Router, call, drained, mirror, sent, soon, to, whole};

#[tokio::test]
async fn a_client_that_cancels_takes_its_request_along_with_the_same_reason() {
    let (tell, mut told) = mpsc::channel(1);
    let (arrive, mut arrived) = mpsc::channel(1);
    let router = Router::default()
        .server(move |request, mut respond| {
            let (tell, arrive) = (tell.clone(), arrive.clone());
            async move {
                arrive.send(()).await.unwrap();
                let early = request.uri().path() == "/unanswered";
                let reason = if early {
                    std::future::poll_fn(|cx| respond.poll_reset(cx)).await
                } else {
                    let mut send = respond.send_response(Response::new(()), false).unwrap();
                    std::future::poll_fn(|cx| send.poll_reset(cx)).await
                };
                tell.send(reason.unwrap()).await.unwrap();
            }
        })
        .await;
    let mut client = router.client().await;
    for (path, reason) in [
        ("/unanswered", Reason::CANCEL),
        ("/answered", Reason::CANCEL),
        ("/answered", Reason::ENHANCE_YOUR_CALM),
        ("/answered", Reason::PROTOCOL_ERROR),
    ] {
        let (response, mut send) = client.open(call(path), false).await;
        send.send_data(Bytes::from_static(b"x"), false).unwrap();
        // One that is reset as soon as it is sent is never begun.
        soon("the request's arrival", arrived.recv()).await.unwrap();
        if path == "/answered" {
            soon("a head", response).await.unwrap();
            send.send_reset(reason);
        } else {
            send.send_reset(reason);
            drop(response);
        }
        // What is about the client's own connection is not about the server's.
        let heard = if reason == Reason::PROTOCOL_ERROR { Reason::CANCEL } else { reason };
        assert_eq!(soon("the news", told.recv()).await, Some(heard), "{path}");
    }
    let log = router.logged(4).await;
    assert!(log.iter().all(|line| line.contains("ClientGone")), "{log:?}");
}

#[tokio::test]
async fn a_servers_reset_reaches_the_client_with_its_code() {
    let router = Router::default()
        .server(|request, mut respond| async move {
            let path = request.uri().path().to_owned();
            let (early, code) = path[1..].split_once('/').unwrap();
            let reason = Reason::from(code.parse::<u32>().unwrap());
            if early == "early" {
                return respond.send_reset(reason);
            }
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            send.send_data(Bytes::from_static(b"some"), false).unwrap();
            // Once the client has seen that.
            let _ = drained(request.into_body()).await;
            send.send_reset(reason);
        })
        .await;
    let mut client = router.client().await;
    // What is about the server's own connection becomes INTERNAL_ERROR.
    for (sent, heard) in [(8, 8), (2, 2), (11, 11), (1, 2), (9, 2)] {
        let (response, _send) = client.open(call(&format!("/early/{sent}")), true).await;
        let error = soon("a reset", response).await.unwrap_err();
        assert_eq!(error.reason().map(u32::from), Some(heard), "early, {sent}");

        let (response, mut send) = client.open(call(&format!("/late/{sent}")), false).await;
        let mut body = soon("a head", response).await.unwrap().into_body();
        assert_eq!(soon("data", body.data()).await.unwrap().unwrap(), "some");
        send.send_data(Bytes::new(), true).unwrap();
        let error = soon("a reset", body.data()).await.unwrap().unwrap_err();
        assert_eq!(error.reason().map(u32::from), Some(heard), "late, {sent}");
    }
}

#[tokio::test]
async fn a_body_of_another_length_than_was_said_is_no_request_and_no_response() {
    let (tell, mut told) = mpsc::channel(1);
    let router = Router::default()
        .server(move |request, mut respond| {
            let tell = tell.clone();
            async move {
                if request.method() == "POST" {
                    let seen = drained(request.into_body()).await;
                    return tell.send(seen.is_err()).await.unwrap();
                }
                let response = Response::builder().header("content-length", "9").body(()).unwrap();
                let mut send = respond.send_response(response, false).unwrap();
                send.send_data(Bytes::from_static(b"short"), true).unwrap();
            }
        })
        .await;
    let mut client = router.client().await;
    for body in ["short", "much too long"] {
        let answer = client.ask(to("POST", "/", &[("content-length", "9")]), body.as_bytes()).await;
        assert_eq!(answer.unwrap_err().reason(), Some(Reason::PROTOCOL_ERROR), "{body}");
        assert_eq!(soon("what was seen", told.recv()).await, Some(true), "the server never sees it end");
    }
    let (response, _send) = client.open(to("GET", "/", &[]), true).await;
    assert!(whole(response).await.is_err());
}

#[tokio::test]
async fn a_request_is_sent_again_with_its_body_if_it_was_kept() {
    let asked = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&asked);
    let router = Router::default()
        .server(move |request, mut respond| {
            let turn = counted.fetch_add(1, Relaxed);
            async move {
                if turn.is_multiple_of(3) {
                    let _ = drained(request.into_body()).await;
                    respond.send_response(Response::builder().status(503).body(()).unwrap(), true).unwrap();
                } else if turn % 3 == 1 {
                    // Before anything of the body was read.
                    respond.send_response(Response::builder().status(503).body(()).unwrap(), true).unwrap();
                } else {
                    mirror(request, respond).await;
                }
            }
        })
        .await;
    router.with(|state| state.replay(64 * 1024, &[503]));
    let mut client = router.client().await;
    let body = vec![7; 50_000];
    let answer = client.ask(call("/retried"), &body).await.unwrap();
    assert_eq!((answer.status, asked.load(Relaxed)), (200, 3));
    assert!(answer.body.ends_with(&body), "{} bytes", answer.body.len());
    let too_long = client.ask(call("/long"), &vec![7; 70_000]).await.unwrap();
    assert_eq!((too_long.status, asked.load(Relaxed)), (503, 4), "more than may be kept");
}

#[tokio::test]
async fn a_request_that_the_server_did_not_look_at_is_sent_elsewhere() {
    // The first connection takes one request, and leaves without looking at the next.
    let router = Router::default()
        .behind(|io| async move {
            let mut connection = h2::server::handshake(io).await.unwrap();
            let (_, mut respond) = connection.accept().await.unwrap().unwrap();
            respond.send_response(Response::new(()), true).unwrap();
            connection.graceful_shutdown();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                respond.send_reset(Reason::REFUSED_STREAM);
            }
        })
        .await;
    let router = router.server(mirror).await;
    let mut client = router.client().await;
    for _ in 0..4 {
        assert_eq!(client.ask(to("GET", "/", &[]), b"").await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn a_server_that_dies_is_answered_for_before_its_response_and_not_after() {
    for early in [true, false] {
        let router = Router::default()
            .behind(move |io| async move {
                let mut connection = h2::server::handshake(io).await.unwrap();
                let (_, mut respond) = connection.accept().await.unwrap().unwrap();
                let sent = (!early).then(|| respond.send_response(Response::new(()), false).unwrap());
                let _ = tokio::time::timeout(Duration::from_millis(20), connection.accept()).await;
                drop(sent);
            })
            .await;
        let mut client = router.client().await;
        let (response, _send) = client.open(to("POST", "/", &[]), true).await;
        let answer = whole(response).await;
        if early {
            assert_eq!(answer.unwrap().status, 503);
        } else {
            assert_eq!(answer.unwrap_err().reason(), Some(Reason::INTERNAL_ERROR));
        }
    }
}

#[tokio::test]
async fn what_takes_too_long_is_answered_or_cut() {
    let router = Router::default()
        .server(|request, mut respond| async move {
            if request.uri().path() == "/half" {
                let send = respond.send_response(Response::new(()), false).unwrap();
                std::future::pending::<()>().await;
                drop(send);
            }
            std::future::pending::<()>().await;
        })
        .await;
    router.with(|state| state.respond_within(Duration::from_millis(30)));
    let mut client = router.client().await;
    let answer = client.ask(to("GET", "/never", &[]), b"").await.unwrap();
    assert_eq!(answer.status, 504);
    let answer = client.ask(call("/never"), b"x").await.unwrap();
    assert_eq!(answer.field("grpc-status"), Some("4"));
    router.with(|state| {
        state.respond_within(Duration::from_secs(100));
        state.complete_within(Duration::from_millis(200));
    });
    let (response, _send) = client.open(to("GET", "/half", &[]), true).await;
    assert_eq!(whole(response).await.unwrap_err().reason(), Some(Reason::CANCEL));
    assert!(router.logged(3).await[2].contains("TimedOut"));
}

#[tokio::test]
async fn the_servers_own_limit_of_streams_is_kept() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (here, seen) = (Arc::clone(&now), Arc::clone(&most));
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(3);
    let router = Router::default()
        .server_of(builder, move |_request, mut respond| {
            let (here, seen) = (Arc::clone(&here), Arc::clone(&seen));
            async move {
                seen.fetch_max(here.fetch_add(1, Relaxed) + 1, Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
                here.fetch_sub(1, Relaxed);
                respond.send_response(Response::new(()), true).unwrap();
            }
        })
        .await;
    let mut client = router.client().await;
    // It learns the limit with the first answer.
    client.ask(to("GET", "/", &[]), b"").await.unwrap();
    let mut waiting = Vec::new();
    for _ in 0..30 {
        waiting.push(client.open(to("GET", "/", &[]), true).await.0);
    }
    for response in waiting {
        assert_eq!(whole(response).await.unwrap().status, 200);
    }
    assert_eq!(most.load(Relaxed), 3);
}

#[tokio::test]
async fn a_drain_lets_requests_end_and_takes_no_new_ones() {
    let router = Router::default().server(mirror).await;
    let (begin, begun) = oneshot::channel::<()>();
    let drain = async move {
        let _ = begun.await;
    };
    let mut client = router.client_of(h2::client::Builder::new(), drain).await;
    let (response, send) = client.open(call("/long"), false).await;
    let send = sent(send, Bytes::from_static(b"before "), false).await.unwrap();
    begin.send(()).unwrap();
    soon("the farewell", async {
        while std::future::poll_fn(|cx| client.send.poll_ready(cx)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    sent(send, Bytes::from_static(b"and after"), true).await.unwrap();
    let answer = whole(response).await.unwrap();
    assert!(answer.body.ends_with(b"before and after"));
    drop(client.send);
    soon("the end of the connection", client.ended).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_ends() {
    let router = Router::default().server(mirror).await;
    let mut client = router.client().await;
    client.ask(to("GET", "/", &[]), b"").await.unwrap();
    let idle = waypoint::http2::limits::IDLE + Duration::from_secs(1);
    tokio::time::timeout(idle, &mut client.ended).await.expect("the end").unwrap();
}
