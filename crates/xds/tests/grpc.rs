//! Client and server over a real gRPC connection on loopback: what the cores decide really happens.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost_types::Any;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic::transport::{Endpoint, server};
use xds::backoff::Backoff;
use xds::client::{ClientStatus, Config};
use xds::server::{Caller, SessionStatus};
use xds::server_core::{Step, View};
use xds::{
    Client, Connection, Connector, Demand, DemandError, Mode, Node, Provider, Rejection, Resource, Resources,
    Server, Sink, Subscription,
};

/// Everything, for everyone.
const ALL: &str = "all";
/// On demand, and only what is of the asking node.
const NAMED: &str = "named";

const STEPS: [Step; 2] = [Step::whole(ALL), Step::whole(NAMED)];

/// Far longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(20);

/// Content that the sink refuses.
const BAD: u8 = 0xff;

fn resource(name: &str, content: u8) -> Resource {
    let body = Any { type_url: "t".to_owned(), value: vec![content] };
    Resource::new(name.to_owned(), vec![format!("alias/{name}")], body)
}

/// Resources that a test can change; names of `NAMED` begin with the node that may see them.
#[derive(Clone)]
struct World {
    resources: Arc<Mutex<BTreeMap<String, Resources>>>,
    changes: watch::Sender<u64>,
}

impl World {
    fn new() -> Self {
        Self { resources: Arc::default(), changes: watch::Sender::new(0) }
    }

    fn change(&self, kind: &str, change: impl FnOnce(&mut Resources)) {
        change(self.resources.lock().expect("no panic").entry(kind.to_owned()).or_default());
        self.changes.send_modify(|change| *change += 1);
    }
}

impl Provider for World {
    type Session = String;
    type View = Seen;

    fn open(&self, node: &Node, caller: &Caller) -> Result<String, Status> {
        match caller.metadata.get("authorization").and_then(|value| value.to_str().ok()) {
            Some("Bearer right") => Ok(node.id.clone()),
            _ => Err(Status::unauthenticated("no such token")),
        }
    }

