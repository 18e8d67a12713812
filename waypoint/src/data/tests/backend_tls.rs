//! Endpoints that are spoken to in TLS of ours: real servers, inside the mesh and outside, and what reaches them.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use model::l7::{
    BackendTarget, BackendTls, Filter, Fraction, Mirror, PortTls, Roots, RouteKind, ServerTls, SubjectName,
};
use model::workload::TunnelProtocol;
use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio_rustls::TlsAcceptor;

use super::calls::{Says, Seen, method, serve};
use super::*;
use crate::data::tunnel_io::TunnelIo;
use crate::rules::Change;

type Issuer = CertifiedIssuer<'static, KeyPair>;

const NAME: &str = "web.example.com";

fn ca() -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn acceptor(ca: &Issuer) -> TlsAcceptor {
    speaking(ca, &[])
}

/// Of a server that speaks these protocols; any, where there are none.
fn speaking(ca: &Issuer, protocols: &[&[u8]]) -> TlsAcceptor {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::URI(Ia5String::try_from("spiffe://elsewhere/web").unwrap()));
    let certificate = params.signed_by(&key, ca).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.into()], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// What a server has met.
#[derive(Debug, PartialEq)]
enum Met {
    /// A handshake that succeeded, for this name.
    Tls(Option<String>),
    /// A line inside.
    Line(String),
    /// What is no TLS, or breaks it off.
    NoTls,
}

/// A server outside the mesh on port 8080 of an address. It answers each head with a response, and lines that ask for an echo with
/// themselves.
async fn server(address: &str, acceptor: TlsAcceptor) -> mpsc::Receiver<Met> {
    let listener = TcpListener::bind(format!("{address}:8080")).await.unwrap();
    let (tell, met) = mpsc::channel(256);
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (acceptor, tell) = (acceptor.clone(), tell.clone());
            tokio::spawn(async move {
                match acceptor.accept(tcp).await {
                    Ok(tls) => {
                        let _ = tell.try_send(Met::Tls(tls.get_ref().1.server_name().map(str::to_owned)));
                        talk(tls, &tell).await;
                    }
                    Err(_) => drop(tell.try_send(Met::NoTls)),
                }
            });
        }
    });
    met
}

async fn talk(tls: tokio_rustls::server::TlsStream<TcpStream>, tell: &mpsc::Sender<Met>) {
    let mut tls = BufReader::new(tls);
    let mut line = String::new();
    let (mut upgrades, mut is_last) = (false, false);
    while tls.read_line(&mut line).await.is_ok_and(|count| count > 0) {
        let said = std::mem::take(&mut line);
        upgrades |= said.starts_with("upgrade: ");
        is_last |= said == "connection: close\r\n";
        let answer = match said.as_str() {
            "\r\n" if upgrades => {
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
            }
            "\r\n" => "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            said if said.starts_with("echo") => said,
            _ => "",
        };
        if tls.write_all(answer.as_bytes()).await.is_err() || tls.flush().await.is_err() {
            return;
        }
        let ends = is_last && said == "\r\n";
        let _ = tell.try_send(Met::Line(said));
        if ends {
            break;
        }
    }
    // An end that is not said so is a connection that broke.
    let _ = tls.shutdown().await;
}

fn wanted(ca: &Issuer) -> ServerTls {
    ServerTls { hostname: NAME.into(), names: Vec::new(), roots: Roots::Pem(ca.pem().into()) }
}

impl World {
    /// A pod of no mesh that backs `web`.
    fn outsider(&mut self, address: &str) {
        self.outsider_of("web", address);
    }

    fn outsider_of(&mut self, service: &str, address: &str) {
        let workload = made::pod(&format!("outside-{service}"), "server", address, service);
        self.writer.apply([Update::Workload(model::workload::Workload {
            tunnel: TunnelProtocol::None,
            ..workload
        })]);
    }

    fn tls(&mut self, tls: PortTls) {
        self.tls_of("web", tls);
    }

    fn tls_of(&mut self, service: &str, tls: PortTls) {
        let tls = BackendTls { service: made::service_name(service), ports: BTreeMap::from([(80, tls)]) };
        self.follow([Change::BackendTls(tls)]);
    }
}

