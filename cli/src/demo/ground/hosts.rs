//! The shop on the lab's own nodes: network namespaces, and manifests in a directory.
//!
//! Writes one small script into the lab's directory, which goes with it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use lab::{Env, Lab, LabConfig, LabError, Node, Output, Pod, PodSpec, Process, Program, ServiceSpec, Wire};

use super::{Ground, Handover, MODE, Member, NAMESPACE, PORT, Place, left, write};
use crate::demo::error::DemoError;
use crate::interrupt::Interrupt;

/// The file that holds what was put in force.
const FILE: &str = "applied.yaml";

/// The waypoint of the shop, and the Gateway that asks for it.
const WAYPOINT: &str = "waypoint";
const GATEWAY: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop}
spec:
  gatewayClassName: airglow-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
";

/// A running waypoint.
#[derive(Debug)]
pub(in crate::demo) struct Waypoint {
    pod: Pod,
    process: Process,
}

impl Waypoint {
    fn start(pod: Pod) -> Result<Self, DemoError> {
        let process = pod.start_waypoint(json_log())?;
        Ok(Self { pod, process })
    }

    /// Its addresses.
    pub(in crate::demo) fn ips(&self) -> &[IpAddr] {
        self.pod.ips()
    }

    /// Ends it as a crash does.
    pub(in crate::demo) fn kill(&self) -> Result<(), DemoError> {
        Ok(self.process.kill().map(drop)?)
    }

    /// Starts it again after its end. Returns when it serves.
    pub(in crate::demo) fn restart(&mut self) -> Result<(), DemoError> {
        *self = Self::start(self.pod.clone())?;
        Ok(())
    }
}

#[derive(Debug)]
pub(in crate::demo) struct Hosts {
    lab: Lab,
    pods: BTreeMap<&'static str, Pod>,
    /// A process in each pod, whose mount namespace has the pod's /etc files.
    processes: BTreeMap<&'static str, u32>,
    program: Program,
}

impl Hosts {
    /// Two nodes with services and no pods.
    pub(in crate::demo) fn start(program: &Path, services: &[&str]) -> Result<Self, DemoError> {
        let lab = Lab::start(LabConfig::default())?;
        for service in services {
            let spec = ServiceSpec::new(NAMESPACE, *service).selector("app", *service).port("http", 80, PORT);
            lab.add_service(spec)?;
        }
        let (pods, processes) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { lab, pods, processes, program: Program::new(program) })
    }

    /// Starts a waypoint on the second node, and has it guard the shop's services.
    pub(in crate::demo) fn start_waypoint(&self) -> Result<Waypoint, DemoError> {
        self.lab.apply_yaml("gateway.yaml", GATEWAY)?;
        self.lab.add_service(ServiceSpec::waypoint(NAMESPACE, WAYPOINT))?;
        let pod = self.lab.node(1).add_pod(PodSpec::waypoint(NAMESPACE, WAYPOINT, "waypoint-1"))?;
        let waypoint = Waypoint::start(pod)?;
        self.lab.label_namespace(NAMESPACE, "istio.io/use-waypoint", Some(WAYPOINT))?;
        Ok(waypoint)
    }

    fn pod(&self, name: &str) -> &Pod {
        self.pods.get(name).expect("a pod that was added")
    }

    fn node(&self, name: &str) -> Node {
        self.lab.nodes().find(|node| node.name() == name).expect("a node of the lab")
    }

    /// A script that runs a program in a pod or on a node: in its cgroup, which is what the mesh knows it by, and its namespaces.
    fn script(&self) -> Result<PathBuf, DemoError> {
        let mut text = String::from(
            "#!/bin/sh\n# Runs a program inside: in POD|NODE COMMAND...\nwhere=$1; shift\ncase $where in\n",
        );
        let mut case = |name: &str, cgroup: &Path, enter: String| {
            writeln!(text, "{name}) cgroup={}; enter='{enter}';;", cgroup.display())
                .expect("writing to a String cannot fail");
        };
        for (name, process) in &self.processes {
            let pod = self.pod(name);
            let cgroup = pod.node().cgroup().join("kubepods").join(format!("pod{}", pod.uid()));
            case(name, &cgroup, format!("--target {process} --mount --net --uts"));
        }
        for node in self.lab.nodes() {
            let netns = node.netns().path().display();
            case(node.name(), &node.cgroup().join("system"), format!("--net={netns}"));
        }
        text.push_str("*) echo \"in: no pod or node is called '$where'\" >&2; exit 2;;\nesac\n");
        text.push_str("echo $$ >$cgroup/cgroup.procs && exec nsenter $enter -- \"$@\"\n");
        let path = self.lab.dir().join("in");
        write(&path, &text)?;
        let doing = "make a script executable".to_owned();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .map_err(|source| LabError::System { doing, source })?;
        Ok(path)
    }
}

impl Ground for Hosts {
    fn name(&self) -> &str {
        self.lab.name()
    }

    fn wire(&self) -> &Wire {
        self.lab.wire()
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(20)
    }

    fn places(&self) -> Result<Vec<Place>, DemoError> {
        let place = |node: Node| Place {
            name: node.name().to_owned(),
            admin: node.run_dir().join("admin.sock"),
            pins: node.pins(),
        };
        Ok(self.lab.nodes().map(place).collect())
    }

