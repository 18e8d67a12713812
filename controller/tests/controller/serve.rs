//! A whole controller with real clients: what a node sees, what it may have certified, what it may report.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::node::node_service_client::NodeServiceClient;
use api::node::pod_state::State;
use api::node::{EnrolmentReport, PodState};
use api::type_url::{ADDRESS, AUTHORIZATION, POD_ENROLMENT};
use controller::app::Controller;
use controller::config;
use identity::control::{Roots, Target, channel};
use identity::{Ca, CaClient, CaError, KeyRequest, SystemClock, TokenFile, peer_identity};
use model::identity::Identity;
use model::store::Update;
use model::workload::TunnelProtocol;
use tempfile::TempDir;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tonic::Code;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;
use xds::client::Config as ClientConfig;
use xds::{Client, Connection, Connector, Demand, Mode, Rejection, Resource, Sink, Subscription};

/// How long anything may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// Between two looks at something that has a deadline; a node that calls without a pause is turned away.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

const WAYPOINT: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {namespace: shop, name: wp}
spec: {gatewayClassName: airglow-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: wp-1, uid: uid-wp, labels: {gateway.networking.k8s.io/gateway-name: wp}}
spec: {nodeName: n1, serviceAccountName: wp}
status: {phase: Running, podIP: 10.0.1.9}
";

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: cart, uid: uid-cart, labels: {app: cart}}
spec: {nodeName: n1, serviceAccountName: carter}
status: {phase: Running, podIP: 10.0.1.1}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: pay, uid: uid-pay}
spec: {nodeName: n2, serviceAccountName: payer}
status: {phase: Running, podIP: 10.0.2.1}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: done, uid: uid-done}
spec: {nodeName: n1, serviceAccountName: finisher}
status: {phase: Succeeded, podIP: 10.0.1.2}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: cart}
spec: {clusterIP: 10.1.0.1, selector: {app: cart}}
";

/// A controller and its directories.
struct Site {
    directory: TempDir,
    running: Option<Running>,
}

