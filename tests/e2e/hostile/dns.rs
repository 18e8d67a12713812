//! DNS of enrolled pods: packets that are no questions, floods of them, and answers that only those hear who asked.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use lab::{DNS_VIP, Pod};
use socket2::{Domain, Socket, Type};

use crate::mesh::{SOON, client};
use crate::support::arena::Arena;
use crate::support::flood;

/// Of the mesh: ztunnel knows it.
const OURS: &str = "server.shop.svc.cluster.local";
/// The same, as the pods of its namespace may say it.
const SHORT: &str = "server.shop.svc";
/// Outside: the pod's own resolver knows it.
const OTHERS: &str = "www.example.org";
/// How long an answer may take that nobody should get.
const NO_ANSWER: Duration = Duration::from_millis(500);

/// How long resolver libraries wait for one packet, or less.
const ASK_AGAIN: Duration = Duration::from_secs(2);

fn resolver() -> SocketAddr {
    SocketAddr::new(DNS_VIP.v4.into(), 53)
}

/// A question for the IPv4 addresses of a name (RFC 1035 section 4).
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut bytes = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a label"));
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
    bytes
}

/// In the pod, past nothing: packets are captured by where they go, not by who sends them.
fn socket(pod: &Pod) -> UdpSocket {
    socket_at(pod, SocketAddr::new(pod.ip(), 0))
}

/// With any source that is asked for, whoever has it.
fn socket_at(pod: &Pod, from: SocketAddr) -> UdpSocket {
    let made = pod.netns().run(|| {
        let socket = Socket::new(Domain::for_address(from), Type::DGRAM, None)?;
        match from {
            SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
            SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
        }
        socket.bind(&from.into())?;
        socket.set_read_timeout(Some(ASK_AGAIN))?;
        std::io::Result::Ok(UdpSocket::from(socket))
    });
    made.expect("entered").expect("a socket")
}

/// The answer to a question must be one, and have an address. A question that is lost is asked again, as every resolver
/// library does.
fn check_answered(socket: &UdpSocket, id: u16, name: &str) {
    let question = question(id, name);
    let deadline = Instant::now() + SOON;
    let mut answer = [0; 4096];
    while Instant::now() < deadline {
        socket.send_to(&question, resolver()).expect("asked");
        while let Ok((length, from)) = socket.recv_from(&mut answer) {
            assert_eq!(from, resolver(), "who answers is who was asked");
            // Answers to what was sent before may still come.
            if answers(&answer[..length], &question) {
                assert_eq!((answer[2] & 0x80, answer[3] & 0xf), (0x80, 0), "{name}: {:?}", &answer[..length]);
                assert_ne!(answer[7], 0, "{name} has an address");
                return;
            }
        }
    }
    panic!("{name}: no answer");
}

/// Whether a packet is an answer to this question and has it in it.
fn answers(packet: &[u8], question: &[u8]) -> bool {
    packet.len() > question.len()
        && packet[..2] == question[..2]
        && packet[12..question.len()] == question[12..]
}

/// Messages that break RFC 1035 in one way each.
fn broken() -> Vec<Vec<u8>> {
    let good = question(7, OURS);
    let change = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let name = |name: &[u8]| [&good[..12], name, &[0, 1, 0, 1]].concat();
    let long: Vec<u8> = (0..60).flat_map(|_| *b"\x07seventy").chain([0]).collect();
    vec![
        Vec::new(),
        vec![0],
        good[..11].to_vec(),
        good[..12].to_vec(),
        good[..20].to_vec(),
        good[..good.len() - 1].to_vec(),
        // More questions than there are; none; an answer; another operation; all bits.
        change(5, 255),
        change(5, 0),
        change(2, 0x80),
        change(2, 0x28),
        [&good[..2], &[255; 10], &good[12..]].concat(),
        // Pointers to themselves, to each other, forward, and beyond the end; reserved label types; no end.
        name(&[0xc0, 12]),
        name(&[0xc0, 14, 0xc0, 12]),
        name(&[0xc0, 16, 0, 0]),
        name(&[0xff, 0xff]),
        name(&[0x40, 0]),
        name(&[0x80, 0]),
        name(&[63; 70]),
        name(&long),
        name(&[1, 0, 0]),
        name(b"\x0flocalhost\0.evil\0"),
        vec![0xc0; 4096],
        vec![0xff; 65_507],
        [&good[..], &[0; 60_000]].concat(),
    ]
}

