//! Names as enrolled pods see them: those of the mesh are answered on the node, all others by the resolver that was asked.

use lab::{DNS_VIP, OUTSIDE, Pod, PodSpec, Process, ServiceSpec};
use serde_json::Value;

use crate::mesh::{AMBIENT, Mesh, SOON, client, comes_from, get, serve, workload};

/// Nobody is there: what is answered in its name is answered by the mesh.
const NO_RESOLVER: &str = "192.0.2.53:53";

const TRANSPORTS: [&str; 3] = ["connected", "unconnected", "tcp"];

/// Services of two namespaces, one of them headless, and a client on the other node.
struct Names {
    mesh: Mesh,
    client: Pod,
    web: lab::Service,
    bank: lab::Service,
    each: Vec<Pod>,
}

impl Names {
    fn start() -> Self {
        let mesh = Mesh::start();
        let client = mesh.pod(0, "client");
        let web = mesh.service("shop", "web", 80, 8080);
        let bank = mesh.service("bank", "bank", 80, 8080);
        let each: Vec<Pod> = (0..3).map(|n| mesh.node(n % 2).add_pod(each(n)).expect("a pod")).collect();
        let spec =
            ServiceSpec::new("shop", "each").selector("app", "each").port("http", 8080, 8080).headless();
        mesh.lab.add_service(spec).expect("a service");
        let servers = [mesh.pod(1, "web"), mesh.pod_in("bank", 1, "bank")];
        for server in each.iter().chain(&servers) {
            serve(server, &["http", "--name", server.name()]);
        }
        mesh.lab.label_namespace("bank", AMBIENT, Some("ambient")).expect("a label");
        let pods: Vec<&Pod> = each.iter().chain(&servers).chain([&client]).collect();
        mesh.enrol("shop", &pods);
        Self { mesh, client, web, bank, each }
    }
}

fn each(number: usize) -> PodSpec {
    PodSpec::new("shop", format!("each-{number}")).label("app", "each")
}

/// Asks for addresses of one family by one transport, and returns the answer as `CODE address address`.
fn ask(pod: &Pod, server: &str, name: &str, kind: &str, transport: &str) -> String {
    let args = ["dns", "--server", server, "--name", name, "--kind", kind, "--transport", transport];
    let answer = client(pod, &args);
    let addresses: Vec<&str> =
        answer["answers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let cut = if answer["truncated"] == true { " (cut)" } else { "" };
    format!("{}{cut} {}", answer["code"].as_str().unwrap_or_default(), addresses.join(" "))
        .trim_end()
        .to_owned()
}

fn sorted<'a>(ips: impl IntoIterator<Item = &'a std::net::IpAddr>, v4: bool) -> String {
    let mut ips: Vec<String> =
        ips.into_iter().filter(|ip| ip.is_ipv4() == v4).map(ToString::to_string).collect();
    ips.sort();
    ips.join(" ")
}

