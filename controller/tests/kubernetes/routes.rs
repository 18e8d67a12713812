//! Routes and traffic policies on a real API server: read in the versions that it has, and told what became of them, without
//! touching what others have said.

use controller::definitions;
use kube::Client;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::nodes::Site;
use crate::objects::apply;
use crate::server::{ApiServer, PATIENCE, http};
use crate::waypoints::{self, until};

const US: &str = "airglow.dev/controller";

/// The Gateway API's definitions as far as they matter to a controller; that of TCPRoute is older than we are.
pub(crate) fn gateway_api() -> Vec<Value> {
    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let definition = |kind: &str, plural: &str, version: &str| {
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {
                "name": format!("{plural}.gateway.networking.k8s.io"),
                // The group is guarded: whoever defines its kinds says by whose leave.
                "annotations": {"api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/gateway-api/pull/4538"},
            },
            "spec": {
                "group": "gateway.networking.k8s.io", "scope": "Namespaced",
                "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
                "versions": [{"name": version, "served": true, "storage": true, "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": anything, "status": anything}}}}],
            },
        })
    };
    vec![
        definition("HTTPRoute", "httproutes", "v1"),
        definition("GRPCRoute", "grpcroutes", "v1"),
        definition("TLSRoute", "tlsroutes", "v1"),
        definition("TCPRoute", "tcproutes", "v1alpha2"),
        definition("BackendTLSPolicy", "backendtlspolicies", "v1"),
        definition("ReferenceGrant", "referencegrants", "v1"),
    ]
}

fn route(kind: &str, version: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("gateway.networking.k8s.io/{version}"), "kind": kind,
        "metadata": {"namespace": "shop", "name": name}, "spec": spec})
}

fn service(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": name},
        "spec": {"ports": [{"port": 80}]}})
}

fn parent() -> Value {
    json!({"group": "", "kind": "Service", "name": "web"})
}

/// Waits until `path` is an object with an entry of ours in `list` in which `holds`, and returns the object.
async fn told(client: &Client, path: &str, list: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let waited = timeout(PATIENCE, async {
        loop {
            last = client.request(http(path)).await.expect("an object");
            if ours(&last, list).is_some_and(&holds) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    let waited = waited.await;
    assert!(waited.is_ok(), "{path}: {}", last["status"]);
    last
}

fn ours<'a>(object: &'a Value, list: &str) -> Option<&'a Value> {
    object["status"][list].as_array()?.iter().find(|entry| entry["controllerName"] == US)
}

fn condition<'a>(entry: &'a Value, kind: &str) -> &'a Value {
    let found = entry["conditions"].as_array().into_iter().flatten().find(|it| it["type"] == kind);
    found.unwrap_or(&Value::Null)
}

const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes";

/// Makes a Service and a route to it, and waits until the route is judged.
pub(crate) async fn judged(client: &Client) {
    for definition in gateway_api() {
        apply(client, definition).await;
    }
    apply(client, service("web")).await;
    let backend = json!([{"name": "web", "port": 80}]);
    let spec = json!({"parentRefs": [parent()], "rules": [{"backendRefs": backend}]});
    apply(client, route("HTTPRoute", "v1", "judged", spec)).await;
    let accepted = |entry: &Value| condition(entry, "Accepted")["status"] == "True";
    told(client, &format!("{ROUTES}/judged"), "parents", accepted).await;
}

/// A cluster with definitions, namespaces and Service `shop/web`.
async fn with_web() -> (ApiServer, Client) {
    let api = ApiServer::start().await;
    let client = api.client().await;
    for object in definitions::all().into_iter().chain(gateway_api()) {
        apply(&client, object).await;
    }
    for name in ["shop", "istio-system"] {
        apply(&client, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})).await;
    }
    apply(&client, service("web")).await;
    (api, client)
}

