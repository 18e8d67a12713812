//! Fail closed, and restarts: without a listener new connections are refused at once, in all four directions; with the
//! listeners of two processes in one group none is lost.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ebpf::socket::Tuple;
use ebpf::{Netns, Node};

use crate::support::{App, Pod, Proxy, World, run, wait_for};

/// A refusal is an answer of the kernel; a dropped packet is asked again after a second.
const AT_ONCE: Duration = Duration::from_millis(900);

fn enrol(world: &World, node: &Node) -> (Pod, Proxy) {
    let pod = world.pod();
    let proxy = Proxy::start(&pod.sandbox);
    node.prepare(&pod.sandbox).expect("prepared");
    node.capture(&pod.sandbox, proxy.fds()).expect("captured");
    (pod, proxy)
}

fn check_refused(app: &mut App, to: &str) {
    let started = Instant::now();
    assert_eq!(app.dial(to, ""), "err ECONNREFUSED", "{to}");
    assert!(started.elapsed() < AT_ONCE, "{to} was refused after {:?}", started.elapsed());
}

#[test]
fn without_a_proxy_everything_is_refused_at_once() {
    let world = World::new();
    let node = world.attach();
    let (pod, proxy) = enrol(&world, &node);
    let mut server = pod.app();
    server.must("listen [::]:8080");
    proxy.stop();
    drop(node);
    let mut other = world.pod().app();
    for to in [format!("{}:8080", pod.v4), format!("[{}]:8080", pod.v6), format!("{}:15008", pod.v4)] {
        check_refused(&mut other, &to);
    }
    for to in ["10.96.0.10:80", "[fd96::10]:80", "[::ffff:10.96.0.10]:80", "10.9.0.2:80"] {
        check_refused(&mut server, to);
    }
}

#[test]
fn without_a_proxy_probes_and_the_pod_itself_still_pass() {
    let world = World::new();
    let node = world.attach();
    let (pod, proxy) = enrol(&world, &node);
    let mut server = pod.app();
    server.must("listen [::]:8080");
    proxy.stop();
    drop(node);
    let own = format!("{}:8080", pod.v4);
    assert!(world.host_app().dial(&own, "").starts_with("app "));
    assert!(server.dial(&own, "").starts_with("app "));
    assert!(server.dial("127.0.0.1:8080", "").starts_with("app "));
}

#[test]
fn a_prepared_pod_that_is_not_captured_is_untouched() {
    let world = World::new();
    let node = world.attach();
    let pod = world.pod();
    node.prepare(&pod.sandbox).expect("prepared");
    world.far_app().tell("close none");
    let mut far = world.far_app();
    far.must("listen [::]:80");
    assert!(pod.app().dial("10.9.0.2:80", "").starts_with("app "));
}

/// Connections run through `app` while `proxies` processes take over one after another.
fn check_handover(app: &mut App, to: &str, world: &World, pod: &Pod, mut proxy: Proxy) {
    app.must(&format!("load {to}"));
    for round in 0..5 {
        // A new process: attaches, opens its own listeners, takes the places; then the old one closes.
        let node = world.attach();
        let next = Proxy::start(&pod.sandbox);
        node.capture(&pod.sandbox, next.fds()).expect("taken over");
        let before: u64 = app.must("progress").parse().expect("a number");
        wait_for("connections beside two proxies", || {
            app.must("progress").parse::<u64>().expect("a number") > before + 50
        });
        std::mem::replace(&mut proxy, next).stop();
        let before: u64 = app.must("progress").parse().expect("a number");
        wait_for("connections after the old proxy", || {
            app.must("progress").parse::<u64>().expect("a number") > before + 50
        });
        assert!(round < 5);
    }
    let result = app.must("unload");
    assert!(result.ends_with(" {}"), "connections failed: {result}");
}

#[test]
fn a_restart_loses_no_outbound_connection() {
    let world = World::new();
    let node = world.attach();
    let (pod, proxy) = enrol(&world, &node);
    check_handover(&mut pod.app(), "10.96.0.10:80", &world, &pod, proxy);
}

#[test]
fn a_restart_loses_no_inbound_connection() {
    let world = World::new();
    let node = world.attach();
    let (pod, proxy) = enrol(&world, &node);
    let mut client = world.pod().app();
    check_handover(&mut client, &format!("{}:8080", pod.v4), &world, &pod, proxy);
}

#[test]
fn a_restart_loses_no_ipv6_connection() {
    let world = World::new();
    let node = world.attach();
    let (pod, proxy) = enrol(&world, &node);
    let mut client = world.pod().app();
    check_handover(&mut client, &format!("[{}]:8080", pod.v6), &world, &pod, proxy);
}

