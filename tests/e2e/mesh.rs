//! A lab with the mesh in it, and what the tests say about it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lab::{Env, Lab, LabConfig, Node, Output, Pod, PodSpec, Process, Program, ServiceSpec};
use serde_json::Value;

/// For what takes milliseconds on an idle machine. Never a measurement: only the bound after which a test gives up.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// The label that puts a namespace into the mesh.
pub(crate) const AMBIENT: &str = "istio.io/dataplane-mode";

/// Two nodes, a controller and a ztunnel on each node.
pub(crate) struct Mesh {
    pub(crate) lab: Lab,
}

impl Mesh {
    pub(crate) fn start() -> Self {
        Self::start_with(LabConfig::default(), &Env::new())
    }

    /// `changes` are set over each ztunnel's environment.
    pub(crate) fn start_with(config: LabConfig, changes: &Env) -> Self {
        let lab = Lab::start(config).expect("a lab (root is needed)");
        lab.start_controller(Env::new()).expect("a controller");
        for node in lab.nodes() {
            node.start_ztunnel(changes.clone()).expect("a ztunnel");
        }
        Self { lab }
    }

    pub(crate) fn node(&self, index: usize) -> Node {
        self.lab.node(index)
    }

    /// A pod of namespace `shop` with a service account of its own name.
    pub(crate) fn pod(&self, node: usize, name: &str) -> Pod {
        self.pod_in("shop", node, name)
    }

    pub(crate) fn pod_in(&self, namespace: &str, node: usize, name: &str) -> Pod {
        let spec = PodSpec::new(namespace, name).service_account(name).label("app", name);
        self.node(node).add_pod(spec).expect("a pod")
    }

    /// A service of the pods that are labelled `app: <name>`.
    pub(crate) fn service(&self, namespace: &str, name: &str, port: u16, target: u16) -> lab::Service {
        let spec = ServiceSpec::new(namespace, name).selector("app", name).port("tcp", port, target);
        self.lab.add_service(spec).expect("a service")
    }

    /// Puts a namespace into the mesh and waits until all of its pods are proven to be in it.
    pub(crate) fn enrol(&self, namespace: &str, pods: &[&Pod]) {
        self.lab.label_namespace(namespace, AMBIENT, Some("ambient")).expect("a label");
        for pod in pods {
            pod.wait_for_state("enrolled", SOON).expect("enrolment");
        }
        self.settled(pods);
    }

    /// Waits until every ztunnel has heard that these pods take tunnels.
    pub(crate) fn settled(&self, pods: &[&Pod]) {
        self.until_dumps("the pods are enrolled", |dump| {
            for pod in pods {
                let known = workload(dump, pod).map(|workload| &workload["protocol"]);
                if known.is_none_or(|protocol| protocol != "HBONE") {
                    return Err(format!("{} is {known:?}", pod.name()));
                }
            }
            Ok(())
        });
    }

    /// Waits until what every ztunnel knows (its `config_dump`) is as it should be.
    pub(crate) fn until_dumps(&self, what: &str, is_so: impl Fn(&Value) -> Result<(), String>) {
        for node in self.lab.nodes() {
            let heard = format!("{} hears: {what}", node.name());
            lab::wait_until(&heard, SOON, || is_so(&admin(&node, "/config_dump"))).expect("what was told");
        }
    }
}

/// What a ztunnel's dump says of a pod.
pub(crate) fn workload<'a>(dump: &'a Value, pod: &Pod) -> Option<&'a Value> {
    let mut all = dump["workloads"].as_array()?.iter();
    all.find(|workload| workload["name"] == pod.name() && workload["namespace"] == pod.namespace())
}

/// What a node's ztunnel answers to a GET on its admin socket; null while it does not.
pub(crate) fn admin(node: &Node, path: &str) -> Value {
    let said = ask(&node.run_dir().join("admin.sock"), "GET", &format!("http://ztunnel{path}"));
    serde_json::from_slice(&said).unwrap_or_default()
}

