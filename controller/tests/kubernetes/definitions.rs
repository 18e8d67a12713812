//! The printed definitions on a real API server: what users write is taken, and what the mesh would misread is refused with a
//! sentence that says how to mend it.

use controller::definitions;
use kube::Client;
use serde_json::{Value, json};

use crate::objects::apply;
use crate::server::{ApiServer, PATIENCE};

/// Asks whether an object would be taken, as kubectl does: unknown fields are refused too.
async fn ask(client: &Client, object: &Value) -> Result<(), String> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let plural = match text("/kind") {
        "AuthorizationPolicy" => "authorizationpolicies",
        "PeerAuthentication" => "peerauthentications",
        "ServiceEntry" => "serviceentries",
        "TrafficPolicy" => "trafficpolicies",
        _ => "workloadentries",
    };
    let path = format!(
        "/apis/{}/namespaces/default/{plural}?dryRun=All&fieldValidation=Strict",
        text("/apiVersion")
    );
    let body = serde_json::to_vec(object).expect("JSON");
    let request = http::Request::post(path).header("content-type", "application/json").body(body);
    match client.request::<Value>(request.expect("a request")).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => Err(status.message.clone()),
        Err(error) => panic!("{error}"),
    }
}

fn object(kind: &str, spec: Value) -> Value {
    let version = match kind {
        "AuthorizationPolicy" | "PeerAuthentication" => "security.istio.io/v1",
        "TrafficPolicy" => "airglow.dev/v1alpha1",
        _ => "networking.istio.io/v1",
    };
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": "it"}, "spec": spec})
}

