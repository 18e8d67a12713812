//! Connections under rules of TCPRoutes and TLSRoutes, and on ports that declare nothing: where they end, and what is said there.

use std::collections::BTreeMap;

use model::l7::{
    Abort, AbortAnswer, BackendTarget, Client, Fault, Fraction, HeaderMatch, HeaderName, Host, Match, Moment,
    Parent, PolicyTarget, RouteKind, Rule, SniMatch, TextMatch, Trigger,
};

use super::*;
use crate::rules::Change;

impl World {
    fn connections(&mut self, rules: impl IntoIterator<Item = Rule>) {
        let changes = rules.into_iter().map(|rule| Change::Rule(Box::new(rule)));
        self.book.store(Arc::new(self.rules.apply(changes)));
    }

    /// A service of its own with one endpoint, whose node echoes.
    async fn echoing(&mut self, name: &str, address: &str) -> mpsc::Receiver<(String, HeaderMap)> {
        let workload = made::pod(name, "server", address, name);
        self.writer
            .apply([Update::Service(made::service(name, "10.96.1.1", false)), Update::Workload(workload)]);
        self.node(address).await
    }
}

fn tcp(backends: &[(&str, u32)]) -> Rule {
    let mut rule = made::rule(0, "/", backends);
    rule.key.kind = RouteKind::Tcp;
    rule
}

/// The rule number `index` of a TLSRoute, for these names.
fn tls(index: u32, names: &[SniMatch], backend: &str) -> Rule {
    let mut rule = made::rule(index, "/", &[(backend, 1)]);
    rule.key.kind = RouteKind::Tls;
    if !names.is_empty() {
        rule.matches =
            names.iter().map(|name| Match { sni: Some(name.clone()), ..Match::default() }).collect();
    }
    rule
}

fn host(name: &str) -> Host {
    Host::new(name).unwrap()
}

#[tokio::test]
async fn connections_are_shared_out_by_weight() {
    let mut world = World::new().await;
    let (mut one, mut two) =
        (world.echoing("v1", "127.7.30.1").await, world.echoing("v2", "127.7.30.2").await);
    world.connections([tcp(&[("v1", 3), ("v2", 1)])]);
    let client = world.client("client").await;
    let mut counted = BTreeMap::new();
    for _ in 0..200 {
        echoes(&mut open(&client, "10.96.0.1:80").await.unwrap()).await;
        let (asked, headers) =
            tokio::select! { asked = one.recv() => asked, asked = two.recv() => asked }.unwrap();
        let host = headers["forwarded"].to_str().unwrap().rsplit_once("host=").unwrap().1.to_owned();
        *counted.entry((asked, host)).or_insert(0) += 1;
    }
    let of = |address: &str, name: &str| {
        counted[&(format!("{address}:8080"), format!("{name}.shop.svc.cluster.local"))]
    };
    // 150 are expected; five standard deviations are 31.
    let first: u32 = of("127.7.30.1", "v1");
    assert!((119..=181).contains(&first) && first + of("127.7.30.2", "v2") == 200, "{counted:?}");
}

#[tokio::test]
async fn the_share_of_a_backend_that_leads_nowhere_is_refused() {
    let mut world = World::new().await;
    world.endpoint("own", "127.7.31.1");
    let _own = world.node("127.7.31.1").await;
    world.writer.apply([Update::Service(made::service("empty", "10.96.1.2", false))]);
    let client = world.client("client").await;
    let mut invalid = tcp(&[("web", 1)]);
    invalid.backends[0].target = BackendTarget::Invalid("BackendNotFound: there is no such Service".into());
    let refused = Rule { refusal: Some("why".into()), ..tcp(&[("web", 1)]) };
    for rule in [invalid, refused, tcp(&[("nobody", 1)]), tcp(&[("empty", 1)]), tcp(&[("web", 0)]), tcp(&[])]
    {
        let what = format!("{rule:?}");
        world.connections([rule]);
        let opened = open(&client, "10.96.0.1:80").await;
        assert_eq!(status(opened), StatusCode::SERVICE_UNAVAILABLE, "{what}");
    }
    world.connections([tcp(&[("web", 1)])]);
    echoes(&mut open(&client, "10.96.0.1:80").await.unwrap()).await;
}