    fn add(&mut self, members: &[Member]) -> Result<(), DemoError> {
        for member in members {
            let spec = PodSpec::new(NAMESPACE, member.name).service_account(member.app);
            let spec = if member.is_found { spec.label("app", member.app) } else { spec };
            let pod = self.lab.node(member.node).add_pod(spec)?;
            let process = pod.spawn(self.program.clone().args(member.args()))?;
            process.wait_for_line("listening on", self.patience())?;
            self.processes.insert(member.name, process.pid());
            self.pods.insert(member.name, pod);
        }
        Ok(())
    }

    fn start_mesh(&mut self, interrupt: &Interrupt) -> Result<(), DemoError> {
        self.lab.start_controller(Env::new())?;
        interrupt.check()?;
        thread::scope(|scope| {
            let starts: Vec<_> =
                self.lab.nodes().map(|node| scope.spawn(move || node.start_ztunnel(json_log()))).collect();
            starts.into_iter().try_for_each(|start| {
                start.join().expect("starting a ztunnel does not panic").map(drop).map_err(DemoError::from)
            })
        })
    }

    fn ips(&self, pod: &str) -> Vec<IpAddr> {
        self.pod(pod).ips().to_vec()
    }

    fn node_of(&self, pod: &str) -> String {
        self.pod(pod).node().name().to_owned()
    }

    fn spawn(&self, pod: &str, args: &[String]) -> Result<Process, DemoError> {
        Ok(self.pod(pod).spawn(self.program.clone().args(args))?)
    }

    fn look(&self, pod: &str, script: &str) -> Result<Output, DemoError> {
        Ok(self.pod(pod).run(["sh", "-ec", script])?)
    }

    fn present(&self, pod: &str, app: &str) -> Result<(), DemoError> {
        Ok(self.pod(pod).label("app", Some(app))?)
    }

    fn dismiss(&self, pod: &str) -> Result<(), DemoError> {
        Ok(self.pod(pod).start_deletion()?)
    }

    fn take_away(&mut self, pod: &str) -> Result<(), DemoError> {
        self.processes.remove(pod);
        let pod = self.pods.remove(pod).expect("a pod that was added");
        Ok(pod.remove()?)
    }

    fn label(&self, into_mesh: bool) -> Result<(), DemoError> {
        Ok(self.lab.label_namespace(NAMESPACE, MODE.0, into_mesh.then_some(MODE.1))?)
    }

    fn apply(&self, yaml: &str) -> Result<(), DemoError> {
        Ok(self.lab.apply_yaml(FILE, yaml)?)
    }

    fn withdraw(&self, _: &str) -> Result<(), DemoError> {
        Ok(self.lab.delete_yaml(FILE)?)
    }

    fn ztunnel_log(&self, node: &str) -> Result<String, DemoError> {
        Ok(self.node(node).ztunnel().map(|ztunnel| ztunnel.output().stdout).unwrap_or_default())
    }

    fn replace_ztunnel(&self, node: &str) -> Result<Handover<'_>, DemoError> {
        let lab::Handover { old, new } = self.node(node).restart_ztunnel(json_log())?;
        let text = format!("{node}: process {} handed over to {}", old.pid(), new.pid());
        Ok(Handover { text, is_over: Box::new(move || Ok(!old.is_running())) })
    }

    fn kill_ztunnel(&self, node: &str) -> Result<(), DemoError> {
        Ok(self.node(node).kill_ztunnel()?)
    }

    fn start_ztunnel(&self, node: &str) -> Result<(), DemoError> {
        Ok(self.node(node).start_ztunnel(json_log()).map(drop)?)
    }

    fn ways(&self, airglow: &Path, front: &str) -> Result<Vec<(&'static str, String)>, DemoError> {
        let (dir, airglow) = (self.lab.dir().display(), airglow.display());
        let inside = self.script()?;
        let inside = inside.display();
        Ok(vec![
            ("flows of both nodes", format!("{airglow} top --run-dir {dir}")),
            (
                "pods, certificates",
                format!("{airglow} pods --run-dir {dir}; {airglow} certs --run-dir {dir}"),
            ),
            ("a request from a pod", format!("{inside} shopper curl -s {front}")),
            ("metrics of a node", format!("{inside} n1 curl -s http://localhost:15020/metrics")),
            (
                "what a ztunnel knows",
                format!("curl -s --unix-socket {dir}/n1/admin.sock http://n1/config_dump"),
            ),
            ("the wire", format!("{inside} n1 tcpdump -ni any tcp")),
            (
                "policies, routes",
                format!("write YAML files into {dir}/manifests/ (the demo's own is {FILE})"),
            ),
            (
                "into and out of the mesh",
                format!("edit the label {} in {dir}/manifests/namespace_{NAMESPACE}.yaml", MODE.0),
            ),
        ])
    }

    fn remove(self: Box<Self>) -> Vec<String> {
        let mut traces = vec![self.lab.dir().to_owned(), self.lab.cgroup().to_owned()];
        traces.extend(self.lab.nodes().map(|node| node.pins()));
        left(self.lab.remove(), &traces)
    }
}

/// Access logs as JSON, so that they can be read.
fn json_log() -> Env {
    Env::from([("AIRGLOW_LOG_FORMAT".to_owned(), "json".to_owned())])
}
