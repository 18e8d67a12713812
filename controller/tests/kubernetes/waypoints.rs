//! What Gateways become on an API server, and what statuses say of them and of what they guard.

use std::time::Duration;

use kube::Client;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::nodes::Site;
use crate::objects::{apply, pod, shop};
use crate::server::{ApiServer, PATIENCE, http};

const TEMPLATE: &str = "
metadata: {annotations: {prometheus.io/scrape: 'true'}}
spec:
  automountServiceAccountToken: false
  containers: [{name: waypoint, image: 'example.com/waypoint:1', ports: [{containerPort: 15008}]}]
";

/// What the Gateway API has, as far as it matters here.
pub(crate) fn definition(kind: &str, plural: &str, scope: &str) -> Value {
    let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.gateway.networking.k8s.io"), "annotations": {
            "api-approved.kubernetes.io": "unapproved, for a test",
            "gateway.networking.k8s.io/bundle-version": "v1.6.1"}},
        "spec": {
            "group": "gateway.networking.k8s.io", "scope": scope,
            "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": any, "status": any}}}}],
        },
    })
}

pub(crate) fn gateway(name: &str, protocol: &str) -> Value {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": name, "namespace": "shop", "annotations": {"airglow.dev/replicas": "2"}},
        "spec": {"gatewayClassName": "airglow-waypoint", "listeners": [{"name": "mesh", "port": 15008, "protocol": protocol}]}})
}