struct Running {
    address: String,
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Site {
    async fn new() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        for name in ["manifests", "tokens"] {
            fs::create_dir(directory.path().join(name)).expect("creatable");
        }
        let mut site = Self { directory, running: None };
        site.write("manifests/shop.yaml", SHOP);
        for node in ["n1", "n2"] {
            site.write(&format!("tokens/{node}"), &format!("a long and random token of {node}"));
        }
        site.write("stranger", "a token that nobody gave out");
        site.start().await;
        site
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// Replaces the file whole, as whoever writes manifests should.
    fn write(&self, name: &str, text: &str) {
        let beside = self.path(".new");
        fs::write(&beside, text).expect("writable");
        fs::rename(beside, self.path(name)).expect("renamable");
    }

    async fn start(&mut self) {
        let text = |name: &str| self.path(name).display().to_string();
        let vars = [
            ("AIRGLOW_SOURCE", format!("dir:{}", text("manifests"))),
            ("AIRGLOW_STATE_DIR", text("state")),
            ("AIRGLOW_JOIN_TOKENS", text("tokens")),
            ("AIRGLOW_LISTEN", "127.0.0.1:0".to_owned()),
            ("AIRGLOW_METRICS", "127.0.0.1:0".to_owned()),
        ];
        let vars: BTreeMap<&str, &str> = vars.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let config = config::load(&vars).expect("the test's own settings");
        let controller =
            timeout(DEADLINE, Controller::start(config, None)).await.expect("in time").expect("it starts");
        assert!(controller.readiness().is_ready());
        let address = format!("https://{}", controller.address());
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(controller.run(async move { drop(stopped.await) }));
        self.running = Some(Running { address, stop, task });
    }

    async fn stop(&mut self) {
        let Running { stop, task, .. } = self.running.take().expect("it runs");
        stop.send(()).expect("it runs");
        timeout(DEADLINE, task).await.expect("it stops in time").expect("no panic").expect("in good order");
    }

    fn channel(&self) -> Channel {
        let running = self.running.as_ref().expect("it runs");
        let target = Target {
            address: running.address.parse().expect("an address"),
            roots: Roots::File(self.path("state/roots.pem")),
            server_name: None,
        };
        channel(target, Arc::new(SystemClock)).expect("a good target")
    }

    fn bearer(&self, token: &str) -> MetadataMap {
        let token = fs::read_to_string(self.path(token)).expect("readable");
        let mut metadata = MetadataMap::new();
        metadata
            .insert("authorization", MetadataValue::try_from(format!("Bearer {token}")).expect("printable"));
        metadata
    }

    /// A discovery client with the token in that file, which says that it is on `claimed`.
    fn discover(&self, token: &str, claimed: &str, address: Mode) -> Discovered {
        let node = xds::Node {
            id: format!("ztunnel~127.0.0.1~{claimed}"),
            // A waypoint names no node: it does not speak for one.
            metadata: (!claimed.is_empty())
                .then(|| ("NODE_NAME".to_owned(), claimed.to_owned()))
                .into_iter()
                .collect(),
        };
        let of = |type_url, mode| Subscription { type_url, mode };
        let subscriptions =
            vec![of(ADDRESS, address), of(AUTHORIZATION, Mode::Wildcard), of(POD_ENROLMENT, Mode::Wildcard)];
        let (seen, watched) = watch::channel(Seen::default());
        let connection = Connection { channel: self.channel(), metadata: self.bearer(token) };
        let (client, demand) =
            Client::new(ClientConfig::new(node, subscriptions), Fixed(connection), Store(Mutex::new(seen)));
        Discovered { task: tokio::spawn(client.run()), demand, seen: watched }
    }

    async fn certify(&self, token: &str, identity: &str, validity: Duration) -> Result<Identity, CaError> {
        let identity: Identity = identity.parse().expect("the test's own identity");
        let request = KeyRequest::for_workload(&identity).expect("a key");
        let client = CaClient::new(self.channel(), Arc::new(TokenFile(self.path(token))), "Kubernetes")
            .expect("printable");
        let signed = timeout(DEADLINE, client.sign(&identity, request.csr_pem, validity))
            .await
            .expect("an answer in time")?;
        Ok(peer_identity(&signed.chain).expect("an identity"))
    }

    async fn report(&self, token: &str, node: &str, pods: &[(&str, State)]) -> Result<(), Code> {
        let state = |(uid, state): &(&str, State)| PodState {
            uid: (*uid).to_owned(),
            state: (*state).into(),
            message: String::new(),
            certificate_failure: String::new(),
        };
        let pods = pods.iter().map(state).collect();
        let mut request = tonic::Request::new(EnrolmentReport { node: node.to_owned(), pods });
        *request.metadata_mut() = self.bearer(token);
        let mut client = NodeServiceClient::new(self.channel());
        let answer = timeout(DEADLINE, client.report(request)).await.expect("an answer in time");
        answer.map(drop).map_err(|status| status.code())
    }
}

struct Fixed(Connection);

impl Connector for Fixed {
    async fn connect(&mut self) -> Result<Connection, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.clone())
    }
}

/// What a client holds.
#[derive(Clone, Debug, Default)]
struct Seen {
    resources: BTreeMap<(String, String), Resource>,
    synced: Vec<String>,
}

impl Seen {
    fn names(&self, type_url: &str) -> Vec<&str> {
        let of_type = self.resources.keys().filter(|(of, _)| of == type_url);
        of_type.map(|(_, name)| name.rsplit('/').next().unwrap_or(name)).collect()
    }

