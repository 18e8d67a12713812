//! Who may reach whom: every condition of a policy judged by what applications see, between nodes and within one.
//!
//! The rules themselves are tested where they are made (`model`, `controller`); here it is whether they are obeyed.

mod live;
mod peers;
mod reports;
mod rules;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use lab::{Env, LabConfig, Pod, PodSpec, Process, ServiceSpec, Watch};
use serde_json::Value;

use crate::mesh::{AMBIENT, Mesh, SOON, comes_from, is_refusal, serve, workload};

/// Clients of three namespaces on one node, and a guarded server there and on the other node.
///
/// `alice` and `bob` are of the servers' namespace, `carol` of another, `mallory` is in no mesh.
struct Court {
    mesh: Mesh,
    clients: [Pod; 4],
    near: Pod,
    far: Pod,
    /// The servers' second ports are called by service.
    services: [lab::Service; 2],
    /// What those of them say who are in the mesh.
    words: [Watch; 3],
}

/// The servers' ports. The first is called by the pod's IPv4 address, the second by the service's IPv6 address.
const PORTS: [u16; 2] = [8080, 8081];

impl Court {
    fn start() -> Self {
        let env = Env::from([("AIRGLOW_LOG_FORMAT".into(), "json".into())]);
        let mesh = Mesh::start_with(LabConfig::default(), &env);
        let clients = [("shop", "alice"), ("shop", "bob"), ("bank", "carol"), ("wild", "mallory")]
            .map(|(namespace, name)| mesh.pod_in(namespace, 0, name));
        let [near, far] = [(0, "near"), (1, "far")].map(|(node, name)| {
            let spec =
                PodSpec::new("shop", name).service_account(name).label("app", name).label("guarded", "yes");
            let pod = mesh.node(node).add_pod(spec).expect("a pod");
            for port in PORTS {
                serve(&pod, &["http", "--name", name, "--listen", &format!("[::]:{port}")]);
            }
            pod
        });
        let services = ["near", "far"].map(|name| {
            let spec = ServiceSpec::new("shop", name).selector("app", name).port("second", 81, PORTS[1]);
            mesh.lab.add_service(spec).expect("a service")
        });
        let [alice, bob, carol, _] = &clients;
        mesh.lab.label_namespace("bank", AMBIENT, Some("ambient")).expect("a label");
        mesh.enrol("shop", &[alice, bob, carol, &near, &far]);
        let words = [alice, bob, carol].map(|pod| mesh.lab.wire().watch(word(pod)));
        Self { mesh, clients, near, far, services, words }
    }

    fn client(&self, name: &str) -> &Pod {
        self.clients.iter().find(|pod| pod.name() == name).expect("one of the four")
    }

    /// Puts these objects, and no others of the court's, in force: `names` are the policies that both servers must then be
    /// guarded by through their selectors.
    fn decree(&self, yaml: &str, names: &[&str]) {
        self.mesh.lab.apply_yaml("decree.yaml", &self.filled(yaml)).expect("a file");
        self.until_guarded_by(names);
    }

    /// Waits until every ztunnel knows that the servers are guarded by exactly these policies, and knows the policies.
    fn until_guarded_by(&self, names: &[&str]) {
        let expected: BTreeSet<&str> = names.iter().copied().collect();
        self.mesh.until_dumps(&format!("{names:?} guard the servers"), |dump| {
            let known: BTreeSet<String> = policies(dump, |scope| scope == SELECTOR).collect();
            for server in [&self.near, &self.far] {
                let named = workload(dump, server)
                    .map_or(&Value::Null, |workload| &workload["authorizationPolicies"]);
                let named: BTreeSet<&str> =
                    named.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                if named != expected || !named.iter().all(|name| known.contains(*name)) {
                    return Err(format!("{} is guarded by {named:?}, known are {known:?}", server.name()));
                }
            }
            Ok(())
        });
    }

    /// Waits until every ztunnel knows of exactly these policies that apply without being named: the mesh's and namespaces'.
    fn until_in_force(&self, names: &[&str]) {
        let expected: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
        self.mesh.until_dumps(&format!("{names:?} are in force"), |dump| {
            let in_force: BTreeSet<String> = policies(dump, |scope| scope != SELECTOR).collect();
            if in_force == expected { Ok(()) } else { Err(format!("in force are {in_force:?}")) }
        });
    }

    /// Waits until every ztunnel knows of a policy that selects workloads, whether it selects any or not.
    fn until_known(&self, name: &str) {
        self.mesh.until_dumps(&format!("{name} is known"), |dump| {
            let known: BTreeSet<String> = policies(dump, |scope| scope == SELECTOR).collect();
            if known.contains(name) { Ok(()) } else { Err(format!("known are {known:?}")) }
        });
    }

    /// `$alice` stands for both addresses of alice, and so on.
    fn filled(&self, yaml: &str) -> String {
        self.clients.iter().chain([&self.near, &self.far]).fold(yaml.to_owned(), |text, pod| {
            let ips = pod.ips().iter().map(|ip| format!("\"{ip}\"")).collect::<Vec<_>>().join(", ");
            text.replace(&format!("${}", pod.name()), &ips)
        })
    }

