//! Requests under rules and policies: what clients are answered, and what servers see.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use model::l7::{
    Abort, AbortAnswer, BackendTarget, Client, Cors, Delay, Fault, Filter, Fraction, HeaderEdits, HeaderName,
    HeaderValue, Host, List, Moment, PathModifier, PathText, PolicyTarget, Redirect, Retry, Rule,
    SessionCarrier, SessionPersistence, Trigger, UrlRewrite,
};

use super::*;
use crate::rules::Change;

impl World {
    pub(super) fn follow(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.book.store(Arc::new(self.rules.apply(changes)));
    }

    pub(super) fn rule(&mut self, rule: Rule) {
        self.follow([Change::Rule(Box::new(rule))]);
    }

    /// A service of its own with one endpoint, whose node serves HTTP.
    pub(super) async fn version(&mut self, name: &str, address: &str) {
        let workload = made::pod(name, "server", address, name);
        self.writer
            .apply([Update::Service(made::service(name, "10.96.1.1", false)), Update::Workload(workload)]);
        self.server(name, address, 0).await;
    }

    /// The node of an endpoint, which answers each request with its name and the request's head. The first so many requests are
    /// answered with 503, and none that asks for `/never`.
    pub(super) async fn server(&self, name: &str, address: &str, failures: u32) -> Arc<AtomicU32> {
        let (name, count) = (name.to_owned(), Arc::new(AtomicU32::new(0)));
        let counted = Arc::clone(&count);
        let take = move |incoming: Incoming| {
            let stream = incoming.accept(HeaderMap::new()).unwrap();
            tokio::spawn(serve(stream, name.clone(), Arc::clone(&counted), failures));
        };
        self.takes(address, take).await;
        count
    }

    pub(super) async fn http(&self, account: &str) -> Http {
        Http { client: self.client(account).await, stream: None }
    }
}

async fn serve(mut stream: Stream, name: String, count: Arc<AtomicU32>, failures: u32) {
    let mut unread = String::new();
    while let Some(head) = head(&mut stream, &mut unread).await {
        let failed = count.fetch_add(1, Relaxed) < failures;
        if head.starts_with("GET /never") {
            continue;
        }
        let status = if failed { "503 Service Unavailable" } else { "200 OK" };
        let body = format!("{name}\n{head}");
        let fields = "access-control-allow-origin: http://backend\r\nx-version: 1\r\n";
        let answer = format!("HTTP/1.1 {status}\r\n{fields}content-length: {}\r\n\r\n{body}", body.len());
        if stream.send(answer.into()).is_err() {
            return;
        }
    }
}

/// The next head, up to and with its empty line.
pub(super) async fn head(stream: &mut Stream, unread: &mut String) -> Option<String> {
    loop {
        if let Some(end) = unread.find("\r\n\r\n") {
            let rest = unread.split_off(end + 4);
            return Some(std::mem::replace(unread, rest));
        }
        let bytes = recv(stream).await.ok()??;
        unread.push_str(std::str::from_utf8(&bytes).unwrap());
    }
}

/// A client with one connection.
pub(super) struct Http {
    pub(super) client: Opener,
    stream: Option<(Stream, String)>,
}

/// An answer to a request.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    head: String,
    pub(super) body: String,
}

impl Reply {
    fn field(&self, name: &str) -> Option<&str> {
        field(&self.head, name)
    }

    /// Who answered.
    pub(super) fn server(&self) -> &str {
        self.body.lines().next().unwrap_or_default()
    }