#[test]
fn connections_waiting_in_a_listener_that_closes_move_to_the_next() {
    let world = World::new();
    let node = world.attach();
    let pod = world.pod();
    node.prepare(&pod.sandbox).expect("prepared");
    // The old process has stopped accepting: its queue fills up.
    let old = ebpf::Kind::ALL.map(|kind| ebpf::socket::listen(&pod.sandbox.netns, kind).expect("a listener"));
    node.capture(&pod.sandbox, old.each_ref().map(std::os::fd::AsFd::as_fd)).expect("captured");
    let connect = || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        let to: std::net::SocketAddr = format!("{}:8080", pod.v4).parse().expect("an address");
        socket.connect_timeout(&to.into(), crate::support::PATIENCE)?;
        Ok::<_, std::io::Error>(std::net::TcpStream::from(socket))
    };
    let waiting: Vec<_> =
        (0..8).map(|_| world.far.run(connect).expect("entered").expect("connected")).collect();
    let next = Proxy::start(&pod.sandbox);
    node.capture(&pod.sandbox, next.fds()).expect("taken over");
    drop(old);
    for stream in waiting {
        stream.set_read_timeout(Some(crate::support::PATIENCE)).expect("set");
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stream), &mut line).expect("a greeting");
        assert!(line.starts_with("Plaintext "), "`{line}`");
    }
}

#[test]
fn a_connection_is_cut_by_its_addresses() {
    let world = World::new();
    let node = world.attach();
    let (pod, _proxy) = enrol(&world, &node);
    let mut app = pod.app();
    for to in ["10.96.0.10:80", "[fd96::10]:80", "[::ffff:10.96.0.10]:80"] {
        let greeting = app.dial(to, "");
        let local = greeting.split(' ').nth(2).expect("the peer's address").parse().expect("an address");
        let remote = crate::support::canonical(to).parse().expect("an address");
        let tuple = Tuple { local, remote };
        ebpf::socket::destroy(&pod.sandbox.netns, tuple).unwrap_or_else(|error| panic!("{to}: {error}"));
        assert_eq!(app.tell("hear x"), "err ECONNABORTED", "{to}");
        let again = ebpf::socket::destroy(&pod.sandbox.netns, tuple).expect_err("it is gone");
        assert_eq!(again.kind(), std::io::ErrorKind::NotFound);
    }
}

#[test]
fn strict_mode_cuts_connections_from_before_enrolment_and_no_others() {
    let world = World::new();
    let node = world.attach();
    let pod = world.pod();
    let (mut server, mut far, mut client) = (pod.app(), world.far_app(), world.far_app());
    server.must("listen [::]:8080");
    far.must("listen [::]:80");
    server.must("connect old4 10.9.0.2:80");
    server.must("connect old6 [fd09::2]:80");
    server.must("connect oldmapped [::ffff:10.9.0.2]:80");
    server.must("connect self 127.0.0.1:8080");
    server.must(&format!("connect own {}:8080", pod.v4));
    client.must(&format!("connect in {}:8080", pod.v4));
    let proxy = Proxy::relaying(&pod.sandbox);
    node.prepare(&pod.sandbox).expect("prepared");
    node.capture(&pod.sandbox, proxy.fds()).expect("captured");
    server.must("connect new 10.96.0.10:80");
    client.must(&format!("connect relayed {}:8080", pod.v4));

    let cut = ebpf::socket::destroy_uncaptured(&pod.sandbox.netns, |_| false).expect("cut");
    assert_eq!(cut, 4, "three out, one in");
    for id in ["old4", "old6", "oldmapped"] {
        assert_eq!(server.tell(&format!("hear {id}")), "err ECONNABORTED", "{id}");
    }
    assert_eq!(client.tell("hear in"), "err ECONNRESET");
    assert_eq!(server.must("say new x"), "Outbound x");
    assert_eq!(client.must("say relayed x"), "app x");
    assert_eq!(server.must("say self x"), "app x");
    assert_eq!(server.must("say own x"), "app x");
}

#[test]
fn what_the_keeper_spares_lives() {
    let world = World::new();
    let pod = world.pod();
    let mut far = world.far_app();
    far.must("listen [::]:80");
    let mut app = pod.app();
    app.must("connect a 10.9.0.2:80");
    let spare: IpAddr = "10.9.0.2".parse().expect("an address");
    let netns: &Netns = &pod.sandbox.netns;
    let cut = ebpf::socket::destroy_uncaptured(netns, |connection| connection.tuple.remote.ip() == spare)
        .expect("done");
    assert_eq!((cut, app.must("say a x").as_str()), (0, "app x"));
}

#[test]
fn half_open_connections_move_too() {
    let world = World::new();
    let node = world.attach();
    let (pod, proxy) = enrol(&world, &node);
    // The last packet of the handshake is lost until the old listener has closed.
    let lose = "add table ip agbpf; add chain ip agbpf out { type filter hook output priority 0; }; \
                add rule ip agbpf out tcp dport 8080 tcp flags & (syn | ack) == ack drop";
    run(&world.far, "nft", lose);
    let to = std::net::SocketAddr::new(pod.v4, 8080);
    let connect = || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.connect_timeout(&to.into(), crate::support::PATIENCE)?;
        Ok::<_, std::io::Error>(std::net::TcpStream::from(socket))
    };
    let streams: Vec<_> =
        (0..8).map(|_| world.far.run(connect).expect("entered").expect("connected")).collect();
    let next = Proxy::start(&pod.sandbox);
    node.capture(&pod.sandbox, next.fds()).expect("taken over");
    proxy.stop();
    run(&world.far, "nft", "delete table ip agbpf");
    for stream in streams {
        stream.set_read_timeout(Some(crate::support::PATIENCE)).expect("set");
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stream), &mut line).expect("a greeting");
        assert!(line.starts_with("Plaintext "), "`{line}`");
    }
}
