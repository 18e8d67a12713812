//! The mesh on the cluster that tests share, and what they ask of it: who is in it, who has heard so, and what it leaves behind.

use std::process::Command;
use std::sync::LazyLock;

use lab::{APP_IMAGE, Cluster, ClusterNode};
use serde_json::Value;

use crate::install::{SYSTEM, install_with};
use crate::lifecycles::begin_schedule;
use crate::{Namespace, PATIENCE, eventually, named, shared};

/// The label that puts a namespace into the mesh.
pub(crate) const AMBIENT: &str = "istio.io/dataplane-mode";

static MESH: LazyLock<()> = LazyLock::new(|| {
    named().load_mesh_images().expect("images of what was built: cargo build -p ztunnel -p controller");
    install_with(named(), "");
    begin_schedule();
});

/// The shared cluster with the mesh on it. Namespaces without the label are outside of it.
pub(crate) fn meshed() -> &'static Cluster {
    LazyLock::force(&MESH);
    shared()
}

/// A pod as the API server shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) ip: String,
    pub(crate) uid: String,
}

impl Pod {
    fn of(pod: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (metadata, status) = (&pod["metadata"], &pod["status"]);
        Self {
            name: text(&metadata["name"]),
            node: text(&pod["spec"]["nodeName"]),
            ip: text(&status["podIP"]),
            uid: text(&metadata["uid"]),
        }
    }

    pub(crate) fn node(&self) -> ClusterNode {
        shared().nodes().find(|node| node.name() == self.node).expect("its node")
    }
}

/// What a container of [`APP_IMAGE`] is to do on a node, as a pod; the label `app` is its name. More containers can follow.
pub(crate) fn pod(namespace: &str, name: &str, node: &str, args: &[&str]) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\n\
         metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}\n\
         spec:\n  nodeSelector: {{kubernetes.io/hostname: {node}}}\n  terminationGracePeriodSeconds: 0\n  \
         restartPolicy: Never\n  containers:\n{}",
        container("app", args)
    )
}

/// A further container for a pod.
pub(crate) fn container(name: &str, args: &[&str]) -> String {
    let args = serde_json::to_string(args).expect("JSON");
    format!("  - {{name: {name}, image: {APP_IMAGE}, args: {args}}}\n")
}

/// A Service at a chosen address for the pods whose `app` is its name.
pub(crate) fn service(namespace: &str, name: &str, address: &str, more: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{clusterIP: {address}, selector: {{app: {name}}}, ports: [{{port: 80, targetPort: 8080}}]{more}}}\n"
    )
}

/// Nothing but mutual TLS into the pods of a namespace.
pub(crate) fn strict(namespace: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{name: strict, namespace: {namespace}}}\nspec: {{mtls: {{mode: STRICT}}}}\n"
    )
}