    /// What the server was asked.
    pub(super) fn seen(&self, name: &str) -> Option<&str> {
        field(&self.body, name)
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

impl Http {
    /// `None` when the connection breaks.
    async fn try_ask(&mut self, request: &str) -> Option<Reply> {
        let (mut stream, mut unread) = match self.stream.take() {
            Some(kept) => kept,
            None => (open(&self.client, "10.96.0.1:80").await.unwrap(), String::new()),
        };
        stream.send(format!("{request}\r\n\r\n").into()).unwrap();
        let head = soon("an answer", head(&mut stream, &mut unread)).await?;
        let length = field(&head, "content-length").map_or(0, |length| length.parse().unwrap());
        while unread.len() < length {
            let bytes = soon("the body", recv(&mut stream)).await.unwrap().unwrap();
            unread.push_str(std::str::from_utf8(&bytes).unwrap());
        }
        let rest = unread.split_off(length);
        let body = std::mem::replace(&mut unread, rest);
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        if field(&head, "connection") != Some("close") {
            self.stream = Some((stream, unread));
        }
        Some(Reply { status, head, body })
    }

    pub(super) async fn ask(&mut self, request: &str) -> Reply {
        self.try_ask(request).await.unwrap_or_else(|| panic!("no answer to {request}"))
    }

    pub(super) async fn get(&mut self, path: &str) -> Reply {
        self.ask(&format!("GET {path} HTTP/1.1\r\nhost: web.shop")).await
    }
}

pub(super) fn edits(set: (&str, &str), remove: &str) -> HeaderEdits {
    let name = |name| HeaderName::new(name).unwrap();
    HeaderEdits {
        set: vec![(name(set.0), HeaderValue::new(set.1).unwrap())],
        add: Vec::new(),
        remove: vec![name(remove)],
    }
}

fn path(text: &str) -> PathText {
    PathText::new(text).unwrap()
}

#[tokio::test]
async fn the_requests_of_one_connection_are_shared_out_by_weight() {
    let mut world = World::new().await;
    world.version("v1", "127.7.10.1").await;
    world.version("v2", "127.7.10.2").await;
    world.rule(made::rule(0, "/", &[("v1", 3), ("v2", 1)]));
    let mut http = world.http("client").await;
    let mut counted: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..400 {
        let reply = http.get("/").await;
        assert_eq!(reply.status, 200);
        *counted.entry(reply.server().to_owned()).or_default() += 1;
    }
    // 300 are expected; five standard deviations are 43.
    assert!((257..=343).contains(&counted["v1"]), "{counted:?}");
    world.rule(made::rule(0, "/", &[("v1", 0), ("v2", 1)]));
    for _ in 0..20 {
        assert_eq!(http.get("/").await.server(), "v2", "the next request follows the new weights");
    }
}

#[tokio::test]
async fn what_no_backend_takes_is_answered_here() {
    let mut world = World::new().await;
    world.version("v1", "127.7.11.1").await;
    world.writer.apply([Update::Service(made::service("empty", "10.96.1.2", false))]);
    let mut invalid = made::rule(1, "/invalid", &[("v1", 1)]);
    invalid.backends[0].target = BackendTarget::Invalid("no such Service".into());
    let refused = Rule { refusal: Some("why".into()), ..made::rule(2, "/refused", &[("v1", 1)]) };
    let rules = [
        made::rule(0, "/v1", &[("v1", 1)]),
        invalid,
        refused,
        made::rule(3, "/unknown", &[("nobody", 1)]),
        made::rule(4, "/empty", &[("empty", 1)]),
        made::rule(5, "/nothing", &[]),
    ];
    world.follow(rules.map(|rule| Change::Rule(Box::new(rule))));
    let mut http = world.http("client").await;
    let expected = [
        ("/v1", 200),
        ("/v1example", 404),
        ("/invalid", 500),
        ("/refused", 500),
        ("/unknown", 500),
        ("/nothing", 500),
        ("/empty", 503),
        ("/v1/x", 200),
    ];
    for (path, status) in expected {
        assert_eq!(http.get(path).await.status, status, "{path}");
    }
}

#[tokio::test]
async fn servers_and_clients_see_what_the_rule_makes_of_it() {
    let mut world = World::new().await;
    world.version("v1", "127.7.12.1").await;
    let mut edited = made::rule(0, "/a", &[("v1", 1)]);
    edited.filters = vec![
        Filter::RequestHeaders(edits(("x-rule", "one"), "x-secret")),
        Filter::Rewrite(UrlRewrite {
            host: Some(Host::new("inner.example").unwrap()),
            path: Some(PathModifier::ReplacePrefix(path("/b"))),
        }),
        Filter::ResponseHeaders(edits(("x-told", "yes"), "x-version")),
    ];
    edited.backends[0].filters = vec![Filter::RequestHeaders(edits(("x-rule", "two"), "x-other"))];
    let redirect = Redirect {
        scheme: None,
        host: Some(Host::new("else.example").unwrap()),
        port: Some(8443),
        path: Some(PathModifier::ReplacePrefix(path("/new"))),
        status: 301,
    };
    let moved = Rule { filters: vec![Filter::Redirect(redirect)], ..made::rule(1, "/old", &[]) };
    world.follow([edited, moved].map(|rule| Change::Rule(Box::new(rule))));
    let mut http = world.http("client").await;

    let asked = "GET /a/x%2Fy?q=1 HTTP/1.1\r\nhost: web.shop\r\nX-Secret: s\r\nx-rule: forged\r\nx-forwarded-client-cert: me";
    let reply = http.ask(asked).await;
    assert_eq!(reply.status, 200);
    assert!(reply.body.starts_with("v1\nGET /b/x%2Fy?q=1 HTTP/1.1\r\n"), "{}", reply.body);
    assert_eq!(reply.seen("host"), Some("inner.example"));
    assert_eq!((reply.seen("x-rule"), reply.seen("x-secret")), (Some("two"), None));
    let certificate = reply.seen("x-forwarded-client-cert").unwrap();
    assert!(certificate.ends_with("/sa/client"), "{certificate}");
    assert_eq!((reply.field("x-told"), reply.field("x-version")), (Some("yes"), None));

    let reply = http.get("/old/page?q=1").await;
    assert_eq!((reply.status, reply.field("location")), (301, Some("http://else.example:8443/new/page?q=1")));
}

#[tokio::test]
async fn browsers_are_told_what_the_rule_allows_and_not_what_the_backend_does() {
    let mut world = World::new().await;
    world.version("v1", "127.7.13.1").await;
    let cors = Cors {
        origins: List::Only(vec!["https://shop.example".parse().unwrap()]),
        credentials: true,
        methods: List::Only(vec!["PUT".into()]),
        headers: List::Only(Vec::new()),
        expose: List::Only(Vec::new()),
        max_age: Duration::from_secs(5),
    };
    world.rule(Rule { filters: vec![Filter::Cors(cors)], ..made::rule(0, "/", &[("v1", 1)]) });
    let mut http = world.http("client").await;
    let asked = |method: &str, origin: &str| {
        format!("{method} / HTTP/1.1\r\nhost: w\r\norigin: {origin}\r\naccess-control-request-method: PUT")
    };
    let allowed = "access-control-allow-origin";
    let reply = http.ask(&asked("OPTIONS", "https://shop.example")).await;
    assert_eq!((reply.status, reply.field(allowed)), (204, Some("https://shop.example")));
    assert_eq!(reply.field("access-control-allow-methods"), Some("PUT"));
    let reply = http.ask(&asked("GET", "https://shop.example")).await;
    assert_eq!((reply.status, reply.field(allowed)), (200, Some("https://shop.example")));
    assert_eq!(reply.head.matches(allowed).count(), 1, "{}", reply.head);
    let reply = http.ask(&asked("GET", "https://evil.example")).await;
    assert_eq!((reply.status, reply.field(allowed)), (200, None));
}

#[tokio::test]
async fn a_rule_bounds_how_long_a_request_takes() {
    let mut world = World::new().await;
    world.version("v1", "127.7.14.1").await;
    let mut whole = made::rule(0, "/never/whole", &[("v1", 1)]);
    whole.timeouts.request = Some(Duration::from_millis(50));
    let mut each = made::rule(1, "/never/each", &[("v1", 1)]);
    each.timeouts.backend_request = Some(Duration::from_millis(50));
    each.timeouts.request = Some(IN_VAIN);
    world.follow([whole, each].map(|rule| Change::Rule(Box::new(rule))));
    let mut http = world.http("client").await;
    for path in ["/never/whole", "/never/each"] {
        assert_eq!(http.get(path).await.status, 504, "{path}");
    }
}

#[tokio::test]
async fn a_rule_that_retries_hides_a_failing_replica_and_others_do_not() {
    let mut world = World::new().await;
    world.endpoint("bad", "127.7.15.1");
    world.endpoint("good", "127.7.15.2");
    let failures = world.server("bad", "127.7.15.1", u32::MAX).await;
    let served = world.server("good", "127.7.15.2", 0).await;
    let retry = Retry {
        attempts: 1,
        backoff: Some(Duration::from_millis(1)),
        statuses: BTreeSet::from([503]),
        grpc_codes: BTreeSet::new(),
    };
    let mut once = Rule { retry: Some(retry), ..made::rule(0, "/retry", &[("web", 1)]) };
    world.follow([once.clone(), made::rule(1, "/", &[("web", 1)])].map(|rule| Change::Rule(Box::new(rule))));
    let mut http = world.http("client").await;
    // Whoever fails is left alone for a second, so only the first requests meet it.
    for _ in 0..10 {
        let post = "POST /retry HTTP/1.1\r\nhost: web.shop\r\ncontent-length: 0";
        assert_eq!(http.ask(post).await.server(), "good");
    }
    // One endpoint that fails once: the same one is asked again.
    world.writer.apply([
        Update::WorkloadRemoved(made::pod("bad", "server", "127.7.15.1", "web").uid),
        Update::WorkloadRemoved(made::pod("good", "server", "127.7.15.2", "web").uid),
    ]);
    world.endpoint("alone", "127.7.15.3");
    let asked = world.server("alone", "127.7.15.3", 2).await;
    assert_eq!(http.get("/other").await.status, 503, "no rule wants it tried again");
    assert_eq!(http.get("/retry").await.status, 200);
    assert_eq!(asked.load(Relaxed), 3);
    assert_eq!(served.load(Relaxed), 10);
    assert!(failures.load(Relaxed) <= 10);
    once.refusal = Some("why".into());
    world.rule(once);
    assert_eq!(http.get("/retry").await.status, 500);
}

#[tokio::test]
async fn a_retry_may_go_to_another_backend_of_the_rule_when_the_drawn_one_has_nothing_left() {
    let mut world = World::new().await;
    for (name, address) in [("bad", "127.7.64.1"), ("good", "127.7.64.2"), ("gone", "127.7.64.3")] {
        let workload = made::pod(name, "server", address, name);
        let service = made::service(name, "10.96.1.1", false);
        world.writer.apply([Update::Service(service), Update::Workload(workload)]);
    }
    let failed = world.server("bad", "127.7.64.1", u32::MAX).await;
    world.server("good", "127.7.64.2", 0).await;
    let retry = Retry {
        attempts: 1,
        backoff: Some(Duration::from_millis(1)),
        statuses: BTreeSet::from([503]),
        grpc_codes: BTreeSet::new(),
    };
    let retrying = |index, prefix, backends: &[(&str, u32)]| Rule {
        retry: Some(retry.clone()),
        ..made::rule(index, prefix, backends)
    };
    let mut edited = retrying(2, "/edited", &[("bad", 1_000_000), ("good", 1)]);
    edited.backends[1].filters = vec![Filter::RequestHeaders(edits(("x-good", "1"), "x-none"))];
    let rules = [
        retrying(0, "/bad", &[("bad", 1_000_000), ("good", 1)]),
        retrying(1, "/gone", &[("gone", 1_000_000), ("good", 1)]),
        edited,
        retrying(3, "/weightless", &[("bad", 1), ("good", 0)]),
        made::rule(4, "/", &[("bad", 1_000_000), ("good", 1)]),
    ];
    world.follow(rules.map(|rule| Change::Rule(Box::new(rule))));
    let mut http = world.http("client").await;
    for path in ["/bad", "/gone", "/bad"] {
        let reply = http.get(path).await;
        assert_eq!((reply.status, reply.server()), (200, "good"), "{path}");
    }
    assert_eq!(failed.load(Relaxed), 2, "each was asked once");
    assert_eq!(http.get("/edited").await.status, 503, "its edits were made for another backend");
    assert_eq!(http.get("/weightless").await.status, 503, "nothing is for who has no weight");
    assert_eq!(http.get("/").await.status, 503, "no rule wants it tried again");
    assert_eq!(
        failed.load(Relaxed),
        2 + 2 + 2 + 1,
        "a retry goes to whom it was tried with, if there is nobody else"
    );
}

pub(super) fn fault(triggers: Vec<Trigger>, delay: Option<Duration>, answer: AbortAnswer) -> Change {
    let policy = model::l7::Policy {
        name: model::l7::PolicyName { namespace: "shop".into(), name: "chaos".into() },
        target: PolicyTarget::Service(made::service_name("web")),
        created: Moment(1),
        fault: Some(Fault {
            triggers,
            delay: delay.map(|duration| Delay { share: Fraction::ALL, duration }),
            abort: Some(Abort { share: Fraction::new(1, 2).unwrap(), answer }),
            until: Moment(u64::MAX),
        }),
        balancing: None,
    };
    Change::Policy("chaos".to_owned(), Box::new(policy))
}

#[tokio::test]
async fn a_fault_befalls_its_share_of_those_it_is_meant_for() {
    let mut world = World::new().await;
    world.version("v1", "127.7.16.1").await;
    world.rule(made::rule(0, "/", &[("v1", 1)]));
    let client = Client::ServiceAccount { namespace: "shop".into(), name: "client".into() };
    let meant = || vec![Trigger { headers: Vec::new(), clients: vec![client.clone()] }];
    world.follow([fault(meant(), None, AbortAnswer::Http(418))]);
    let (mut http, mut other) = (world.http("client").await, world.http("other").await);
    let mut aborted = 0;
    for _ in 0..200 {
        aborted += u32::from(http.get("/").await.status == 418);
        assert_eq!(other.get("/").await.status, 200, "it is not meant for this one");
    }
    // 100 are expected; five standard deviations are 36.
    assert!((64..=136).contains(&aborted), "{aborted} of 200");

    let wait = Duration::from_millis(30);
    world.follow([fault(meant(), Some(wait), AbortAnswer::Reset)]);
    let began = Instant::now();
    let mut reset = 0;
    for _ in 0..20 {
        reset += u32::from(http.try_ask("GET / HTTP/1.1\r\nhost: w").await.is_none());
    }
    assert!((1..20).contains(&reset), "{reset} of 20");
    assert!(began.elapsed() >= wait * 20, "each request waits");
    world.follow([Change::PolicyRemoved("chaos".to_owned())]);
    for _ in 0..20 {
        assert_eq!(http.get("/").await.status, 200);
    }
}

#[tokio::test]
async fn a_session_stays_at_its_endpoint_whatever_the_weights_say() {
    let mut world = World::new().await;
    world.version("v1", "127.7.17.1").await;
    world.version("v2", "127.7.17.2").await;
    let carrier = SessionCarrier::Header(HeaderName::new("x-session").unwrap());
    let split = |weights: [u32; 2]| Rule {
        session: Some(SessionPersistence { carrier: carrier.clone(), absolute_timeout: None }),
        ..made::rule(0, "/", &[("v1", weights[0]), ("v2", weights[1])])
    };
    world.rule(split([1, 0]));
    let mut http = world.http("client").await;
    let first = http.get("/").await;
    let session = first.field("x-session").expect("a session").to_owned();
    world.rule(split([0, 1]));
    let asked = format!("GET / HTTP/1.1\r\nhost: w\r\nx-session: {session}");
    for _ in 0..10 {
        let kept = http.ask(&asked).await;
        assert_eq!((kept.server(), kept.field("x-session")), ("v1", None), "it knows already");
        assert_eq!(http.get("/").await.server(), "v2", "others follow the weights");
    }
    world.writer.apply([Update::WorkloadRemoved(made::pod("v1", "server", "127.7.17.1", "v1").uid)]);
    let moved = http.ask(&asked).await;
    assert_eq!(moved.server(), "v2");
    assert!(moved.field("x-session").is_some_and(|new| new != session), "{}", moved.head);
}
