//! What replicas write, and that they do not write over each other.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use api::node::pod_state::State;
use controller::writes::{SecretError, SharedAuthority, lead};
use identity::SystemClock;
use identity::authority::{AuthorityConfig, RotationError, Step};
use identity::signer::Signer as _;
use kube::Client;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::nodes::{AUDIENCE, Site, account_token, published_roots, token, with_ztunnel};
use crate::objects::{apply, pod, policy};
use crate::server::{ApiServer, PATIENCE, http};

async fn with_namespace() -> (ApiServer, Client) {
    let api = ApiServer::start().await;
    let client = api.client().await;
    apply(&client, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"}}))
        .await;
    (api, client)
}

async fn open(client: &Client) -> SharedAuthority {
    let config = AuthorityConfig::new("cluster.local");
    SharedAuthority::open(client.clone(), "istio-system", config, Arc::new(SystemClock))
        .await
        .expect("opened")
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_one_root_and_one_rotation() {
    let (_api, client) = with_namespace().await;
    let (a, b, c) = tokio::join!(open(&client), open(&client), open(&client));
    let roots = a.authority().roots_pem();
    assert!(roots == b.authority().roots_pem() && roots == c.authority().roots_pem(), "whoever was first");

    a.step(&Step::Rotate(None)).await.expect("the first rotation");
    assert_eq!(a.authority().roots().len(), 2);
    // `b` has not heard of it, and must not write a third root over the second.
    let late = b.step(&Step::Rotate(None)).await;
    assert!(matches!(late, Err(SecretError::Rotation(RotationError::UnderWay))), "{late:?}");
    assert_eq!(a.authority().roots_pem(), b.authority().roots_pem());
    b.step(&Step::Activate).await.expect("the rotation is known");
    assert_eq!(open(&client).await.authority().roots_pem(), b.authority().roots_pem());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_leads_and_another_takes_over() {
    let (_api, client) = with_namespace().await;
    let (mut first, election) = lead(client.clone(), "istio-system", "first".into());
    let running = tokio::spawn(election);
    timeout(PATIENCE, first.leading()).await.expect("nobody else is there");
    let (mut second, election) = lead(client, "istio-system", "second".into());
    let other = tokio::spawn(election);
    assert!(!second.is_leading());
    // As if it had crashed: nobody gives the Lease back.
    running.abort();
    timeout(PATIENCE, second.leading()).await.expect("it takes over");
    other.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn all_replicas_serve_under_the_published_root() {
    let (api, client) = with_ztunnel().await;
    let sites = [Site::start(&api).await, Site::start(&api).await];
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("token");
    fs::write(&file, token(&client, "istio-system", AUDIENCE, true).await).expect("writable");
    for site in &sites {
        site.certify(file.clone(), "spiffe://cluster.local/ns/shop/sa/web").await.expect("its own pod's");
    }
    apply(&client, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "late"}})).await;
    assert_eq!(published_roots(&client, "late").await, published_roots(&client, "shop").await);
}

async fn pod_of(client: &Client, name: &str) -> Value {
    client.request(http(&format!("/api/v1/namespaces/shop/pods/{name}"))).await.expect("it is there")
}

/// Waits until the annotation of the pod is that.
async fn marked(client: &Client, name: &str, value: Option<&str>) {
    let holds = async {
        while pod_of(client, name).await["metadata"]["annotations"]["ambient.istio.io/redirection"].as_str()
            != value
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, holds).await.unwrap_or_else(|_| panic!("{name} is not marked {value:?}"));
}

/// Waits until the replica says that the pod is reached by tunnel only, or is not.
async fn proven(site: &Site, name: &str, expected: bool) {
    let holds = async {
        loop {
            let all = site.admin("/enrolments").await;
            let found = all.as_array().expect("a list").iter().find(|one| one["pod"] == name).cloned();
            if found.is_some_and(|one| one["proven"] == expected) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, holds).await.unwrap_or_else(|_| panic!("{name}: never proven={expected}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_told_to_one_replica_counts_for_all_and_outlives_them() {
    let (api, client) = with_ztunnel().await;
    let token = token(&client, "istio-system", AUDIENCE, true).await;
    let sites = [Site::start(&api).await, Site::start(&api).await];
    let uid = pod_of(&client, "web").await["metadata"]["uid"].as_str().expect("a uid").to_owned();
    for site in &sites {
        proven(site, "web", false).await;
    }
    // Neither may be the leader: whoever is told writes.
    sites[1].report(&token, "n1", &[(&uid, State::Enrolled)]).await;
    marked(&client, "web", Some("enabled")).await;
    for site in &sites {
        proven(site, "web", true).await;
        proven(site, "db", false).await;
    }
    // A pod that is born into the mesh is reached by tunnel only, whoever is asked, also later.
    apply(&client, pod("cart", "10.0.0.3")).await;
    marked(&client, "cart", Some("pending")).await;
    drop(sites);
    let later = Site::start(&api).await;
    proven(&later, "web", true).await;
    proven(&later, "cart", true).await;
    proven(&later, "db", false).await;

    apply(
        &client,
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {}}}),
    )
    .await;
    proven(&later, "web", false).await;
    marked(&client, "web", None).await;
    marked(&client, "cart", None).await;
}

/// Waits until the status of the policy says that, and returns it.
async fn said(client: &Client, name: &str, status: &str, reason: &str, part: &str) -> Value {
    let path = format!("/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies/{name}");
    let holds = async {
        loop {
            let policy: Value = client.request(http(&path)).await.expect("it is there");
            let condition = &policy["status"]["conditions"][0];
            let text = condition["message"].as_str().unwrap_or_default();
            if condition["status"] == status && condition["reason"] == reason && text.contains(part) {
                assert_eq!(condition["type"], "ZtunnelAccepted");
                assert_eq!(condition["observedGeneration"], policy["metadata"]["generation"], "{policy}");
                return policy;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, holds).await.unwrap_or_else(|_| panic!("{name}: never {status} {reason} {part}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_say_what_became_of_them() {
    let (api, client) = with_ztunnel().await;
    let _site = Site::start(&api).await;
    let before = said(&client, "only-web", "True", "Accepted", "enforced").await;
    apply(&client, policy("only-web", json!({"rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]})))
        .await;
    let after = said(&client, "only-web", "True", "UnsupportedValue", "waypoint").await;
    let since = |policy: &Value| policy["status"]["conditions"][0]["lastTransitionTime"].clone();
    assert_eq!(since(&before), since(&after), "it is accepted since then");

    apply(&client, policy("custom", json!({"action": "CUSTOM", "provider": {"name": "p"}}))).await;
    said(&client, "custom", "False", "UnsupportedValue", "CUSTOM").await;
    apply(&client, policy("new", json!({"rules": [{"from": [{"source": {"moonPhases": ["full"]}}]}]}))).await;
    let new = said(&client, "new", "False", "Invalid", "moonPhases").await;
    // What was said comes back by the watch and must not be said again. Another policy shows that time has passed.
    apply(&client, policy("last", json!({"rules": [{}]}))).await;
    said(&client, "last", "True", "Accepted", "").await;
    let again = said(&client, "new", "False", "Invalid", "moonPhases").await;
    assert_eq!(new["metadata"]["resourceVersion"], again["metadata"]["resourceVersion"]);
}

/// The rights that the reference page lists, and a kubeconfig of an account that has no others.
async fn least(api: &ApiServer, client: &Client) -> std::path::PathBuf {
    let rbac = "rbac.authorization.k8s.io";
    let rule = |group: &str, resources: Value, names: Value, verbs: Value| {
        let mut rule = json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
        if !names.is_null() {
            rule["resourceNames"] = names;
        }
        rule
    };
    let (all, read) = (json!(null), json!(["list", "watch"]));
    let policies = json!(["authorizationpolicies", "peerauthentications"]);
    let statuses = json!(["authorizationpolicies/status", "peerauthentications/status"]);
    let everywhere = json!([
        rule(
            "",
            json!(["namespaces", "nodes", "pods", "services", "serviceaccounts"]),
            all.clone(),
            read.clone()
        ),
        rule("discovery.k8s.io", json!(["endpointslices"]), all.clone(), read.clone()),
        rule("security.istio.io", policies, all.clone(), read),
        rule("security.istio.io", statuses, all.clone(), json!(["patch"])),
        rule("", json!(["pods/status"]), all.clone(), json!(["patch"])),
        rule("authentication.k8s.io", json!(["tokenreviews"]), all.clone(), json!(["create"])),
        rule("", json!(["configmaps"]), all.clone(), json!(["create"])),
        rule("", json!(["configmaps"]), json!(["istio-ca-root-cert"]), json!(["list", "patch"])),
    ]);
    let at_home = json!([
        rule("coordination.k8s.io", json!(["leases"]), all.clone(), json!(["create"])),
        rule(
            "coordination.k8s.io",
            json!(["leases"]),
            json!(["airglow-controller"]),
            json!(["get", "update"])
        ),
        rule("", json!(["secrets"]), all, json!(["create"])),
        rule("", json!(["secrets"]), json!(["airglow-ca"]), json!(["get", "update"])),
    ]);
    let subjects = json!([{"kind": "ServiceAccount", "name": "controller", "namespace": "istio-system"}]);
    let home = json!({"name": "controller", "namespace": "istio-system"});
    let reference = |kind: &str| json!({"apiGroup": rbac, "kind": kind, "name": "controller"});
    let version = format!("{rbac}/v1");
    for object in [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": home}),
        json!({"apiVersion": version, "kind": "ClusterRole", "metadata": {"name": "controller"}, "rules": everywhere}),
        json!({"apiVersion": version, "kind": "ClusterRoleBinding", "metadata": {"name": "controller"},
            "roleRef": reference("ClusterRole"), "subjects": subjects}),
        json!({"apiVersion": version, "kind": "Role", "metadata": home, "rules": at_home}),
        json!({"apiVersion": version, "kind": "RoleBinding", "metadata": home, "roleRef": reference("Role"),
            "subjects": subjects}),
    ] {
        apply(client, object).await;
    }
    let token = account_token(client, "istio-system", "controller").await;
    api.kubeconfig_of("controller", &token)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_that_the_reference_lists_are_enough() {
    let (api, client) = with_ztunnel().await;
    let kubeconfig = least(&api, &client).await;
    let site = Site::start_as(&api, kubeconfig).await;
    let token = token(&client, "istio-system", AUDIENCE, true).await;
    let uid = pod_of(&client, "web").await["metadata"]["uid"].as_str().expect("a uid").to_owned();
    site.report(&token, "n1", &[(&uid, State::Enrolled)]).await;
    marked(&client, "web", Some("enabled")).await;
    published_roots(&client, "shop").await;
    said(&client, "only-web", "True", "Accepted", "enforced").await;
}