/// Waits until what is at `path` is as it should be, and returns it.
pub(crate) async fn until(client: &Client, path: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let waited = timeout(PATIENCE, async {
        loop {
            last = client.request(http(path)).await.unwrap_or_default();
            if holds(&last) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(waited.await.is_ok(), "{path}: {last:#}");
    last
}

/// The status and reason of a condition.
fn condition(object: &Value, kind: &str) -> (String, String) {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|condition| condition["type"] == kind);
    let text = |field: &str| found.and_then(|it| it[field].as_str()).unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

pub(crate) fn is(object: &Value, kind: &str, status: &str, reason: &str) -> bool {
    condition(object, kind) == (status.to_owned(), reason.to_owned())
}

/// A controller that makes waypoints, and what it makes them by.
async fn making(api: &ApiServer) -> (Site, TempDir) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let template = directory.path().join("pod.yaml");
    std::fs::write(&template, TEMPLATE).expect("writable");
    let template = template.display().to_string();
    let settings = [("AIRGLOW_WAYPOINT_TEMPLATE", template.as_str())];
    (Site::start_with(api, api.kubeconfig(), &settings).await, directory)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_becomes_a_waypoint_and_says_how_it_is() {
    let api = ApiServer::start().await;
    let client = api.client().await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"}});
    let definitions = [
        definition("Gateway", "gateways", "Namespaced"),
        definition("GatewayClass", "gatewayclasses", "Cluster"),
    ];
    for object in shop().into_iter().chain(definitions).chain([namespace]) {
        apply(&client, object).await;
    }
    let theirs = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "theirs", "namespace": "shop", "labels": {"made-by": "hand"}}});
    let web = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop",
        "labels": {"istio.io/use-waypoint": "wp"}}, "spec": {"ports": [{"name": "http", "port": 80}]}});
    for object in [gateway("wp", "HBONE"), gateway("theirs", "HBONE"), gateway("web", "HTTP"), theirs, web] {
        apply(&client, object).await;
    }
    let _site = making(&api).await;

    for class in ["airglow-waypoint", "istio-waypoint"] {
        let path = format!("/apis/gateway.networking.k8s.io/v1/gatewayclasses/{class}");
        until(&client, &path, |class| {
            is(class, "Accepted", "True", "Accepted")
                && is(class, "SupportedVersion", "True", "SupportedVersion")
                && class["status"]["supportedFeatures"].as_array().is_some_and(|it| it.len() > 1)
        })
        .await;
    }
    let there = |object: &Value| object["metadata"]["name"] == "wp";
    let deployment = until(&client, "/apis/apps/v1/namespaces/shop/deployments/wp", there).await;
    assert_eq!((&deployment["spec"]["replicas"], &deployment["kind"]), (&json!(2), &json!("Deployment")));
    assert_eq!(deployment["spec"]["template"]["spec"]["serviceAccountName"], "wp");
    for path in [
        "/api/v1/namespaces/shop/serviceaccounts/wp",
        "/api/v1/namespaces/shop/services/wp",
        "/apis/policy/v1/namespaces/shop/poddisruptionbudgets/wp",
    ] {
        let object = until(&client, path, there).await;
        assert_eq!(object["metadata"]["ownerReferences"][0]["kind"], "Gateway", "{path}");
    }

    // It has an address, and nobody there yet: what names it says so.
    let of = |name: &str| format!("/apis/gateway.networking.k8s.io/v1/namespaces/shop/gateways/{name}");
    until(&client, &of("wp"), |wp| is(wp, "Programmed", "False", "Pending")).await;
    let service = "/api/v1/namespaces/shop/services/web";
    until(&client, service, |web| is(web, "istio.io/WaypointBound", "False", "WaypointIsNotReady")).await;
    let mut instance = pod("wp-1", "10.0.0.8");
    instance["metadata"]["labels"]["gateway.networking.k8s.io/gateway-name"] = "wp".into();
    apply(&client, instance).await;
    let ready = until(&client, &of("wp"), |wp| is(wp, "Programmed", "True", "Programmed")).await;
    let addresses = ready["status"]["addresses"].as_array().expect("a list");
    assert_eq!(addresses.last().expect("some")["value"], "wp.shop.svc.cluster.local");
    assert_eq!(ready["status"]["listeners"][0]["name"], "mesh");
    until(&client, service, |web| is(web, "istio.io/WaypointBound", "True", "WaypointAccepted")).await;

    // What somebody else has made is left alone, and what is no waypoint becomes none.
    until(&client, &of("theirs"), |theirs| is(theirs, "Programmed", "False", "NoResources")).await;
    let account = until(&client, "/api/v1/namespaces/shop/serviceaccounts/theirs", |_| true).await;
    assert_eq!(account["metadata"]["labels"], json!({"made-by": "hand"}));
    until(&client, &of("web"), |web| is(web, "Accepted", "False", "ListenersNotValid")).await;
    let absent = client.request::<Value>(http("/apis/apps/v1/namespaces/shop/deployments/web")).await;
    assert!(absent.is_err(), "{absent:?}");

    // No wish, nothing said of it.
    let plain = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"ports": [{"name": "http", "port": 80}]}});
    apply(&client, plain).await;
    until(&client, service, |web| condition(web, "istio.io/WaypointBound").0.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_automatic_waypoint_guards_stays_guarded_when_somebody_deletes_it() {
    let api = ApiServer::start().await;
    let client = api.client().await;
    let definitions = [
        definition("Gateway", "gateways", "Namespaced"),
        definition("GatewayClass", "gatewayclasses", "Cluster"),
        definition("HTTPRoute", "httproutes", "Namespaced"),
    ];
    let system = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"}});
    let asking = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "shop", "labels": {"airglow.dev/waypoint": "auto"}}});
    let web = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"ports": [{"name": "http", "port": 80}]}});
    let route = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "to-web", "namespace": "shop"}, "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
            "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]}});
    for object in shop().into_iter().chain(definitions).chain([system, asking, web, route]) {
        apply(&client, object).await;
    }
    let mut instance = pod("waypoint-auto-1", "10.0.0.8");
    instance["metadata"]["labels"]["gateway.networking.k8s.io/gateway-name"] = "waypoint-auto".into();
    apply(&client, instance).await;
    let _site = making(&api).await;

    let attached = |object: &Value| is(object, "airglow.dev/Attached", "True", "Attached");
    let path = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/gateways/waypoint-auto";
    let first = until(&client, path, attached).await;
    let service = "/api/v1/namespaces/shop/services/web";
    let bound = |web: &Value, status: &str, reason: &str| is(web, "istio.io/WaypointBound", status, reason);
    until(&client, service, |web| attached(web) && bound(web, "True", "WaypointAccepted")).await;

    // The one who is made in its place has nothing of its own yet: without those who end what it left, its names are taken.
    let deletion = http::Request::delete(path).body(Vec::new()).expect("a request");
    client.request::<Value>(deletion).await.expect("deleted");
    let uid = |gateway: &Value| gateway["metadata"]["uid"].as_str().map(str::to_owned);
    let second = until(&client, path, |gateway| uid(gateway).is_some() && uid(gateway) != uid(&first)).await;
    assert_eq!(second["metadata"]["labels"]["airglow.dev/waypoint"], "auto");
    until(&client, path, |gateway| is(gateway, "airglow.dev/Attached", "False", "Pending")).await;
    let closed = until(&client, service, |web| bound(web, "False", "WaypointIsNotReady")).await;
    assert!(attached(&closed), "{closed:#}");
}
