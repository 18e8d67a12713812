//! Peers of the mesh that turned bad: true certificates, and requests that no ztunnel makes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use lab::Pod;
use rustls::ClientConfig;

use crate::support::arena::{Arena, BUDGET_MIB};
use crate::support::flood::FULL;
use crate::support::peer::{self, Answer, connect_to};
use crate::support::proof::{Proof, tls};
use crate::support::raw::{
    CONTINUATION, DATA, END_HEADERS, HEADERS, PING, RST_STREAM, Raw, SETTINGS, block, frame,
};

/// What the insider has: a certificate of the mesh, and a program that knows no rules.
fn insider(arena: &Arena) -> Arc<ClientConfig> {
    tls(Some(Proof::of(&arena.mesh.lab, &arena.insider)))
}

/// RFC 9113 section 7.
const PROTOCOL_ERROR: Answer = Answer::Reset(1);
const BROKEN: Answer = Answer::Closed(1);

#[test]
fn a_tunnel_leads_to_the_pod_that_was_dialled_and_nowhere_else() {
    let arena = Arena::new();
    let own = arena.at(8080);
    let mut tunnels = Tunnels::new(&arena);
    let good = [
        own.to_string(),
        format!("[::ffff:{}]:8080", own.ip()),
        "server.shop.svc.cluster.local:80".to_owned(),
        "SERVER.shop.svc.cluster.local:80".to_owned(),
    ];
    for authority in good {
        assert_eq!(tunnels.ask(&connect_to(&authority)), Answer::Status(200), "{authority:?}");
    }
    let others = OTHERS.iter().map(|text| (*text).to_owned());
    for authority in others.chain(neighbours(&arena)).chain(misspelt(own)) {
        let answer = tunnels.ask(&connect_to(&authority));
        let refused = matches!(answer, Answer::Status(400) | PROTOCOL_ERROR);
        assert!(refused, "{authority:?} was answered with {answer:?}");
    }
    for (headers, expected) in malformed(&own.to_string()) {
        let answer = tunnels.ask(&headers);
        let headers = String::from_utf8_lossy(&headers[..headers.len().min(200)]).into_owned();
        assert!(expected.contains(&answer), "{answer:?}, expected {expected:?} to {headers:?}");
    }
    // Nobody listens there: the pod's own business, and so said.
    let closed = SocketAddr::new(own.ip(), 9).to_string();
    assert_eq!(tunnels.ask(&connect_to(&closed)), Answer::Status(503));
    arena.conclude();
}

/// Names and addresses that are never a pod's, in the spellings that some parser somewhere takes for one.
const OTHERS: &[&str] = &[
    "127.0.0.1:8080",
    "127.1.2.3:8080",
    "[::1]:8080",
    "[::ffff:127.0.0.1]:8080",
    "0.0.0.0:8080",
    "[::]:8080",
    "169.254.169.254:80",
    "[fe80::1]:8080",
    "[fe80::1%251]:8080",
    "224.0.0.1:8080",
    "255.255.255.255:8080",
    "localhost:8080",
    "127.1:8080",
    "2130706433:8080",
    "0x7f000001:8080",
    "kubernetes.default.svc.cluster.local:443",
    "client.shop.svc.cluster.local:80",
    "server.shop.svc.cluster.local:81",
    "10.96.0.10:53",
    ":8080",
    "8080",
    "[]:8080",
    "server",
    "..:80",
];

/// The node, another pod, and ztunnel itself.
fn neighbours(arena: &Arena) -> Vec<String> {
    let at = |ip: IpAddr, port: u16| SocketAddr::new(ip, port).to_string();
    let node = arena.server.node().ips();
    let mut found: Vec<_> =
        node.iter().flat_map(|ip| [15012, 15020, 15021, 22].map(|port| at(*ip, port))).collect();
    found.extend(arena.client.ips().iter().map(|ip| at(*ip, 8080)));
    found.extend([0, 15001, 15006, 15008, 15053].map(|port| at(arena.server.ip(), port)));
    found
}

/// The right address, and not quite.
fn misspelt(own: SocketAddr) -> Vec<String> {
    let ip = own.ip();
    vec![
        format!("{ip}:80800"),
        format!("{ip}:+8080"),
        format!("{ip}:08080"),
        format!("{ip}:"),
        ip.to_string(),
        format!("root@{own}"),
        format!("{own}@127.0.0.1:80"),
        format!("{own}/"),
        format!("{own}#x"),
        format!("{own}, {own}"),
        format!("{own} "),
        format!("{own}\0"),
        format!("http://{own}"),
        "a".repeat(8_000) + ":80",
    ]
}

