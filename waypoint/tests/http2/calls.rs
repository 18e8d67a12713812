//! gRPC calls of all kinds, as their frames are: what one side says reaches the other before that goes on.

use bytes::Bytes;
use http::{HeaderMap, Response};
use waypoint::decide::Answer;

use crate::support::{Router, call, drained, sent, soon, to, whole};

fn status(code: &str) -> HeaderMap {
    let mut fields = HeaderMap::new();
    fields.insert("grpc-status", code.parse().unwrap());
    fields
}

/// A server of calls: `/echo` answers each message at once, `/sum` once at the end, `/count` many times, `/fail` with a code alone.
async fn calls() -> Router {
    Router::default()
        .server(|request, mut respond| async move {
            let kind = request.uri().path().to_owned();
            let mut response = Response::new(());
            response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            let mut body = request.into_body();
            if kind == "/fail" {
                response.headers_mut().extend(status("5"));
                respond.send_response(response, true).unwrap();
                return;
            }
            let mut send = respond.send_response(response, false).unwrap();
            if kind == "/sum" {
                let (all, _) = drained(body).await.unwrap();
                send.send_data(Bytes::from(all.len().to_string()), false).unwrap();
            } else if kind == "/count" {
                for number in 0..5 {
                    send.send_data(Bytes::from(number.to_string()), false).unwrap();
                }
            } else {
                while let Some(Ok(piece)) = body.data().await {
                    body.flow_control().release_capacity(piece.len()).unwrap();
                    send.send_data(piece, false).unwrap();
                }
            }
            send.send_trailers(status("0")).unwrap();
        })
        .await
}

#[tokio::test]
async fn both_sides_of_a_call_may_take_turns_and_end_by_themselves() {
    let router = calls().await;
    let mut client = router.client().await;
    let (response, mut send) = client.open(call("/echo"), false).await;
    let mut body = soon("a head before any message", response).await.unwrap().into_body();
    for turn in 0..20 {
        let said = Bytes::from(format!("message {turn}"));
        send.send_data(said.clone(), false).unwrap();
        assert_eq!(soon("its echo", body.data()).await.unwrap().unwrap(), said);
    }
    send.send_data(Bytes::new(), true).unwrap();
    assert!(soon("the end", body.data()).await.is_none());
    assert_eq!(soon("trailers", body.trailers()).await.unwrap(), Some(status("0")));
    let log = router.logged(1).await;
    assert!(log[0].starts_with("POST /echo 200 grpc=0 Forwarded attempts=1 "), "{log:?}");
}

#[tokio::test]
async fn calls_of_one_message_or_many_either_way_end_with_trailers() {
    let router = calls().await;
    let mut client = router.client().await;
    for (path, said, heard) in
        [("/echo", "one", "one"), ("/sum", "many messages", "13"), ("/count", "go", "01234")]
    {
        let answer = client.ask(call(path), said.as_bytes()).await.unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (200, heard.as_bytes()), "{path}");
        assert_eq!(answer.trailers, Some(status("0")), "{path}");
    }
}

#[tokio::test]
async fn a_call_that_fails_at_once_ends_with_its_head() {
    let router = calls().await;
    let mut client = router.client().await;
    let (response, _send) = client.open(call("/fail"), false).await;
    let response = soon("an answer", response).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "5");
    assert!(response.body().is_end_stream(), "one HEADERS frame, which ends the stream");
    let log = router.logged(1).await;
    assert!(log[0].starts_with("POST /fail 200 grpc=5 Forwarded"), "{log:?}");
}

#[tokio::test]
async fn calls_are_answered_in_their_own_words() {
    let cases = [
        (Answer::status(404), "12"),
        (Answer::status(403), "7"),
        (Answer::status(503), "14"),
        (Answer::late(), "4"),
        (Answer::impossible(), "14"),
        (Answer { grpc: Some(9), ..Answer::status(200) }, "9"),
    ];
    for (answer, code) in cases {
        let router = Router::default();
        let http = answer.status;
        router.with(|state| state.answer(answer));
        let mut client = router.client().await;
        let (response, _send) = client.open(call("/a.B/C"), false).await;
        let response = soon("an answer", response).await.unwrap();
        assert!(response.body().is_end_stream(), "trailers only");
        let field = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!((response.status().as_u16(), field("grpc-status").as_str()), (200, code), "{http}");
        assert_eq!(field("content-type"), "application/grpc");
        assert!(!field("grpc-message").is_empty());
        let plain =
            client.ask(to("POST", "/", &[("content-type", "application/grpc-web")]), b"x").await.unwrap();
        assert_eq!((plain.status, plain.field("grpc-status")), (http, None), "not for browsers");
    }
}

#[tokio::test]
async fn a_server_that_ends_early_ends_the_clients_part_too() {
    let router = Router::default()
        .server(|_request, mut respond| async move {
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            send.send_trailers(status("0")).unwrap();
            // What it does not read it resets, with NO_ERROR.
        })
        .await;
    let mut client = router.client().await;
    let (response, send) = client.open(call("/early"), false).await;
    let answer = whole(response).await.unwrap();
    assert_eq!(answer.trailers, Some(status("0")));
    let endless = sent(send, Bytes::from(vec![0; 8 << 20]), true);
    assert!(soon("the reset", endless).await.is_none(), "nobody takes the rest");
    assert!(router.logged(1).await[0].contains("Forwarded"));
}
