//! The shop on a Kubernetes of two nodes: real kubelets, containerd, kube-proxy and API server, and the mesh as its users install it.
//!
//! Needs the programs that `scripts/cluster-binaries` builds.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lab::{Cluster, ClusterConfig, ClusterNode, Component, Image, LabError, Output, Process, Program};
use lab::{Signal, Wire};
use serde_json::{Value, json};

use super::{Ground, Handover, MODE, Member, NAMESPACE, PORT, Place, left, write};
use crate::admin_client;
use crate::cluster::manifest;
use crate::demo::error::DemoError;
use crate::interrupt::Interrupt;

/// What pods of the shop run, with what a user who looks around needs.
const IMAGE: &str = "airglow.test/shop:1";
const TOOLS: [&str; 4] = ["cat", "curl", "env", "sh"];

/// The shop's program, in its image.
const SHOP: &str = "/airglow-shop";

/// What the mesh is installed from. The programs of the cluster come from the same tree.
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/chart/airglow");

/// Values beside those that fit the cluster. A connection of the shop may last longer than 25 seconds on a slow machine.
const VALUES: &str =
    "createNamespace=true,ztunnel.drainDeadline=10m,ztunnel.terminationGracePeriodSeconds=660,logFormat=json";

/// How long a pod that is being deleted goes on to serve, in seconds. It is removed before.
const GRACE: u32 = 120;

/// A node's ztunnel, as the kernel shows its process.
const ZTUNNEL: &str = "ztunnel";

#[derive(Debug)]
pub(in crate::demo) struct Kubernetes {
    cluster: Cluster,
    pods: BTreeMap<&'static str, Pod>,
    patience: Duration,
}

/// A pod that runs.
#[derive(Debug)]
struct Pod {
    node: usize,
    ip: IpAddr,
    /// Where its container's processes are counted.
    cgroup: PathBuf,
    /// Its program, as its node numbers it.
    process: u32,
}

/// A pod of ztunnel.
#[derive(Debug)]
struct Ztunnel {
    name: String,
    node: String,
    is_ready: bool,
    is_ending: bool,
}

