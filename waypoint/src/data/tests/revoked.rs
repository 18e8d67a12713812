//! Requests under way when a policy arrives that forbids them.

use std::future::poll_fn;

use h2::RecvStream;
use http::Request;
use model::store::Update;

use super::calls::{Caller, Says, Seen};
use super::routes::head;
use super::*;

impl World {
    /// The node of a server of HTTP/1.1: it begins to answer who asks for `/open`, echoes after `/upgrade`, and answers nothing to
    /// `/silent`. Told is each path that was asked for, and each again when its connection has broken.
    async fn slow(&self, address: &str) -> mpsc::Receiver<String> {
        let (tell, told) = mpsc::channel(8);
        let take = move |incoming: Incoming| {
            let stream = incoming.accept(HeaderMap::new()).unwrap();
            tokio::spawn(serve(stream, tell.clone()));
        };
        self.takes(address, take).await;
        told
    }
}

async fn serve(mut stream: Stream, tell: mpsc::Sender<String>) {
    let Some(head) = head(&mut stream, &mut String::new()).await else { return };
    let path = head.split(' ').nth(1).unwrap().to_owned();
    tell.send(path.clone()).await.unwrap();
    let begun = match path.as_str() {
        "/open" => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nbegun\r\n",
        "/upgrade" => "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n",
        _ => "",
    };
    stream.send(begun.into()).unwrap();
    while let Ok(Some(bytes)) = recv(&mut stream).await {
        stream.send(bytes).unwrap();
    }
    tell.send(path).await.unwrap();
}

/// A request whose answer has come as far as this text.
async fn under_way(client: &Opener, path: &str, until: &str) -> Stream {
    let mut stream = open(client, "10.96.0.1:80").await.unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: web.shop\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n");
    stream.send(request.into()).unwrap();
    until_said(&mut stream, until).await;
    stream
}

async fn until_said(stream: &mut Stream, until: &str) {
    let mut said = String::new();
    while !said.contains(until) {
        let bytes = soon(until, recv(stream)).await.unwrap().unwrap_or_else(|| panic!("{said:?} is all"));
        said.push_str(std::str::from_utf8(&bytes).unwrap());
    }
}

#[tokio::test]
async fn a_policy_that_arrives_ends_the_requests_under_way_that_it_forbids() {
    let mut world = World::new().await;
    world.endpoint("one", "127.7.70.1");
    let mut server = world.slow("127.7.70.1").await;
    let (client, other) = (world.client("client").await, world.client("other").await);
    let mut begun = under_way(&client, "/open", "begun").await;
    let mut upgraded = under_way(&client, "/upgrade", "\r\n\r\n").await;
    let mut silent = under_way(&client, "/silent", "").await;
    let mut others = under_way(&other, "/upgrade", "\r\n\r\n").await;
    for _ in 0..4 {
        soon("a request", server.recv()).await.unwrap();
    }

    world.policy(Update::Policy(policy("no-other", Action::Deny, "somebody")));
    echoes(&mut upgraded).await;
    world.policy(Update::Policy(policy("no-client", Action::Deny, "client")));
    for stream in [&mut begun, &mut upgraded] {
        let cut = soon("the cut", recv(stream)).await;
        assert!(matches!(cut, Err(StreamError::Reset(_))), "{cut:?}");
    }
    until_said(&mut silent, "HTTP/1.1 403 ").await;
    let mut broken = Vec::new();
    for _ in 0..3 {
        broken.push(soon("the cut at the server", server.recv()).await.unwrap());
    }
    broken.sort();
    assert_eq!(broken, ["/open", "/silent", "/upgrade"]);
    for line in world.told(3).await {
        assert_eq!((&line["flags"], &line["code"]), (&"DENY".into(), &"policy-denied".into()), "{line}");
    }
    echoes(&mut others).await;
}

impl Caller {
    /// Begins a call whose messages are not all sent yet; what is said once the server has begun to answer, unless it is silent.
    async fn under_way(&mut self, path: &str) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
        let request =
            Request::post(format!("http://web.shop{path}")).header("content-type", "application/grpc");
        soon("room", poll_fn(|cx| self.send.poll_ready(cx))).await.unwrap();
        self.send.send_request(request.body(()).unwrap(), false).unwrap()
    }
}

async fn begun(response: h2::client::ResponseFuture) -> RecvStream {
    let mut body = soon("an answer", response).await.unwrap().into_body();
    assert_eq!(soon("its beginning", body.data()).await.unwrap().unwrap(), "begun");
    body
}

#[tokio::test]
async fn a_change_of_an_endpoint_that_brings_it_under_a_policy_ends_calls_that_are_forbidden_then() {
    let mut world = World::new().await;
    let mut pod = made::pod("one", "server", "127.7.71.1", "web");
    let seen = Seen::default();
    world.writer.apply([Update::Workload(pod.clone())]);
    world.callee_at("one", "127.7.71.1", (Says::Begins, &seen)).await;
    let deny = Policy { scope: PolicyScope::Selector, ..policy("no-client", Action::Deny, "client") };
    world.policy(Update::Policy(deny.clone()));
    let (mut client, mut other) = (world.caller("client").await, world.caller("other").await);
    let (response, _sending) = client.under_way("/open").await;
    let mut open = begun(response).await;
    let (silent, _sending_too) = client.under_way("/silent").await;
    let (response, mut others_sending) = other.under_way("/open").await;
    let mut others = begun(response).await;
    soon("the silent call", async {
        while seen.lock().unwrap().len() < 3 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;

    pod.authorization_policies = vec![deny.id];
    world.policy(Update::Workload(pod));
    let cut = soon("the cut", open.data()).await.unwrap().unwrap_err();
    assert_eq!(cut.reason(), Some(h2::Reason::INADEQUATE_SECURITY), "{cut:?}");
    let answer = soon("an answer", silent).await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["grpc-status"]), (200, &"7".parse().unwrap()));
    for line in world.told(2).await {
        assert_eq!((&line["flags"], &line["code"]), (&"DENY".into(), &"policy-denied".into()), "{line}");
    }

    others_sending.send_data(Bytes::new(), true).unwrap();
    assert!(soon("the rest", others.data()).await.is_none());
    let trailers = soon("trailers", others.trailers()).await.unwrap().unwrap();
    assert_eq!(trailers["grpc-status"], "0", "who is not meant is served to the end");
}