/// What the controller answers to a GET on its admin socket; null while it does not.
pub(crate) fn controller(lab: &Lab, path: &str) -> Value {
    serde_json::from_slice(&ask_controller(lab, "GET", path)).unwrap_or_default()
}

/// One request to the controller's admin socket, and what it says.
pub(crate) fn ask_controller(lab: &Lab, method: &str, path: &str) -> Vec<u8> {
    ask(&lab.dir().join("controller/admin.sock"), method, &format!("http://controller{path}"))
}

fn ask(socket: &Path, method: &str, url: &str) -> Vec<u8> {
    let mut curl = std::process::Command::new("curl");
    let curl = curl.args(["-sS", "-m", "10", "-X", method, "--unix-socket"]).arg(socket).arg(url);
    curl.output().expect("curl runs").stdout
}

/// A program of this workspace, which is built beside the tests.
pub(crate) fn beside(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("this executable has a path");
    let folder = own.parent().expect("a folder");
    let folder = if folder.ends_with("deps") { folder.parent().expect("a folder") } else { folder };
    folder.join(name)
}

/// Starts the lab's own program in server mode and waits until it listens.
pub(crate) fn serve(pod: &Pod, args: &[&str]) -> Process {
    let server = pod.spawn(Program::new("lab-app").args(args)).expect("a server");
    server.wait_for_line("listening on", SOON).expect("a server that listens");
    server
}

/// Runs a client of the lab's to its end, which must be good, and returns what it printed last.
pub(crate) fn client(pod: &Pod, args: &[&str]) -> Value {
    let output = pod.run_within(Program::new("lab-app").args(args), SOON).expect("a client that ends");
    assert!(output.success(), "{} {args:?}: {output:?}", pod.name());
    let last = output.stdout.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{args:?} printed {last:?}: {error}"))
}

/// What an HTTP server answered to curl.
pub(crate) fn get(pod: &Pod, url: &str) -> Value {
    let output = curl(pod, &[url]);
    assert!(output.success(), "{} -> {url}: {output:?}", pod.name());
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{output:?}: {error}"))
}

pub(crate) fn curl(pod: &Pod, args: &[&str]) -> Output {
    let words: Vec<&str> = ["curl", "-sS", "-m", "10"].into_iter().chain(args.iter().copied()).collect();
    pod.run(words.as_slice()).expect("curl ends")
}

/// Whether the HTTP server saw the connection come from one of the pod's own addresses.
pub(crate) fn comes_from(answer: &Value, pod: &Pod) -> bool {
    let seen: SocketAddr = answer["client"].as_str().and_then(|text| text.parse().ok()).expect("an address");
    pod.ips().contains(&seen.ip().to_canonical())
}

/// Fails unless the connection is refused or reset, at once.
pub(crate) fn refused(pod: &Pod, url: &str) {
    let output = curl(pod, &[url]);
    assert!(output.code().is_some_and(is_refusal), "{} -> {url} is not refused: {output:?}", pod.name());
}

/// Whether curl's exit code says refused or reset: neither silence nor an end that looks like an answer's.
pub(crate) fn is_refusal(code: i32) -> bool {
    // 7: couldn't connect; 55 and 56: reset while sending and receiving. 28 would be a timeout, 52 an end.
    matches!(code, 7 | 55 | 56)
}

/// Waits for an access-log line of a node's ztunnel that has all these parts, and returns it.
pub(crate) fn logged(node: &Node, parts: &[&str]) -> String {
    let ztunnel = node.ztunnel().expect("a ztunnel");
    lab::wait_until(&format!("an access-log line of {} with {parts:?}", node.name()), SOON, || {
        let output = ztunnel.output().stdout;
        let line = output.lines().find(|line| parts.iter().all(|part| line.contains(part)));
        line.map(str::to_owned).ok_or(output)
    })
    .expect("a line")
}