impl Kubernetes {
    /// A cluster with DNS and the shop's services, and no pods of it.
    pub(in crate::demo) fn start(
        program: &Path,
        services: &[&str],
        accounts: &[&str],
        interrupt: &Interrupt,
    ) -> Result<Self, DemoError> {
        let cluster = Cluster::start(ClusterConfig::default())?;
        interrupt.check()?;
        cluster.start_dns()?;
        interrupt.check()?;
        let archive = cluster.dir().join("shop.tar");
        let image = Image::new(IMAGE).file(SHOP, program);
        let image = TOOLS
            .iter()
            .fold(image, |image, tool| image.file(format!("/bin/{tool}"), format!("/bin/{tool}")));
        image.with_libraries()?.entrypoint([SHOP]).user("65532").write(&archive)?;
        cluster.load_image(&archive)?;
        cluster.load_mesh_images()?;
        let mut objects =
            vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})];
        objects.extend(accounts.iter().map(|account| {
            let metadata = json!({"name": account, "namespace": NAMESPACE});
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
        }));
        objects.extend(services.iter().map(|service| {
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": service, "namespace": NAMESPACE},
                "spec": {"selector": {"app": service}, "ports": [{"port": 80, "targetPort": PORT}]},
            })
        }));
        cluster.apply(&list(&objects))?;
        Ok(Self { cluster, pods: BTreeMap::new(), patience: Duration::from_secs(120) })
    }

    fn pod(&self, name: &str) -> &Pod {
        self.pods.get(name).expect("a pod that was added")
    }

    fn node(&self, name: &str) -> ClusterNode {
        self.cluster.nodes().find(|node| node.name() == name).expect("a node of the cluster")
    }

    fn shop(&self, args: &[&str]) -> Result<String, DemoError> {
        Ok(self.cluster.kubectl(&[&["-n", NAMESPACE], args].concat())?)
    }

    fn system(&self, args: &[&str]) -> Result<String, DemoError> {
        Ok(self.cluster.kubectl(&[&["-n", manifest::NAMESPACE], args].concat())?)
    }

    /// What the API server says of a pod, and the kernel of its program.
    fn find(&self, member: &Member) -> Result<Pod, DemoError> {
        let said = self.shop(&["get", "pod", member.name, "-o", "json"])?;
        let silent =
            || DemoError::Silent { command: format!("kubectl get pod {}", member.name), said: said.clone() };
        let pod: Value = serde_json::from_str(&said).map_err(|_| silent())?;
        let ip = pod["status"]["podIP"].as_str().and_then(|ip| ip.parse().ok()).ok_or_else(silent)?;
        let uid = pod["metadata"]["uid"].as_str().ok_or_else(silent)?;
        let node = self.cluster.node(member.node);
        for process in processes(&node, "airglow-shop")? {
            let groups = node.path(format!("/proc/{process}/cgroup"))?;
            let groups = fs::read_to_string(groups).unwrap_or_default();
            let group =
                groups.lines().filter_map(|line| line.strip_prefix("0::")).find(|line| line.contains(uid));
            if let Some((_, below)) = group.and_then(|group| group.split_once("/kubepods/")) {
                let cgroup = node.cgroup().join("kubepods").join(below);
                return Ok(Pod { node: member.node, ip, cgroup, process });
            }
        }
        Err(silent())
    }

    /// The pods of ztunnel on all nodes.
    fn ztunnels(&self) -> Result<Vec<Ztunnel>, DemoError> {
        let said = self.system(&["get", "pods", "-l", "app=ztunnel", "-o", "json"])?;
        let list: Value = serde_json::from_str(&said)
            .map_err(|_| DemoError::Silent { command: "kubectl get pods".to_owned(), said })?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let ztunnel = |pod: &Value| {
            let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            Ztunnel {
                name: text(&pod["metadata"]["name"]),
                node: text(&pod["spec"]["nodeName"]),
                is_ready: conditions.any(|it| it["type"] == "Ready" && it["status"] == "True"),
                is_ending: !pod["metadata"]["deletionTimestamp"].is_null(),
            }
        };
        Ok(list["items"].as_array().into_iter().flatten().map(ztunnel).collect())
    }

    fn wait_for(&self, what: &str, look: impl FnMut() -> Result<(), String>) -> Result<(), DemoError> {
        Ok(lab::wait_until(what, self.patience, look)?)
    }
}

impl Ground for Kubernetes {
    fn name(&self) -> &str {
        self.cluster.name()
    }

    fn wire(&self) -> &Wire {
        self.cluster.wire()
    }

    fn patience(&self) -> Duration {
        self.patience
    }

    fn places(&self) -> Result<Vec<Place>, DemoError> {
        let place = |node: ClusterNode| {
            Ok(Place {
                name: node.name().to_owned(),
                admin: node.path("/run/airglow/admin.sock")?,
                pins: node.path("/sys/fs/bpf/airglow")?,
            })
        };
        self.cluster.nodes().map(place).collect()
    }

    fn add(&mut self, members: &[Member]) -> Result<(), DemoError> {
        let objects: Vec<_> = members.iter().map(manifest_of).collect();
        self.cluster.apply(&list(&objects))?;
        let timeout = format!("--timeout={}s", self.patience.as_secs());
        for member in members {
            self.shop(&["wait", "--for=condition=Ready", &timeout, "pod", member.name])?;
            let pod = self.find(member)?;
            self.pods.insert(member.name, pod);
        }
        Ok(())
    }

    fn start_mesh(&mut self, interrupt: &Interrupt) -> Result<(), DemoError> {
        let values = format!("{},{VALUES}", self.cluster.mesh_values());
        let render = ["template", "airglow", CHART, "--namespace", manifest::NAMESPACE, "--set", &values];
        let path = self.cluster.dir().join("airglow.yaml");
        write(&path, &self.cluster.helm(&render)?)?;
        interrupt.check()?;
        let own = std::env::current_exe().unwrap_or_default();
        let mut install = Command::new(own);
        install
            .arg("install")
            .arg("--manifest")
            .arg(&path)
            .arg("--kubeconfig")
            .arg(self.cluster.kubeconfig());
        let doing = || "run `airglow install`".to_owned();
        let output = install.output().map_err(|source| LabError::System { doing: doing(), source })?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(DemoError::Silent { command: "airglow install".to_owned(), said })
    }