/// How a TLS client begins that asks for this name.
fn client_hello(name: Option<&str>) -> Vec<u8> {
    let u16 = |value: usize| u16::try_from(value).unwrap().to_be_bytes();
    let extension = |kind: u16, body: &[u8]| [&kind.to_be_bytes(), &u16(body.len())[..], body].concat();
    let name = name.map(|name| {
        let entry = [&[0], &u16(name.len())[..], name.as_bytes()].concat();
        extension(0, &[&u16(entry.len())[..], &entry].concat())
    });
    let signatures = extension(13, &[0, 2, 4, 3]);
    let extensions = [name.unwrap_or_default(), signatures].concat();
    let body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0], &u16(extensions.len()), &extensions]
        .concat();
    let message = [&[1, 0], &u16(body.len())[..], &body].concat();
    [&[22, 3, 1], &u16(message.len())[..], &message].concat()
}

/// What the far end echoes of `said`, which is sent in pieces; `None` if the connection is cut.
async fn echoed(client: &Opener, said: &[u8]) -> Option<Vec<u8>> {
    let mut stream = open(client, "10.96.0.1:80").await.ok()?;
    let (first, rest) = said.split_at(said.len() / 2);
    stream.send(Bytes::copy_from_slice(first)).unwrap();
    tokio::task::yield_now().await;
    stream.send(Bytes::copy_from_slice(rest)).unwrap();
    let mut heard = Vec::new();
    while heard.len() < said.len() {
        heard.extend_from_slice(&soon("the echo", recv(&mut stream)).await.ok()??);
    }
    Some(heard)
}

#[tokio::test]
async fn tls_goes_where_the_name_that_it_asks_for_leads() {
    let mut world = World::new().await;
    let mut nodes = BTreeMap::new();
    for (name, address) in [("pay", "127.7.32.1"), ("any", "127.7.32.2"), ("deep", "127.7.32.3")] {
        nodes.insert(name, world.echoing(name, address).await);
    }
    let below = |name| SniMatch::Below(host(name));
    let exact = [SniMatch::Exact(host("pay.example"))];
    let rules =
        [tls(0, &exact, "pay"), tls(1, &[below("example")], "any"), tls(2, &[below("b.example")], "deep")];
    world.connections(rules);
    let client = world.client("client").await;
    let cases = [
        (Some("pay.example"), Some("pay")),
        (Some("PAY.example"), Some("pay")),
        (Some("x.example"), Some("any")),
        (Some("x.b.example"), Some("deep")),
        (Some("example"), None),
        (Some("other.test"), None),
        (None, None),
    ];
    for (name, backend) in cases {
        let said = client_hello(name);
        let heard = echoed(&client, &said).await;
        assert_eq!(heard.is_some(), backend.is_some(), "{name:?}");
        if let (Some(backend), Some(heard)) = (backend, heard) {
            assert_eq!(heard, said, "{name:?}: what was read for its name goes on as it came");
            assert!(nodes.get_mut(backend).unwrap().try_recv().is_ok(), "{name:?}");
        }
        assert!(nodes.values_mut().all(|node| node.try_recv().is_err()), "{name:?}: nobody else");
    }
    assert_eq!(echoed(&client, b"GET / HTTP/1.1\r\n\r\n").await, None, "what is not TLS");

    // Beside a TLSRoute, a TCPRoute of the port says nothing; alone it takes TLS too.
    let mut beside = tcp(&[("any", 1)]);
    beside.key.name = "beside".into();
    world.connections([beside]);
    assert_eq!(echoed(&client, &client_hello(Some("other.test"))).await, None);
    let keys = [0, 1, 2].map(|index| tls(index, &[], "pay").key);
    world.book.store(Arc::new(world.rules.apply(keys.map(Change::Removed))));
    assert!(echoed(&client, &client_hello(Some("other.test"))).await.is_some());
    assert!(nodes.get_mut("any").unwrap().try_recv().is_ok());
}

/// The rule of an HTTPRoute that names no port.
fn all_ports(backend: &str) -> Rule {
    let rule = made::rule(0, "/", &[(backend, 1)]);
    let parents = rule.parents.iter().map(|parent| Parent { port: None, ..parent.clone() }).collect();
    Rule { parents, ..rule }
}