/// Requests that are no CONNECT to somewhere, and what each may be answered with.
fn malformed(own: &str) -> Vec<(Vec<u8>, Vec<Answer>)> {
    const BAD: Answer = Answer::Status(400);
    let connect = (":method", "CONNECT");
    let authority = (":authority", own);
    let large = "x".repeat(17_000);
    vec![
        (block(&[connect, authority, (":path", "/")]), vec![BAD, PROTOCOL_ERROR]),
        (block(&[connect, authority, (":scheme", "https")]), vec![BAD, PROTOCOL_ERROR]),
        (
            block(&[connect, authority, (":scheme", "https"), (":path", "/"), (":protocol", "websocket")]),
            vec![BAD, PROTOCOL_ERROR],
        ),
        (block(&[connect, authority, authority]), vec![BAD, PROTOCOL_ERROR]),
        (block(&[connect, authority, (":authority", "127.0.0.1:80")]), vec![BAD, PROTOCOL_ERROR]),
        (block(&[connect]), vec![BAD, PROTOCOL_ERROR]),
        (block(&[connect, (":authority", "")]), vec![BAD, PROTOCOL_ERROR]),
        (block(&[connect, ("host", own)]), vec![BAD, PROTOCOL_ERROR]),
        (block(&[authority]), vec![BAD, PROTOCOL_ERROR]),
        (block(&[(":method", ""), authority]), vec![BAD, PROTOCOL_ERROR, BROKEN]),
        (block(&[(":method", "connect"), authority, (":scheme", "http"), (":path", "/")]), vec![BAD]),
        (block(&[(":method", "GET"), authority, (":scheme", "http"), (":path", "/")]), vec![BAD]),
        (
            block(&[(":method", "POST"), authority, (":scheme", "https"), (":path", "/config_dump")]),
            vec![BAD],
        ),
        (block(&[connect, authority, ("Upper", "case")]), vec![BAD, PROTOCOL_ERROR, BROKEN]),
        (block(&[connect, authority, ("connection", "close")]), vec![BAD, PROTOCOL_ERROR]),
        (block(&[connect, authority, ("x", &large)]), vec![Answer::Status(431), PROTOCOL_ERROR]),
    ]
}

/// One tunnel after another, as the other end closes them.
struct Tunnels<'a> {
    arena: &'a Arena,
    tls: Arc<ClientConfig>,
    open: Option<(Raw, u32)>,
}

impl<'a> Tunnels<'a> {
    fn new(arena: &'a Arena) -> Self {
        Self { arena, tls: insider(arena), open: None }
    }

    fn ask(&mut self, headers: &[u8]) -> Answer {
        let (raw, stream) = self.open.get_or_insert_with(|| {
            (peer::tunnel(&self.arena.stranger, self.arena.at(15008), &self.tls).expect("a tunnel"), 1)
        });
        let answer = peer::ask(raw, *stream, headers);
        *stream += 2;
        if matches!(answer, Answer::Closed(_)) {
            self.open = None;
        }
        answer
    }
}

/// Bytes of a flood after which it is taken for endless.
const PATIENCE: usize = 64 << 20;

#[test]
fn a_mesh_peer_that_breaks_the_rules_disturbs_nobody() {
    let arena = Arena::new();
    break_the_rules(&arena.stranger, arena.at(15008), &insider(&arena), &arena.at(8080).to_string());
    arena.conclude();
}

/// What no peer should do, in tunnels from a pod's network to `to`, on streams for `authority`: rapid resets, streams, pings, settings
/// and headers without end.
pub(crate) fn break_the_rules(from: &Pod, to: SocketAddr, tls: &Arc<ClientConfig>, authority: &str) {
    let connect = connect_to(authority);
    let open = |id: u32| frame(HEADERS, END_HEADERS, id, &connect);
    let reset = |id: u32| frame(RST_STREAM, 0, id, &8_u32.to_be_bytes());
    let streams = |round: u32| (0..100).map(move |index| (round * 100 + index) * 2 + 1);
    let rapid_resets = |round| streams(round).flat_map(|id| [open(id), reset(id)].concat()).collect();
    let streams_without_end = |round| streams(round).flat_map(open).collect();
    let pings = |_| frame(PING, 0, 0, &[0; 8]).repeat(50);
    let settings = |_| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1]).repeat(50);
    let headers_without_end = |round| match round {
        0 => frame(HEADERS, 0, 1, &connect),
        _ => frame(CONTINUATION, 0, 1, &block(&[("x", &"y".repeat(4000))])),
    };
    let floods: [&dyn Fn(u32) -> Vec<u8>; 5] =
        [&rapid_resets, &streams_without_end, &pings, &settings, &headers_without_end];
    for unit in floods {
        for _ in 0..3 {
            let mut raw = peer::tunnel(from, to, tls).expect("a tunnel");
            raw.flood(unit, PATIENCE);
        }
    }
}

/// Two hundred streams to an echo server: what comes back fills every buffer on the way, because nobody reads it.
#[test]
fn a_mesh_peer_that_never_reads_costs_no_more_than_its_buffers() {
    let arena = Arena::new();
    let tls = insider(&arena);
    let connect = connect_to(&arena.at(8080).to_string());
    let mut raw = peer::tunnel(&arena.stranger, arena.at(15008), &tls).expect("a tunnel");
    let streams = || (0..200_u32).map(|stream| stream * 2 + 1);
    for stream in streams() {
        raw.write(&frame(HEADERS, END_HEADERS, stream, &connect)).expect("sent");
    }
    raw.tls.sock.set_write_timeout(Some(FULL)).expect("set");
    // As much as each stream's first window takes, a MiB, or until it is not listened to any more either.
    (0..64).flat_map(|_| streams()).all(|stream| raw.write(&frame(DATA, 0, stream, &[7; 16_384])).is_ok());
    arena.until_memory_stands_still();
    drop(raw);
    arena.conclude_within(BUDGET_MIB);
}
