//! Clients that want to hurt: what they cost is bounded, they are told no where that is what they asked for, and others are served.

use std::net::SocketAddr;

use lab::Program;

use super::{Guarded, shares_of};
use crate::hostile::tunnels::break_the_rules;
use crate::mesh::SOON;
use crate::support::proof::{Proof, tls};

/// Does one thing to argv[1]:argv[2] on argv[4] connections: what argv[3] says. Prints what became of it, and holds what is left
/// open until it is killed.
const FLOOD: &str = r#"
import socket, sys, time
host, port, kind, number = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
head = b'POST /x HTTP/1.1\r\nHost: server.shop\r\n'
chunked = head + b'Transfer-Encoding: chunked\r\n\r\n'
def attack(s):
    if kind == 'idle': return
    if kind == 'slow-heads': return s.sendall(head + b'X-A: b')
    if kind == 'slow-bodies': return s.sendall(head + b'Content-Length: 1000000\r\n\r\nx')
    if kind == 'slow-readers': return s.sendall(b'GET /chunked/1073741824 HTTP/1.1\r\nHost: server.shop\r\n\r\n')
    s.settimeout(20)
    if kind == 'endless-heads': parts = [head] + [b'X-A: ' + b'a' * 8000 + b'\r\n'] * 1000
    if kind == 'many-fields': parts = [head] + [b'a: b\r\n' * 1000] * 100
    if kind == 'extensions': parts = [chunked] + [b'1;' + b'a' * 8000] * 1000
    if kind == 'trailers': parts = [chunked + b'0\r\n'] + [b'a: b\r\n' * 1000] * 100
    if kind == 'pipelining': parts = [b'GET /x HTTP/1.1\r\nHost: server.shop\r\n\r\n' * 100] * 1000
    s.setblocking(False)
    deadline = time.monotonic() + (2 if kind == 'pipelining' else 20)
    for part in parts:
        while part and time.monotonic() < deadline:
            try: part = part[s.send(part):]
            except BlockingIOError: time.sleep(0.01)
    s.settimeout(20)
statuses = {}
held = []
for _ in range(number):
    s = socket.create_connection((host, port), 20)
    try:
        attack(s)
        if kind in ('endless-heads', 'many-fields', 'extensions', 'trailers'):
            raise ConnectionResetError
    except (ConnectionResetError, BrokenPipeError):
        s.settimeout(20)
        try: status = s.recv(65536).split(b' ')[1].decode()
        except (ConnectionResetError, IndexError): status = 'reset'
        statuses[status] = statuses.get(status, 0) + 1
    held.append(s)
print('done', kind, statuses, flush=True)
time.sleep(3600)
"#;

/// Connections of each flood that stays open, and of each that is refused.
const OPEN: &str = "200";
const REFUSED: &str = "10";

/// What a connection may cost that is held open to hurt: the buffers of its two sides, a tunnel's window for what is not read, and
/// room for the allocator and a build that is not optimised.
const BYTES_EACH: u64 = 512 << 10;

#[test]
fn clients_that_want_to_hurt_cost_little_and_others_are_served() {
    let guarded = Guarded::start();
    let attacker = guarded.mesh.pod(0, "attacker");
    attacker.wait_for_state("enrolled", SOON).expect("enrolment");
    shares_of(&guarded.client, "server.shop:81", 4, 100);
    let before = guarded.resident();
    let flood = |kind: &str, number: &str| {
        let program = Program::new("python3").args(["-c", FLOOD, "server.shop", "81", kind, number]);
        (kind.to_owned(), attacker.spawn(program).expect("a flood"))
    };
    let open = ["idle", "slow-heads", "slow-bodies", "slow-readers", "pipelining"];
    let refused = ["endless-heads", "many-fields", "extensions", "trailers"];
    let open = open.map(|kind| flood(kind, if kind == "pipelining" { REFUSED } else { OPEN }));
    let refused = refused.map(|kind| flood(kind, REFUSED));
    for (kind, process) in open.iter().chain(&refused) {
        let line = process.wait_for_line(&format!("done {kind}"), 3 * SOON).expect("a flood under way");
        println!("{line}");
    }
    for (kind, process) in &refused {
        let said = process.output().stdout;
        assert!(["'400'", "'431'", "'reset'"].iter().any(|status| said.contains(status)), "{kind}: {said}");
        assert!(!said.contains("'200'"), "{kind}: {said}");
    }
    // Others are served while all of this is open.
    shares_of(&guarded.client, "server.shop:81", 4, 400);
    let grown = guarded.resident().saturating_sub(before);
    let connections = 4 * 200 + 5 * 10;
    println!("{connections} connections, {} bytes each", grown / connections);
    assert!(grown < connections * BYTES_EACH, "{connections} connections cost {grown} bytes");
}

/// How much a waypoint may grow by under floods of frames. Ours cost a few MiB; what grows without end is past this soon.
const FLOODED: u64 = 64 << 20;

#[test]
fn a_peer_that_breaks_the_rules_of_its_tunnel_disturbs_nobody() {
    let guarded = Guarded::start();
    let stranger = guarded.mesh.pod_in("wild", 0, "stranger");
    let proof = tls(Some(Proof::of(&guarded.mesh.lab, &guarded.client)));
    shares_of(&guarded.client, "server.shop:81", 4, 100);
    let before = guarded.resident();
    let to = SocketAddr::new(guarded.waypoint.ip(), 15008);
    for port in ["80", "81"] {
        break_the_rules(&stranger, to, &proof, &format!("server.shop.svc.cluster.local:{port}"));
    }
    shares_of(&guarded.client, "server.shop:81", 4, 100);
    let grown = guarded.resident().saturating_sub(before);
    assert!(grown < FLOODED, "the floods cost {grown} bytes");
}