#[test]
fn names_of_the_mesh_are_answered_whichever_resolver_is_asked() {
    let names = Names::start();
    let each: Vec<_> = names.each.iter().flat_map(|pod| pod.ips().iter().copied()).collect();
    let resolvers = [format!("{}:53", DNS_VIP.v4), format!("[{}]:53", DNS_VIP.v6), NO_RESOLVER.to_owned()];
    // In the wire form of a question: a name that the mesh knows is no business of the cluster's DNS.
    let asked = names.mesh.lab.wire().watch(b"\x03web\x04shop\x03svc\x07cluster\x05local");
    for (name, ips) in [
        ("web.shop.svc.cluster.local.", &names.web.ips),
        ("WEB.Shop.svc.cluster.local.", &names.web.ips),
        ("web.shop.", &names.web.ips),
        ("web.", &names.web.ips),
        ("bank.bank.svc.", &names.bank.ips),
        ("each.shop.svc.cluster.local.", &each),
    ] {
        for (resolver, transport) in
            resolvers.iter().flat_map(|resolver| TRANSPORTS.map(|transport| (resolver, transport)))
        {
            for (kind, v4) in [("a", true), ("aaaa", false)] {
                let answer = ask(&names.client, resolver, name, kind, transport);
                let expected = format!("No Error {}", sorted(ips, v4));
                assert_eq!(answer, expected, "{name} {kind} of {resolver} by {transport}");
            }
        }
    }
    assert_eq!(asked.count().expect("a whole capture"), 0);
    // Endpoints that are not ready have no place in a headless name.
    names.each[1].set_ready(false).expect("a change");
    names.mesh.until_dumps("each-1 is not ready", |dump| {
        match workload(dump, &names.each[1]).map(|workload| &workload["status"]) {
            Some(status) if status == "Unhealthy" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let ready = sorted([&names.each[0], &names.each[2]].iter().flat_map(|pod| pod.ips()), true);
    assert_eq!(ask(&names.client, NO_RESOLVER, "each.", "a", "connected"), format!("No Error {ready}"));
}

#[test]
fn other_names_are_asked_of_the_resolver() {
    let names = Names::start();
    let lab = &names.mesh.lab;
    lab.add_outside_name("api.example.com", &OUTSIDE.ips(true)).expect("a name");
    let asked = lab.wire().watch(b"\x03api\x07example\x03com");
    for resolver in [format!("{}:53", DNS_VIP.v4), format!("[{}]:53", DNS_VIP.v6)] {
        for transport in TRANSPORTS {
            let ask = |name, kind| ask(&names.client, &resolver, name, kind, transport);
            assert_eq!(ask("api.example.com.", "a"), format!("No Error {}", OUTSIDE.v4));
            assert_eq!(ask("api.example.com.", "aaaa"), format!("No Error {}", OUTSIDE.v6));
            assert_eq!(ask("nobody.example.com.", "a"), "Non-Existent Domain");
            assert_eq!(ask("nobody.shop.svc.cluster.local.", "a"), "Non-Existent Domain");
            // The mesh knows services; names of single pods are the cluster's.
            let pod = &names.each[2];
            assert_eq!(ask("each-2.each.shop.svc.cluster.local.", "aaaa"), format!("No Error {}", pod.ip6()));
        }
    }
    assert!(asked.count().expect("a whole capture") > 0, "the cluster's DNS was asked");
}

#[test]
fn programs_find_names_by_their_search_path() {
    let names = Names::start();
    let lab = &names.mesh.lab;
    lab.add_outside_name("api.example.com", &OUTSIDE.ips(true)).expect("a name");
    let script = "import socket, sys\n\
                  print(*sorted({a[4][0] for a in socket.getaddrinfo(sys.argv[1], 80, proto=socket.IPPROTO_TCP)}))";
    for (name, ips) in [
        ("web", names.web.ips.clone()),
        ("web.shop", names.web.ips.clone()),
        ("bank.bank", names.bank.ips.clone()),
        ("bank.bank.svc", names.bank.ips.clone()),
        ("bank.bank.svc.cluster.local", names.bank.ips.clone()),
        ("each", names.each.iter().flat_map(|pod| pod.ips().iter().copied()).collect()),
        // Five names of the search path come before it.
        ("api.example.com", OUTSIDE.ips(true)),
    ] {
        let output = names.client.run(["python3", "-c", script, name]).expect("python3 ends");
        let mut expected: Vec<String> = ips.iter().map(ToString::to_string).collect();
        expected.sort();
        assert_eq!(output.stdout.trim_end(), expected.join(" "), "{name}: {output:?}");
    }
    let failed = names.client.run(["python3", "-c", script, "bank"]).expect("python3 ends");
    assert!(
        failed.stderr.contains("gaierror"),
        "another namespace's service has no name of one word: {failed:?}"
    );
    for (url, server) in
        [("http://web/", "web"), ("http://bank.bank/", "bank"), ("http://each:8080/", "each-")]
    {
        let answer = get(&names.client, url);
        assert!(comes_from(&answer, &names.client), "{answer}");
        assert!(answer["name"].as_str().is_some_and(|name| name.starts_with(server)), "{answer}");
    }
}

#[test]
fn an_answer_that_does_not_fit_a_datagram_is_whole_over_tcp() {
    let mesh = Mesh::start();
    let from = mesh.pod(0, "client");
    // Nineteen addresses of IPv6 are more than 512 bytes.
    let many: Vec<Pod> = (0..19).map(|n| mesh.node(1).add_pod(each(n)).expect("a pod")).collect();
    let spec = ServiceSpec::new("shop", "each").selector("app", "each").port("http", 8080, 8080).headless();
    mesh.lab.add_service(spec).expect("a service");
    mesh.enrol("shop", &[&from]);
    let all = sorted(many.iter().flat_map(|pod| pod.ips()), false);
    lab::wait_until("all endpoints have a name", SOON, || {
        let answer = ask(&from, NO_RESOLVER, "each.shop.", "aaaa", "tcp");
        if answer == format!("No Error {all}") { Ok(()) } else { Err(answer) }
    })
    .expect("all of them");
    assert_eq!(ask(&from, NO_RESOLVER, "each.shop.", "aaaa", "connected"), "No Error (cut)");
    // A resolver library asks again by TCP.
    let script =
        "import socket\nprint(len(socket.getaddrinfo('each', 80, socket.AF_INET6, socket.SOCK_STREAM)))";
    let output = from.run(["python3", "-c", script]).expect("python3 ends");
    assert_eq!(output.stdout.trim_end(), "19", "{output:?}");
}

/// A DNS server of few words: whatever it is asked, by UDP or TCP, it answers with one address. It writes down who asked.
const DNS_SERVER: &str = r#"
import socket, socketserver, struct, sys, threading
def answer(query):
    end = query.index(b"\0", 12) + 5
    record = b"\xc0\x0c\0\1\0\1\0\0\0\5\0\4" + socket.inet_aton("198.51.100.7")
    return query[:2] + b"\x84\0\0\1\0\1\0\0\0\0" + query[12:end] + record
def say(how, address):
    sys.stdout.write(f"{how} {address[0].removeprefix('::ffff:')}\n")
    sys.stdout.flush()
class Udp(socketserver.BaseRequestHandler):
    def handle(self):
        say("udp", self.client_address)
        data, sock = self.request
        sock.sendto(answer(data), self.client_address)
class Tcp(socketserver.BaseRequestHandler):
    def handle(self):
        say("tcp", self.client_address)
        length = struct.unpack("!H", self.request.recv(2, socket.MSG_WAITALL))[0]
        reply = answer(self.request.recv(length, socket.MSG_WAITALL))
        self.request.sendall(struct.pack("!H", len(reply)) + reply)
def serve(kind, handler):
    kind.allow_reuse_address = True
    # A socket per address, so that answers leave from the address that was asked.
    for address in sys.argv[1:]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        server = type("Server", (kind,), {"address_family": family})((address, 53), handler)
        threading.Thread(target=server.serve_forever).start()
serve(socketserver.ThreadingUDPServer, Udp)
serve(socketserver.ThreadingTCPServer, Tcp)
say("serving", ("everybody",))
"#;

/// The server listens on every address of its pod.
fn dns_server(pod: &Pod) -> Process {
    let mut words = vec!["python3".to_owned(), "-c".to_owned(), DNS_SERVER.to_owned()];
    words.extend(["127.0.0.1".to_owned(), "::1".to_owned()]);
    words.extend(pod.ips().iter().map(ToString::to_string));
    let server = pod.spawn(words.as_slice()).expect("python3");
    server.wait_for_line("serving everybody", SOON).expect("a server that listens");
    server
}

#[test]
fn a_dns_server_in_an_enrolled_pod_answers() {
    let mesh = Mesh::start();
    let (near, far) = (mesh.pod(0, "near"), mesh.pod(1, "far"));
    let resolver = mesh.pod(1, "resolver");
    let stranger = mesh.pod_in("wild", 0, "stranger");
    let server = dns_server(&resolver);
    mesh.enrol("shop", &[&near, &far, &resolver]);
    let canary = mesh.lab.wire().watch_port(53);
    for asker in [&near, &far, &stranger, &resolver] {
        for ip in resolver.ips() {
            let to = std::net::SocketAddr::new(*ip, 53).to_string();
            for transport in TRANSPORTS {
                let answer = ask(asker, &to, "anything.example.org.", "a", transport);
                assert_eq!(answer, "No Error 198.51.100.7", "{} asks {to} by {transport}", asker.name());
                let how = if transport == "tcp" { "tcp" } else { "udp" };
                let own =
                    asker.ips().iter().find(|own| own.is_ipv4() == ip.is_ipv4()).expect("both families");
                server.wait_for_line(&format!("{how} {own}"), SOON).expect("the server sees who asks");
            }
        }
    }
    for own in ["127.0.0.1:53", "[::1]:53"] {
        for transport in TRANSPORTS {
            assert_eq!(
                ask(&resolver, own, "anything.example.org.", "a", transport),
                "No Error 198.51.100.7",
                "{own}"
            );
        }
    }
    let in_the_clear = canary.sightings().expect("a whole capture");
    let strangers = in_the_clear
        .iter()
        .filter(|seen| stranger.ips().contains(&seen.from.ip()) || stranger.ips().contains(&seen.to.ip()));
    assert_eq!(
        strangers.count(),
        in_the_clear.len(),
        "between enrolled pods DNS over TCP is in tunnels: {in_the_clear:?}"
    );
    assert!(!in_the_clear.is_empty(), "a stranger's questions are in the clear");
}
