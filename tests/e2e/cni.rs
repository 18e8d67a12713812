//! `ztunnel-cni` as a container runtime calls it: a pod of the mesh starts captured or not at all, and others start.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use lab::{Env, Node, Pod};
use serde_json::{Value, json};

use crate::mesh::{Mesh, SOON, get, serve};

/// A call of the plugin for one sandbox.
struct Call<'a> {
    node: &'a Node,
    uid: &'a str,
    namespace: &'a str,
    name: &'a str,
    sandbox_id: &'a str,
    netns: PathBuf,
    result: Value,
}

impl<'a> Call<'a> {
    fn of(node: &'a Node, pod: &'a Pod, sandbox_id: &'a str) -> Self {
        let netns = pod.netns().path().to_path_buf();
        let ips: Vec<Value> =
            pod.ips().iter().map(|ip| json!({"address": format!("{ip}/32"), "interface": 0})).collect();
        let result = json!({
            "cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": netns}], "ips": ips, "dns": {},
        });
        Self { node, uid: pod.uid(), namespace: pod.namespace(), name: pod.name(), sandbox_id, netns, result }
    }

    /// Whether it succeeded, and what it printed.
    fn run(&self, command: &str) -> (bool, Value) {
        self.run_with(command, json!({}))
    }

    fn run_with(&self, command: &str, more: Value) -> (bool, Value) {
        let mut input = json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "ztunnel-cni",
            "runDir": self.node.run_dir(), "alwaysStart": ["kube-system"], "prevResult": self.result,
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            input[name] = value.clone();
        }
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            self.namespace, self.name, self.sandbox_id, self.uid
        );
        let mut plugin = Command::new(executable("ztunnel-cni"))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", self.sandbox_id)
            .env("CNI_NETNS", &self.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin")
            .env("CNI_ARGS", args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("ztunnel-cni runs: cargo build -p ztunnel --bins");
        let mut stdin = plugin.stdin.take().expect("a pipe");
        stdin.write_all(input.to_string().as_bytes()).expect("a reader");
        drop(stdin);
        let output = plugin.wait_with_output().expect("an end");
        (output.status.success(), serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
    }

    fn must_start(&self) {
        let (success, printed) = self.run("ADD");
        assert!(success, "{}/{}: {printed}", self.namespace, self.name);
        assert_eq!(printed, self.result, "what earlier plugins said is passed on");
    }

    fn must_not_start(&self, because: &str) {
        let (success, printed) = self.run("ADD");
        assert!(!success, "{}/{} starts though {because}", self.namespace, self.name);
        assert_eq!((&printed["code"], &printed["cniVersion"]), (&json!(11), &json!("1.1.0")), "{printed}");
        let said = printed["msg"].as_str().unwrap_or_default();
        assert!(said.contains(because) && said.contains("It is tried again"), "{said}");
    }
}

/// One of our programs, as cargo built it.
pub(crate) fn executable(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("the running executable");
    let profile = own.parent().and_then(|deps| deps.parent()).expect("target/<profile>/deps");
    profile.join(name)
}

/// What the node's ztunnel knows of a pod.
fn known(node: &Node, uid: &str) -> Option<Value> {
    let pods = node.enrolment().expect("the node API answers");
    pods.as_array().into_iter().flatten().find(|pod| pod["uid"] == uid).cloned()
}

fn forget(pod: &Pod) {
    let call = Call::of(&pod.node(), pod, "").run("DEL");
    assert!(!call.0, "a runtime names its sandboxes: {call:?}");
    crate::enrolment::tell(pod, &json!({"delete": {"uid": pod.uid()}}));
    assert_eq!(known(&pod.node(), pod.uid()), None);
}

#[test]
fn a_pod_is_in_the_mesh_when_the_plugin_returns_and_out_of_it_when_its_sandbox_ends() {
    let mesh = Mesh::start();
    let (peer, cart) = (mesh.pod(0, "peer"), mesh.pod(1, "cart"));
    serve(&peer, &["http"]);
    mesh.enrol("shop", &[&peer, &cart]);
    let node = mesh.node(1);
    forget(&cart);

    let call = Call::of(&node, &cart, "sandbox-1");
    call.must_start();
    let entry = known(&node, cart.uid()).expect("it is known");
    assert_eq!((&entry["state"], &entry["sandbox_id"]), (&json!("enrolled"), &json!("sandbox-1")), "{entry}");
    let answer = get(&cart, &format!("http://{}:8080/", peer.ip()));
    assert!(crate::mesh::comes_from(&answer, &cart), "{answer}");
    assert_eq!(call.run("CHECK"), (true, Value::Null));
    assert_eq!(call.run("STATUS"), (true, Value::Null));
    let (success, versions) = call.run("VERSION");
    assert!(
        success && versions["supportedVersions"].as_array().is_some_and(|all| all.contains(&json!("1.1.0")))
    );

    // The same pod in a new sandbox, and the late end of the old one.
    let renewed = Call::of(&node, &cart, "sandbox-2");
    renewed.must_start();
    assert_eq!(call.run("DEL"), (true, Value::Null));
    let entry = known(&node, cart.uid()).expect("it is known");
    assert_eq!((&entry["state"], &entry["sandbox_id"]), (&json!("enrolled"), &json!("sandbox-2")), "{entry}");

    // A sandbox that the runtime does not list keeps its capture for as long as its network is there.
    let nobody = json!({"cni.dev/valid-attachments": []});
    assert_eq!(renewed.run_with("GC", nobody.clone()), (true, Value::Null));
    assert!(known(&node, cart.uid()).is_some());
    assert_eq!(renewed.run("DEL"), (true, Value::Null));
    assert_eq!(known(&node, cart.uid()), None);
    assert_eq!(renewed.run("DEL"), (true, Value::Null), "again");
    let (success, printed) = renewed.run("CHECK");
    assert!(
        !success && printed["msg"].as_str().is_some_and(|said| said.contains("does not know")),
        "{printed}"
    );

    // One whose network is gone too.
    let gone = Call { netns: node.run_dir().join("no-such-netns"), ..Call::of(&node, &cart, "sandbox-3") };
    gone.must_not_start("ztunnel can't capture its traffic");
    assert!(known(&node, cart.uid()).is_some());
    assert_eq!(gone.run_with("GC", nobody), (true, Value::Null));
    assert_eq!(known(&node, cart.uid()), None);
}

#[test]
fn without_a_ztunnel_no_pod_starts_that_may_belong_into_the_mesh() {
    let mesh = Mesh::start();
    let (cart, safe) = (mesh.pod(1, "cart"), mesh.pod_in("bank", 1, "safe"));
    mesh.enrol("shop", &[&cart]);
    safe.wait_for_state("not wanted", SOON).expect("the bank is not in the mesh");
    let node = mesh.node(1);
    let call = Call::of(&node, &cart, "sandbox-1");
    call.must_start();
    node.kill_ztunnel().expect("killed");

    let of = |namespace, uid| Call { namespace, uid, ..Call::of(&node, &cart, "sandbox-9") };
    thread::scope(|scope| {
        scope.spawn(|| of("shop", "new").must_not_start("namespace shop was last known to be in the mesh"));
        scope.spawn(|| of("shop", cart.uid()).must_not_start("it was last known to be in the mesh"));
        scope.spawn(|| of("other", "new").must_not_start("nothing is known yet of namespace other"));
        scope.spawn(|| of("bank", "new").must_start());
        scope.spawn(|| of("kube-system", "new").must_start());
    });
    assert_eq!(call.run("STATUS"), (true, Value::Null), "others start");
    assert_eq!(call.run("DEL"), (true, Value::Null), "ends are not held up");

    // What is not known any more is not presumed.
    std::fs::remove_file(node.run_dir().join("last-known.json")).expect("it was there");
    of("bank", "new").must_not_start("can't be read");

    // Whoever waits starts when a ztunnel is back.
    thread::scope(|scope| {
        let waiting = scope.spawn(|| call.must_start());
        node.start_ztunnel(Env::new()).expect("a ztunnel");
        waiting.join().expect("it starts");
    });
    cart.wait_for_state("enrolled", SOON).expect("captured");
}