    fn ips(&self, pod: &str) -> Vec<IpAddr> {
        vec![self.pod(pod).ip]
    }

    fn node_of(&self, pod: &str) -> String {
        self.cluster.node(self.pod(pod).node).name().to_owned()
    }

    fn spawn(&self, pod: &str, args: &[String]) -> Result<Process, DemoError> {
        // As `kubectl exec` does, but with a process that can be signalled from here.
        let Pod { node, cgroup, process, .. } = self.pod(pod);
        let script = "echo $$ >\"$0/cgroup.procs\" && exec nsenter --mount --net --uts --ipc --target \"$@\"";
        let program = Program::new("sh").args(["-c", script]).args([cgroup]);
        let program = program.args([&process.to_string(), "--", SHOP]).args(args);
        Ok(self.cluster.node(*node).spawn(program)?)
    }

    fn look(&self, pod: &str, script: &str) -> Result<Output, DemoError> {
        let Pod { node, process, .. } = self.pod(pod);
        let target = process.to_string();
        Ok(self.cluster.node(*node).run(["nsenter", "--net", "--target", &target, "sh", "-ec", script])?)
    }

    fn present(&self, pod: &str, app: &str) -> Result<(), DemoError> {
        self.shop(&["label", "pod", pod, &format!("app={app}")]).map(drop)
    }

    fn dismiss(&self, pod: &str) -> Result<(), DemoError> {
        self.shop(&["delete", "pod", pod, "--wait=false"]).map(drop)
    }

    fn take_away(&mut self, pod: &str) -> Result<(), DemoError> {
        self.pods.remove(pod);
        self.shop(&["delete", "pod", pod, "--force", "--grace-period=0"]).map(drop)
    }

    fn label(&self, into_mesh: bool) -> Result<(), DemoError> {
        let (key, value) = MODE;
        let change = if into_mesh { format!("{key}={value}") } else { format!("{key}-") };
        Ok(self.cluster.kubectl(&["label", "namespace", NAMESPACE, &change]).map(drop)?)
    }

    fn apply(&self, yaml: &str) -> Result<(), DemoError> {
        Ok(self.cluster.apply(yaml).map(drop)?)
    }

    fn withdraw(&self, yaml: &str) -> Result<(), DemoError> {
        let path = self.cluster.dir().join("withdrawn.yaml");
        write(&path, yaml)?;
        Ok(self.cluster.kubectl(&["delete", "-f", &path.display().to_string()]).map(drop)?)
    }

    fn ztunnel_log(&self, node: &str) -> Result<String, DemoError> {
        let all = self.ztunnels()?;
        let current = all.iter().filter(|ztunnel| ztunnel.node == node && !ztunnel.is_ending);
        current.map(|ztunnel| self.system(&["logs", &ztunnel.name, "--tail=5000"])).collect()
    }