fn good() -> Vec<Value> {
    let policy = |spec| object("AuthorizationPolicy", spec);
    let peer = |spec| object("PeerAuthentication", spec);
    let service = |spec| object("ServiceEntry", spec);
    let mut older = service(json!({"hosts": ["old.example.com"], "ports": [{"number": 80, "name": "http"}]}));
    older["apiVersion"] = "networking.istio.io/v1alpha3".into();
    vec![
        policy(json!({})),
        policy(json!({"action": "DENY", "rules": [{}]})),
        policy(json!({
            "selector": {"matchLabels": {"app": "cart"}}, "action": "ALLOW",
            "rules": [{
                "from": [
                    {"source": {"principals": ["cluster.local/ns/shop/sa/web", "*"], "notNamespaces": ["dev-*"]}},
                    {"source": {"ipBlocks": ["10.0.0.0/8", "192.0.2.7", "fd00::/64"], "serviceAccounts": ["cart", "shop/web"]}},
                ],
                "to": [{"operation": {"ports": ["80", "65535"], "methods": ["GET"], "paths": ["/a/*"]}}],
                "when": [
                    {"key": "source.ip", "values": ["10.0.0.0/8"]},
                    {"key": "request.headers[x-user]", "notValues": ["eve"]},
                ],
            }],
        })),
        policy(json!({"action": "CUSTOM", "provider": {"name": "judge"}, "rules": [{}]})),
        policy(
            json!({"targetRefs": [{"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "waypoint"}]}),
        ),
        peer(json!({})),
        peer(json!({"mtls": {"mode": "STRICT"}})),
        peer(json!({"selector": {"matchLabels": {"app": "cart"}}, "mtls": {"mode": "STRICT"},
            "portLevelMtls": {"8080": {"mode": "PERMISSIVE"}}})),
        service(
            json!({"hosts": ["*.example.com"], "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}],
            "location": "MESH_EXTERNAL", "resolution": "NONE", "addresses": ["192.0.2.0/24"], "exportTo": ["."]}),
        ),
        service(
            json!({"hosts": ["db.example.com"], "ports": [{"number": 5432, "name": "sql", "targetPort": 5433}],
            "resolution": "STATIC", "endpoints": [{"address": "192.0.2.7", "ports": {"sql": 6000}, "weight": 2,
            "locality": "r/z", "labels": {"app": "db"}, "serviceAccount": "db"}]}),
        ),
        service(json!({"hosts": ["db.example.com"], "ports": [{"number": 5432, "name": "sql"}],
            "resolution": "STATIC", "workloadSelector": {"labels": {"app": "db"}}})),
        service(
            json!({"hosts": ["api.example.com"], "ports": [{"number": 443, "name": "tls"}], "resolution": "DNS"}),
        ),
        object(
            "WorkloadEntry",
            json!({"address": "192.0.2.7", "labels": {"app": "db"}, "serviceAccount": "db"}),
        ),
        older,
    ]
}

fn good_traffic() -> Vec<Value> {
    vec![
        traffic(json!({"balancing": {"algorithm": "RoundRobin"}})),
        traffic(
            json!({"balancing": {"algorithm": "Maglev", "hash": {"cookie": {"name": "c", "ttl": "1h"}}}}),
        ),
        traffic(json!({
            "fault": {
                "until": "2026-12-01T18:00:00+01:00",
                "matches": [
                    {"headers": [{"name": "x-user", "type": "RegularExpression", "value": "j.*"}]},
                    {"clients": [{"namespace": "shop", "serviceAccount": "web"}]},
                ],
                "delay": {"duration": "1s500ms", "percent": 50},
                "abort": {"grpcStatus": "UNAVAILABLE", "fraction": {"numerator": 1, "denominator": 1000}},
            },
        })),
        targeting(
            json!({"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "r", "sectionName": "canary"}),
        ),
        targeting(json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "waypoint"})),
    ]
}

/// A TrafficPolicy of a Service.
fn traffic(mut spec: Value) -> Value {
    spec["targetRefs"] = json!([{"kind": "Service", "name": "web"}]);
    object("TrafficPolicy", spec)
}

/// A TrafficPolicy of that target.
fn targeting(target: Value) -> Value {
    object(
        "TrafficPolicy",
        json!({"targetRefs": [target], "fault": {"until": "2026-12-01T18:00:00Z", "abort": {"reset": true}}}),
    )
}

fn bad_traffic() -> Vec<(Value, &'static str)> {
    let fault = |mut fault: Value| {
        fault["until"] = "2026-12-01T18:00:00Z".into();
        traffic(json!({"fault": fault}))
    };
    let abort = |abort: Value| fault(json!({"abort": abort}));
    vec![
        (traffic(json!({})), "it sets nothing"),
        (object("TrafficPolicy", json!({"balancing": {}})), "name in targetRefs"),
        (targeting(json!({"kind": "HTTPRoute", "name": "r"})), "a target is a Service"),
        (
            targeting(json!({"kind": "Service", "name": "web", "sectionName": "http"})),
            "the name of a route's rule",
        ),
        (targeting(json!({"kind": "Service", "name": "web", "namespace": "other"})), "unknown field"),
        (traffic(json!({"fault": {"abort": {"reset": true}}})), "until"),
        (
            traffic(json!({"fault": {"until": "tomorrow", "abort": {"reset": true}}})),
            "write when the fault ends",
        ),
        (fault(json!({})), "add delay or abort"),
        (
            fault(json!({"matches": [{}], "abort": {"reset": true}})),
            "leave matches out to mean every request",
        ),
        (fault(json!({"matches": [], "abort": {"reset": true}})), "leave the field out"),
        (fault(json!({"matches": [{"cookies": [{}]}], "abort": {"reset": true}})), "unknown field"),
        (fault(json!({"matches": [{"clients": [{}]}], "abort": {"reset": true}})), "a client has"),
        (fault(json!({"delay": {"duration": "long"}})), "1h30m"),
        (fault(json!({"delay": {"duration": "1s", "percent": 101}})), "100"),
        (
            fault(json!({"delay": {"duration": "1s", "percent": 1, "fraction": {"numerator": 1}}})),
            "keep one of them",
        ),
        (fault(json!({"delay": {"duration": "1s", "fraction": {"numerator": 101}}})), "at most the whole"),
        (abort(json!({})), "in one way"),
        (abort(json!({"httpStatus": 503, "reset": true})), "in one way"),
        (abort(json!({"reset": false})), "in one way"),
        (abort(json!({"httpStatus": 99})), "200"),
        (abort(json!({"grpcStatus": "OK"})), "as UNAVAILABLE"),
        (traffic(json!({"balancing": {"algorithm": "Best"}})), "Unsupported value: \"Best\""),
        (traffic(json!({"balancing": {"algorithm": "Maglev"}})), "need hash"),
        (traffic(json!({"balancing": {"hash": {"source": true}}})), "have no use for it"),
        (
            traffic(json!({"balancing": {"algorithm": "RingHash", "hash": {"source": true, "header": "a"}}})),
            "one thing is hashed",
        ),
    ]
}

/// Each with a part of the sentence that is said.
fn bad() -> Vec<(Value, &'static str)> {
    let from = |source| json!({"rules": [{"from": [{"source": source}]}]});
    let to = |operation| json!({"rules": [{"to": [{"operation": operation}]}]});
    let when = |condition| json!({"rules": [{"when": [condition]}]});
    let policies = [
        (from(json!({"moonPhases": ["full"]})), "unknown field \"spec.rules[0].from[0].source.moonPhases\""),
        (from(json!({})), "leave from out to mean everyone"),
        (json!({"rules": [{"from": [{}]}]}), "say in source who"),
        (json!({"rules": [{"from": []}]}), "from is empty"),
        (json!({"rules": [{"to": []}]}), "to is empty"),
        (json!({"rules": [{"to": [{}]}]}), "say in operation what"),
        (from(json!({"principals": []})), "an empty list would be read as no condition"),
        (from(json!({"principals": ["spiffe://cluster.local/ns/shop/sa/web"]})), "written without spiffe://"),
        (from(json!({"serviceAccounts": ["shop/*"]})), "named in full"),
        (from(json!({"ipBlocks": ["10.0.0.0/33"]})), "an address or a CIDR block"),
        (from(json!({"notIpBlocks": ["example.com"]})), "an address or a CIDR block"),
        (to(json!({})), "leave to out to mean every operation"),
        (to(json!({"ports": ["http"]})), "a port, from 1 to 65535"),
        (to(json!({"notPorts": ["65536"]})), "a port, from 1 to 65535"),
        (when(json!({"key": "source.ip"})), "without values or notValues"),
        (when(json!({"key": "source.moon", "values": ["full"]})), "no such attribute"),
        (json!({"action": "DENY"}), "`rules: [{}]`"),
        (json!({"action": "DNY", "rules": [{}]}), "Unsupported value: \"DNY\""),
        (json!({"action": "CUSTOM", "rules": [{}]}), "CUSTOM and provider.name belong together"),
        (json!({"provider": {"name": "judge"}}), "no other action has a provider"),
        (json!({"selector": {"matchLabels": {"app": "*"}}}), "compared letter by letter"),
        (json!({"selector": {}, "targetRef": {"kind": "Gateway", "name": "w"}}), "keep one of them"),
        (json!({"targetRef": {"kind": "Gateway", "name": "w", "namespace": "other"}}), "leave namespace out"),
        (json!({"targetRef": {"kind": "Gateway"}}), "name the kind and the name"),
    ];
    let peers = [
        (json!({"portLevelMtls": {"80": {"mode": "STRICT"}}}), "counts only beside a selector"),
        (
            json!({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"http": {"mode": "STRICT"}}}),
            "a port, from 1 to 65535",
        ),
        (json!({"mtls": {"mode": "SOON"}}), "Unsupported value: \"SOON\""),
    ];
    let port = json!([{"number": 80, "name": "http"}]);
    let services = [
        (json!({"ports": port}), "at least one host"),
        (json!({"hosts": ["*"], "ports": port}), "would name every host"),
        (json!({"hosts": ["a.*.com"], "ports": port}), "only the first label may be *"),
        (json!({"hosts": ["a.com"], "endpoints": [{"address": "192.0.2.7"}]}), "use STATIC"),
        (json!({"hosts": ["a.com"], "resolution": "STATIC"}), "needs endpoints"),
        (json!({"hosts": ["a.com"], "addresses": ["here"]}), "an address or a CIDR block"),
        (
            json!({"hosts": ["a.com"], "ports": [{"number": 1, "name": "a"}, {"number": 1, "name": "b"}]}),
            "one port only",
        ),
        (json!({"hosts": ["a.com"], "ports": [{"number": 70000, "name": "a"}]}), "65535"),
        (json!({"hosts": ["a.com"], "exportTo": ["Shop!"]}), "the name of a namespace"),
        (
            json!({"hosts": ["a.com"], "resolution": "STATIC", "endpoints": [{"address": "unix:///run/a"}]}),
            "Unix socket",
        ),
        (
            json!({"hosts": ["a.com"], "resolution": "STATIC", "endpoints": [{"address": "192.0.2.7"}],
                "workloadSelector": {"labels": {"a": "b"}}}),
            "keep one of them",
        ),
    ];
    let workloads =
        [(json!({"labels": {"a": "b"}}), "has an address"), (json!({"address": "unix:///a"}), "Unix socket")];
    let all = |kind, list: Vec<(Value, &'static str)>| {
        list.into_iter().map(move |(spec, part)| (object(kind, spec), part)).collect::<Vec<_>>()
    };
    [
        all("AuthorizationPolicy", policies.into()),
        all("PeerAuthentication", peers.into()),
        all("ServiceEntry", services.into()),
        all("WorkloadEntry", workloads.into()),
    ]
    .concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_be_misread_is_refused_with_a_sentence() {
    let api = ApiServer::start().await;
    let client = api.client().await;
    for definition in definitions::all() {
        apply(&client, definition).await;
    }
    // Just defined, and served a moment later.
    let served = async {
        for object in good().into_iter().chain(good_traffic()) {
            while let Err(why) = ask(&client, &object).await {
                assert!(why.contains("could not find the requested resource"), "{object}: {why}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    };
    tokio::time::timeout(PATIENCE, served).await.expect("served");
    let mut missed = Vec::new();
    for (object, part) in bad().into_iter().chain(bad_traffic()) {
        match ask(&client, &object).await {
            Err(sentence) if sentence.contains(part) => {}
            other => missed.push(format!("{}: {part:?}: {other:?}", object["spec"])),
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}