    fn tunnel(&self, pod: &str) -> Option<TunnelProtocol> {
        let resource = self.resources.get(&(ADDRESS.to_owned(), format!("Kubernetes//Pod/shop/{pod}")))?;
        let Update::Workload(workload) = api::decode::address(&resource.body).expect("a good resource")
        else {
            panic!("{pod} is no workload");
        };
        Some(workload.tunnel)
    }

    fn enrol(&self, uid: &str) -> Option<bool> {
        let resource = self.resources.get(&(POD_ENROLMENT.to_owned(), uid.to_owned()))?;
        Some(api::decode::enrolment(uid, &resource.body).expect("a good resource").enrol)
    }
}

struct Store(Mutex<watch::Sender<Seen>>);

impl Sink for Store {
    fn apply(&mut self, type_url: &str, added: Vec<Resource>, removed: Vec<String>) -> Vec<Rejection> {
        self.0.get_mut().expect("no panic").send_modify(|seen| {
            for resource in added {
                seen.resources.insert((type_url.to_owned(), resource.name.clone()), resource);
            }
            for name in removed {
                seen.resources.remove(&(type_url.to_owned(), name));
            }
        });
        Vec::new()
    }

    fn synced(&mut self, type_url: &str) {
        self.0.get_mut().expect("no panic").send_modify(|seen| seen.synced.push(type_url.to_owned()));
    }
}

struct Discovered {
    task: JoinHandle<()>,
    demand: Demand,
    seen: watch::Receiver<Seen>,
}

impl Discovered {
    async fn until(&mut self, what: &str, good: impl Fn(&Seen) -> bool) {
        let in_time = timeout(DEADLINE, self.seen.wait_for(|seen| good(seen))).await.is_ok();
        if !in_time {
            panic!("not in time: {what}; there is {:#?}", self.seen.borrow().resources.keys());
        }
    }
}

