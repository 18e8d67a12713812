//! Whole streams between real tunnels on loopback addresses: a client's node, this waypoint, and endpoints' nodes that echo.

mod backend_tls;
mod calls;
mod connections;
mod mirrors;
mod revoked;
mod routes;
mod telemetry;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use daemon::access::AccessLog;
use daemon::drain::Drain;
use daemon::logs::Format;
use daemon::metrics::Metrics;
use hbone::{
    ClientLimits, ClientTls, Connect, Incoming, OpenError, Opener, Reason, Received, ServerLimits, Stream,
    StreamError,
};
use http::{HeaderMap, StatusCode};
use identity::authority::{Authority, AuthorityConfig};
use identity::{BoxFuture, Ca, CaError, Certificate, Certificates, CertificatesConfig, Signed, SystemClock};
use model::address::ClientAddr;
use model::identity::Identity;
use model::policy::{Action, Clause, Match, Policy, PolicyName, PolicyScope, Rule, StringMatch};
use model::store::{Mesh, Update};
use parking_lot::Mutex;
use proxy::headers;
use proxy::mesh::{MeshState, MeshWriter};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::budgets::Budgets;
use super::downstream::{Clients, Door, Past, Tunnels};
use super::requests::mirror;
use super::requests::revoked::follow;
use super::{Context, Shared};
use crate::balance::Registry;
use crate::config::Own;
use crate::made;
use crate::rules::{Book, Rules};
use crate::spans::{self, Tracer};
use crate::telemetry::Telemetry;
use crate::watched::{Board, Watched};

/// What takes longer will not come.
const IN_VAIN: Duration = Duration::from_secs(120);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(IN_VAIN, future)
        .await
        .unwrap_or_else(|_| panic!("waited {IN_VAIN:?} in vain: {what}"))
}

/// Certifies whoever asks.
struct Anybody(Authority);

impl Ca for Anybody {
    fn sign<'a>(
        &'a self,
        identity: &'a Identity,
        csr: String,
        _: Duration,
    ) -> BoxFuture<'a, Result<Signed, CaError>> {
        Box::pin(async move { Ok(self.0.sign(&csr, identity, None).expect("the authority signs")) })
    }
}