async fn get(world: &World) -> u16 {
    world.http("client").await.get("/").await.status
}

#[tokio::test]
async fn requests_are_sent_in_tls_to_who_proves_the_name() {
    let mut world = World::new().await;
    let (ca, other) = (ca(), ca());
    world.outsider("127.7.94.1");
    let mut met = server("127.7.94.1", acceptor(&ca)).await;
    world.rule(made::rule(0, "/", &[("web", 1)]));
    world.tls(PortTls::Tls(wanted(&ca)));
    assert_eq!(get(&world).await, 200);
    assert_eq!(met.recv().await, Some(Met::Tls(Some(NAME.to_owned()))));
    assert_eq!(met.recv().await, Some(Met::Line("GET / HTTP/1.1\r\n".to_owned())));
    let uri = |uri: &str| vec![SubjectName::Uri(uri.into())];
    for (tls, status) in [
        (ServerTls { names: uri("spiffe://elsewhere/web"), ..wanted(&ca) }, 200),
        (ServerTls { names: uri("spiffe://elsewhere/db"), ..wanted(&ca) }, 503),
        (ServerTls { hostname: "db.example.com".into(), ..wanted(&ca) }, 503),
        (wanted(&other), 503),
        (wanted(&ca), 200),
    ] {
        let what = format!("{tls:?}");
        world.tls(PortTls::Tls(tls));
        // The connection of the version before is kept, and not used.
        assert_eq!(get(&world).await, status, "{what}");
    }
    let mut handshakes = 0;
    while let Ok(met) = met.try_recv() {
        handshakes += usize::from(matches!(met, Met::Tls(_)));
    }
    assert!(handshakes >= 2, "a version, a connection: {handshakes}");
}

#[tokio::test]
async fn what_cannot_be_begun_is_refused_and_nothing_is_sent_in_plaintext() {
    let mut world = World::new().await;
    let ca = ca();
    world.outsider("127.7.95.1");
    let mut met = server("127.7.95.1", acceptor(&ca)).await;
    let client = world.client("client").await;
    for change in [
        Change::BackendTls(BackendTls {
            service: made::service_name("web"),
            ports: BTreeMap::from([(80, PortTls::Invalid("there is no ConfigMap".into()))]),
        }),
        Change::BackendTls(BackendTls {
            service: made::service_name("web"),
            ports: BTreeMap::from([(
                80,
                PortTls::Tls(ServerTls { roots: Roots::Pem("nothing".into()), ..wanted(&ca) }),
            )]),
        }),
        Change::BackendTlsRefused(made::service_name("web"), "newer than this waypoint".into()),
    ] {
        let what = format!("{change:?}");
        world.follow([change]);
        assert_eq!(status(open(&client, "10.96.0.1:80").await), StatusCode::SERVICE_UNAVAILABLE, "{what}");
        world.rule(made::rule(0, "/", &[("web", 1)]));
        assert_eq!(get(&world).await, 503, "{what}");
        world.follow([Change::Removed(made::rule(0, "/", &[]).key)]);
    }
    assert!(met.try_recv().is_err(), "nobody came");
    world.tls(PortTls::Tls(wanted(&ca)));
    assert_eq!(get(&world).await, 200, "mended");
    assert_eq!(met.recv().await, Some(Met::Tls(Some(NAME.to_owned()))), "and the first who comes comes so");
}

#[tokio::test]
async fn bytes_go_in_tls_as_well() {
    let mut world = World::new().await;
    let ca = ca();
    world.outsider("127.7.96.1");
    let mut met = server("127.7.96.1", acceptor(&ca)).await;
    world.tls(PortTls::Tls(wanted(&ca)));
    let mut rule = made::rule(0, "/", &[("web", 1)]);
    rule.key.kind = RouteKind::Tcp;
    world.rule(rule);
    let client = world.client("client").await;
    let mut stream = open(&client, "10.96.0.1:80").await.unwrap();
    for said in ["echo one\n", "echo two\n"] {
        stream.send(Bytes::from_static(said.as_bytes())).unwrap();
        assert_eq!(soon("the echo", recv(&mut stream)).await.unwrap().unwrap(), said);
    }
    stream.finish().unwrap();
    assert_eq!(soon("the end", recv(&mut stream)).await, Ok(None));
    assert_eq!(met.recv().await, Some(Met::Tls(Some(NAME.to_owned()))));
}

