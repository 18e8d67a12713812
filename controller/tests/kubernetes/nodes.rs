//! Whom the controller believes to be a node, by tokens that the API server made, and what such a node may have certified.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use api::node::node_service_client::NodeServiceClient;
use api::node::pod_state::State;
use api::node::{EnrolmentReport, PodState};
use controller::app::Controller;
use controller::config;
use controller::serve::published::Publisher;
use controller::serve::{Accepted, Authenticator as _, TokenReviews};
use futures_util::{StreamExt as _, stream};
use identity::control::{Roots, Target, channel};
use identity::{Ca, CaClient, Clock, KeyRequest, SystemClock, TokenFile, peer_identity};
use kube::Client;
use model::identity::Identity;
use prost_types::value::Kind;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::objects::{apply, delete_pod, pod, shop};
use crate::server::{ApiServer, PATIENCE};

pub(crate) const AUDIENCE: &str = "istio-ca";

/// What nodes say of pods that they could not enrol.
pub(crate) const WHY_FAILED: &str = "the cgroup of the pod is not there";

/// What they say of certificates that they could not renew.
pub(crate) const WHY_EXPIRING: &str = "the CA refused: the pod is not known";

/// A cluster with the pod of a ztunnel on `n1`.
pub(crate) async fn with_ztunnel() -> (ApiServer, Client) {
    let api = ApiServer::start().await;
    let client = api.client().await;
    for object in shop() {
        apply(&client, object).await;
    }
    apply(&client, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"}}))
        .await;
    for (namespace, name) in [("istio-system", "ztunnel"), ("shop", "ztunnel")] {
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"namespace": namespace, "name": name}});
        apply(&client, account).await;
        let mut pod = pod("ztunnel", "10.0.0.9");
        pod["metadata"]["namespace"] = namespace.into();
        apply(&client, pod).await;
    }
    (api, client)
}

/// A token of any account for the API server itself.
pub(crate) async fn account_token(client: &Client, namespace: &str, account: &str) -> String {
    request_token(client, namespace, account, json!({"expirationSeconds": 600})).await
}

/// A token of the account `ztunnel` in `namespace`, bound to its pod unless `bound` is false.
pub(crate) async fn token(client: &Client, namespace: &str, audience: &str, bound: bool) -> String {
    let mut spec = json!({"audiences": [audience], "expirationSeconds": 600});
    if bound {
        let path = format!("/api/v1/namespaces/{namespace}/pods/ztunnel");
        let pod: Value = client.request(crate::server::http(&path)).await.expect("it is there");
        spec["boundObjectRef"] = json!({"kind": "Pod", "apiVersion": "v1", "name": "ztunnel",
            "uid": pod["metadata"]["uid"]});
    }
    request_token(client, namespace, "ztunnel", spec).await
}

