//! DNS over UDP: who is asked, who answers, and what an application can still do with port 53.

use crate::support::{App, Pod, Proxy, World, canonical};

struct Enrolled {
    _proxy: Proxy,
    pod: Pod,
    world: World,
}

impl Enrolled {
    fn new() -> Self {
        let world = World::new();
        let node = world.attach();
        let pod = world.pod();
        let proxy = Proxy::start(&pod.sandbox);
        node.prepare(&pod.sandbox).expect("prepared");
        node.capture(&pod.sandbox, proxy.fds()).expect("captured");
        Self { _proxy: proxy, pod, world }
    }

    /// The answer comes from the resolver as far as the application can tell, and names it.
    fn check(&self, app: &mut App, resolver: &str, options: &str) {
        let answer = app.must(format!("ask {resolver} who {options}").trim_end());
        let (from, text) = answer.split_once(' ').expect("an address and a text");
        assert_eq!(canonical(from), canonical(resolver), "who answers");
        let words: Vec<&str> = text.split(' ').collect();
        assert_eq!((words[0], words[2], words[3]), ("Dns", canonical(resolver).as_str(), "who"), "{answer}");
        let client: std::net::SocketAddr = words[1].parse().expect("an address");
        assert!([self.pod.v4, self.pod.v6].contains(&client.ip()), "{answer}");
    }
}

const RESOLVERS: [&str; 3] = ["10.96.0.53:53", "[fd96::53]:53", "[::ffff:10.96.0.53]:53"];

#[test]
fn unconnected_sockets_are_answered() {
    let enrolled = Enrolled::new();
    let mut app = enrolled.pod.app();
    RESOLVERS.iter().for_each(|resolver| enrolled.check(&mut app, resolver, ""));
}

#[test]
fn connected_sockets_are_answered() {
    let enrolled = Enrolled::new();
    let mut app = enrolled.pod.app();
    RESOLVERS.iter().for_each(|resolver| enrolled.check(&mut app, resolver, "connected"));
}

#[test]
fn other_ports_go_past_the_proxy() {
    let enrolled = Enrolled::new();
    let mut far = enrolled.world.far_app();
    far.must("answer [::]:5353");
    let answer = enrolled.pod.app().must("ask 10.9.0.2:5353 who");
    assert!(answer.starts_with("10.9.0.2:5353 app "), "{answer}");
}

#[test]
fn a_dns_server_in_the_pod_keeps_its_port() {
    let enrolled = Enrolled::new();
    let mut server = enrolled.pod.app();
    // The proxy answers queries before and after the application has bound port 53 on every address.
    enrolled.check(&mut server, RESOLVERS[0], "");
    server.must("answer [::]:53");
    enrolled.check(&mut server, RESOLVERS[1], "");
    let Pod { v4, v6, .. } = enrolled.pod;
    let mut other = enrolled.world.pod().app();
    let check = |asker: &mut App, to: &str| {
        let answer = asker.must(&format!("ask {to} who"));
        assert!(answer.starts_with(&format!("{to} app ")), "{to}: {answer}");
    };
    check(&mut other, &format!("{v4}:53"));
    for to in [format!("{v4}:53"), "127.0.0.1:53".to_owned(), "[::1]:53".to_owned()] {
        check(&mut server, &to);
    }
    let answer = other.must(&format!("ask [{v6}]:53 who connected"));
    assert!(answer.contains(" app "), "{answer}");
}

#[test]
fn the_proxys_own_queries_reach_the_resolver() {
    let enrolled = Enrolled::new();
    let mut far = enrolled.world.far_app();
    far.must("answer [::]:53");
    for to in ["10.9.0.2:53", "[fd09::2]:53"] {
        let to: std::net::SocketAddr = to.parse().expect("an address");
        let source = if to.is_ipv4() { enrolled.pod.v4 } else { enrolled.pod.v6 };
        let socket = ebpf::socket::to_resolver(&enrolled.pod.sandbox.netns, source, to).expect("a socket");
        socket.connect(&to.into()).expect("connected");
        socket.set_nonblocking(false).expect("set");
        socket.set_read_timeout(Some(crate::support::PATIENCE)).expect("set");
        let socket = std::net::UdpSocket::from(socket);
        socket.send(b"who").expect("sent");
        let mut buffer = [0; 200];
        let length = patiently(|| socket.recv(&mut buffer)).expect("the resolver answers");
        assert!(buffer[..length].starts_with(b"app "), "{:?}", String::from_utf8_lossy(&buffer[..length]));
    }
}

#[test]
fn a_socket_older_than_enrolment_is_captured() {
    let world = World::new();
    let node = world.attach();
    let pod = world.pod();
    let socket =
        pod.sandbox.netns.run(|| std::net::UdpSocket::bind("0.0.0.0:0")).expect("entered").expect("a socket");
    socket.set_read_timeout(Some(crate::support::PATIENCE)).expect("set");
    let proxy = Proxy::start(&pod.sandbox);
    node.prepare(&pod.sandbox).expect("prepared");
    node.capture(&pod.sandbox, proxy.fds()).expect("captured");
    socket.send_to(b"who", RESOLVERS[0]).expect("sent");
    let mut buffer = [0; 200];
    let (length, from) = patiently(|| socket.recv_from(&mut buffer)).expect("an answer");
    assert_eq!(from.to_string(), RESOLVERS[0]);
    assert!(buffer[..length].starts_with(b"Dns "), "{:?}", String::from_utf8_lossy(&buffer[..length]));
}

#[test]
fn strangers_get_no_answer_from_the_listeners_own_port() {
    let enrolled = Enrolled::new();
    let port = ebpf::Kind::Dns.port();
    let mut stranger = enrolled.world.pod().app();
    let mut app = enrolled.pod.app();
    for to in [format!("{}:{port}", enrolled.pod.v4), format!("[{}]:{port}", enrolled.pod.v6)] {
        assert!(stranger.tell(&format!("ask {to} who impatient")).starts_with("err "), "{to}");
        assert!(app.tell(&format!("ask {to} who impatient")).starts_with("err "), "{to} from inside");
    }
    enrolled.check(&mut app, RESOLVERS[0], "");
}

#[test]
fn without_a_proxy_queries_are_not_let_out() {
    let enrolled = Enrolled::new();
    let Enrolled { _proxy: proxy, pod, world } = enrolled;
    let mut far = world.far_app();
    far.must("answer [::]:53");
    proxy.stop();
    let mut app = pod.app();
    for to in ["10.9.0.2:53", "[fd09::2]:53"] {
        let answer = app.tell(&format!("ask {to} who impatient"));
        assert!(answer.starts_with("err "), "{to}: {answer}");
    }
}

/// A call with a timeout is interrupted also when the machine stops and continues the test.
fn patiently<T>(mut call: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