#[tokio::test]
async fn an_endpoint_of_the_mesh_is_spoken_to_in_tls_inside_its_tunnel() {
    let mut world = World::new().await;
    let ca = ca();
    world.endpoint("inside", "127.7.97.1");
    let acceptor = acceptor(&ca);
    // Its node hands the bytes of tunnels on to where the application listens.
    let mut met = server("127.7.97.1", acceptor).await;
    let take = |incoming: Incoming| {
        tokio::spawn(async move {
            let app = TcpStream::connect(incoming.authority.to_string()).await.unwrap();
            let stream = incoming.accept(HeaderMap::new()).unwrap();
            hbone::relay(&app, stream, &hbone::Counters::default()).await
        });
    };
    world.takes("127.7.97.1", take).await;
    world.tls(PortTls::Tls(wanted(&ca)));
    assert_eq!(get(&world).await, 200);
    assert_eq!(met.recv().await, Some(Met::Tls(Some(NAME.to_owned()))));
}

/// A server outside the mesh that serves calls, and how many connections it has taken.
async fn callee(address: &str, acceptor: TlsAcceptor) -> Arc<AtomicUsize> {
    let listener = TcpListener::bind(format!("{address}:8080")).await.unwrap();
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&taken);
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(tls) = acceptor.accept(tcp).await else { continue };
            counted.fetch_add(1, Relaxed);
            tokio::spawn(serve(tls, "web", Says::Name, Seen::default()));
        }
    });
    taken
}

#[tokio::test]
async fn calls_share_a_connection_in_tls_as_long_as_the_same_is_wanted() {
    let mut world = World::new().await;
    let ca = ca();
    world.outsider("127.7.91.1");
    let taken = callee("127.7.91.1", speaking(&ca, &[b"h2", b"http/1.1"])).await;
    world.routes([method(0, "/echo.Echo/Say", "web")]);
    world.tls(PortTls::Tls(wanted(&ca)));
    let mut caller = world.caller("client").await;
    let names = vec![SubjectName::Uri("spiffe://elsewhere/web".into())];
    for (tls, connections) in [(wanted(&ca), 1), (ServerTls { names, ..wanted(&ca) }, 2)] {
        world.tls(PortTls::Tls(tls));
        for _ in 0..3 {
            let ended = caller.call("/echo.Echo/Say", &[]).await;
            assert_eq!((ended.code.as_str(), ended.said.as_str()), ("0", "web heard hello"));
        }
        assert_eq!(taken.load(Relaxed), connections);
    }
}

#[tokio::test]
async fn calls_need_a_server_that_says_that_it_speaks_http_2() {
    let mut world = World::new().await;
    let ca = ca();
    world.outsider("127.7.92.1");
    let taken = callee("127.7.92.1", acceptor(&ca)).await;
    world.routes([method(0, "/echo.Echo/Say", "web")]);
    world.tls(PortTls::Tls(wanted(&ca)));
    let ended = world.caller("client").await.call("/echo.Echo/Say", &[]).await;
    assert_eq!(ended.code, "14");
    assert!(taken.load(Relaxed) > 0, "the handshake itself succeeds");
}