impl Namespace<'_> {
    /// All its pods that have not ended, by name.
    pub(crate) fn all_pods(&self) -> Vec<Pod> {
        let listed = self.get(&["pods", "--field-selector=status.phase!=Succeeded"]);
        let mut pods: Vec<_> = listed["items"].as_array().expect("a list").iter().map(Pod::of).collect();
        pods.sort();
        pods
    }

    /// Waits until all its pods are ready.
    pub(crate) fn ready(&self) {
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        let wait = ["-n", self.name, "wait", "pod", "--all", "--for=condition=Ready", &timeout];
        if let Err(error) = self.cluster.kubectl(&wait) {
            panic!(
                "{error}\n{}\n{}",
                self.kubectl(&["get", "pods", "-o", "wide"]),
                self.kubectl(&["get", "events"])
            );
        }
    }

    /// Puts the namespace into the mesh; returns when its pods are, and every node has heard so.
    pub(crate) fn join(&self) {
        self.kubectl(&["label", "namespace", self.name, &format!("{AMBIENT}=ambient")]);
        self.joined();
    }

    /// Waits until its pods are in the mesh, and every node has heard so.
    pub(crate) fn joined(&self) {
        for pod in self.all_pods() {
            self.until(&pod, "enrolled");
            for node in shared().nodes() {
                eventually(&format!("{} hears that {} takes tunnels", node.name(), pod.name), || {
                    let known = workload(&node, self.name, &pod.name);
                    if known["protocol"] == "HBONE" { Ok(()) } else { Err(known) }
                });
            }
        }
    }

    /// Waits until the pod's node says this of it.
    pub(crate) fn until(&self, pod: &Pod, state: &str) {
        let name = format!("{}/{}", self.name, pod.name);
        eventually(&format!("{name} is {state}"), || {
            let known = known(&pod.node(), &pod.uid);
            if known["state"] == state { Ok(()) } else { Err(known) }
        });
    }

    /// Runs a program of a container's image in the container; what it printed, or what it or kubectl complained of.
    pub(crate) fn exec(&self, container: &str, words: &[&str]) -> Result<String, String> {
        let words = [&["-n", self.name, "exec"], &parts(container)[..], &["--"], words].concat();
        self.cluster.kubectl(&words).map_err(|error| error.to_string())
    }

    /// The body that a web server answers with, if the connection stands and it does.
    pub(crate) fn ask(&self, container: &str, url: &str) -> Result<Value, String> {
        let said = self.exec(container, &["curl", "-sS", "-m", "10", url])?;
        serde_json::from_str(&said).map_err(|error| format!("{said:?}: {error}"))
    }

    /// Waits until the answer to curl is as it should be.
    pub(crate) fn curl_until(&self, container: &str, url: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("the answer of {url}"), || {
            let answer = self.ask(container, url)?;
            if is_so(&answer) { Ok(answer) } else { Err(answer.to_string()) }
        })
    }

    /// Waits until a line with this is in a container's log; returns the line.
    pub(crate) fn says(&self, container: &str, part: &str) -> String {
        let logs = [&["-n", self.name, "logs"], &parts(container)[..]].concat();
        eventually(&format!("{container} says {part:?}"), || {
            let said = self.cluster.kubectl(&logs).map_err(|error| error.to_string())?;
            said.lines().find(|line| line.contains(part)).map(str::to_owned).ok_or(said)
        })
    }

    /// Ends a client of the lab's that works until it is told to stop, and returns its report.
    pub(crate) fn report(&self, container: &str) -> Value {
        // The shell ends with its container's first process, so kubectl may complain although all is well.
        drop(self.exec(container, &["sh", "-c", "kill 1"]));
        let last = self.says(container, "{");
        serde_json::from_str(&last).unwrap_or_else(|error| panic!("{last:?}: {error}"))
    }
}

/// A container as kubectl wants it named: `pod`, or `pod/container`.
fn parts(container: &str) -> Vec<&str> {
    match container.split_once('/') {
        Some((pod, container)) => vec![pod, "-c", container],
        None => vec![container],
    }
}

/// What ztunnels have logged of connections that failed and name this, such as a namespace.
pub(crate) fn failures(part: &str) -> String {
    let logs = shared().kubectl(&["-n", SYSTEM, "logs", "-l", "app=ztunnel", "--prefix", "--tail=-1"]);
    let logs = logs.unwrap_or_else(|error| error.to_string());
    let failed = logs.lines().filter(|line| line.contains(part) && line.contains("\"code\""));
    failed.collect::<Vec<_>>().join("\n")
}

/// What a node's ztunnel answers to a GET on its admin socket; null while it does not.
pub(crate) fn admin(node: &ClusterNode, path: &str) -> Value {
    let socket = node.path("/run/airglow/admin.sock").expect("the node is on").display().to_string();
    let url = format!("http://ztunnel{path}");
    let curl = ["-sS", "-m", "10", "--unix-socket", &socket, &url];
    let output = Command::new("curl").args(curl).output().expect("curl runs");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// What a node's ztunnel says of a pod of the node; null when it knows nothing.
pub(crate) fn known(node: &ClusterNode, uid: &str) -> Value {
    let pods = admin(node, "/pods");
    pods.as_array().into_iter().flatten().find(|known| known["uid"] == uid).cloned().unwrap_or_default()
}

/// What a node's ztunnel was told by the controller of a pod of any node; null when nothing.
pub(crate) fn workload(node: &ClusterNode, namespace: &str, name: &str) -> Value {
    let dump = admin(node, "/config_dump");
    let mut all = dump["workloads"].as_array().into_iter().flatten();
    let found = all.find(|workload| workload["name"] == name && workload["namespace"] == namespace);
    found.cloned().unwrap_or_default()
}
