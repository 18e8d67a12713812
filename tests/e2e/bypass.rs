//! Ways around the mesh, tried by applications and by strangers. What is tried is answered through a tunnel or refused; in
//! no case does a byte of it cross the wire in the clear.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use lab::{Pod, ServiceSpec, Slice, Watch};

use crate::mesh::{Mesh, SOON, client, serve};
use crate::support::attempt::{self, Outcome, mapped};
use crate::support::peer::{self, Answer};
use crate::support::proof::{Proof, identity_of, tls};

const CANARY: &str = "canary-that-nobody-may-see-on-the-wire";

/// A client on one node and a server on the other, both enrolled, and nothing said between them before.
struct World {
    mesh: Mesh,
    client: Pod,
    server: Pod,
    /// Every address under which a program may know the server, and those of another one on the client's node.
    destinations: Vec<SocketAddr>,
    seen: Watch,
}

impl World {
    fn new() -> Self {
        let mesh = Mesh::start();
        let (client, server) = (mesh.pod(0, "client"), mesh.pod(1, "server"));
        let neighbour = mesh.pod(0, "neighbour");
        let vips = mesh.service("shop", "server", 80, 8080).ips;
        serve(&server, &["echo"]);
        serve(&neighbour, &["echo"]);
        // The client talks to itself, too.
        serve(&client, &["echo", "--listen", "[::]:9090"]);
        let seen = mesh.lab.wire().watch(CANARY);
        mesh.enrol("shop", &[&client, &server, &neighbour]);
        let (v4, v6) = (server.ip(), server.ip6());
        let mut destinations: Vec<_> = [v4, v6, mapped(v4)].map(|ip| SocketAddr::new(ip, 8080)).into();
        destinations.extend(vips.into_iter().map(|ip| SocketAddr::new(ip, 80)));
        destinations.extend(neighbour.ips().iter().map(|ip| SocketAddr::new(*ip, 8080)));
        Self { mesh, client, server, destinations, seen }
    }

    /// The canary was not on the wire, and nothing but tunnels was between pods.
    fn check_wire(&self) {
        assert_eq!(self.seen.sightings().expect("a whole capture"), [], "the canary crossed the wire");
        let stats = self.mesh.lab.wire().stats().expect("a whole capture");
        let tunnels = stats.pods_tcp_port(15008);
        assert_eq!(
            stats.pods_tcp.payload, tunnels.payload,
            "all payload between pods is the tunnels': {stats:?}"
        );
    }

    /// Tries one way to every destination and family at once.
    fn check(&self, way: &Way) {
        let attempts: Vec<_> = self
            .destinations
            .iter()
            .map(|to| {
                let options = self.options(way.options, *to);
                (to, attempt::start(&self.client, *to, CANARY, &options))
            })
            .collect();
        for (to, attempt) in attempts {
            let outcome = attempt::outcome(&attempt);
            let good = match way.expected {
                Expected::Answered => outcome == Outcome::Answered,
                Expected::Refused => matches!(outcome, Outcome::Refused(_)),
            };
            assert!(good, "`{}` to {to}: {outcome:?}, expected {:?}", way.options, way.expected);
        }
    }

    /// Puts in the addresses that fit the destination's family.
    fn options(&self, options: &str, to: SocketAddr) -> String {
        let pick = |pod: &Pod| match to.ip() {
            IpAddr::V4(_) => pod.ip(),
            IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => mapped(pod.ip()),
            IpAddr::V6(_) => pod.ip6(),
        };
        let text = |ip, port| SocketAddr::new(ip, port).to_string();
        // One port for each destination, because they are tried at once.
        let port = 20_000 + self.destinations.iter().position(|other| *other == to).expect("known") as u16;
        options
            .replace("OWN:PORT", &text(pick(&self.client), port))
            .replace(
                "ANY:PORT",
                &text(if to.is_ipv4() { "0.0.0.0" } else { "::" }.parse().expect("any"), port + 100),
            )
            .replace("OWN:0", &text(pick(&self.client), 0))
            .replace("ITSELF", &text(pick(&self.client), 9090))
            .replace("OTHER:0", &text(pick(&self.server), 0))
    }
}

#[derive(Debug)]
enum Expected {
    Answered,
    Refused,
}

struct Way {
    options: &'static str,
    expected: Expected,
}

const fn answered(options: &'static str) -> Way {
    Way { options, expected: Expected::Answered }
}

const fn refused(options: &'static str) -> Way {
    Way { options, expected: Expected::Refused }
}