#[test]
fn packets_that_are_no_questions_and_floods_disturb_nobody() {
    let arena = Arena::new();
    arena.mesh.lab.add_outside_name(OTHERS, &[Ipv4Addr::new(203, 0, 113, 10).into()]).expect("a name");
    let insider = socket(&arena.insider);
    for (id, packet) in (0_u16..).zip(broken()) {
        insider.send_to(&packet, resolver()).expect("sent");
        check_answered(&insider, 1000 + id, OURS);
        check_answered(&insider, 2000 + id, OTHERS);
    }
    let neighbour = socket(&arena.client);
    let asked = [question(1, OURS), question(1, OTHERS), vec![0xff; 512], vec![0xc0; 60_000]];
    for round in 0_u16..200 {
        for packet in asked.iter().cycle().take(50) {
            // A full queue is the flooder's own loss.
            drop(insider.send_to(packet, resolver()));
        }
        if round % 20 == 0 {
            check_answered(&neighbour, round, OURS);
            check_answered(&neighbour, round + 1000, OTHERS);
        }
    }
    // Whoever flooded is served again, too; a question that was lost is asked again, as resolver libraries do.
    for name in [OURS, OTHERS] {
        lab::wait_until(&format!("the flooder's question for {name}"), SOON, || {
            let args = ["lab-app", "dns", "--server", &resolver().to_string(), "--name", name];
            let output = arena.insider.run(args.as_slice()).map_err(|error| error.to_string())?;
            if output.success() { Ok(()) } else { Err(format!("{output:?}")) }
        })
        .expect("an answer");
    }
    arena.conclude();
}

#[test]
fn nobody_hears_answers_but_who_asked() {
    let arena = Arena::new();
    let victim = socket(&arena.client);
    let victims = [(arena.client.ip(), DNS_VIP.v4.into()), (arena.client.ip6(), DNS_VIP.v6.into())];
    let victims = victims.map(|(ip, resolver): (_, IpAddr)| {
        let victim = socket_at(&arena.client, SocketAddr::new(ip, 0));
        let address = victim.local_addr().expect("bound");
        // In the victim's name. (A stranger's would be answered by the resolver itself, like in any network.)
        let spoofing = socket_at(&arena.insider, address);
        spoofing.send_to(&question(1, OURS), SocketAddr::new(resolver, 53)).expect("sent");
        victim
    });
    // Directly to the pod, to its resolver port and to ztunnel's.
    let stranger = socket(&arena.stranger);
    for (ip, port) in [(arena.client.ip(), 53), (arena.client.ip(), 15053), (arena.server.ip(), 53)] {
        stranger.send_to(&question(2, OURS), SocketAddr::new(ip, port)).expect("sent");
    }
    // Two that ask at once and by one number.
    let (one, other) = (socket(&arena.insider), socket(&arena.insider));
    one.send_to(&question(3, SHORT), resolver()).expect("sent");
    check_answered(&other, 3, OURS);
    check_answered(&victim, 3, OURS);
    check_answered(&one, 4, OURS);
    for socket in victims.iter().chain([&victim, &stranger, &other]) {
        socket.set_read_timeout(Some(NO_ANSWER)).expect("set");
        let mut heard = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut heard) {
            // An answer may come twice to who asked again.
            let own = answers(&heard[..length], &question(3, OURS))
                && !victims.iter().any(|v| std::ptr::eq(v, socket));
            assert!(own, "{socket:?} heard what it did not ask for from {from}: {:?}", &heard[..length]);
        }
    }
    arena.conclude();
}

#[test]
fn dns_over_tcp_is_bounded() {
    let arena = Arena::new();
    let to = resolver();
    let args = ["dns", "--server", &to.to_string(), "--name", OURS, "--transport", "tcp"];
    // From the pod's own cgroup: TCP is captured by who connects.
    let before = client(&arena.insider, &args);
    let mut silent = flood::captured(&arena.insider, to, 300);
    // A message of 65,535 bytes is announced, and never comes.
    flood::write(&mut silent, &[0xff, 0xff, 1, 2, 3]);
    let deaf = flood::captured(&arena.insider, to, 20);
    let framed =
        |message: &[u8]| [&u16::try_from(message.len()).expect("short").to_be_bytes(), message].concat();
    let questions = framed(&question(1, OURS)).repeat(500);
    for packet in broken().iter().filter(|packet| packet.len() < 5000) {
        let mut stream = flood::captured(&arena.insider, to, 1);
        flood::write(&mut stream, &framed(packet));
        silent.append(&mut stream);
    }
    assert_eq!(client(&arena.insider, &args), before);
    flood::until_cut("clients that read no answers", deaf, SOON, &questions);
    flood::until_closed("silent DNS connections", silent, SOON, |_| {});
    arena.conclude();
}