/// Makes a policy that names a CA, and waits until it is judged without and with it.
async fn backend_tls_is_judged(client: &Client) {
    let (target, ca) = (parent(), json!({"group": "", "kind": "ConfigMap", "name": "web-ca"}));
    let policy = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "BackendTLSPolicy",
        "metadata": {"namespace": "shop", "name": "tls"}, "spec": {"targetRefs": [target],
        "validation": {"hostname": "web.example.com", "caCertificateRefs": [ca]}}});
    apply(client, policy).await;
    let path = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/backendtlspolicies/tls";
    let reasons = |accepted: &'static str, resolved: &'static str| {
        move |entry: &Value| {
            condition(entry, "Accepted")["reason"] == accepted
                && condition(entry, "ResolvedRefs")["reason"] == resolved
        }
    };
    let without = reasons("NoValidCACertificate", "InvalidCACertificateRef");
    told(client, path, "ancestors", without).await;
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&KeyPair::generate().expect("a key")).expect("a CA").pem();
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"namespace": "shop", "name": "web-ca"}, "data": {"ca.crt": pem}});
    apply(client, map).await;
    let judged = told(client, path, "ancestors", reasons("Accepted", "ResolvedRefs")).await;
    assert_eq!(ours(&judged, "ancestors").expect("ours")["ancestorRef"], parent());
}

/// Makes a route of another kind in an older version, and a policy of ours, and waits until both are judged.
async fn others_are_judged(client: &Client) {
    let tcp = route("TCPRoute", "v1alpha2", "tcp", json!({"parentRefs": [parent()], "rules": [{}]}));
    apply(client, tcp).await;
    let path = "/apis/gateway.networking.k8s.io/v1alpha2/namespaces/shop/tcproutes/tcp";
    let conflicted = |entry: &Value| condition(entry, "Accepted")["reason"] == "RouteReasonConflicted";
    told(client, path, "parents", conflicted).await;
    let policy = json!({"apiVersion": "airglow.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"namespace": "shop", "name": "chaos"}, "spec": {"targetRefs": [{"kind": "Service", "name": "web"}],
        "fault": {"until": "2026-12-01T18:00:00Z", "abort": {"httpStatus": 503, "percent": 10}}}});
    apply(client, policy).await;
    let path = "/apis/airglow.dev/v1alpha1/namespaces/shop/trafficpolicies/chaos";
    told(client, path, "ancestors", |entry| condition(entry, "Accepted")["status"] == "True").await;
}

/// Makes a route that can't be read, and waits until it says so.
async fn unreadable(client: &Client) -> Value {
    let rules = json!([{"timeouts": 7, "backendRefs": [{"name": "web", "port": 80}]}]);
    let spec = json!({"parentRefs": [parent()], "rules": rules});
    apply(client, route("HTTPRoute", "v1", "unreadable", spec)).await;
    let refused = |entry: &Value| {
        let accepted = condition(entry, "Accepted");
        accepted["status"] == "False" && accepted["message"].to_string().contains("answered with an error")
    };
    told(client, &format!("{ROUTES}/unreadable"), "parents", refused).await
}

