//! What replicas write, and that they do not write over each other.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use api::node::PodState;
use api::node::pod_state::State;
use controller::writes::{Leader, SecretError, SharedAuthority, lead};
use identity::SystemClock;
use identity::authority::{AuthorityConfig, RotationError, Step};
use identity::signer::Signer as _;
use kube::Client;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::nodes::{
    AUDIENCE, Site, WHY_EXPIRING, WHY_FAILED, account_token, published_roots, token, with_ztunnel,
};
use crate::objects::{apply, apply_unknown, pod, policy};
use crate::routes::judged;
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

/// Runs for the Lease until the sender says, or is dropped.
fn run_for(client: &Client, name: &str) -> (Leader, JoinHandle<()>, oneshot::Sender<()>) {
    let (stop, stopped) = oneshot::channel::<()>();
    let (leader, election) =
        lead(client.clone(), "istio-system", name.into(), async move { drop(stopped.await) });
    (leader, tokio::spawn(election), stop)
}

/// An intermediate CA of a root of its own, as the Secret in which it is plugged in.
fn cacerts() -> (Value, CertificateDer<'static>) {
    let params = || {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("CA {:x}", fastrand::u64(..)));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    };
    let root = CertifiedIssuer::self_signed(params(), KeyPair::generate().expect("a key")).expect("a root");
    let key = KeyPair::generate().expect("a key");
    let signing = params().signed_by(&key, &root).expect("an intermediate");
    let files = json!({"ca-cert.pem": signing.pem(), "ca-key.pem": key.serialize_pem(),
        "root-cert.pem": root.pem(), "cert-chain.pem": signing.pem() + &root.pem()});
    let metadata = json!({"namespace": "istio-system", "name": "cacerts"});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": files});
    (secret, root.der().clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugged_ca_signs_and_one_that_cannot_be_used_changes_nothing() {
    let (_api, client) = with_namespace().await;
    let config = || AuthorityConfig::new("cluster.local");
    let (good, root) = cacerts();
    let mut bad = good.clone();
    bad["stringData"]["ca-key.pem"] = KeyPair::generate().expect("a key").serialize_pem().into();
    apply(&client, bad.clone()).await;
    let refused =
        SharedAuthority::open(client.clone(), "istio-system", config(), Arc::new(SystemClock)).await;
    let refused = refused.err().expect("there is nothing to go on with").to_string();
    assert!(refused.contains("istio-system/cacerts") && refused.contains("ca-key.pem"), "{refused}");

    // From the beginning: no root of our own is ever made.
    apply(&client, good).await;
    let first = open(&client).await;
    assert_eq!((first.authority().roots(), first.trouble()), (vec![root.clone()], None));
    let rotated = first.step(&Step::Rotate(None)).await;
    assert!(matches!(rotated, Err(SecretError::PluggedIn(_))), "{rotated:?}");

    // Another that can't be used: it is said, and the one before goes on, also in a replica that starts now.
    apply(&client, bad).await;
    let later = open(&client).await;
    assert_eq!(later.authority().roots(), std::slice::from_ref(&root));
    let trouble = later.trouble().expect("someone has to mend it");
    assert_eq!((trouble.secret, trouble.reason), ("cacerts", "CAUnusable"));

    // Another one: published at once, by all replicas as one, and signing later.
    let (next, next_root) = cacerts();
    apply(&client, next).await;
    let (a, b) = tokio::join!(open(&client), open(&client));
    for authority in [a.authority(), b.authority()] {
        assert_eq!(authority.roots(), [root.clone(), next_root.clone()]);
        assert!(authority.next_root_at().is_some());
    }
    a.step(&Step::Activate).await.expect("it is published");
    assert_eq!(open(&client).await.authority().roots(), [next_root, root]);
}

/// Waits until an Event says that of the object, and returns it.
async fn event_of(client: &Client, namespace: &str, name: &str, reason: &str, part: &str) -> Value {
    let path = format!("/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name%3D{name}");
    let holds = async {
        loop {
            let events: Value = client.request(http(&path)).await.expect("a list");
            let found = events["items"].as_array().expect("a list").iter().find(|event| {
                event["reason"] == reason && event["message"].as_str().is_some_and(|text| text.contains(part))
            });
            if let Some(event) = found {
                return event.clone();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, holds).await.unwrap_or_else(|_| panic!("{name}: no Event {reason} with {part:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn events_say_once_what_has_to_be_mended() {
    let (api, client) = with_ztunnel().await;
    apply_unknown(&client).await;
    let mut unusable = cacerts().0;
    let sites = [Site::start(&api).await, Site::start(&api).await];
    let token = token(&client, "istio-system", AUDIENCE, true).await;
    let uid = pod_of(&client, "web").await["metadata"]["uid"].as_str().expect("a uid").to_owned();
    // Both are told, as when a node has lost one of them.
    for site in &sites {
        site.report(&token, "n1", &[(&uid, State::Failed)]).await;
    }
    let event = event_of(&client, "shop", "web", "EnrolmentFailed", WHY_FAILED).await;
    assert_eq!((&event["type"], &event["involvedObject"]["uid"]), (&json!("Warning"), &json!(uid)));
    let refused = event_of(&client, "shop", "new", "PolicyRefused", "moonPhases").await;
    assert!(refused["involvedObject"]["uid"].is_string(), "{refused}");

    // A replica that starts now and is told the same says nothing new.
    let later = Site::start(&api).await;
    later.report(&token, "n1", &[(&uid, State::Failed)]).await;
    unusable["stringData"]["root-cert.pem"] = "".into();
    apply(&client, unusable).await;
    event_of(&client, "istio-system", "cacerts", "CAUnusable", "root-cert.pem").await;
    let path = "/api/v1/namespaces/shop/events?fieldSelector=reason%3DEnrolmentFailed";
    let events: Value = client.request(http(path)).await.expect("a list");
    let events = events["items"].as_array().expect("a list");
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["count"], 1);

    // Its pod is in the mesh, and will not be for long.
    let expiring = PodState {
        uid: uid.clone(),
        state: State::Enrolled.into(),
        message: String::new(),
        certificate_failure: WHY_EXPIRING.to_owned(),
    };
    later.report_all(&token, "n1", vec![expiring]).await;
    let event = event_of(&client, "shop", "web", "CertificateExpiring", WHY_EXPIRING).await;
    let text = event["message"].as_str().expect("a text");
    assert!(text.contains("node n1") && text.contains("spiffe://cluster.local/ns/shop/sa/web"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_leads_and_another_takes_over() {
    let (_api, client) = with_namespace().await;
    let (mut first, running, _never) = run_for(&client, "first");
    timeout(PATIENCE, first.leading()).await.expect("nobody else is there");
    let (mut second, other, stop) = run_for(&client, "second");
    assert!(!second.is_leading());
    // As if it had crashed: nobody gives the Lease back.
    running.abort();
    timeout(PATIENCE, second.leading()).await.expect("it takes over");

    // In good order it is given back at once, to whoever looks next.
    stop.send(()).expect("it runs");
    timeout(PATIENCE, other).await.expect("in time").expect("it ends");
    assert!(!second.is_leading());
    let path = "/apis/coordination.k8s.io/v1/namespaces/istio-system/leases/airglow-controller";
    let lease: Value = client.request(http(path)).await.expect("it is there");
    assert_eq!(lease["spec"]["holderIdentity"], "");
    let (mut third, last, _never) = run_for(&client, "third");
    timeout(PATIENCE, third.leading()).await.expect("nobody holds it");
    last.abort();
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
    apply_unknown(&client).await;
    let _site = Site::start(&api).await;
    let before = said(&client, "only-web", "True", "Accepted", "enforced").await;
    apply(&client, policy("only-web", json!({"rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]})))
        .await;
    let after = said(&client, "only-web", "True", "UnsupportedValue", "waypoint").await;
    let since = |policy: &Value| policy["status"]["conditions"][0]["lastTransitionTime"].clone();
    assert_eq!(since(&before), since(&after), "it is accepted since then");

    apply(&client, policy("custom", json!({"action": "CUSTOM", "provider": {"name": "p"}, "rules": [{}]})))
        .await;
    said(&client, "custom", "False", "UnsupportedValue", "CUSTOM").await;
    let new = said(&client, "new", "False", "Invalid", "moonPhases").await;
    // What was said comes back by the watch and must not be said again. Another policy shows that time has passed.
    apply(&client, policy("last", json!({"rules": [{}]}))).await;
    said(&client, "last", "True", "Accepted", "").await;
    let again = said(&client, "new", "False", "Invalid", "moonPhases").await;
    assert_eq!(new["metadata"]["resourceVersion"], again["metadata"]["resourceVersion"]);
}

/// Those of the rights that are about waypoints and what they do.
fn routing() -> Vec<Value> {
    let api = "gateway.networking.k8s.io";
    let routes = ["grpcroutes", "httproutes", "tcproutes", "tlsroutes"];
    let statuses = routes.map(|plural| format!("{plural}/status"));
    let read = ["get", "list", "watch"];
    vec![
        json!({"apiGroups": [api], "resources": routes, "verbs": read}),
        json!({"apiGroups": [api], "resources": ["gateways", "gatewayclasses", "referencegrants"], "verbs": ["list", "watch"]}),
        json!({"apiGroups": [api], "resources": statuses, "verbs": ["patch"]}),
        json!({"apiGroups": [api], "resources": ["gateways/status"], "verbs": ["patch"]}),
        json!({"apiGroups": [api], "resources": ["backendtlspolicies"], "verbs": read}),
        json!({"apiGroups": [api], "resources": ["backendtlspolicies/status"], "verbs": ["patch"]}),
        json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "watch"]}),
        json!({"apiGroups": ["airglow.dev"], "resources": ["trafficpolicies"], "verbs": read}),
        json!({"apiGroups": ["airglow.dev"], "resources": ["trafficpolicies/status"], "verbs": ["patch"]}),
    ]
}

/// Waits until the types and statuses of a policy's conditions are these.
async fn conditions(client: &Client, name: &str, expected: &[(&str, &str)]) -> Value {
    let path = format!("/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies/{name}");
    let mut seen = Value::Null;
    let holds = async {
        loop {
            let policy: Value = client.request(http(&path)).await.expect("it is there");
            let said = policy["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let brief = said.iter().map(|it| (it["type"].as_str(), it["status"].as_str()));
            if brief.eq(expected.iter().map(|(kind, status)| (Some(*kind), Some(*status)))) {
                return policy;
            }
            seen = policy["status"].clone();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let found = timeout(PATIENCE, holds).await;
    found.unwrap_or_else(|_| panic!("{name}: never {expected:?}, but {seen}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_names_the_nodes_that_refuse_it() {
    let (api, client) = with_ztunnel().await;
    // The first leads, and the second is who the node is served by.
    let leading = Site::start(&api).await;
    said(&client, "only-web", "True", "Accepted", "").await;
    let serving = Site::start(&api).await;
    let token = token(&client, "istio-system", AUDIENCE, true).await;
    let mut node = serving.policies(&token, "n1").await;
    node.answer("shop/only-web", Some("this node is too old; upgrade it")).await;
    let (mesh, own) = (("ZtunnelAccepted", "False"), ("n1/ZtunnelAccepted", "False"));
    let refused = conditions(&client, "only-web", &[mesh, own]).await;
    let said_of = |policy: &Value, index: usize| policy["status"]["conditions"][index].clone();
    let of_node = said_of(&refused, 1);
    assert_eq!(
        (&of_node["reason"], &of_node["message"]),
        (&json!("RefusedByNodes"), &json!("this node is too old; upgrade it"))
    );
    assert_eq!(of_node["observedGeneration"], refused["metadata"]["generation"]);
    let text = said_of(&refused, 0)["message"].as_str().unwrap_or_default().to_owned();
    assert!(text.contains("refused by n1"), "{text}");
    event_of(&client, "shop", "only-web", "PolicyRefused", "node n1: this node is too old").await;

    // The node's session moves to the other replica, which is told the same: nothing is news.
    drop(node);
    let mut node = leading.policies(&token, "n1").await;
    node.answer("shop/only-web", Some("this node is too old; upgrade it")).await;
    // Another policy shows that time has passed.
    apply(&client, policy("last", json!({"rules": [{}]}))).await;
    said(&client, "last", "True", "Accepted", "").await;
    let again = conditions(&client, "only-web", &[mesh, own]).await;
    assert_eq!(refused["metadata"]["resourceVersion"], again["metadata"]["resourceVersion"]);

    // A change that the node has taken.
    node.answer("shop/last", None).await;
    apply(&client, policy("only-web", json!({"action": "DENY", "rules": [{}]}))).await;
    node.answer("shop/only-web", None).await;
    let taken = conditions(&client, "only-web", &[("ZtunnelAccepted", "True")]).await;
    assert_eq!(said_of(&taken, 0)["observedGeneration"], taken["metadata"]["generation"]);
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
    let mut everywhere = json!([
        rule(
            "",
            json!(["namespaces", "nodes", "pods", "services", "serviceaccounts"]),
            all.clone(),
            read.clone()
        ),
        rule("discovery.k8s.io", json!(["endpointslices"]), all.clone(), read.clone()),
        rule("security.istio.io", policies, all.clone(), read.clone()),
        rule("networking.istio.io", json!(["serviceentries", "workloadentries"]), all.clone(), read),
        rule(
            "networking.istio.io",
            json!(["serviceentries/status", "workloadentries/status"]),
            all.clone(),
            json!(["patch"])
        ),
        rule("security.istio.io", statuses, all.clone(), json!(["patch"])),
        rule("", json!(["pods/status", "services/status"]), all.clone(), json!(["patch"])),
        rule("", json!(["events"]), all.clone(), json!(["create", "patch"])),
        rule("authentication.k8s.io", json!(["tokenreviews"]), all.clone(), json!(["create"])),
        rule("", json!(["configmaps"]), all.clone(), json!(["create"])),
        rule("", json!(["configmaps"]), json!(["istio-ca-root-cert"]), json!(["patch"])),
    ]);
    everywhere.as_array_mut().expect("a list").extend(routing());
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
        rule("", json!(["secrets"]), json!(["cacerts"]), json!(["get"])),
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
    judged(&client).await;
}