impl Drop for Discovered {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn a_node_sees_the_mesh_and_its_own_pods() {
    let site = Site::new().await;
    let mut one = site.discover("tokens/n1", "n1", Mode::Wildcard);
    let mut two = site.discover("tokens/n2", "n2", Mode::Wildcard);
    for (node, own) in [(&mut one, "uid-cart"), (&mut two, "uid-pay")] {
        node.until("all types", |seen| seen.synced.len() == 3).await;
        let seen = node.seen.borrow();
        assert_eq!(seen.names(ADDRESS), ["cart", "pay", "cart.shop.svc.cluster.local"]);
        assert_eq!(seen.names(AUTHORIZATION), ["istio_converted_static_strict"]);
        assert_eq!(seen.names(POD_ENROLMENT), [own], "another node's pods are none of its business");
        assert_eq!(seen.enrol(own), Some(true));
    }
    site.write("manifests/shop.yaml", &SHOP.replace("ambient}", "none}"));
    one.until("the label's removal", |seen| seen.enrol("uid-cart") == Some(false)).await;
    fs::remove_file(site.path("manifests/shop.yaml")).expect("removable");
    one.until("the pods' removal", |seen| {
        seen.names(POD_ENROLMENT).is_empty() && seen.names(ADDRESS).is_empty()
    })
    .await;
}

#[tokio::test]
async fn on_demand_only_what_is_asked_for_comes() {
    let site = Site::new().await;
    let mut node = site.discover("tokens/n1", "n1", Mode::OnDemand);
    node.until("the other types", |seen| seen.synced.len() == 2).await;
    assert!(node.seen.borrow().names(ADDRESS).is_empty());
    node.demand.lookup(ADDRESS, "/10.1.0.1").await.expect("an answer");
    assert_eq!(
        node.seen.borrow().names(ADDRESS),
        ["cart", "cart.shop.svc.cluster.local"],
        "a service and its pods"
    );
    node.demand.lookup(ADDRESS, "/192.0.2.9").await.expect("an answer that there is none");
    assert_eq!(node.seen.borrow().names(ADDRESS).len(), 2);
}

#[tokio::test]
async fn strangers_and_liars_see_nothing() {
    let site = Site::new().await;
    for (token, claimed) in [("stranger", "n1"), ("tokens/n2", "n1")] {
        let node = site.discover(token, claimed, Mode::Wildcard);
        // Beside it, a good client sees all there is; by then the other one would have too.
        let mut good = site.discover("tokens/n1", "n1", Mode::Wildcard);
        good.until("all types", |seen| seen.synced.len() == 3).await;
        assert!(node.seen.borrow().resources.is_empty(), "{token} as {claimed}");
    }
    assert_eq!(site.report("stranger", "n1", &[]).await, Err(Code::Unauthenticated));
}

#[tokio::test]
async fn certificates_only_for_identities_that_live_on_the_node() {
    let site = Site::new().await;
    let hour = Duration::from_secs(3600);
    let carter = "spiffe://cluster.local/ns/shop/sa/carter";
    let payer = "spiffe://cluster.local/ns/shop/sa/payer";
    for (token, identity, refusal) in [
        ("tokens/n1", carter, None),
        ("tokens/n2", payer, None),
        ("tokens/n1", payer, Some(Code::PermissionDenied)),
        ("tokens/n2", carter, Some(Code::PermissionDenied)),
        ("tokens/n1", "spiffe://cluster.local/ns/shop/sa/finisher", Some(Code::PermissionDenied)),
        ("tokens/n1", "spiffe://cluster.local/ns/other/sa/carter", Some(Code::PermissionDenied)),
        ("tokens/n1", "spiffe://elsewhere/ns/shop/sa/carter", Some(Code::PermissionDenied)),
        ("stranger", carter, Some(Code::Unauthenticated)),
    ] {
        match (site.certify(token, identity, hour).await, refusal) {
            (Ok(got), None) => assert_eq!(got.to_string(), identity),
            (Err(CaError::Refused { code, message }), Some(expected)) => {
                assert_eq!(code, expected, "{token} {identity}");
                assert!(!message.contains("sa/"), "the caller learns nothing: {message}");
            }
            (outcome, _) => panic!("{token} {identity}: {outcome:?}"),
        }
    }
    let too_long = site.certify("tokens/n1", carter, Duration::from_secs(3600 * 24 * 365)).await;
    assert!(matches!(too_long, Err(CaError::Refused { code: Code::InvalidArgument, .. })), "{too_long:?}");
    // A pod that comes brings its identity, and one that goes takes it away.
    site.write("manifests/shop.yaml", &SHOP.replace("nodeName: n2", "nodeName: n1"));
    let moved = async {
        while site.certify("tokens/n1", payer, hour).await.is_err() {
            sleep(BETWEEN_LOOKS).await;
        }
    };
    timeout(DEADLINE, moved).await.expect("the new node may soon");
    assert!(site.certify("tokens/n2", payer, hour).await.is_err(), "the old one no more");
}

#[tokio::test]
async fn a_waypoint_speaks_for_itself_and_for_nobody_else() {
    let site = Site::new().await;
    let (token, hour) = ("tokens/shop:wp-1", Duration::from_secs(3600));
    let own = "spiffe://cluster.local/ns/shop/sa/wp";
    let carter = "spiffe://cluster.local/ns/shop/sa/carter";
    site.write(token, "a long and random token of the waypoint");
    let stranger = site.certify(token, own, hour).await;
    assert!(matches!(stranger, Err(CaError::Refused { code: Code::Unauthenticated, .. })), "{stranger:?}");
    site.write("manifests/waypoint.yaml", WAYPOINT);
    let known = async {
        while site.certify(token, own, hour).await.is_err() {
            sleep(BETWEEN_LOOKS).await;
        }
    };
    timeout(DEADLINE, known).await.expect("the pod is a waypoint's now");
    // Nor does its node speak for it.
    for (token, identity) in [(token, carter), ("tokens/n1", own)] {
        let refused = site.certify(token, identity, hour).await;
        let is_denied = matches!(refused, Err(CaError::Refused { code: Code::PermissionDenied, .. }));
        assert!(is_denied, "{token} {identity}: {refused:?}");
    }
    assert_eq!(site.report(token, "n1", &[]).await, Err(Code::PermissionDenied));
    let mut seen = site.discover(token, "", Mode::Wildcard);
    seen.until("itself", |seen| seen.synced.len() == 2 && seen.tunnel("wp-1").is_some()).await;
    assert_eq!(seen.seen.borrow().tunnel("pay"), None, "it guards nothing");
    assert_eq!(seen.seen.borrow().names(POD_ENROLMENT), [""; 0], "those are the node's");
    // Its session ends with its being a waypoint.
    fs::remove_file(site.path("manifests/waypoint.yaml")).expect("removable");
    let refused = async {
        while site.certify(token, own, hour).await.is_ok() {
            sleep(BETWEEN_LOOKS).await;
        }
    };
    timeout(DEADLINE, refused).await.expect("the pod is gone");
}

#[tokio::test]
async fn peers_use_the_tunnel_once_it_is_proven_and_after_a_restart() {
    let mut site = Site::new().await;
    let mut two = site.discover("tokens/n2", "n2", Mode::Wildcard);
    two.until("all types", |seen| seen.synced.len() == 3).await;
    assert_eq!(two.seen.borrow().tunnel("cart"), Some(TunnelProtocol::None));
    site.report("tokens/n1", "n1", &[("uid-cart", State::Pending)]).await.expect("taken");
    // Not its own: ignored for what it is not, taken for what it is.
    site.report("tokens/n1", "n1", &[("uid-cart", State::Enrolled), ("uid-pay", State::Enrolled)])
        .await
        .expect("taken");
    two.until("the tunnel", |seen| seen.tunnel("cart") == Some(TunnelProtocol::Hbone)).await;
    assert_eq!(two.seen.borrow().tunnel("pay"), Some(TunnelProtocol::None));
    assert_eq!(
        site.report("tokens/n1", "n2", &[("uid-pay", State::Enrolled)]).await,
        Err(Code::PermissionDenied)
    );
    drop(two);

    site.stop().await;
    site.start().await;
    let mut two = site.discover("tokens/n2", "n2", Mode::Wildcard);
    two.until("all types", |seen| seen.synced.len() == 3).await;
    let seen = two.seen.borrow().clone();
    assert_eq!(seen.tunnel("cart"), Some(TunnelProtocol::Hbone), "nobody is downgraded");
    assert_eq!(seen.tunnel("pay"), Some(TunnelProtocol::None));
    site.write("manifests/shop.yaml", &SHOP.replace("ambient}", "none}"));
    two.until("plaintext again, at once", |seen| seen.tunnel("cart") == Some(TunnelProtocol::None)).await;
}

#[tokio::test]
async fn a_token_that_is_taken_away_opens_nothing_and_keeps_nothing_open() {
    let site = Site::new().await;
    let mut sessions = [("tokens/n1", "n1"), ("tokens/n2", "n2")]
        .map(|(token, node)| site.discover(token, node, Mode::Wildcard));
    for session in &mut sessions {
        session.until("all types", |seen| seen.synced.len() == 3).await;
    }
    assert_eq!(site.report("tokens/n1", "n1", &[]).await, Ok(()));
    fs::rename(site.path("tokens/n1"), site.path("old-n1")).expect("renamable");
    let refused = async {
        while site.report("old-n1", "n1", &[]).await.is_ok() {
            sleep(BETWEEN_LOOKS).await;
        }
    };
    timeout(DEADLINE, refused).await.expect("within the time that tokens are held");
    assert_eq!(site.report("old-n1", "n1", &[]).await, Err(Code::Unauthenticated));
    let socket = site.path("state/admin.sock");
    let open = async || -> Vec<String> {
        let all: serde_json::Value =
            serde_json::from_str(&admin(&socket, "GET /sessions").await).expect("JSON");
        all.as_array().into_iter().flatten().map(|session| session["node"].to_string()).collect()
    };
    let ended = async {
        while open().await != ["\"n2\""] {
            sleep(BETWEEN_LOOKS).await;
        }
    };
    timeout(DEADLINE, ended).await.expect("its session ends, and no other");
}

#[tokio::test]
async fn a_second_controller_is_kept_out_of_the_state() {
    let mut site = Site::new().await;
    let running = site.running.take();
    let config = {
        let text = |name: &str| site.path(name).display().to_string();
        let (source, state, tokens) = (format!("dir:{}", text("manifests")), text("state"), text("tokens"));
        let vars: BTreeMap<&str, &str> = [
            ("AIRGLOW_SOURCE", source.as_str()),
            ("AIRGLOW_STATE_DIR", &state),
            ("AIRGLOW_JOIN_TOKENS", &tokens),
            ("AIRGLOW_LISTEN", "127.0.0.1:0"),
            ("AIRGLOW_METRICS", "127.0.0.1:0"),
        ]
        .into();
        config::load(&vars).expect("the test's own settings")
    };
    let error = Controller::start(config, None).await.err().expect("the state is in use");
    assert!(format!("{error:#}").contains("another process uses"), "{error:#}");
    site.running = running;
    site.stop().await;
}

/// One request on the admin socket; the body of the answer.
async fn admin(socket: &Path, request: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::UnixStream::connect(socket).await.expect("the admin socket");
    let head = format!("{request} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("writable");
    let mut answer = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut answer)).await.expect("in time").expect("readable");
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).expect("a whole answer")
}

