//! gRPC and other HTTP/2 under rules and policies: what clients are told, and what servers see.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use h2::RecvStream;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use http::{Request, Response};
use model::l7::{
    Abort, AbortAnswer, BackendTarget, Fault, Filter, Fraction, HeaderEdits, HeaderMatch, HeaderName,
    HeaderValue, Moment, PathMatch, PathText, PolicyTarget, Retry, RouteKind, Rule as Route, TextMatch,
};
use tokio::io::{AsyncRead, AsyncWrite};

use super::super::tunnel_io::TunnelIo;
use super::super::upstream::Io;
use super::*;
use crate::rules::Change;

/// What servers were asked: who, and the request.
pub(super) type Seen = Arc<Mutex<Vec<(String, Request<()>)>>>;

/// How a server answers a call.
#[derive(Clone, Copy)]
pub(super) enum Says {
    /// With this code, in its head.
    Code(&'static str),
    /// With this code, and that nobody should ask again.
    Never(&'static str),
    /// With its name, when all of the call has come, which it notes as well.
    Aloud,
    /// With a beginning at once, and the end when all of the call has come. Not at all to `/silent`.
    Begins,
    /// With its name.
    Name,
    /// Not at all.
    Nothing,
}

impl World {
    pub(super) fn routes(&mut self, rules: impl IntoIterator<Item = Route>) {
        let changes = rules.into_iter().map(|rule| Change::Rule(Box::new(rule)));
        self.book.store(Arc::new(self.rules.apply(changes)));
    }

    /// A service of its own with one endpoint, whose node serves calls; how many connections it has taken.
    pub(super) async fn callee(
        &mut self,
        name: &'static str,
        address: &str,
        (says, seen): (Says, &Seen),
    ) -> Arc<AtomicUsize> {
        let workload = made::pod(name, "server", address, name);
        self.writer
            .apply([Update::Service(made::service(name, "10.96.1.1", false)), Update::Workload(workload)]);
        self.callee_at(name, address, (says, seen)).await
    }

    pub(super) async fn callee_at(
        &self,
        name: &'static str,
        address: &str,
        (says, seen): (Says, &Seen),
    ) -> Arc<AtomicUsize> {
        let (seen, taken) = (Arc::clone(seen), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&taken);
        let take = move |incoming: Incoming| {
            counted.fetch_add(1, Relaxed);
            let stream = incoming.accept(HeaderMap::new()).unwrap();
            let io = Io::Tunnel(Box::new(TunnelIo::new(stream, Vec::new())));
            tokio::spawn(serve(io, name, says, Arc::clone(&seen)));
        };
        self.takes(address, take).await;
        taken
    }

    /// A client's connection, in a tunnel of its own.
    pub(super) async fn caller(&self, account: &str) -> Caller {
        let opener = self.client(account).await;
        let stream = open(&opener, "10.96.0.1:80").await.unwrap();
        let io = Io::Tunnel(Box::new(TunnelIo::new(stream, Vec::new())));
        let (send, connection) = h2::client::handshake(io).await.unwrap();
        tokio::spawn(connection);
        Caller { send, _opener: opener }
    }
}

/// Serves the calls of one connection.
pub(super) async fn serve(
    io: impl AsyncRead + AsyncWrite + Unpin,
    name: &'static str,
    says: Says,
    seen: Seen,
) {
    let mut connection = h2::server::handshake(io).await.unwrap();
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(answer((request, respond), name, says, Arc::clone(&seen)));
    }
}

async fn answer(
    (request, mut respond): (Request<RecvStream>, SendResponse<Bytes>),
    name: &'static str,
    says: Says,
    seen: Seen,
) {
    let (parts, mut body) = request.into_parts();
    let is_silent = parts.uri.path() == "/silent";
    seen.lock().unwrap().push((name.to_owned(), Request::from_parts(parts, ())));
    let head = Response::builder().header("content-type", "application/grpc").header("x-version", name);
    match says {
        Says::Code(code) => {
            let head = head.header("grpc-status", code).body(()).unwrap();
            respond.send_response(head, true).unwrap();
        }
        Says::Never(code) => {
            let head =
                head.header("grpc-status", code).header("grpc-retry-pushback-ms", "-1").body(()).unwrap();
            respond.send_response(head, true).unwrap();
        }
        Says::Aloud | Says::Name => {
            let mut said = Vec::new();
            while let Some(Ok(piece)) = body.data().await {
                said.extend_from_slice(&piece);
            }
            if matches!(says, Says::Aloud) {
                let heard = format!("{name} heard {}", String::from_utf8_lossy(&said));
                seen.lock().unwrap().push((heard, Request::new(())));
            }
            let mut send = respond.send_response(head.body(()).unwrap(), false).unwrap();
            send.send_data([name.as_bytes(), b" heard ", &said].concat().into(), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            send.send_trailers(trailers).unwrap();
        }
        Says::Begins if !is_silent => {
            let mut send = respond.send_response(head.body(()).unwrap(), false).unwrap();
            send.send_data(Bytes::from_static(b"begun"), false).unwrap();
            while let Some(Ok(_)) = body.data().await {}
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            // Nobody may want it any more.
            let _ = send.send_trailers(trailers);
        }
        Says::Begins | Says::Nothing => {
            let _ = poll_fn(|cx| respond.poll_reset(cx)).await;
        }
    }
}

pub(super) struct Caller {
    pub(super) send: SendRequest<Bytes>,
    _opener: Opener,
}

/// How a call ended.
#[derive(Debug, PartialEq)]
pub(super) struct Ended {
    pub(super) code: String,
    pub(super) said: String,
    /// By a head that was all.
    at_once: bool,
}

fn ended(code: &str) -> Ended {
    Ended { code: code.into(), said: String::new(), at_once: true }
}

impl Caller {
    async fn begin(&mut self, path: &str, fields: &[(&str, &str)]) -> ResponseFuture {
        let mut request =
            Request::post(format!("http://web.shop{path}")).header("content-type", "application/grpc+proto");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        soon("room", poll_fn(|cx| self.send.poll_ready(cx))).await.unwrap();
        let (response, mut send) = self.send.send_request(request.body(()).unwrap(), false).unwrap();
        send.send_data(Bytes::from_static(b"hello"), true).unwrap();
        response
    }

    pub(super) async fn call(&mut self, path: &str, fields: &[(&str, &str)]) -> Ended {
        let response = self.begin(path, fields).await;
        finish(response).await
    }
}

async fn finish(response: ResponseFuture) -> Ended {
    let response = soon("an answer", response).await.unwrap();
    assert_eq!(response.status(), 200);
    let (parts, mut body) = response.into_parts();
    let at_once = body.is_end_stream();
    let mut said = Vec::new();
    while let Some(piece) = soon("a body", body.data()).await {
        said.extend_from_slice(&piece.unwrap());
    }
    let trailers = soon("trailers", body.trailers()).await.unwrap();
    let fields = trailers.as_ref().unwrap_or(&parts.headers);
    let code = fields["grpc-status"].to_str().unwrap().to_owned();
    Ended { code, said: String::from_utf8(said).unwrap(), at_once }
}

/// The rule number `index` of a GRPCRoute about port 80 of `web`: calls of this method go to this service.
pub(super) fn method(index: u32, path: &str, backend: &str) -> Route {
    let mut rule = made::rule(index, "/", &[(backend, 1)]);
    rule.key.kind = RouteKind::Grpc;
    rule.matches[0].path = PathMatch::Exact(PathText::new(path).unwrap());
    rule
}

#[tokio::test]
async fn calls_go_by_method_and_field_and_servers_learn_who_calls() {
    let mut world = World::new().await;
    let seen = Seen::default();
    world.callee("v1", "127.7.40.1", (Says::Name, &seen)).await;
    world.callee("v2", "127.7.40.2", (Says::Name, &seen)).await;
    let mut canary = method(1, "/shop.Cart/Add", "v2");
    let name = HeaderName::new("x-canary").unwrap();
    canary.matches[0].headers = vec![HeaderMatch { name, value: TextMatch::Exact("yes".into()) }];
    world.routes([method(0, "/shop.Cart/Add", "v1"), canary]);
    let mut caller = world.caller("client").await;
    let forged = [("x-forwarded-client-cert", "me"), ("host", "web.shop"), ("te", "trailers")];
    let told = caller.call("/shop.Cart/Add", &forged).await;
    assert_eq!(told, Ended { code: "0".into(), said: "v1 heard hello".into(), at_once: false });
    assert_eq!(caller.call("/shop.Cart/Add", &[("x-canary", "yes")]).await.said, "v2 heard hello");
    assert_eq!(caller.call("/shop.Cart/Remove", &[]).await, ended("12"), "no such method");
    let (server, request) = seen.lock().unwrap()[0].clone();
    assert_eq!((server.as_str(), request.uri().to_string()), ("v1", "http://web.shop/shop.Cart/Add".into()));
    let certificate = request.headers()["x-forwarded-client-cert"].to_str().unwrap();
    assert!(certificate.ends_with("/sa/client"), "{certificate}");
    assert_eq!(request.headers()["x-forwarded-for"], "127.0.0.1");
    assert_eq!(
        (request.headers().get("host"), &request.headers()["te"]),
        (None, &"trailers".parse().unwrap())
    );
}

#[tokio::test]
async fn what_no_server_takes_is_told_in_codes() {
    let mut world = World::new().await;
    let seen = Seen::default();
    world.callee("v1", "127.7.41.1", (Says::Nothing, &seen)).await;
    world.writer.apply([Update::Service(made::service("empty", "10.96.1.2", false))]);
    let mut late = method(0, "/a/Late", "v1");
    late.timeouts.request = Some(Duration::from_millis(50));
    let mut invalid = method(1, "/a/Invalid", "v1");
    invalid.backends[0].target = BackendTarget::Invalid("no such Service".into());
    let refused = Route { refusal: Some("why".into()), ..method(2, "/a/Refused", "v1") };
    world.routes([late, invalid, refused, method(3, "/a/Empty", "empty"), method(4, "/a/Denied", "v1")]);
    let mut caller = world.caller("client").await;
    for (path, code) in [("/a/Late", "4"), ("/a/Invalid", "14"), ("/a/Refused", "14"), ("/a/Empty", "14")] {
        assert_eq!(caller.call(path, &[]).await, ended(code), "{path}");
    }
    world.policy(Update::Policy(policy("no-client", Action::Deny, "client")));
    assert_eq!(caller.call("/a/Denied", &[]).await, ended("7"));
    assert_eq!(seen.lock().unwrap().len(), 1, "one was asked, and never answered");

    let fault = model::l7::Policy {
        name: model::l7::PolicyName { namespace: "shop".into(), name: "chaos".into() },
        target: PolicyTarget::Service(made::service_name("web")),
        created: Moment(1),
        fault: Some(Fault {
            triggers: Vec::new(),
            delay: None,
            abort: Some(Abort { share: Fraction::ALL, answer: AbortAnswer::Grpc(10) }),
            until: Moment(u64::MAX),
        }),
        balancing: None,
    };
    world.book.store(Arc::new(world.rules.apply([Change::Policy("chaos".into(), Box::new(fault))])));
    assert_eq!(caller.call("/a/Late", &[]).await, ended("10"));
}

fn retry(codes: impl IntoIterator<Item = u32>) -> Retry {
    Retry {
        attempts: 2,
        backoff: Some(Duration::from_millis(1)),
        statuses: BTreeSet::new(),
        grpc_codes: codes.into_iter().collect(),
    }
}

#[tokio::test]
async fn a_rule_that_retries_hides_a_server_that_fails_with_a_code_of_its() {
    let mut world = World::new().await;
    let seen = Seen::default();
    world.endpoint("bad", "127.7.42.1");
    world.endpoint("good", "127.7.42.2");
    world.callee_at("bad", "127.7.42.1", (Says::Code("14"), &seen)).await;
    world.callee_at("good", "127.7.42.2", (Says::Name, &seen)).await;
    world.routes([Route { retry: Some(retry([14])), ..method(0, "/a/Retry", "web") }]);
    let mut caller = world.caller("client").await;
    for _ in 0..10 {
        assert_eq!(caller.call("/a/Retry", &[]).await.said, "good heard hello", "with its message");
    }
}

#[tokio::test]
async fn a_server_that_does_not_want_to_be_asked_again_is_not() {
    let mut world = World::new().await;
    let seen = Seen::default();
    world.callee("pushy", "127.7.43.1", (Says::Never("14"), &seen)).await;
    world.callee("other", "127.7.43.2", (Says::Code("5"), &seen)).await;
    world.callee("again", "127.7.43.3", (Says::Code("14"), &seen)).await;
    let rule = |index, path, backend| Route { retry: Some(retry([14])), ..method(index, path, backend) };
    world.routes([rule(0, "/a/Pushy", "pushy"), rule(1, "/a/Other", "other"), rule(2, "/a/Again", "again")]);
    let mut caller = world.caller("client").await;
    for (path, code, asked) in [("/a/Pushy", "14", 1), ("/a/Other", "5", 1), ("/a/Again", "14", 3)] {
        seen.lock().unwrap().clear();
        assert_eq!(caller.call(path, &[]).await, ended(code), "{path}");
        assert_eq!(seen.lock().unwrap().len(), asked, "{path}");
    }
}

#[tokio::test]
async fn calls_of_many_clients_share_a_connection_to_a_server() {
    let mut world = World::new().await;
    let seen = Seen::default();
    let taken = world.callee("v1", "127.7.44.1", (Says::Name, &seen)).await;
    world.routes([method(0, "/a/B", "v1")]);
    let (mut one, mut two) = (world.caller("client").await, world.caller("other").await);
    let mut begun = Vec::new();
    for _ in 0..20 {
        begun.push(one.begin("/a/B", &[]).await);
        begun.push(two.begin("/a/B", &[]).await);
    }
    for response in begun {
        assert_eq!(finish(response).await.code, "0");
    }
    assert_eq!(taken.load(Relaxed), 1, "made once, by the first of them");
}

#[tokio::test]
async fn a_server_that_speaks_http_1_is_asked_in_it_on_the_same_port() {
    let mut world = World::new().await;
    let seen = Seen::default();
    world.callee("two", "127.7.45.1", (Says::Name, &seen)).await;
    world.version("one", "127.7.45.2").await;
    let mut rules = [made::rule(0, "/two", &[("two", 1)]), made::rule(1, "/one", &[("one", 1)])];
    rules[0].filters = vec![Filter::ResponseHeaders(HeaderEdits {
        set: vec![(HeaderName::new("x-told").unwrap(), HeaderValue::new("yes").unwrap())],
        add: Vec::new(),
        remove: vec![HeaderName::new("x-version").unwrap()],
    })];
    world.routes(rules);
    let mut caller = world.caller("client").await;
    let response = soon("an answer", caller.begin("/two", &[]).await).await.unwrap();
    assert_eq!(
        (&response.headers()["x-told"], response.headers().get("x-version")),
        (&"yes".parse().unwrap(), None)
    );
    let mut http = world.http("client").await;
    assert_eq!(http.get("/one").await.server(), "one");
}

#[tokio::test]
async fn calls_are_copied_with_what_they_say() {
    let mut world = World::new().await;
    let seen = Seen::default();
    world.callee("v1", "127.7.65.1", (Says::Name, &Seen::default())).await;
    let links = world.callee("shadow", "127.7.65.2", (Says::Aloud, &seen)).await;
    let mut rule = method(0, "/echo.Echo/Say", "v1");
    let target = BackendTarget::Service { name: made::service_name("shadow"), port: 80 };
    let edited = HeaderEdits {
        set: vec![(HeaderName::new("x-rule").unwrap(), HeaderValue::new("one").unwrap())],
        ..HeaderEdits::default()
    };
    rule.filters = vec![
        Filter::Mirror(model::l7::Mirror { target, share: Fraction::ALL }),
        Filter::RequestHeaders(edited),
    ];
    world.routes([rule]);
    let mut caller = world.caller("client").await;
    for _ in 0..3 {
        let answered = caller.call("/echo.Echo/Say", &[("x-user", "jane")]).await;
        assert_eq!((answered.code.as_str(), answered.said.as_str()), ("0", "v1 heard hello"));
    }
    world.copies("completed", 3).await;
    assert_eq!(links.load(Relaxed), 1, "copies share a connection");
    let seen = seen.lock().unwrap();
    assert_eq!(seen.iter().filter(|(what, _)| what == "shadow heard hello").count(), 3);
    let (_, copy) = seen.iter().find(|(what, _)| what == "shadow").unwrap();
    assert_eq!((copy.uri().path(), copy.uri().authority().unwrap().as_str()), ("/echo.Echo/Say", "web.shop"));
    let field = |name: &str| copy.headers().get(name).and_then(|value| value.to_str().ok());
    assert_eq!((field("x-user"), field("x-rule")), (Some("jane"), Some("one")));
    assert!(field("x-forwarded-client-cert").is_some_and(|value| value.ends_with("/sa/client")));
}
