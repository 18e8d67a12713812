//! Requests that two programs could read in two ways, and what is no request: refused, and never seen by a server.

use std::future::pending;

use h2::Reason;
use http::Response;

use crate::raw::{DATA, END_HEADERS, END_STREAM, End, HEADERS, Raw, fields, frame};
use crate::support::{Router, call, soon, to, whole};

/// A router whose server must not be asked.
async fn guarded() -> Router {
    Router::default()
        .server(|request, mut respond| async move {
            let status = if request.uri().path() == "/fine" { 200 } else { 299 };
            let _ = respond.send_response(Response::builder().status(status).body(()).unwrap(), true);
        })
        .await
}

/// `:status: 200` of HPACK's own table.
const OK: End = End::Answered(0x88);
/// `:status: 400`.
const BAD: End = End::Answered(0x8c);
const BROKEN: End = End::Reset(Reason::PROTOCOL_ERROR);

async fn told(block: &[(&str, &str)]) -> End {
    let router = guarded().await;
    let mut raw = Raw::begin(router.client_io(pending())).await;
    raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(block))).await;
    raw.end().await
}

/// With a good head before it.
async fn with(more: &[(&str, &str)]) -> End {
    let good = [(":method", "GET"), (":scheme", "http"), (":path", "/fine"), (":authority", "shop")];
    told(&[&good, more].concat()).await
}

#[tokio::test]
async fn fields_that_are_none_or_not_for_this_protocol_are_refused() {
    assert_eq!(with(&[("x-fine", "1")]).await, OK);
    // The compression cannot be read: nothing on the connection can be any more.
    for (name, value) in [
        ("X-Upper", "1"),
        ("", "1"),
        ("x a", "1"),
        ("x:y", "1"),
        ("x", "a\r\nb: c"),
        ("x", "a\0b"),
        ("x", "a\nb"),
    ] {
        let end = with(&[(name, value)]).await;
        assert!(matches!(end, End::GoAway(_)), "{name:?}: {value:?} is answered with {end:?}");
    }
    for (name, value) in [
        ("connection", "x-hop"),
        ("keep-alive", "1"),
        ("proxy-connection", "close"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("content-length", "-1"),
        ("content-length", "9"),
        (":path", "/again"),
        (":unknown", "1"),
        (":status", "200"),
    ] {
        let end = with(&[(name, value)]).await;
        let refused = end == BROKEN || matches!(end, End::GoAway(_));
        assert!(refused, "{name}: {value} is answered with {end:?}");
    }
}

#[tokio::test]
async fn a_request_that_says_two_things_is_refused() {
    for more in [
        &[("host", "other")][..],
        &[("host", "shop"), ("host", "shop")],
        &[("host", "shop"), ("host", "other")],
        &[("content-length", "0"), ("content-length", "0")],
    ] {
        assert_eq!(with(more).await, BAD, "{more:?}");
    }
    assert_eq!(with(&[("host", "shop")]).await, OK);
    let conflicting = with(&[("content-length", "0"), ("content-length", "1")]).await;
    assert_eq!(conflicting, BROKEN);
}

#[tokio::test]
async fn a_path_that_is_none_and_an_authority_that_is_none_are_refused() {
    let asked = async |method, path, authority| {
        let head = [(":method", method), (":scheme", "http"), (":path", path), (":authority", authority)];
        told(&head).await
    };
    for path in ["fine", "*", "http://shop/fine", "", "/fi ne", "/f\"<x>", "/\u{e9}"] {
        let end = asked("GET", path, "shop").await;
        assert!(end == BAD || end == BROKEN, "{path:?} is answered with {end:?}");
    }
    for authority in ["", "user@shop", "shop:x", "sh op", "shop,other", "[::1"] {
        let end = asked("GET", "/fine", authority).await;
        assert!(end == BAD || end == BROKEN, "{authority:?} is answered with {end:?}");
    }
    for head in [
        &[(":method", "GET"), (":scheme", "http"), (":authority", "shop")][..],
        &[(":method", "GET"), (":path", "/fine"), (":scheme", "http")],
        &[(":scheme", "http"), (":path", "/fine"), (":authority", "shop")],
        &[(":method", "CONNECT"), (":authority", "shop")],
        &[
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "a:1"),
        ],
        &[("x", "1"), (":method", "GET"), (":scheme", "http"), (":path", "/fine"), (":authority", "shop")],
    ] {
        let end = told(head).await;
        assert!(end == BAD || end == BROKEN, "{head:?} is answered with {end:?}");
    }
    assert_eq!(asked("GET", "/fine", "shop:80").await, OK);
}

#[tokio::test]
async fn a_head_that_is_too_large_is_told_so() {
    let router = guarded().await;
    let mut client = router.client().await;
    let mut request = to("GET", "/fine", &[]);
    for number in 0..101 {
        request
            .headers_mut()
            .insert(http::HeaderName::try_from(format!("x-{number}")).unwrap(), "1".parse().unwrap());
    }
    assert_eq!(client.ask(request, b"").await.unwrap().status, 431);
    assert_eq!(router.logged(1).await, ["refused http2-fields-too-many"]);
    let long = "a".repeat(20_000);
    let request = to("GET", "/fine", &[("x-a", &long), ("x-b", &long), ("x-c", &long), ("x-d", &long)]);
    let (response, _send) = client.open(request, true).await;
    assert_eq!(whole(response).await.unwrap().status, 431);
    assert_eq!(client.ask(to("GET", "/fine", &[]), b"").await.unwrap().status, 200, "the connection goes on");
}

#[tokio::test]
async fn trailers_that_come_too_late_are_refused() {
    let router = Router::default()
        .server(|request, mut respond| async move {
            let seen = crate::support::drained(request.into_body()).await;
            assert!(seen.is_err(), "the body never ends: {seen:?}");
            let _ = respond.send_response(Response::new(()), true);
        })
        .await;
    let mut client = router.client().await;
    let (response, mut send) = client.open(call("/fine"), false).await;
    let mut late = http::HeaderMap::new();
    late.insert("content-length", "5".parse().unwrap());
    send.send_trailers(late).unwrap();
    let answer = soon("an answer", response).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "13", "400, as calls are told it");
    assert!(router.logged(1).await[0].contains("Refused"));
}

#[tokio::test]
async fn data_without_a_request_ends_the_connection() {
    let router = guarded().await;
    let mut raw = Raw::begin(router.client_io(pending())).await;
    raw.send(&frame(DATA, 0, 1, b"x")).await;
    assert!(matches!(raw.end().await, End::GoAway(Reason::PROTOCOL_ERROR)));
}
