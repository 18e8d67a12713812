//! What passes: heads, bodies, trailers, and what precedes a response.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use proptest::prelude::*;

use crate::support::{Router, call, drained, mirror, sent, soon, to, whole};

#[tokio::test]
async fn servers_see_the_request_and_clients_the_response_as_they_were_sent() {
    let router = Router::default().server(mirror).await;
    let mut client = router.client().await;
    let request =
        to("PUT", "/a%2Fb?q=1", &[("x-a", "1"), ("x-a", "2"), ("te", "trailers"), ("content-length", "5")]);
    let answer = client.ask(request, b"hello").await.unwrap();
    let text = String::from_utf8(answer.body).unwrap();
    let (head, body) = text.split_once("\n\n").unwrap();
    let mut lines: Vec<_> = head.lines().collect();
    assert_eq!(lines.remove(0), "PUT http://shop/a%2Fb?q=1");
    lines.sort_unstable();
    assert_eq!(lines, ["content-length: 5", "te: trailers", "x-a: 1", "x-a: 2"]);
    assert_eq!((answer.status, body), (200, "hello"));
    let down = text.len();
    assert_eq!(router.logged(1).await, [format!("PUT /a%2Fb 200 Forwarded attempts=1 up=5 down={down}")]);
}

#[tokio::test]
async fn a_host_may_repeat_the_authority_or_stand_for_it_and_is_not_sent_on() {
    let router = Router::default().server(mirror).await;
    let mut client = router.client().await;
    let said = to("GET", "/", &[("host", "SHOP")]);
    let answer = client.ask(said, b"").await.unwrap();
    assert_eq!(answer.body, b"GET http://shop/\n\n");
    let options = http::Request::builder().method("OPTIONS").uri("http://shop").body(()).unwrap();
    let answer = client.ask(options, b"").await.unwrap();
    assert_eq!(String::from_utf8_lossy(&answer.body).lines().next(), Some("OPTIONS http://shop/"));
}

#[tokio::test]
async fn responses_without_a_body_keep_their_fields() {
    let router = Router::default()
        .server(|request, mut respond| async move {
            let status = request.uri().path()[1..].parse().unwrap();
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            if status != 204 {
                response.headers_mut().insert("content-length", HeaderValue::from_static("1000"));
            }
            respond.send_response(response, true).unwrap();
        })
        .await;
    let mut client = router.client().await;
    for (method, path, length) in
        [("HEAD", "/200", Some("1000")), ("GET", "/304", Some("1000")), ("GET", "/204", None)]
    {
        let answer = client.ask(to(method, path, &[]), b"").await.unwrap();
        assert_eq!((answer.field("content-length"), answer.body.len()), (length, 0), "{method} {path}");
        assert_eq!(answer.status.to_string(), path[1..]);
    }
}

#[tokio::test]
async fn what_precedes_a_response_passes_and_a_client_may_wait_for_leave() {
    let router = Router::default()
        .server(|request, mut respond| async move {
            assert_eq!(request.headers()["expect"], "100-continue");
            for status in [100, 103] {
                let interim =
                    Response::builder().status(status).header("link", "</style.css>").body(()).unwrap();
                respond.send_informational(interim).unwrap();
            }
            let (body, _) = drained(request.into_body()).await.unwrap();
            let send = respond.send_response(Response::new(()), false).unwrap();
            sent(send, body.into(), true).await;
        })
        .await;
    let mut client = router.client().await;
    let (mut response, send) = client.open(to("POST", "/", &[("expect", "100-continue")]), false).await;
    let mut statuses = Vec::new();
    for _ in 0..2 {
        let interim = soon("an interim response", std::future::poll_fn(|cx| response.poll_informational(cx)));
        let interim = interim.await.unwrap().unwrap();
        assert_eq!(interim.headers()["link"], "</style.css>");
        statuses.push(interim.status().as_u16());
    }
    assert_eq!(statuses, [100, 103]);
    // Only now is the body sent.
    sent(send, Bytes::from_static(b"late"), true).await;
    assert_eq!(whole(response).await.unwrap().body, b"late");
}

#[tokio::test]
async fn connect_becomes_a_tunnel_when_it_is_granted() {
    let router = Router::default()
        .server(|request, mut respond| async move {
            assert_eq!(
                (request.method().as_str(), request.uri().to_string()),
                ("CONNECT", "db:5432".to_owned())
            );
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            let mut body = request.into_body();
            while let Some(Ok(piece)) = body.data().await {
                body.flow_control().release_capacity(piece.len()).unwrap();
                send.send_data(piece, false).unwrap();
            }
            send.send_data(Bytes::new(), true).unwrap();
        })
        .await;
    let mut client = router.client().await;
    let request = http::Request::builder().method("CONNECT").uri("db:5432").body(()).unwrap();
    let (response, mut send) = client.open(request, false).await;
    let mut body = soon("an answer", response).await.unwrap().into_body();
    for said in ["one", "two"] {
        send.send_data(Bytes::from(said), false).unwrap();
        let heard = soon("an echo", body.data()).await.unwrap().unwrap();
        assert_eq!(heard, said);
    }
    send.send_data(Bytes::new(), true).unwrap();
    assert!(drained(body).await.unwrap().0.is_empty(), "nothing but the end");
}

fn trailers(value: &str) -> HeaderMap {
    let mut fields = HeaderMap::new();
    fields.insert("x-sum", value.parse().unwrap());
    fields
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever the pieces of a body, and whether or not trailers follow, both sides see the bytes that were sent.
    #[test]
    fn bodies_pass_whole_however_they_are_cut(pieces in prop::collection::vec(0_usize..40_000, 0..12), ends: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let router = Router::default().server(mirror).await;
            let mut client = router.client().await;
            let (response, mut send) = client.open(call("/a.B/C"), false).await;
            let mut all = Vec::new();
            let upload = tokio::spawn({
                let pieces = pieces.clone();
                async move {
                    for (index, length) in pieces.iter().enumerate() {
                        let piece = Bytes::from(vec![index as u8; *length]);
                        send = sent(send, piece, false).await.unwrap();
                    }
                    if ends { send.send_trailers(trailers("7")).unwrap() } else { send.send_data(Bytes::new(), true).unwrap() }
                }
            });
            for (index, length) in pieces.iter().enumerate() {
                all.extend(vec![index as u8; *length]);
            }
            let answer = whole(response).await.unwrap();
            soon("the upload", upload).await.unwrap();
            let head = answer.body.windows(2).position(|two| two == b"\n\n").unwrap() + 2;
            assert!(answer.body[head..] == all, "{} bytes of {}", answer.body.len() - head, all.len());
            assert_eq!(answer.trailers, ends.then(|| trailers("7")));
        });
    }
}