#[tokio::test]
async fn the_admin_socket_tells_and_rotates() {
    let site = Site::new().await;
    let socket = site.path("state/admin.sock");
    let mut node = site.discover("tokens/n1", "n1", Mode::Wildcard);
    node.until("all types", |seen| seen.synced.len() == 3).await;
    site.report("tokens/n1", "n1", &[("uid-cart", State::Enrolled)]).await.expect("taken");
    let get = async |path: &str| -> serde_json::Value {
        serde_json::from_str(&admin(&socket, &format!("GET {path}")).await).expect("JSON")
    };
    assert_eq!(get("/objects").await["counts"]["Pod"], 3);
    let enrolments = get("/enrolments").await;
    assert_eq!((&enrolments[0]["pod"], &enrolments[0]["proven"]), (&"cart".into(), &true.into()));
    let sessions = get("/sessions").await;
    assert_eq!(sessions[0]["node"], "n1");

    site.write("manifests/bad.yaml", "kind: [");
    let told = async {
        while get("/findings").await["files"].as_array().is_none_or(Vec::is_empty) {
            sleep(BETWEEN_LOOKS).await;
        }
    };
    timeout(DEADLINE, told).await.expect("the mistake is told");
    assert_eq!(get("/findings").await["files"][0]["line"], 1);

    let before = fs::read_to_string(site.path("state/roots.pem")).expect("the roots");
    let rotated: serde_json::Value =
        serde_json::from_str(&admin(&socket, "POST /rotate-root").await).expect("JSON");
    assert_eq!(rotated["count"], 2, "both are trusted");
    let after = fs::read_to_string(site.path("state/roots.pem")).expect("the roots");
    assert!(
        after.starts_with(&before) && after.len() > before.len(),
        "the old one signs, the new one is known"
    );
    assert!(admin(&socket, "POST /rotate-root").await.contains("under way"));
    admin(&socket, "POST /activate-root").await;
    // A client that only knows the published roots still gets in, and so does one that was there before.
    let carter = "spiffe://cluster.local/ns/shop/sa/carter";
    assert!(site.certify("tokens/n1", carter, Duration::from_secs(60)).await.is_ok());
}
