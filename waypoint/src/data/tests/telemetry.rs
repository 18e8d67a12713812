//! What is said of requests: in metrics and in the access log.

use model::l7::{AbortAnswer, Fraction};
use serde_json::Value;

use super::routes::fault;
use super::*;
use crate::rules::Change;

impl World {
    /// The lines about requests so far, of which there are `count`.
    async fn told(&self, count: usize) -> Vec<Value> {
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
    world.version("v1", "127.7.40.1").await;
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
async fn what_went_wrong_is_said_with_a_flag_and_a_code() {
    let mut world = World::new().await;
    world.version("v1", "127.7.41.1").await;
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
    world.version("v1", "127.7.42.1").await;
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
    world.version("v1", "127.7.43.1").await;
    world.rule(made::rule(0, "/", &[("v1", 1)]));
    let mut http = world.http("client").await;
    let long = "x".repeat(4000);
    let path = format!("/a\"b,{long}?{long}");
    assert_eq!(http.get(&path).await.status, 200);
    let told = world.told(1).await;
    let path = told[0]["path"].as_str().unwrap();
    assert!(path.starts_with("/a\"b,xx") && path.contains("…?x") && path.len() < 1100, "{path}");
}