    fn steps(&self, _: &String) -> &'static [Step] {
        &STEPS
    }

    fn view(&self, node: &String) -> Seen {
        Seen { node: node.clone(), resources: self.resources.lock().expect("no panic").clone() }
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// What a node may see at one moment.
struct Seen {
    node: String,
    resources: BTreeMap<String, Resources>,
}

impl View for Seen {
    fn snapshot(&self, type_url: &str) -> Resources {
        assert_eq!(type_url, ALL);
        self.resources.get(type_url).cloned().unwrap_or_default()
    }

    fn lookup(&self, type_url: &str, key: &str) -> Vec<Arc<Resource>> {
        let all = self.resources.get(type_url);
        let found = all.and_then(|all| all.get(key.strip_prefix("alias/").unwrap_or(key)));
        found.filter(|resource| resource.name.starts_with(&self.node)).cloned().into_iter().collect()
    }
}

/// A server that can be killed: its runtime, with every connection, goes with it.
struct Process {
    runtime: Option<Runtime>,
    server: Server<World>,
    addr: SocketAddr,
}

impl Process {
    async fn start(world: &World, addr: SocketAddr) -> Self {
        let server = Server::new(world.clone());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let service = server.service();
        let bound = runtime.spawn(async move {
            let listener = TcpListener::bind(addr).await.expect("loopback");
            let addr = listener.local_addr().expect("bound");
            let router = server::Server::builder().add_service(service);
            tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
            addr
        });
        let addr = bound.await.expect("no panic");
        Self { runtime: Some(runtime), server, addr }
    }

    /// Waits until the sessions are as `condition` wants them.
    async fn until(&self, what: &str, condition: impl Fn(&[SessionStatus]) -> bool) {
        let wait = async {
            while !condition(&self.server.sessions()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{what}: {:?}", self.server.sessions()));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.runtime.take().expect("taken once").shutdown_background();
    }
}

struct Dial {
    addr: SocketAddr,
    tokens: Vec<&'static str>,
}

impl Connector for Dial {
    async fn connect(&mut self) -> Result<Connection, Box<dyn Error + Send + Sync>> {
        let channel = Endpoint::from_shared(format!("http://{}", self.addr))?.connect().await?;
        let token = if self.tokens.len() > 1 { self.tokens.remove(0) } else { self.tokens[0] };
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", format!("Bearer {token}").parse()?);
        Ok(Connection { channel, metadata })
    }
}

/// What a client's process has, for a test to watch.
#[derive(Clone, Debug, Default)]
struct Store {
    held: BTreeMap<String, u8>,
    synced: bool,
    /// How often anything was delivered.
    deliveries: usize,
}

struct Watched(watch::Sender<Store>);

impl Sink for Watched {
    fn apply(&mut self, _: &str, added: Vec<Resource>, removed: Vec<String>) -> Vec<Rejection> {
        let mut rejections = Vec::new();
        self.0.send_modify(|store| {
            store.deliveries += added.len() + removed.len();
            for name in removed {
                store.held.remove(&name);
            }
            for Resource { name, body, .. } in added {
                if body.value[0] == BAD {
                    rejections.push(Rejection { name, reason: "bad".to_owned() });
                } else {
                    store.held.insert(name, body.value[0]);
                }
            }
        });
        rejections
    }

    fn synced(&mut self, type_url: &str) {
        assert_eq!(type_url, ALL);
        self.0.send_modify(|store| store.synced = true);
    }
}

struct Watcher {
    store: watch::Receiver<Store>,
    status: watch::Receiver<ClientStatus>,
    demand: Demand,
    task: tokio::task::JoinHandle<()>,
}

impl Watcher {
    fn start(addr: SocketAddr, tokens: &[&'static str]) -> Self {
        let subscriptions = vec![
            Subscription { type_url: ALL, mode: Mode::Wildcard },
            Subscription { type_url: NAMED, mode: Mode::OnDemand },
        ];
        let node = Node { id: "n1".to_owned(), metadata: BTreeMap::new() };
        let backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(50));
        let config = Config { backoff, ..Config::new(node, subscriptions) };
        let store = watch::Sender::default();
        let watched = store.subscribe();
        let (client, demand) = Client::new(config, Dial { addr, tokens: tokens.to_vec() }, Watched(store));
        let status = client.status();
        Self { store: watched, status, demand, task: tokio::spawn(client.run()) }
    }

    async fn until(&mut self, what: &str, condition: impl FnMut(&Store) -> bool) -> Store {
        let wait = timeout(DEADLINE, self.store.wait_for(condition)).await;
        wait.unwrap_or_else(|_| panic!("{what}")).expect("the client runs").clone()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().expect("a literal")
}

#[tokio::test]
async fn changes_arrive_and_are_acknowledged() {
    let world = World::new();
    world.change(ALL, |all| all.insert(resource("a", 1)));
    let process = Process::start(&world, loopback()).await;
    let mut client = Watcher::start(process.addr, &["right"]);
    client.until("synced", |store| store.synced && store.held.contains_key("a")).await;

    world.change(ALL, |all| {
        all.remove("a");
        all.insert(resource("b", 2));
        all.insert(resource("c", BAD));
    });
    client.until("the change", |store| store.held == [("b".to_owned(), 2)].into()).await;
    let knows = |sessions: &[SessionStatus]| {
        sessions.iter().flat_map(|session| &session.types).any(|kind| {
            kind.acknowledged("b").is_some() && kind.acknowledged("c").is_none() && kind.nacks == 1
        })
    };
    process.until("b is acknowledged and c refused", knows).await;
    let sessions = process.server.sessions();
    assert_eq!(sessions[0].node.id, "n1");
    assert_eq!(sessions[0].last_nack().map(|nack| nack.message.as_str()), Some("c: bad"));

    drop(client);
    process.until("the session is gone with its client", <[_]>::is_empty).await;
}

#[tokio::test]
async fn lookups_are_answered_within_what_the_node_may_see() {
    let world = World::new();
    world.change(NAMED, |all| all.extend([resource("n1/a", 1), resource("n2/a", 1)]));
    let process = Process::start(&world, loopback()).await;
    let client = Watcher::start(process.addr, &["right"]);
    let lookups: Vec<_> = (0..10)
        .map(|_| {
            let demand = client.demand.clone();
            tokio::spawn(async move { demand.lookup(NAMED, "alias/n1/a").await })
        })
        .collect();
    for lookup in lookups {
        assert_eq!(lookup.await.expect("no panic"), Ok(()));
    }
    assert_eq!(client.demand.lookup(NAMED, "n2/a").await, Ok(()));
    let names: BTreeSet<String> = client.store.borrow().held.keys().cloned().collect();
    assert_eq!(names, ["n1/a".to_owned()].into(), "another node's is not there");
    assert_eq!(client.demand.lookup("newer", "x").await, Err(DemandError::Unavailable));
}

#[tokio::test]
async fn a_restarted_server_is_found_again_and_sends_only_what_changed() {
    let world = World::new();
    world.change(ALL, |all| all.extend((0..100).map(|i| resource(&format!("r{i}"), 1))));
    let process = Process::start(&world, loopback()).await;
    let addr = process.addr;
    let mut client = Watcher::start(addr, &["right"]);
    let before = client.until("synced", |store| store.synced).await;
    assert_eq!((before.held.len(), before.deliveries), (100, 100));

    drop(process);
    timeout(DEADLINE, client.status.wait_for(|status| !status.connected))
        .await
        .expect("noticed")
        .expect("runs");
    assert_eq!(client.store.borrow().held.len(), 100, "what is known stays in use");
    world.change(ALL, |all| {
        all.remove("r0");
        all.insert(resource("r1", 2));
    });
    let _process = Process::start(&world, addr).await;
    let after = client.until("the change", |store| store.held.get("r1") == Some(&2)).await;
    assert_eq!((after.held.len(), after.deliveries), (99, 102));
    let status = client.status.borrow().clone();
    assert!(status.connected && status.sessions == 2, "{status:?}");
}

#[tokio::test]
async fn a_client_that_is_turned_away_tries_again_with_a_fresh_token() {
    let world = World::new();
    let process = Process::start(&world, loopback()).await;
    let mut client = Watcher::start(process.addr, &["wrong", "stale", "right"]);
    client.until("synced with the third token", |store| store.synced).await;
}

#[tokio::test]
async fn a_large_mesh_comes_in_parts_and_is_complete_when_it_counts() {
    const RESOURCES: usize = 3000;
    let world = World::new();
    world.change(ALL, |all| {
        let big = |i| {
            let body = Any { type_url: "t".to_owned(), value: vec![1; 4096] };
            Resource::new(format!("r{i}"), Vec::new(), body)
        };
        all.extend((0..RESOURCES).map(big));
    });
    let process = Process::start(&world, loopback()).await;
    let mut client = Watcher::start(process.addr, &["right"]);
    let store = client.until("synced", |store| store.synced).await;
    assert_eq!(store.held.len(), RESOURCES);
    let responses = client.status.wait_for(|status| status.responses >= 3).await.expect("runs").responses;
    assert_eq!(responses, 3, "12 MiB in parts of at most 4 MiB");
}

#[tokio::test]
async fn a_lookup_without_a_control_plane_ends() {
    // Bound and never accepted from: it neither refuses nor answers.
    let listener = TcpListener::bind(loopback()).await.expect("loopback");
    let node = Node { id: "n1".to_owned(), metadata: BTreeMap::new() };
    let subscriptions = vec![Subscription { type_url: NAMED, mode: Mode::OnDemand }];
    let demand_timeout = Duration::from_millis(20);
    let config = Config { demand_timeout, ..Config::new(node, subscriptions) };
    let dial = Dial { addr: listener.local_addr().expect("bound"), tokens: vec!["right"] };
    let (client, demand) = Client::new(config, dial, Watched(watch::Sender::default()));
    let task = tokio::spawn(client.run());
    assert_eq!(demand.lookup(NAMED, "a").await, Err(DemandError::Timeout));
    task.abort();
    assert!(task.await.expect_err("aborted").is_cancelled());
    assert_eq!(demand.lookup(NAMED, "a").await, Err(DemandError::Unavailable));
}
