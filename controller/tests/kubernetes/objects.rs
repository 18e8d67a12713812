//! Objects of the tests, and how they get to the API server.

use std::time::Duration;

use controller::definitions;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::server::PATIENCE;

/// A definition of AuthorizationPolicy by somebody else, which lets pass what we do not know.
fn newer_definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "authorizationpolicies.security.istio.io"},
        "spec": {
            "group": "security.istio.io", "scope": "Namespaced",
            "names": {"kind": "AuthorizationPolicy", "plural": "authorizationpolicies", "singular": "authorizationpolicy"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}}, "schema": {"openAPIV3Schema": {
                "type": "object",
                "properties": {
                    "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                },
            }}}],
        },
    })
}

/// Creates or changes an object, and its status if it has one.
pub(crate) async fn apply(client: &Client, object: Value) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (group, version) = match text("/apiVersion").split_once('/') {
        Some((group, version)) => (group.to_owned(), version.to_owned()),
        None => (String::new(), text("/apiVersion")),
    };
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(&group, &version, &text("/kind")));
    let api: Api<DynamicObject> = match text("/metadata/namespace") {
        none if none.is_empty() => Api::all_with(client.clone(), &resource),
        namespace => Api::namespaced_with(client.clone(), &namespace, &resource),
    };
    let (name, params) = (text("/metadata/name"), PatchParams::apply("test").force());
    // A definition that was just created or changed does not count at once.
    let not_yet = |error: &kube::Error| {
        let kube::Error::Api(status) = error else { return false };
        status.code == 404 || status.message.contains("field not declared in schema")
    };
    let applied = async {
        while let Err(error) = api.patch(&name, &params, &Patch::Apply(&object)).await {
            assert!(not_yet(&error), "{name}: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, applied).await.expect("its definition is served");
    if object.get("status").is_some() {
        api.patch_status(&name, &params, &Patch::Apply(&object)).await.expect("a status");
    }
}

/// A pod that runs on `n1` and is ready, with an account of its name.
pub(crate) fn pod(name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
        "spec": {"nodeName": "n1", "serviceAccountName": name, "containers": [{"name": "c", "image": "i",
            "ports": [{"name": "web", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

/// Pods, services and policies of a namespace in the mesh.
pub(crate) fn shop() -> Vec<Value> {
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "external-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "external"}},
        "endpoints": [{"addresses": ["192.0.2.7"]}], "ports": [{"name": "tls", "port": 8443, "protocol": "TCP"}],
    });
    let service = |name: &str, selector: Value, port: Value| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"selector": selector, "ports": [port]}})
    };
    let mut objects = definitions::all();
    objects.extend([
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop",
            "labels": {"istio.io/dataplane-mode": "ambient"}}}),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1",
            "labels": {"topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": "z"}}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "web", "namespace": "shop"}}),
        pod("web", "10.0.0.1"),
        pod("db", "10.0.0.2"),
        service("web", json!({"app": "web"}), json!({"name": "http", "port": 80, "targetPort": "web"})),
        service("external", json!(null), json!({"name": "tls", "port": 443, "targetPort": 8443})),
        slice,
        json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": {"name": "strict", "namespace": "shop"}, "spec": {"mtls": {"mode": "STRICT"}}}),
        json!({"apiVersion": "networking.istio.io/v1beta1", "kind": "ServiceEntry",
            "metadata": {"name": "db", "namespace": "shop"}, "spec": {
                "hosts": ["db.example.com"], "addresses": ["192.0.2.9"], "resolution": "STATIC",
                "ports": [{"number": 5432, "name": "sql", "protocol": "TCP"}],
                "workloadSelector": {"labels": {"app": "db"}}}}),
        json!({"apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
            "metadata": {"name": "vm", "namespace": "shop"},
            "spec": {"address": "192.0.2.10", "labels": {"app": "db"}, "ports": {"sql": 6000}}}),
        policy(
            "only-web",
            json!({"selector": {"matchLabels": {"app": "db"}}, "action": "ALLOW",
            "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/web"]}}]}]}),
        ),
    ]);
    objects
}

/// An AuthorizationPolicy.
pub(crate) fn policy(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

/// The policy `new` with a condition that we do not know, where the cluster's definition lets that pass. To be called before
/// anyone watches: who watched before sees policies through the definition of before for a while.
pub(crate) async fn apply_unknown(client: &Client) {
    apply(client, newer_definition()).await;
    apply(client, policy("new", json!({"rules": [{"from": [{"source": {"moonPhases": ["full"]}}]}]}))).await;
}

/// Deletes a pod at once, as its kubelet would.
pub(crate) async fn delete_pod(client: &Client, namespace: &str, name: &str) {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Pod"));
    let pods: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    pods.delete(name, &DeleteParams::default().grace_period(0)).await.expect("deleted");
}