async fn request_token(client: &Client, namespace: &str, account: &str, spec: Value) -> String {
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let request =
        http::Request::post(format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"))
            .header("content-type", "application/json")
            .body(body.to_string().into_bytes())
            .expect("a request");
    let answer: Value = client.request(request).await.expect("a token");
    answer["status"]["token"].as_str().expect("a token").to_owned()
}

/// A clock that is wrong by that much.
#[derive(Debug)]
struct Ahead(Duration);

impl Clock for Ahead {
    fn now(&self) -> SystemTime {
        SystemTime::now() + self.0
    }
}

fn reviews(client: &Client, ahead: Duration) -> TokenReviews {
    let accepted =
        Accepted { audience: AUDIENCE.into(), accounts: ["istio-system/ztunnel".to_owned()].into() };
    TokenReviews::new(client.clone(), accepted, Publisher::new().1, Arc::new(Ahead(ahead)))
}

/// The node that `token` proves, or why it proves none.
async fn node(reviews: &TokenReviews, token: &str) -> Result<String, String> {
    let caller = reviews.authenticate(Some(token)).await;
    caller.map(|caller| caller.node.to_string()).map_err(|why| why.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_what_the_api_server_says_of_its_token() {
    let (mut api, client) = with_ztunnel().await;
    let good = token(&client, "istio-system", AUDIENCE, true).await;
    let fresh = || reviews(&client, Duration::ZERO);
    assert_eq!(node(&fresh(), &good).await.as_deref(), Ok("n1"));

    let check = async |token: &str, ahead: Duration, why: &str| {
        let refused = node(&reviews(&client, ahead), token).await.expect_err(why);
        assert!(refused.contains(why), "{refused}, not {why}");
    };
    let zero = Duration::ZERO;
    check(&token(&client, "istio-system", "someone-else", true).await, zero, "audience").await;
    check(&token(&client, "shop", AUDIENCE, true).await, zero, "AIRGLOW_NODE_ACCOUNTS").await;
    check(&token(&client, "istio-system", AUDIENCE, false).await, zero, "not bound to a pod").await;
    check("no token at all", zero, "no service account token").await;
    check(&good, Duration::from_secs(3600), "expired").await;
    // Signed by somebody else: everything that it says is right, and none of it is true.
    let (said, _) = good.rsplit_once('.').expect("a signature");
    let signature = token(&client, "shop", AUDIENCE, true).await;
    let forged = format!("{said}.{}", signature.rsplit('.').next().expect("a signature"));
    check(&forged, zero, "the API server refuses the token").await;

    let remembering = fresh();
    assert_eq!(node(&remembering, &good).await.as_deref(), Ok("n1"));
    api.down();
    assert_eq!(node(&remembering, &good).await.as_deref(), Ok("n1"), "remembered for a moment");
    check(&good, zero, "can't be asked").await;

    api.up().await;
    delete_pod(&client, "istio-system", "ztunnel").await;
    // The API server itself remembers tokens for some seconds.
    let refused = async {
        while node(&fresh(), &good).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, refused).await.expect("the token of a deleted pod is refused");
}

/// The roots that pods of `namespace` can mount, once they can.
pub(crate) async fn published_roots(client: &Client, namespace: &str) -> String {
    let path = format!("/api/v1/namespaces/{namespace}/configmaps/istio-ca-root-cert");
    let published = async {
        loop {
            if let Ok(map) = client.request::<Value>(crate::server::http(&path)).await {
                return map["data"]["root-cert.pem"].as_str().expect("roots").to_owned();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, published).await.unwrap_or_else(|_| panic!("no roots in {namespace}"))
}

/// A controller on the API server.
pub(crate) struct Site {
    directory: TempDir,
    controller: Controller,
    roots: String,
}

impl Site {
    pub(crate) async fn start(api: &ApiServer) -> Self {
        Self::start_as(api, api.kubeconfig()).await
    }

    /// A controller that is to the API server whoever `kubeconfig` says.
    pub(crate) async fn start_as(api: &ApiServer, kubeconfig: PathBuf) -> Self {
        Self::start_with(api, kubeconfig, &[]).await
    }

    /// The same with more settings.
    pub(crate) async fn start_with(api: &ApiServer, kubeconfig: PathBuf, more: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let state = directory.path().join("state").display().to_string();
        let kubeconfig = kubeconfig.display().to_string();
        let vars: BTreeMap<&str, &str> = [
            ("AIRGLOW_SOURCE", "kube"),
            ("AIRGLOW_KUBECONFIG", kubeconfig.as_str()),
            ("AIRGLOW_STATE_DIR", state.as_str()),
            ("AIRGLOW_LISTEN", "127.0.0.1:0"),
            ("AIRGLOW_METRICS", "127.0.0.1:0"),
        ]
        .into_iter()
        .chain(more.iter().copied())
        .collect();
        let config = config::load(&vars).expect("the test's own settings");
        let started = timeout(PATIENCE, Controller::start(config, None)).await.expect("in time");
        let roots = published_roots(&api.client().await, "istio-system").await;
        Self { directory, controller: started.expect("it starts"), roots }
    }

    pub(crate) async fn report(&self, token: &str, node: &str, pods: &[(&str, State)]) {
        let state = |(uid, state): &(&str, State)| PodState {
            uid: (*uid).to_owned(),
            state: (*state).into(),
            message: if *state == State::Failed { WHY_FAILED.to_owned() } else { String::new() },
            certificate_failure: String::new(),
        };
        self.report_all(token, node, pods.iter().map(state).collect()).await;
    }

    pub(crate) async fn report_all(&self, token: &str, node: &str, pods: Vec<PodState>) {
        let mut request = tonic::Request::new(EnrolmentReport { node: node.to_owned(), pods });
        let bearer = format!("Bearer {token}").try_into().expect("printable");
        request.metadata_mut().insert("authorization", bearer);
        let mut client = NodeServiceClient::new(self.channel());
        timeout(PATIENCE, client.report(request)).await.expect("in time").expect("the report is taken");
    }

    /// What the controller's own admin socket says.
    pub(crate) async fn admin(&self, path: &str) -> Value {
        let socket = self.directory.path().join("state/admin.sock");
        let mut stream = UnixStream::connect(socket).await.expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nhost: controller\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
        serde_json::from_str(body).expect("JSON")
    }

    /// A node's session about policies, which begins with all of them.
    pub(crate) async fn policies(&self, token: &str, node: &str) -> Policies {
        let (answers, questions) = mpsc::channel(1);
        let name = prost_types::Value { kind: Some(Kind::StringValue(node.to_owned())) };
        let metadata = prost_types::Struct { fields: [("NODE_NAME".to_owned(), name)].into() };
        let id = format!("ztunnel~{node}");
        let node = api::discovery::Node { id, metadata: Some(metadata), ..api::discovery::Node::default() };
        let first = DeltaDiscoveryRequest {
            node: Some(node),
            type_url: api::type_url::AUTHORIZATION.into(),
            ..DeltaDiscoveryRequest::default()
        };
        answers.send(first).await.expect("there is room");
        let questions = stream::unfold(questions, async |mut all| Some((all.recv().await?, all)));
        let mut request = tonic::Request::new(questions);
        let bearer = format!("Bearer {token}").try_into().expect("printable");
        request.metadata_mut().insert("authorization", bearer);
        let mut discovery = AggregatedDiscoveryServiceClient::new(self.channel());
        let session =
            timeout(PATIENCE, discovery.delta_aggregated_resources(request)).await.expect("in time");
        Policies { told: session.expect("it is a node").into_inner(), answers }
    }

    fn channel(&self) -> Channel {
        let target = Target {
            address: format!("https://{}", self.controller.address()).parse().expect("an address"),
            roots: Roots::Pem(self.roots.clone()),
            server_name: None,
        };
        channel(target, Arc::new(SystemClock)).expect("a good target")
    }

    pub(crate) async fn certify(&self, token: PathBuf, identity: &str) -> Result<Identity, String> {
        let channel = self.channel();
        let identity: Identity = identity.parse().expect("the test's own identity");
        let request = KeyRequest::for_workload(&identity).expect("a key");
        let client = CaClient::new(channel, Arc::new(TokenFile(token)), "Kubernetes").expect("printable");
        let signed = client.sign(&identity, request.csr_pem, Duration::from_secs(3600));
        let signed = timeout(PATIENCE, signed).await.expect("an answer in time");
        let signed = signed.map_err(|error| error.to_string())?;
        Ok(peer_identity(&signed.chain).expect("an identity"))
    }
}

/// What a node is told of policies, and what it answers.
pub(crate) struct Policies {
    told: Streaming<DeltaDiscoveryResponse>,
    answers: mpsc::Sender<DeltaDiscoveryRequest>,
}

impl Policies {
    /// Answers until it has been told of the policy, and refuses that if there is a reason.
    pub(crate) async fn answer(&mut self, policy: &str, refusal: Option<&str>) {
        loop {
            let told = timeout(PATIENCE, self.told.message()).await.expect("in time");
            let told = told.expect("the session stands").expect("it goes on");
            let is_told = told.resources.iter().any(|resource| resource.name == policy);
            let refusal = refusal.filter(|_| is_told);
            let error_detail = refusal.map(|reason| api::discovery::Status {
                code: 3,
                message: format!("{policy}: {reason}"),
                ..api::discovery::Status::default()
            });
            let answer = DeltaDiscoveryRequest {
                type_url: told.type_url,
                response_nonce: told.nonce,
                error_detail,
                ..DeltaDiscoveryRequest::default()
            };
            self.answers.send(answer).await.expect("the session stands");
            if is_told {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_certificates_for_its_pods_and_no_others() {
    let (api, client) = with_ztunnel().await;
    let mut elsewhere = pod("pay", "10.0.1.1");
    elsewhere["spec"]["nodeName"] = "n2".into();
    apply(&client, elsewhere).await;
    let site = Site::start(&api).await;
    let file = site.directory.path().join("token");
    fs::write(&file, token(&client, "istio-system", AUDIENCE, true).await).expect("writable");
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    let granted = site.certify(file.clone(), web).await.expect("its own pod's");
    assert_eq!(granted.to_string(), web);
    for foreign in ["spiffe://cluster.local/ns/shop/sa/pay", "spiffe://cluster.local/ns/shop/sa/nobody"] {
        assert!(site.certify(file.clone(), foreign).await.is_err(), "{foreign}");
    }
    fs::write(&file, token(&client, "shop", AUDIENCE, true).await).expect("writable");
    assert!(site.certify(file, web).await.is_err(), "a pod that calls itself ztunnel is no node");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_session_of_a_node_ends_with_the_pod_that_began_it() {
    let (api, client) = with_ztunnel().await;
    let site = Site::start(&api).await;
    let bearer = format!("Bearer {}", token(&client, "istio-system", AUDIENCE, true).await);
    let node = api::discovery::Node { id: "ztunnel~n1".into(), ..api::discovery::Node::default() };
    let first = DeltaDiscoveryRequest {
        node: Some(node),
        type_url: api::type_url::ADDRESS.into(),
        ..DeltaDiscoveryRequest::default()
    };
    // One question, and never a second one.
    let questions = futures_util::stream::iter([first]).chain(futures_util::stream::pending());
    let mut request = tonic::Request::new(questions);
    request.metadata_mut().insert("authorization", bearer.try_into().expect("printable"));
    let mut discovery = AggregatedDiscoveryServiceClient::new(site.channel());
    let session = timeout(PATIENCE, discovery.delta_aggregated_resources(request)).await.expect("in time");
    let mut answers = session.expect("it is a node").into_inner();
    timeout(PATIENCE, answers.message()).await.expect("in time").expect("an answer").expect("one at least");

    delete_pod(&client, "istio-system", "ztunnel").await;
    let ended = async { while let Ok(Some(_)) = answers.message().await {} };
    timeout(PATIENCE, ended).await.expect("it ends");
}