    /// Lets everybody call every port of both servers. `allowed` are those who must get through: a name for both ports, or
    /// `name:port`. Everybody else must be refused, at once.
    fn check(&self, case: &str, allowed: &str) {
        let allowed: BTreeSet<(&str, u16)> = allowed.split_whitespace().flat_map(callers).collect();
        // All at the same time, and only then the answers.
        let calls: Vec<(&Pod, Process)> =
            self.clients.iter().map(|client| (client, self.call(client))).collect();
        let outcomes: Vec<Outcome<'_>> =
            calls.iter().flat_map(|(client, call)| self.outcomes(client, call)).collect();
        for server in [&self.near, &self.far] {
            let passed = outcomes.iter().filter(|outcome| outcome.passed && outcome.server == server.name());
            let passed: BTreeSet<(&str, u16)> =
                passed.map(|outcome| (outcome.client, outcome.port)).collect();
            assert_eq!(passed, allowed, "who reaches {} under {case}", server.name());
        }
        for word in &self.words {
            assert_eq!(word.sightings().expect("a whole capture"), [], "in the clear under {case}");
        }
    }

    /// One curl for every port of both servers, each on a connection of its own.
    fn call(&self, client: &Pod) -> Process {
        let urls = self.targets().map(|(_, _, to)| format!("http://{to}/{}", word(client)));
        let curl = ["curl", "-sS", "-m", "10", "-w", "%{exitcode} %{url}\n"].map(str::to_owned);
        client.spawn([curl.as_slice(), &urls].concat().as_slice()).expect("curl")
    }

    /// Server, port, and how that port is called.
    fn targets(&self) -> [(&Pod, u16, SocketAddr); 4] {
        let by_address = |server: &'_ Pod| SocketAddr::new(server.ip(), PORTS[0]);
        let by_service = |service: &lab::Service| SocketAddr::new(service.ips[1], 81);
        let [near, far] = &self.services;
        [
            (&self.near, PORTS[0], by_address(&self.near)),
            (&self.far, PORTS[0], by_address(&self.far)),
            (&self.near, PORTS[1], by_service(near)),
            (&self.far, PORTS[1], by_service(far)),
        ]
    }

    /// What became of each call: an answer, or a refusal at once.
    fn outcomes<'a>(&'a self, client: &'a Pod, call: &Process) -> Vec<Outcome<'a>> {
        let output = call.wait(SOON).expect("curl ends");
        let mut lines = output.stdout.lines();
        let outcomes = self.targets().map(|(server, port, to)| {
            let line = lines.next().unwrap_or_default();
            let answer: Option<Value> = serde_json::from_str(line).ok().filter(Value::is_object);
            let passed = answer.is_some();
            let said = if passed { lines.next().unwrap_or_default() } else { line };
            let code: i32 = said.split(' ').next().and_then(|code| code.parse().ok()).unwrap_or(-1);
            assert!(said.contains(&to.to_string()), "{} to {to}: {output:?}", client.name());
            match answer {
                Some(answer) => {
                    assert!(comes_from(&answer, client) && answer["name"] == server.name(), "{answer}");
                }
                None => {
                    assert!(is_refusal(code), "{} to {}:{port}: {output:?}", client.name(), server.name())
                }
            }
            Outcome { client: client.name(), server: server.name(), port, passed }
        });
        outcomes.into()
    }
}

/// What a client says in every request.
fn word(client: &Pod) -> String {
    format!("the-word-of-{}", client.name())
}

struct Outcome<'a> {
    client: &'a str,
    server: &'a str,
    port: u16,
    passed: bool,
}

/// The scope of policies that apply where they are named.
const SELECTOR: &str = "WorkloadSelector";

/// The names of the policies of such a scope that a ztunnel knows.
fn policies<'a>(dump: &'a Value, scope: impl Fn(&str) -> bool + 'a) -> impl Iterator<Item = String> + 'a {
    fn text(value: &Value) -> &str {
        value.as_str().unwrap_or_default()
    }
    let all =
        dump["policies"].as_array().into_iter().flatten().filter(move |policy| scope(text(&policy["scope"])));
    all.map(|policy| format!("{}/{}", text(&policy["namespace"]), text(&policy["name"])))
}

fn callers(word: &str) -> Vec<(&str, u16)> {
    match word.split_once(':') {
        Some((name, port)) => vec![(name, port.parse().expect("a port"))],
        None => PORTS.map(|port| (word, port)).to_vec(),
    }
}

/// An AuthorizationPolicy for the guarded servers; `spec` follows the selector, in YAML's flow style.
fn authorization(name: &str, spec: &str) -> String {
    policy("AuthorizationPolicy", name, &format!("selector: {{matchLabels: {{guarded: 'yes'}}}}, {spec}"))
}

fn policy(kind: &str, name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap_or(("shop", name));
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: {kind}\n\
         metadata: {{namespace: {namespace}, name: {name}}}\nspec: {{{spec}}}\n"
    )
}