/// Marks are ztunnel's own: of the proxy, of captured connections, of replies.
const WAYS: &[Way] = &[
    answered("--way plain"),
    answered("--way plain --unprivileged"),
    answered("--way mark --mark 1337"),
    answered("--way mark --mark 1338"),
    answered("--way mark --mark 1339"),
    answered("--way mark --mark 1"),
    answered("--way device"),
    answered("--way device-index"),
    answered("--way loopback"),
    refused("--way device --unprivileged"),
    refused("--way device-index --unprivileged"),
    answered("--way unicast-if"),
    answered("--way dont-route"),
    answered("--way mptcp"),
    answered("--way mptcp-fastopen-send"),
    answered("--way fastopen-connect"),
    answered("--way fastopen-send"),
    answered("--way fastopen-send-nonblocking"),
    answered("--way bound --from OWN:0"),
    answered("--way bound --from OWN:PORT"),
    answered("--way bound --from ANY:PORT"),
    answered("--way reconnect --first ITSELF"),
    answered("--way child"),
    refused("--way mark-later --mark 0"),
    refused("--way mark-later --mark 1337"),
    refused("--way device-later"),
    refused("--way device-later --unprivileged"),
    refused("--way foreign --from OTHER:0"),
    refused("--way foreign --from OTHER:0 --unprivileged"),
];

#[test]
fn no_application_gets_around_the_tunnel() {
    let world = World::new();
    for way in WAYS {
        world.check(way);
    }
    world.check_wire();
}

/// What counts is the pod's network namespace, not how a process came into it.
#[test]
fn a_process_in_another_cgroup_of_the_node_does_not_get_around_the_tunnel() {
    let world = World::new();
    let node = world.client.node();
    let netns = format!("--netns {}", world.client.netns().path().display());
    let to = world.destinations[0];
    for slice in [Slice::Kubepods, Slice::System, Slice::Kubelet] {
        for way in ["--way plain", "--way mark --mark 1337", "--way device", "--way fastopen-send"] {
            let program = attempt::program(to, CANARY, &format!("{way} {netns}"));
            let attempt = node.spawn(slice, program).expect("an attempt");
            assert_eq!(attempt::outcome(&attempt), Outcome::Answered, "`{way}` from {slice:?}");
        }
    }
    world.check_wire();
}

/// It is captured before its first process starts, and known before it is asked about.
#[test]
fn the_first_word_of_a_new_pod_is_in_the_tunnel() {
    let world = World::new();
    for number in 0..5 {
        let pod = world.mesh.pod(0, &format!("new-{number}"));
        let attempts: Vec<_> =
            world.destinations.iter().map(|to| (to, attempt::start(&pod, *to, CANARY, ""))).collect();
        for (to, attempt) in attempts {
            assert_eq!(attempt::outcome(&attempt), Outcome::Answered, "{} to {to}", pod.name());
        }
    }
    world.check_wire();
}

#[test]
fn a_headless_service_leads_into_the_tunnel() {
    let world = World::new();
    let spec = ServiceSpec::new("shop", "bare").selector("app", "server").port("tcp", 8080, 8080).headless();
    world.mesh.lab.add_service(spec).expect("a service");
    let arguments =
        ["load", "--to", "bare.shop:8080", "--mode", "new", "--connections", "2", "--requests", "20"];
    let report = client(&world.client, &arguments);
    assert_eq!(report["succeeded"], 20, "{report}");
    world.check_wire();
}

/// From inside of the pod, from another enrolled pod, and from a stranger.
#[test]
fn ztunnels_own_ports_are_closed_to_applications() {
    let world = World::new();
    let stranger = world.mesh.pod_in("wild", 0, "stranger");
    let own = &world.client;
    let inside: [IpAddr; 8] = [
        Ipv4Addr::LOCALHOST.into(),
        Ipv4Addr::new(127, 1, 2, 3).into(),
        Ipv4Addr::UNSPECIFIED.into(),
        Ipv6Addr::LOCALHOST.into(),
        mapped(Ipv4Addr::LOCALHOST.into()),
        own.ip(),
        own.ip6(),
        mapped(own.ip()),
    ];
    let server = [world.server.ip(), world.server.ip6(), mapped(world.server.ip())];
    let mut attempts = Vec::new();
    for port in [15001, 15006, 15008, 15053] {
        let mut attack = |pod: &Pod, ip: IpAddr| {
            let to = SocketAddr::new(ip, port);
            attempts.push((pod.name().to_owned(), to, attempt::start(pod, to, CANARY, "")));
        };
        inside.iter().for_each(|ip| attack(own, *ip));
        for ip in server {
            attack(own, ip);
            attack(&stranger, ip);
        }
    }
    for (pod, to, attempt) in attempts {
        let outcome = attempt::outcome(&attempt);
        assert!(matches!(outcome, Outcome::Refused(_)), "{pod} to {to}: {outcome:?}");
    }
    // The stranger's plaintext to the ports crossed the wire; that is the stranger's affair.
    let echo = attempt::start(own, world.destinations[0], "all is well", "");
    assert_eq!(attempt::outcome(&echo), Outcome::Answered);
}