/// What the access log was told.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A waypoint `waypoint-0` and what it knows. Each test has loopback addresses of its own.
struct World {
    certificates: Certificates,
    writer: MeshWriter,
    policies: watch::Sender<u64>,
    rules: Rules,
    book: Arc<ArcSwap<Book>>,
    drain: Drain,
    budgets: Arc<Budgets>,
    address: SocketAddr,
    metrics: Metrics,
    access: AccessLog,
    lines: Lines,
    board: Arc<Board>,
    _state: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        Self::traced(None).await
    }

    /// One that tells spans as these settings say.
    async fn traced(spans: Option<spans::Settings>) -> Self {
        let state = tempfile::tempdir().unwrap();
        let config = AuthorityConfig::new("cluster.local");
        let authority = Authority::open_or_create(state.path(), config, Arc::new(SystemClock)).unwrap();
        let ca = Arc::new(Anybody(authority));
        let (certificates, driver) =
            Certificates::new(ca, CertificatesConfig::default(), Arc::new(SystemClock));
        tokio::spawn(driver.run());
        let own = made::pod("waypoint-0", "waypoint", "127.0.0.1", "waypoint");
        let (mesh, mut writer) = MeshState::new(Mesh::default());
        writer
            .apply([Update::Workload(own.clone()), Update::Service(made::service("web", "10.96.0.1", true))]);
        certificates.want(own.identity.clone());
        let drain = Drain::new();
        let (policies, watched) = watch::channel(0);
        let book = Arc::new(ArcSwap::from_pointee(Book::default()));
        let (metrics, lines) = (Metrics::new(), Lines::default());
        let access = AccessLog::start(Format::Json, lines.clone()).unwrap();
        let budgets = Arc::new(Budgets::default());
        let own = Own { identity: own.identity, workload: own.uid };
        let tracer = spans.map(|settings| tracer(&settings, &own, &metrics));
        let (requests, board, told) = Watched::new();
        tokio::spawn(Arc::clone(&board).run(told));
        let shared = Shared {
            own,
            mesh,
            clients: Clients::new(MeshState::new(Mesh::default()).0, made::nobody().1),
            past: Past::default(),
            book: Arc::clone(&book),
            certificates: certificates.clone(),
            watched: requests,
            telemetry: Telemetry::new(&metrics, access.clone(), tracer),
            mirrors: mirror::Counts::register(&metrics),
            policies: watched,
            endpoints: Registry::default(),
            budgets: Arc::clone(&budgets),
            drain: drain.watch(),
            epoch: Instant::now(),
        };
        let context = Arc::new(Context::new(Arc::new(shared)));
        let address = listen(context).await;
        let rules = Rules::new(("shop".into(), "waypoint".into()));
        Self {
            certificates,
            writer,
            policies,
            rules,
            book,
            drain,
            budgets,
            address,
            metrics,
            access,
            lines,
            board,
            _state: state,
        }
    }

    async fn certificate(&self, account: &str) -> Arc<Certificate> {
        let identity = made::identity(account);
        self.certificates.want(identity.clone());
        soon("a certificate", self.certificates.get(&identity)).await.unwrap()
    }

    /// A pod at a loopback address that backs `web`.
    fn endpoint(&mut self, name: &str, address: &str) {
        self.writer.apply([Update::Workload(made::pod(name, "server", address, "web"))]);
    }

    /// An endpoint's node, which hands what is asked for in any tunnel to `take`.
    async fn takes(&self, address: &str, take: impl Fn(Incoming) + Clone + Send + 'static) {
        let certificate = self.certificate("server").await;
        let listener = TcpListener::bind(format!("{address}:15008")).await.unwrap();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let config = certificate.server_config();
                let (mut tunnel, _) = hbone::accept(tcp, config, &ServerLimits::default()).await.unwrap();
                let take = take.clone();
                tokio::spawn(async move {
                    while let Some(Ok(incoming)) = tunnel.next().await {
                        take(incoming);
                    }
                });
            }
        });
    }

    /// One that says what it is asked for, and echoes.
    async fn node(&self, address: &str) -> mpsc::Receiver<(String, HeaderMap)> {
        let (tell, told) = mpsc::channel(8);
        let take = move |incoming: Incoming| {
            let asked = (incoming.authority.to_string(), incoming.headers.clone());
            let _ = tell.try_send(asked);
            tokio::spawn(echo(incoming.accept(HeaderMap::new()).unwrap()));
        };
        self.takes(address, take).await;
        told
    }

    /// A tunnel from the node of a client that runs as `account`.
    async fn client(&self, account: &str) -> Opener {
        self.tunnel(account, TcpStream::connect(self.address).await.unwrap()).await
    }

    async fn tunnel(&self, account: &str, tcp: TcpStream) -> Opener {
        let certificate = self.certificate(account).await;
        let tls = ClientTls { config: certificate.client_config(), server_name: self.address.ip().into() };
        let (opener, driver, _) = hbone::connect(tcp, tls, &ClientLimits::default()).await.unwrap();
        tokio::spawn(driver);
        opener
    }

    fn policy(&mut self, update: Update) {
        self.writer.apply([update]);
        self.policies.send_modify(|version| *version += 1);
    }
}

/// One whose spans are sent.
fn tracer(settings: &spans::Settings, own: &Own, metrics: &Metrics) -> Tracer {
    let (tracer, exporter) = Tracer::new(settings, own, metrics).unwrap();
    tokio::spawn(exporter.run());
    tracer
}

/// Serves tunnels; where.
async fn listen(context: Arc<Context>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(follow(Arc::clone(&context)));
    tokio::spawn(async move {
        loop {
            let (tcp, client) = listener.accept().await.unwrap();
            tokio::spawn(Tunnels.serve(Arc::clone(&context), tcp, client));
        }
    });
    address
}

async fn echo(mut stream: Stream) {
    while let Ok(Some(bytes)) = recv(&mut stream).await {
        if stream.send(bytes).is_err() {
            return;
        }
    }
    let _ = stream.finish();
}

/// What has arrived, or `None` at the end.
async fn recv(stream: &mut Stream) -> Result<Option<Bytes>, StreamError> {
    let mut batch = Vec::new();
    match std::future::poll_fn(|cx| stream.poll_recv(cx, &mut batch)).await? {
        Received::Data(count) => {
            stream.consumed(count);
            Ok(Some(batch.concat().into()))
        }
        Received::End => Ok(None),
    }
}

async fn open(client: &Opener, authority: &str) -> Result<Stream, OpenError> {
    let headers = headers::request(None, ClientAddr("127.0.0.1:4711".parse().unwrap()), None);
    let connect = Connect { authority: authority.to_owned(), headers, early: Bytes::new() };
    soon("an answer", client.open(connect)).await
}

async fn echoes(stream: &mut Stream) {
    stream.send(Bytes::from_static(b"hello")).unwrap();
    assert_eq!(soon("the echo", recv(stream)).await.unwrap().unwrap(), "hello");
}