    fn replace_ztunnel(&self, node: &str) -> Result<Handover<'_>, DemoError> {
        let before = self.ztunnels()?;
        // Of all nodes: that is what an upgrade does.
        self.system(&["rollout", "restart", "daemonset/ztunnel"])?;
        let is_old = move |ztunnel: &Ztunnel| before.iter().any(|old| old.name == ztunnel.name);
        let mut text = String::new();
        self.wait_for("a successor of every ztunnel", || {
            let all = self.ztunnels().map_err(|error| error.to_string())?;
            let is_done = |place: &ClusterNode| {
                let (old, new): (Vec<_>, Vec<_>) =
                    all.iter().filter(|ztunnel| ztunnel.node == place.name()).partition(|it| is_old(it));
                old.iter().all(|old| old.is_ending) && new.iter().any(|new| new.is_ready)
            };
            if !self.cluster.nodes().all(|place| is_done(&place)) {
                return Err(format!("{all:?}"));
            }
            let new = all.iter().filter(|ztunnel| !is_old(ztunnel) && ztunnel.node == node);
            let names: Vec<_> = new.map(|ztunnel| ztunnel.name.as_str()).collect();
            text = format!("{node}: {} took over, and likewise on the other node", names.concat());
            Ok(())
        })?;
        let is_over = move || Ok(!self.ztunnels()?.iter().any(&is_old));
        Ok(Handover { text, is_over: Box::new(is_over) })
    }

    fn kill_ztunnel(&self, node: &str) -> Result<(), DemoError> {
        let node = self.node(node);
        // Kubelet would start another at once.
        node.stop(Component::Kubelet, Signal::SIGTERM)?;
        for process in processes(&node, ZTUNNEL)? {
            node.run(["kill", "-9", &process.to_string()])?;
        }
        self.wait_for("the end of a ztunnel", || match processes(&node, ZTUNNEL) {
            Ok(none) if none.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        })
    }

    fn start_ztunnel(&self, node: &str) -> Result<(), DemoError> {
        let node = self.node(node);
        node.start(Component::Kubelet)?;
        let admin = node.path("/run/airglow/admin.sock")?;
        let look =
            || admin_client::get(&admin, "/healthz/ready").map(drop).map_err(|error| error.to_string());
        self.wait_for("a ztunnel that serves", look)
    }

    fn ways(&self, airglow: &Path, front: &str) -> Result<Vec<(&'static str, String)>, DemoError> {
        let config = format!("--kubeconfig {}", self.cluster.kubeconfig().display());
        let kubectl = format!("{} {config}", self.cluster.kubectl_program().display());
        let (airglow, system) = (airglow.display(), manifest::NAMESPACE);
        Ok(vec![
            ("flows of both nodes", format!("{airglow} top {config}")),
            ("pods, certificates", format!("{airglow} pods {config}; {airglow} certs {config}")),
            ("is all well", format!("{airglow} check {config}")),
            ("why, or why not", format!("{airglow} why {config} shop/shopper payments:80")),
            ("a request from a pod", format!("{kubectl} -n shop exec shopper -- curl -s {front}")),
            ("what a ztunnel says", format!("{kubectl} -n {system} logs -l app=ztunnel -f")),
            ("policies", format!("{kubectl} -n shop apply -f FILE")),
            ("out of the mesh", format!("{kubectl} label namespace {NAMESPACE} {}-", MODE.0)),
        ])
    }

    fn remove(self: Box<Self>) -> Vec<String> {
        let mut traces = vec![self.cluster.dir().to_owned()];
        traces.extend(self.cluster.node(0).cgroup().parent().map(Path::to_owned));
        left(self.cluster.remove(), &traces)
    }
}

/// The processes of a node, as it numbers them, that the kernel shows by this name.
fn processes(node: &ClusterNode, name: &str) -> Result<Vec<u32>, DemoError> {
    let proc = node.path("/proc")?;
    let all = fs::read_dir(&proc).into_iter().flatten().flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_called = |number: &u32| {
        let called = fs::read_to_string(proc.join(format!("{number}/comm"))).unwrap_or_default();
        called.trim_end() == name
    };
    Ok(numbers.filter(is_called).collect())
}

fn list(objects: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}

fn manifest_of(member: &Member) -> Value {
    let labels = if member.is_found { json!({"app": member.app}) } else { json!({}) };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": member.name, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "serviceAccountName": member.app,
            "nodeSelector": {"kubernetes.io/hostname": format!("n{}", member.node + 1)},
            // The first process of a container hears no signal that it does not listen to: it serves until then.
            "terminationGracePeriodSeconds": GRACE,
            "containers": [{
                "name": "shop", "image": IMAGE, "imagePullPolicy": "Never", "args": member.args(),
                "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
            }],
        },
    })
}