#[tokio::test]
async fn copies_and_upgraded_connections_go_in_tls_as_well() {
    let mut world = World::new().await;
    let (ca, other) = (ca(), ca());
    world.outsider("127.7.93.1");
    world.writer.apply([Update::Service(made::service("shadow", "10.96.1.9", false))]);
    world.outsider_of("shadow", "127.7.93.2");
    let _met = server("127.7.93.1", acceptor(&ca)).await;
    let mut shadow = server("127.7.93.2", speaking(&other, &[b"http/1.1"])).await;
    let mut rule = made::rule(0, "/", &[("web", 1)]);
    let target = BackendTarget::Service { name: made::service_name("shadow"), port: 80 };
    rule.filters = vec![Filter::Mirror(Mirror { target, share: Fraction::ALL })];
    world.rule(rule);
    world.tls(PortTls::Tls(wanted(&ca)));
    world.tls_of("shadow", PortTls::Tls(wanted(&other)));
    assert_eq!(get(&world).await, 200);
    assert_eq!(soon("a copy", shadow.recv()).await, Some(Met::Tls(Some(NAME.to_owned()))));
    world.copies("completed", 1).await;

    let client = world.client("client").await;
    let mut stream = open(&client, "10.96.0.1:80").await.unwrap();
    let request = "GET /chat HTTP/1.1\r\nhost: web.shop\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.send(Bytes::from_static(request.as_bytes())).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.extend(soon("the answer", recv(&mut stream)).await.unwrap().unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream.send(Bytes::from_static(b"echo one\n")).unwrap();
    assert_eq!(soon("the echo", recv(&mut stream)).await.unwrap().unwrap(), "echo one\n");
}

impl World {
    /// An endpoint of the mesh whose application speaks TLS: it talks without an end, or says and reads nothing.
    async fn in_tls(&mut self, name: &str, address: &str, acceptor: TlsAcceptor, talks: bool) {
        self.endpoint(name, address);
        let take = move |incoming: Incoming| {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let stream = incoming.accept(HeaderMap::new()).unwrap();
                let mut tls = acceptor.accept(TunnelIo::new(stream, Vec::new())).await.unwrap();
                let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";
                let mut sent = if talks { tls.write_all(head).await } else { std::future::pending().await };
                while sent.is_ok() {
                    sent = tls.write_all(&[b'x'; 64 << 10]).await;
                }
            });
        };
        self.takes(address, take).await;
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    soon(what, async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_comes_in_tls_and_nobody_reads_is_counted_where_it_is_held() {
    for (address, kind) in [("127.7.105.1", RouteKind::Http), ("127.7.105.2", RouteKind::Tcp)] {
        let mut world = World::new().await;
        let ca = ca();
        world.in_tls("talker", address, acceptor(&ca), true).await;
        world.tls(PortTls::Tls(wanted(&ca)));
        let mut rule = made::rule(0, "/", &[("web", 1)]);
        rule.key.kind = kind;
        world.rule(rule);
        let client = world.client("client").await;
        let mut streams = Vec::new();
        for _ in 0..32 {
            let mut stream = open(&client, "web.shop.svc.cluster.local:80").await.unwrap();
            stream.send(Bytes::from_static(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n")).unwrap();
            streams.push(stream);
        }
        until("a hoard", || world.budgets.held_of_endpoints() >= 4 << 20).await;
        drop(streams);
        until("its end", || world.budgets.held_of_endpoints() == 0).await;
    }
}

#[tokio::test]
async fn what_a_server_in_tls_does_not_read_is_counted_where_it_is_held() {
    let mut world = World::new().await;
    let ca = ca();
    world.in_tls("deaf", "127.7.106.1", acceptor(&ca), false).await;
    world.tls(PortTls::Tls(wanted(&ca)));
    let mut rule = made::rule(0, "/", &[("web", 1)]);
    rule.key.kind = RouteKind::Tcp;
    world.rule(rule);
    let client = world.client("client").await;
    let mut pushing = Vec::new();
    for _ in 0..32 {
        let mut stream = open(&client, "web.shop.svc.cluster.local:80").await.unwrap();
        pushing.push(tokio::spawn(async move {
            let piece = Bytes::from(vec![b'x'; 64 << 10]);
            while let Ok(room) = std::future::poll_fn(|cx| stream.poll_capacity(cx, piece.len())).await {
                if stream.send(piece.slice(..room)).is_err() {
                    break;
                }
            }
        }));
    }
    let ip = world.address.ip();
    until("what the client has said", || world.budgets.held(ip) >= 4 << 20).await;
    pushing.iter().for_each(tokio::task::JoinHandle::abort);
}
