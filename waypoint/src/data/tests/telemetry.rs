//! What is said of requests: in metrics and in the access log.

use std::collections::BTreeMap;

use api::otlp::trace_service_server::{TraceService, TraceServiceServer};
use api::otlp::{ExportTraceServiceRequest, ExportTraceServiceResponse, KeyValue};
use identity::control::ServerTls;
use identity::signer::ServingName;
use model::l7::{AbortAnswer, Filter, Fraction, Retry};
use serde_json::Value;

use super::calls::{self, Says};
use super::routes::{edits, fault};
use super::*;
use crate::rules::Change;

impl World {
    /// The lines about requests so far, of which there are `count`.
    pub(super) async fn told(&self, count: usize) -> Vec<Value> {
        soon("lines about requests", async {
            loop {
                self.access.flush(IN_VAIN);
                let text = String::from_utf8(self.lines.0.lock().clone()).unwrap();
                let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
                let told: Vec<_> = lines.filter(|line| line["message"] == "request complete").collect();
                if told.len() >= count {
                    assert_eq!(told.len(), count, "{text}");
                    return told;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await
    }

    /// Waits until a counter without labels says so.
    async fn counts(&self, line: &str) {
        soon(line, async {
            while !self.metrics.encode().lines().any(|said| said == line) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// The value of the one series of `metric` that has all these labels.
    fn value(&self, metric: &str, labels: &[&str]) -> f64 {
        let text = self.metrics.encode();
        let has = |line: &&str| {
            line.strip_prefix(metric).is_some_and(|rest| rest.starts_with('{'))
                && labels.iter().all(|label| line.contains(label))
        };
        let found: Vec<&str> = text.lines().filter(has).collect();
        assert_eq!(found.len(), 1, "{metric} {labels:?} in {text}");
        found[0].rsplit_once(' ').unwrap().1.parse().unwrap()
    }
}

#[tokio::test]
async fn a_request_is_counted_by_who_asked_whom_by_which_rule() {
    let mut world = World::new().await;
    world.version("v1", "127.7.60.1").await;
    world.writer.apply([Update::Workload(made::pod("client", "client", "127.0.0.1", "none"))]);
    world.rule(made::rule(0, "/", &[("v1", 1)]));
    let mut http = world.http("client").await;
    for _ in 0..3 {
        assert_eq!(http.ask("POST /a?b=c HTTP/1.1\r\nhost: web.shop\r\ncontent-length: 0").await.status, 200);
    }
    let told = world.told(3).await;
    let labels = [
        "reporter=\"waypoint\"",
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/client\"",
        "source_workload_namespace=\"shop\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/server\"",
        "destination_service=\"v1.shop.svc.cluster.local\"",
        "request_protocol=\"http\"",
        "response_code=\"200\"",
        "grpc_response_status=\"\"",
        "response_flags=\"-\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    assert_eq!(world.value("istio_requests_total", &labels), 3.0);
    assert_eq!(world.value("istio_request_duration_milliseconds_count", &labels), 3.0);
    assert_eq!(world.value("istio_request_bytes_sum", &labels), 0.0);
    let sent = told.iter().map(|line| line["bytes_sent"].as_f64().unwrap()).sum::<f64>();
    assert!(sent > 0.0);
    assert_eq!(world.value("istio_response_bytes_sum", &labels), sent);
    let labels = [
        "kind=\"HTTPRoute\"",
        "namespace=\"shop\"",
        "rule=\"0\"",
        "backend=\"v1.shop.svc.cluster.local\"",
        "response_class=\"2xx\"",
    ];
    assert_eq!(world.value("airglow_route_requests_total", &labels), 3.0);
    assert_eq!(world.value("airglow_route_attempts_total", &labels), 3.0);

    let line = &told[0];
    assert_eq!(line["src.identity"], "spiffe://cluster.local/ns/shop/sa/client");
    assert_eq!(line["src.workload"], "client");
    assert_eq!(line["dst.workload"], "v1");
    assert_eq!(line["dst.service"], "v1.shop.svc.cluster.local");
    assert_eq!(
        (&line["method"], &line["authority"], &line["path"]),
        (&"POST".into(), &"web.shop".into(), &"/a?b=c".into())
    );
    assert_eq!(
        (&line["protocol"], &line["status"], &line["flags"]),
        (&"HTTP/1.1".into(), &200.into(), &"-".into())
    );
    assert!(line["rule"].as_str().unwrap().starts_with("HTTPRoute/shop/"), "{line}");
    assert_eq!(line["attempts"], 1);
    assert!(line["duration_us"].as_u64() >= line["response_us"].as_u64(), "{line}");
    assert!(line.get("code").is_none(), "{line}");
}

#[tokio::test]
async fn calls_are_counted_by_the_code_that_they_end_with() {
    let mut world = World::new().await;
    let seen = calls::Seen::default();
    world.callee("v1", "127.7.67.1", (Says::Name, &seen)).await;
    world.callee("v2", "127.7.67.2", (Says::Code("5"), &seen)).await;
    world.routes([calls::method(0, "/a/Good", "v1"), calls::method(1, "/a/Bad", "v2")]);
    let mut caller = world.caller("client").await;
    // By trailers, by a head that is all, and by an answer of ours.
    let expected = [("/a/Good", "0", "-"), ("/a/Bad", "5", "-"), ("/a/None", "12", "NR")];
    for (path, code, _) in expected {
        assert_eq!(caller.call(path, &[]).await.code, code, "{path}");
    }
    let told = world.told(expected.len()).await;
    for ((path, code, flags), line) in expected.into_iter().zip(&told) {
        let [code, flags_label] =
            [format!("grpc_response_status=\"{code}\""), format!("response_flags=\"{flags}\"")];
        let labels = ["request_protocol=\"grpc\"", "response_code=\"200\"", &code, &flags_label];
        assert_eq!(world.value("istio_requests_total", &labels), 1.0, "{path}");
        assert_eq!((&line["path"], &line["protocol"]), (&path.into(), &"HTTP/2".into()));
        assert_eq!((&line["status"], &line["flags"]), (&200.into(), &flags.into()), "{line}");
    }
    assert_eq!(told[1]["grpc_status"], 5);
}

#[tokio::test]
async fn what_went_wrong_is_said_with_a_flag_and_a_code() {
    let mut world = World::new().await;
    world.version("v1", "127.7.61.1").await;
    world.writer.apply([Update::Service(made::service("empty", "10.96.1.2", false))]);
    let mut impatient = made::rule(2, "/never", &[("v1", 1)]);
    impatient.timeouts.request = Some(Duration::from_millis(50));
    let rules = [made::rule(0, "/v1", &[("v1", 1)]), made::rule(1, "/empty", &[("empty", 1)]), impatient];
    world.follow(rules.map(|rule| Change::Rule(Box::new(rule))));
    let mut http = world.http("client").await;
    for (path, status) in [("/nowhere", 404), ("/empty", 503), ("/never", 504)] {
        assert_eq!(http.get(path).await.status, status, "{path}");
    }
    let refused = http.ask("GET /v1 HTTP/1.1\r\nhost: web\r\nhost: shop").await;
    assert_eq!(refused.status, 400);
    let told = world.told(4).await;
    let said: Vec<_> = told
        .iter()
        .map(|line| {
            (
                line["status"].as_u64().unwrap(),
                line["flags"].as_str().unwrap(),
                line["code"].as_str().unwrap(),
            )
        })
        .collect();
    let expected = [
        (404, "NR", "no-rule"),
        (503, "UH", "no-route"),
        (504, "UT", "upstream-timeout"),
        (400, "DPE", "http1-host"),
    ];
    assert_eq!(said, expected);
    assert!(told[3].get("path").is_none(), "what is no request has no path: {}", told[3]);
    for (status, flags, _) in expected {
        let labels = [format!("response_code=\"{status}\""), format!("response_flags=\"{flags}\"")];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        assert_eq!(world.value("istio_requests_total", &labels), 1.0);
    }
}

/// The same for every request.
fn always(mut fault: Change) -> Change {
    if let Change::Policy(_, policy) = &mut fault {
        policy.fault.as_mut().unwrap().abort.as_mut().unwrap().share = Fraction::ALL;
    }
    fault
}

#[tokio::test]
async fn faults_are_told_from_failures() {
    let mut world = World::new().await;
    world.version("v1", "127.7.62.1").await;
    world.rule(made::rule(0, "/", &[("v1", 1)]));
    let mut http = world.http("client").await;
    let wait = Some(Duration::from_millis(1));
    world.follow([always(fault(Vec::new(), wait, AbortAnswer::Http(418)))]);
    assert_eq!(http.get("/").await.status, 418);
    world.follow([always(fault(Vec::new(), None, AbortAnswer::Http(503)))]);
    assert_eq!(http.get("/").await.status, 503);
    let told = world.told(2).await;
    assert_eq!((&told[0]["flags"], &told[0]["code"]), (&"DI,FI".into(), &"fault-injected".into()));
    assert_eq!(told[1]["flags"], "FI");
    for (class, delays) in [("4xx", 1.0), ("5xx", 0.0)] {
        assert_eq!(world.value("airglow_route_delays_total", &[class]), delays, "{class}");
        assert_eq!(world.value("airglow_route_aborts_total", &[class]), 1.0, "{class}");
    }
}

#[tokio::test]
async fn nothing_that_a_client_writes_makes_a_line_of_its_own() {
    let mut world = World::new().await;
    world.version("v1", "127.7.63.1").await;
    world.rule(made::rule(0, "/", &[("v1", 1)]));
    let mut http = world.http("client").await;
    let long = "x".repeat(4000);
    let path = format!("/a\"b,{long}?{long}");
    assert_eq!(http.get(&path).await.status, 200);
    let told = world.told(1).await;
    let path = told[0]["path"].as_str().unwrap();
    assert!(path.starts_with("/a\"b,xx") && path.contains("…?x") && path.len() < 1100, "{path}");
}

/// A collector that hands on what it is told.
struct Collector(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let _ = self.0.send(request.into_inner()).await;
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn collector() -> (spans::Settings, mpsc::Receiver<ExportTraceServiceRequest>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let (tell, told) = mpsc::channel(64);
    let service = TraceServiceServer::new(Collector(tell));
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    (spans::Settings { endpoint, roots: None, sampling: "0".parse().unwrap() }, told)
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

#[tokio::test]
async fn a_sampled_request_becomes_a_span_between_its_client_and_its_server() {
    let (settings, mut told) = collector().await;
    let mut world = World::traced(Some(settings)).await;
    world.version("v1", "127.7.64.1").await;
    world.writer.apply([Update::Workload(made::pod("client", "client", "127.0.0.1", "none"))]);
    world.rule(made::rule(0, "/", &[("v1", 1)]));
    let mut http = world.http("client").await;
    let sampled = format!("traceparent: 00-{TRACE}-{PARENT}-01\r\ntracestate: a=b\r\nx-request-id: mine");
    let unsampled = format!("traceparent: 00-{TRACE}-{PARENT}-00");
    let mut seen = Vec::new();
    // The sampled one last: what it is told with is told after the others.
    for (path, fields) in [("/none", "x-a: b"), ("/not", &unsampled), ("/yes?q", &sampled)] {
        let reply = http.ask(&format!("GET {path} HTTP/1.1\r\nhost: web.shop\r\n{fields}")).await;
        assert_eq!(reply.status, 200);
        seen.push(
            ["traceparent", "tracestate", "x-request-id"].map(|name| reply.seen(name).map(str::to_owned)),
        );
    }
    let [parent, state, id] = &seen[2];
    assert_eq!((state.as_deref(), id.as_deref()), (Some("a=b"), Some("mine")));
    let parent = parent.as_deref().unwrap();
    assert!(parent.starts_with(&format!("00-{TRACE}-")) && parent.ends_with("-01"), "{parent}");
    assert!(!parent.contains(PARENT), "our span stands between: {parent}");
    let begun = seen[0][0].as_deref().unwrap();
    assert!(begun.ends_with("-00") && !begun.contains(TRACE), "a trace of its own, not sampled: {begun}");
    assert_eq!(seen[0][2].as_deref().map(str::len), Some(36), "an id of ours: {seen:?}");

    let batch = soon("a batch", told.recv()).await.unwrap();
    let [resource] = &batch.resource_spans[..] else { panic!("{batch:?}") };
    let all: Vec<_> = resource.scope_spans.iter().flat_map(|scope| &scope.spans).collect();
    let [span] = &all[..] else { panic!("only one was to be sampled: {all:?}") };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.to_owned(), PARENT.to_owned()));
    assert_eq!(
        Some(hex(&span.span_id).as_str()),
        parent.split('-').nth(2),
        "the server's parent is our span"
    );
    assert_eq!((span.name.as_str(), span.trace_state.as_str()), ("HTTPRoute/shop/split/0", "a=b"));
    assert!(span.start_time_unix_nano < span.end_time_unix_nano && span.status.is_none());
    let attributes = |list: &[KeyValue]| {
        let value = |pair: &KeyValue| format!("{:?}", pair.value.as_ref().unwrap().value.as_ref().unwrap());
        list.iter().map(|pair| (pair.key.clone(), value(pair))).collect::<BTreeMap<_, _>>()
    };
    let (of_span, of_us) =
        (attributes(&span.attributes), attributes(&resource.resource.as_ref().unwrap().attributes));
    for (name, value) in [
        ("http.url", "http://web.shop/yes?q"),
        ("http.status_code", "200"),
        ("guid:x-request-id", "mine"),
        ("istio.downstream.workload", "client"),
        ("istio.upstream.namespace", "shop"),
        ("upstream_cluster", "v1.shop.svc.cluster.local"),
    ] {
        assert!(of_span[name].contains(&format!("\"{value}\"")), "{name}: {of_span:?}");
    }
    assert!(of_us["service.name"].contains("waypoint.shop"), "{of_us:?}");
    let line = world.told(3).await.pop().unwrap();
    assert_eq!((&line["trace_id"], &line["request_id"]), (&TRACE.into(), &"mine".into()));
}

#[tokio::test]
async fn spans_that_nobody_takes_are_lost_and_counted_and_requests_go_on() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", gone.local_addr().unwrap()).parse().unwrap();
    drop(gone);
    let settings = spans::Settings { endpoint, roots: None, sampling: "100".parse().unwrap() };
    let mut world = World::traced(Some(settings)).await;
    world.version("v1", "127.7.65.1").await;
    world.rule(made::rule(0, "/", &[("v1", 1)]));
    let mut http = world.http("client").await;
    for _ in 0..3 {
        assert_eq!(http.get("/").await.status, 200);
    }
    world.counts("airglow_spans_lost_total 3").await;
}

#[tokio::test]
async fn a_collector_is_told_in_tls_if_the_roots_say_that_it_is_the_one() {
    let state = tempfile::tempdir().unwrap();
    let config = AuthorityConfig::new("collectors.example");
    let authority = Authority::open_or_create(state.path(), config, Arc::new(SystemClock)).unwrap();
    let (roots, others) = (state.path().join("roots.pem"), state.path().join("others.pem"));
    std::fs::write(&roots, authority.roots_pem()).unwrap();
    let names = vec![ServingName::Ip("127.0.0.1".parse().unwrap())];
    let tls = ServerTls::new(Arc::new(authority), names, Arc::new(SystemClock)).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint: spans::Endpoint = format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
    let (tell, mut told) = mpsc::channel(64);
    let service = TraceServiceServer::new(Collector(tell));
    let incoming = identity::control::incoming(listener, tls);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));

    // The file is read for each connection, and holds what is somebody else's to begin with.
    let stranger = tempfile::tempdir().unwrap();
    let config = AuthorityConfig::new("others.example");
    let stranger = Authority::open_or_create(stranger.path(), config, Arc::new(SystemClock)).unwrap();
    std::fs::write(&others, stranger.roots_pem()).unwrap();
    let settings =
        spans::Settings { endpoint, roots: Some(others.clone()), sampling: "100".parse().unwrap() };
    let mut world = World::traced(Some(settings)).await;
    world.version("v1", "127.7.69.1").await;
    world.rule(made::rule(0, "/", &[("v1", 1)]));
    let mut http = world.http("client").await;
    assert_eq!(http.get("/untold").await.status, 200);
    world.counts("airglow_spans_lost_total 1").await;
    std::fs::rename(&roots, &others).unwrap();
    assert_eq!(http.get("/told").await.status, 200);
    let batch = soon("a batch", told.recv()).await.unwrap();
    assert!(format!("{batch:?}").contains("http://web.shop/told"), "{batch:?}");
    world.counts("airglow_spans_sent_total 1").await;
}

#[tokio::test]
async fn whoever_looks_on_learns_every_decision_about_a_request() {
    let mut world = World::new().await;
    world.writer.apply([Update::Service(made::service("v1", "10.96.1.1", false))]);
    let endpoints = [("one", "127.7.66.2", 1), ("two", "127.7.66.3", 1)];
    for (name, address, failures) in endpoints {
        world.writer.apply([Update::Workload(made::pod(name, "server", address, "v1"))]);
        world.server(name, address, failures).await;
    }
    let mut rule = made::rule(0, "/", &[("v1", 1)]);
    rule.filters = vec![Filter::RequestHeaders(edits(("x-rule", "secret-value"), "x-gone"))];
    rule.retry = Some(Retry {
        attempts: 3,
        backoff: Some(Duration::from_millis(1)),
        statuses: [503].into(),
        grpc_codes: [].into(),
    });
    world.follow([rule, made::rule(1, "/before", &[])].map(|rule| Change::Rule(Box::new(rule))));
    let mut http = world.http("client").await;
    assert_eq!(http.get("/before").await.status, 500);
    let next = world.board.read(None)["next"].as_u64();
    assert_eq!(http.get("/after?q").await.status, 200);
    let requests = soon("the request", async {
        loop {
            let mut read = world.board.read(next);
            if let Value::Array(requests) = read["requests"].take()
                && !requests.is_empty()
            {
                return requests;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let [request] = &requests[..] else { panic!("nobody looked on when the first one came: {requests:?}") };
    assert_eq!(request["url"], "http://web.shop/after?q");
    assert_eq!((&request["status"], &request["flags"]), (&200.into(), &"-".into()));
    assert_eq!(request["source"]["identity"], "spiffe://cluster.local/ns/shop/sa/client");
    let steps: Vec<&str> =
        request["steps"].as_array().unwrap().iter().map(|step| step["what"].as_str().unwrap()).collect();
    assert_eq!(steps[0], "rule HTTPRoute/shop/split/0");
    let text = steps.join("\n");
    for part in [
        "backend shop/v1.shop.svc.cluster.local, port 80",
        "request: drops x-rule x-gone, writes x-rule",
        "at 127.7.66.",
        "status 503, to be tried again\nstatus 503 is to be tried again: again after ",
        "status 200",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("secret-value"), "{text}");
}