fn status(opened: Result<Stream, OpenError>) -> StatusCode {
    match opened {
        Err(OpenError::Refused(status)) => status,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_stream_reaches_an_endpoint_that_learns_who_the_client_is() {
    let mut world = World::new().await;
    world.writer.apply([Update::Workload(made::pod("client", "client", "127.0.0.1", "none"))]);
    world.endpoint("one", "127.7.1.1");
    let mut node = world.node("127.7.1.1").await;
    let client = world.client("client").await;
    for authority in ["10.96.0.1:80", "web.shop.svc.cluster.local:80"] {
        let mut stream = open(&client, authority).await.unwrap();
        echoes(&mut stream).await;
        let (asked, headers) = soon("the request", node.recv()).await.unwrap();
        assert_eq!(asked, "127.7.1.1:8080");
        assert_eq!(headers["forwarded"], "for=\"127.0.0.1:4711\";host=web.shop.svc.cluster.local");
        stream.finish().unwrap();
        assert_eq!(soon("the end", recv(&mut stream)).await, Ok(None));
    }
}

#[tokio::test]
async fn what_is_not_guarded_is_not_carried() {
    let mut world = World::new().await;
    world.writer.apply([
        Update::Service(made::service("other", "10.96.0.2", false)),
        Update::Workload(made::pod("plain", "plain", "127.7.2.1", "other")),
    ]);
    let client = world.client("client").await;
    for authority in ["10.96.0.2:80", "127.7.2.1:8080", "127.0.0.1:15008", "10.96.0.1:81", "nobody:80"] {
        assert_eq!(status(open(&client, authority).await), StatusCode::BAD_REQUEST, "{authority}");
    }
    let nowhere = open(&client, "10.96.0.1:80").await;
    assert_eq!(status(nowhere), StatusCode::SERVICE_UNAVAILABLE, "guarded, and without an endpoint");
}

#[tokio::test]
async fn an_endpoint_that_is_gone_is_not_the_clients_trouble() {
    let mut world = World::new().await;
    world.endpoint("gone", "127.7.3.1");
    world.endpoint("there", "127.7.3.2");
    let _node = world.node("127.7.3.2").await;
    let client = world.client("client").await;
    for _ in 0..20 {
        echoes(&mut open(&client, "10.96.0.1:80").await.unwrap()).await;
    }
    world.writer.apply([Update::WorkloadRemoved(made::pod("there", "server", "127.7.3.2", "web").uid)]);
    assert_eq!(status(open(&client, "10.96.0.1:80").await), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn somebody_else_at_the_endpoints_address_gets_nothing() {
    let mut world = World::new().await;
    // Discovery says that a `bank` answers there; a `server` does.
    world.writer.apply([Update::Workload(made::pod("bank", "bank", "127.7.4.1", "web"))]);
    let _node = world.node("127.7.4.1").await;
    let client = world.client("client").await;
    assert_eq!(status(open(&client, "10.96.0.1:80").await), StatusCode::SERVICE_UNAVAILABLE);
}

/// Of the endpoints' namespace, on the principal of `account`.
fn policy(name: &str, action: Action, account: &str) -> Policy {
    let principals = vec![StringMatch::Exact(made::identity(account).principal().into())];
    let clause = Clause { matches: vec![Match { principals, ..Match::default() }] };
    Policy {
        id: PolicyName { namespace: "shop".into(), name: name.into() },
        scope: PolicyScope::Namespace,
        action,
        rules: vec![Rule { clauses: vec![clause] }],
        dry_run: false,
    }
}

#[tokio::test]
async fn a_client_that_is_denied_is_denied_here_too_and_at_once() {
    let mut world = World::new().await;
    world.endpoint("one", "127.7.5.1");
    let _node = world.node("127.7.5.1").await;
    let (client, other) = (world.client("client").await, world.client("other").await);
    // The endpoint's node judges this one, by the waypoint's identity.
    world.policy(Update::Policy(policy("waypoint-only", Action::Allow, "waypoint")));
    let mut stream = open(&client, "10.96.0.1:80").await.unwrap();
    let mut others = open(&other, "10.96.0.1:80").await.unwrap();
    echoes(&mut stream).await;
    let denial = policy("no-client", Action::Deny, "client");
    world.policy(Update::Policy(denial.clone()));
    let cut = soon("the cut", recv(&mut stream)).await;
    assert!(matches!(cut, Err(StreamError::Reset(Reason::CONNECT_ERROR))), "{cut:?}");
    assert_eq!(status(open(&client, "10.96.0.1:80").await), StatusCode::UNAUTHORIZED);
    echoes(&mut others).await;
    world.policy(Update::PolicyRemoved(denial.id));
    echoes(&mut open(&client, "10.96.0.1:80").await.unwrap()).await;
}

/// A node that takes streams and reads none of them.
async fn deaf(world: &World, address: &str) {
    let certificate = world.certificate("server").await;
    let listener = TcpListener::bind(format!("{address}:15008")).await.unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let config = certificate.server_config();
            let (mut tunnel, _) = hbone::accept(tcp, config, &ServerLimits::default()).await.unwrap();
            let (tell, mut told) = mpsc::channel(1);
            held.push(tell);
            tokio::spawn(async move {
                let mut streams = Vec::new();
                loop {
                    tokio::select! {
                        Some(Ok(incoming)) = tunnel.next() => streams.push(incoming.accept(HeaderMap::new()).unwrap()),
                        None::<()> = told.recv() => return,
                    }
                }
            });
        }
    });
}

#[tokio::test]
async fn what_one_client_may_hold_is_bounded_and_not_the_others_trouble() {
    const STREAMS: usize = 64;
    let mut world = World::new().await;
    world.endpoint("deaf", "127.7.8.1");
    deaf(&world, "127.7.8.1").await;
    let tunnels = [world.client("client").await, world.client("client").await];
    let mut streams = Vec::new();
    for index in 0..STREAMS {
        streams.push(open(&tunnels[index % 2], "web.shop.svc.cluster.local:80").await.unwrap());
    }
    let piece = Bytes::from(vec![b'x'; 64 << 10]);
    let pushing = streams.into_iter().map(|mut stream| {
        let piece = piece.clone();
        tokio::spawn(async move {
            while let Ok(room) = std::future::poll_fn(|cx| stream.poll_capacity(cx, piece.len())).await {
                if stream.send(piece.slice(..room)).is_err() {
                    break;
                }
            }
        })
    });
    let pushing: Vec<_> = pushing.collect();
    let ip = world.address.ip();
    // Windows shrink with each quarter that is used, so this is what there is to see of many streams that are all stalled.
    soon("a hoard", async {
        while world.budgets.held(ip) < 8 << 20 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    world.writer.apply([Update::WorkloadRemoved(made::pod("deaf", "server", "127.7.8.1", "web").uid)]);
    world.endpoint("echoing", "127.7.8.2");
    let _node = world.node("127.7.8.2").await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.7.8.3:0".parse().unwrap()).unwrap();
    let other = world.tunnel("other", socket.connect(world.address).await.unwrap()).await;
    for _ in 0..20 {
        let mut stream = open(&other, "web.shop.svc.cluster.local:80").await.unwrap();
        echoes(&mut stream).await;
        let held = world.budgets.held(ip);
        assert!(held <= 33 << 20, "{held} bytes are held for one client in two tunnels");
    }
    assert_eq!(world.budgets.held("127.7.8.3".parse().unwrap()), 0);
    pushing.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn answers_that_nobody_reads_are_counted_where_they_are_held() {
    let mut world = World::new().await;
    world.endpoint("talker", "127.7.8.4");
    let talk = |incoming: Incoming| {
        tokio::spawn(async move {
            let mut stream = incoming.accept(HeaderMap::new()).unwrap();
            let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";
            let mut sent = stream.send(Bytes::from_static(head.as_bytes()));
            let piece = Bytes::from(vec![b'x'; 64 << 10]);
            while sent.is_ok() {
                let room = std::future::poll_fn(|cx| stream.poll_capacity(cx, piece.len())).await;
                sent = room.and_then(|room| stream.send(piece.slice(..room)));
            }
        });
    };
    world.takes("127.7.8.4", talk).await;
    let client = world.client("client").await;
    let mut streams = Vec::new();
    for _ in 0..32 {
        let mut stream = open(&client, "web.shop.svc.cluster.local:80").await.unwrap();
        stream.send(Bytes::from_static(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n")).unwrap();
        streams.push(stream);
    }
    soon("a hoard", async {
        while world.budgets.held_of_endpoints() < 4 << 20 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    drop(streams);
    soon("its end", async {
        while world.budgets.held_of_endpoints() > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_drain_lets_streams_end_and_takes_no_new_ones() {
    let mut world = World::new().await;
    world.endpoint("one", "127.7.6.1");
    let _node = world.node("127.7.6.1").await;
    let client = world.client("client").await;
    let mut stream = open(&client, "10.96.0.1:80").await.unwrap();
    echoes(&mut stream).await;
    world.drain.begin(IN_VAIN);
    soon("the farewell", async {
        while !client.is_closing() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    echoes(&mut stream).await;
    stream.finish().unwrap();
    assert_eq!(soon("the end", recv(&mut stream)).await, Ok(None));
    drop((stream, client));
    let outcome = soon("the end of the drain", world.drain.finished()).await;
    assert_eq!(outcome, daemon::drain::Outcome::Empty);
}