/// Makes a Gateway where nothing is made of it, and waits until it says so.
async fn unmade(client: &Client) {
    apply(client, waypoints::definition("Gateway", "gateways", "Namespaced")).await;
    apply(client, waypoints::gateway("wp", "HBONE")).await;
    let path = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/gateways/wp";
    let said = |wp: &Value| waypoints::is(wp, "Programmed", "False", "NoResources");
    let message = until(client, path, said).await["status"]["conditions"].to_string();
    assert!(message.contains("waypoint.enabled"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_and_traffic_policies_say_what_became_of_them() {
    let (api, client) = with_web().await;
    let foreign = json!({"parentRef": {"name": "gateway"}, "controllerName": "example.com/other",
        "conditions": [{"type": "Accepted", "status": "False", "reason": "Pending", "message": "soon",
            "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}]});
    let parents = json!([{"name": "gateway"}, parent()]);
    let rules =
        json!([{"backendRefs": [{"name": "web", "port": 80, "weight": 9}, {"name": "v2", "port": 80}]}]);
    let mut it = route("HTTPRoute", "v1", "it", json!({"parentRefs": parents, "rules": rules}));
    it["status"] = json!({"parents": [foreign]});
    apply(&client, it).await;
    let site = Site::start(&api).await;

    let path = format!("{ROUTES}/it");
    let reason =
        |reason: &'static str| move |entry: &Value| condition(entry, "ResolvedRefs")["reason"] == reason;
    let unresolved = told(&client, &path, "parents", reason("BackendNotFound")).await;
    assert_eq!(unresolved["status"]["parents"][0], foreign, "others' entries stay");
    let entry = ours(&unresolved, "parents").expect("ours");
    assert_eq!(entry["parentRef"], parent());
    let accepted = condition(entry, "Accepted").clone();
    assert_eq!((&accepted["status"], &accepted["observedGeneration"]), (&json!("True"), &json!(1)));
    assert!(
        condition(entry, "ResolvedRefs")["message"]
            .as_str()
            .is_some_and(|it| it.contains("no Service shop/v2"))
    );

    others_are_judged(&client).await;
    backend_tls_is_judged(&client).await;
    unreadable(&client).await;
    unmade(&client).await;
    let now: Value = client.request(http(&path)).await.expect("an object");
    let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
    assert_eq!(version(&now), version(&unresolved), "written once for a change");

    apply(&client, service("v2")).await;
    let resolved = told(&client, &path, "parents", reason("ResolvedRefs")).await;
    let entry = ours(&resolved, "parents").expect("ours");
    assert_eq!(*condition(entry, "Accepted"), accepted, "since when it has been so is no news");

    // Attached to us no more: our entry goes, and the others' stay.
    apply(
        &client,
        route("HTTPRoute", "v1", "it", json!({"parentRefs": [{"name": "gateway"}], "rules": rules})),
    )
    .await;
    let gone = async {
        loop {
            let object: Value = client.request(http(&path)).await.expect("an object");
            if ours(&object, "parents").is_none() {
                return object;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let object = timeout(PATIENCE, gone).await.expect("our entry is taken out");
    assert_eq!(object["status"]["parents"], json!([foreign]));
    drop(site);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_is_not_said_again_by_another_replica() {
    let (api, client) = with_web().await;
    let first = Site::start(&api).await;
    let second = Site::start(&api).await;
    judged(&client).await;
    unreadable(&client).await;
    others_are_judged(&client).await;
    let said = async || {
        let listed: Value = client.request(http(ROUTES)).await.expect("a list");
        let policies = "/apis/airglow.dev/v1alpha1/namespaces/shop/trafficpolicies";
        let policies: Value = client.request(http(policies)).await.expect("a list");
        let items =
            [&listed, &policies].map(|list| list["items"].as_array().expect("a list").clone()).concat();
        items.iter().map(|item| item["metadata"]["resourceVersion"].to_string()).collect::<Vec<_>>()
    };
    let before = said().await;
    assert_eq!(before.len(), 3);

    // The other one leads now, and one that has started anew has read it all again: the route that can't be read for one.
    drop(first);
    let third = Site::start(&api).await;
    apply(&client, route("TLSRoute", "v1", "late", json!({"parentRefs": [parent()], "rules": [{}]}))).await;
    let path = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/tlsroutes/late";
    told(&client, path, "parents", |entry| condition(entry, "Accepted")["status"] == "False").await;
    drop(second);
    apply(&client, route("TLSRoute", "v1", "later", json!({"parentRefs": [parent()], "rules": [{}]}))).await;
    let path = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/tlsroutes/later";
    told(&client, path, "parents", |entry| condition(entry, "Accepted")["status"] == "False").await;
    assert_eq!(said().await, before, "nothing of it was news");
    drop(third);
}