#[tokio::test]
async fn a_port_that_declares_nothing_is_known_by_its_first_bytes() {
    let mut world = World::new().await;
    world.version("v1", "127.7.33.1").await;
    world.connections([all_ports("v1")]);
    // The service has no endpoint of its own, and needs none for what its route sends elsewhere.
    let mut http = world.http("client").await;
    let reply = http.get("/x").await;
    assert_eq!((reply.status, reply.server()), (200, "v1"));
    assert!(reply.seen("x-forwarded-client-cert").is_some(), "{}", reply.body);
    let client = world.client("client").await;
    assert_eq!(echoed(&client, b"hello, I am no request").await, None, "bytes have nowhere to go");

    world.endpoint("own", "127.7.33.2");
    let _own = world.node("127.7.33.2").await;
    assert!(
        echoed(&client, b"hello, I am no request").await.is_some(),
        "a route of requests is not about bytes"
    );
    assert_eq!(http.get("/y").await.server(), "v1");
}

#[tokio::test]
async fn requests_are_told_from_bytes_without_any_route() {
    let mut world = World::new().await;
    world.endpoint("one", "127.7.34.1");
    world.server("one", "127.7.34.1", 0).await;
    let reply = world.http("client").await.get("/x").await;
    assert_eq!((reply.status, reply.server()), (200, "one"));
    assert!(reply.seen("x-forwarded-for").is_some(), "it was forwarded as a request: {}", reply.body);
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_at_once_and_carries_bytes_then() {
    let mut world = World::new().await;
    world.endpoint("one", "127.7.35.1");
    let greet = |incoming: Incoming| {
        let mut stream = incoming.accept(HeaderMap::new()).unwrap();
        stream.send(Bytes::from_static(b"220 welcome\r\n")).unwrap();
        tokio::spawn(echo(stream));
    };
    world.takes("127.7.35.1", greet).await;
    let client = world.client("client").await;
    let other = made::rule(0, "/", &[("nobody", 1)]);
    for routed in [false, true] {
        if routed {
            let parents = vec![Parent { port: None, ..other.parents[0].clone() }];
            world.connections([Rule { parents, ..other.clone() }]);
        }
        let mut stream = open(&client, "10.96.0.1:80").await.unwrap();
        assert_eq!(soon("the greeting", recv(&mut stream)).await.unwrap().unwrap(), "220 welcome\r\n");
        let said = Bytes::from_static(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.send(said.clone()).unwrap();
        assert_eq!(soon("the echo", recv(&mut stream)).await.unwrap().unwrap(), said, "as it came");
        stream.finish().unwrap();
        assert_eq!(soon("the end", recv(&mut stream)).await, Ok(None));
    }
}

/// Resets all that is asked of `web` and is meant.
fn broken(triggers: Vec<Trigger>) -> Change {
    let abort = Some(Abort { share: Fraction::ALL, answer: AbortAnswer::Reset });
    let fault = Fault { triggers, delay: None, abort, until: Moment(u64::MAX) };
    let policy = model::l7::Policy {
        name: model::l7::PolicyName { namespace: "shop".into(), name: "chaos".into() },
        target: PolicyTarget::Service(made::service_name("web")),
        created: Moment(1),
        fault: Some(fault),
        balancing: None,
    };
    Change::Policy("chaos".into(), Box::new(policy))
}

#[tokio::test]
async fn a_fault_resets_the_connections_of_those_it_is_meant_for() {
    let mut world = World::new().await;
    world.endpoint("own", "127.7.66.1");
    let _own = world.node("127.7.66.1").await;
    let (client, other) = (world.client("client").await, world.client("other").await);
    let clients = vec![Client::Identity(made::identity("client"))];
    let jane =
        HeaderMatch { name: HeaderName::new("x-user").unwrap(), value: TextMatch::Exact("jane".into()) };
    let meant = Trigger { headers: Vec::new(), clients };
    let never = Trigger { headers: vec![jane], clients: Vec::new() };
    world.connections([tcp(&[("web", 1)])]);
    world.book.store(Arc::new(world.rules.apply([broken(vec![meant, never.clone()])])));
    assert_eq!(status(open(&client, "10.96.0.1:80").await), StatusCode::SERVICE_UNAVAILABLE);
    echoes(&mut open(&other, "10.96.0.1:80").await.unwrap()).await;
    world.book.store(Arc::new(world.rules.apply([broken(vec![never])])));
    echoes(&mut open(&client, "10.96.0.1:80").await.unwrap()).await;

    // On a port that declares nothing it befalls bytes as well.
    let undeclared = Change::Removed(tcp(&[]).key);
    world.book.store(Arc::new(world.rules.apply([undeclared, broken(Vec::new())])));
    assert_eq!(echoed(&client, b"hello, I am no request").await, None);
}