/// A stranger has the network, and addresses that it claims; a thief has a namespace, and certificates that look right.
#[test]
fn strangers_do_not_get_in() {
    let world = World::new();
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                  metadata: {name: strict, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n";
    let far = world.mesh.pod_in("wild", 0, "far");
    let near = world.mesh.pod_in("wild", 1, "near");
    world.mesh.lab.apply_yaml("strict.yaml", strict).expect("applied");
    world.until_plaintext_is_refused(&far);
    for stranger in [&far, &near] {
        world.check_plaintext_is_refused(stranger);
        world.check_certificates(stranger);
    }
}

impl World {
    fn until_plaintext_is_refused(&self, stranger: &Pod) {
        lab::wait_until("STRICT is enforced", SOON, || {
            match attempt::outcome(&attempt::start(stranger, self.destinations[0], CANARY, "")) {
                Outcome::Refused(_) => Ok(()),
                other @ (Outcome::Answered | Outcome::Silent) => Err(format!("{other:?}")),
            }
        })
        .expect("STRICT");
    }

    /// As itself, as the client that may, as the server itself, and as its node.
    fn check_plaintext_is_refused(&self, stranger: &Pod) {
        let node = self.server.node();
        let v4 = [self.client.ip(), self.server.ip(), node.ips()[0]];
        let v6 = [self.client.ip6(), self.server.ip6(), node.ips()[1]];
        let mut attempts = Vec::new();
        for (to, sources) in [(self.destinations[0], v4), (self.destinations[1], v6)] {
            for way in ["--way plain", "--way mark --mark 1338", "--way mark --mark 1339", "--way mptcp"] {
                attempts.push((way.to_owned(), to, attempt::start(stranger, to, CANARY, way)));
            }
            for source in sources {
                // The answer to a spoofed address goes elsewhere, so most of these hear nothing.
                let way = format!("--way foreign --from {} --patience-ms 1000", SocketAddr::new(source, 0));
                attempts.push((way.clone(), to, attempt::start(stranger, to, CANARY, &way)));
            }
        }
        for (way, to, attempt) in attempts {
            let outcome = attempt::outcome(&attempt);
            assert_ne!(outcome, Outcome::Answered, "{}: `{way}` to {to}", stranger.name());
        }
    }

    fn check_certificates(&self, stranger: &Pod) {
        let lab = &self.mesh.lab;
        let me = identity_of(&self.client).to_string();
        let foreign = me.replace("cluster.local", "evil.test");
        let now = SystemTime::now();
        let week = Duration::from_secs(7 * 24 * 3600);
        let proofs = [
            ("nothing", None),
            ("a certificate of its own making", Some(Proof::self_signed(&me))),
            ("another authority's certificate", Some(Proof::of_another_authority(lab, &me))),
            ("another trust domain's certificate", Some(Proof::of_another_authority(lab, &foreign))),
            ("the mesh's certificate for another trust domain", Some(Proof::forged(lab, &foreign, now))),
            ("an expired certificate", Some(Proof::forged(lab, &me, now - week))),
        ];
        let doors = [self.server.ip(), self.server.ip6()].map(|ip| SocketAddr::new(ip, 15008));
        for (what, proof) in proofs {
            let tls = tls(proof);
            for door in doors {
                let outcome = peer::tunnel(stranger, door, &tls);
                assert!(outcome.is_err(), "{} was let in at {door} with {what}", stranger.name());
            }
        }
        // The same words with a true certificate: it is the certificate that was missing.
        let tls = tls(Some(Proof::of(lab, &self.client)));
        for door in doors {
            let mut raw = peer::tunnel(stranger, door, &tls).expect("a tunnel");
            let authority = SocketAddr::new(door.ip(), 8080).to_string();
            assert_eq!(peer::ask(&mut raw, 1, &peer::connect_to(&authority)), Answer::Status(200));
        }
    }
}
