//! A real Kubernetes on one machine: control plane, nodes, kubelets, containerd and kube-proxy as their projects release them,
//! in namespaces of this machine. Nothing of it is simulated, and nothing of it is seen from outside but a port on loopback.
//!
//! Begin at [`Cluster::start`]. Needs root and the programs that `scripts/cluster-binaries` builds. Leaves nothing behind,
//! however its owner ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use crate::binaries::Binaries;
use crate::error::{LabError, cannot};
use crate::inner::without_proxies;
use crate::netns::Netns;
use crate::reaper::Reaper;
use crate::run::{self, Run};
use crate::topology::MAX_NODES;
use crate::wait::wait_looking_every;
use crate::wire::Wire;
use crate::wiring::{self, Role, Tuning};
use crate::{cgroup, tool};

mod addons;
mod binaries;
mod certificates;
mod config;
mod control;
mod daemon;
mod gateway_api;
mod host;
mod image;
mod kubectl;
mod machine;
mod mesh;
mod node;
mod relay;
mod tar;

pub use addons::APP_IMAGE;
use binaries::Programs;
use control::Control;
pub use control::ControlPlane;
pub use gateway_api::Conformance;
pub use host::helper;
pub use image::Image;
use kubectl::Kubectl;
pub use machine::Component;
use machine::Machine;
pub use node::ClusterNode;

/// Between two looks at a component. A look may be a kubectl, which takes some hundredths of a second of a processor.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long nodes may take to be ready once the API server is. Two seconds on an idle machine.
const NODES_WITHIN: Duration = Duration::from_secs(120);

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// How many nodes; they are called n1, n2, ...
    pub nodes: usize,
    /// Whether pods, nodes and services have IPv6 addresses beside IPv4.
    pub ipv6: bool,
    /// Whether packets between nodes are captured from the start.
    pub capture: bool,
    /// Where our executables are; cargo's directory of the running executable when absent.
    pub binaries: Option<PathBuf>,
}

impl Default for ClusterConfig {
    /// Two IPv4 nodes with wire capture.
    fn default() -> Self {
        Self { nodes: 2, ipv6: false, capture: true, binaries: None }
    }
}

/// A Kubernetes cluster.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use lab::{Cluster, ClusterConfig};
/// # use std::time::Duration;
///
/// let cluster = Cluster::start(ClusterConfig::default())?;
/// cluster.load_app_image()?;
/// cluster.kubectl(&["create", "deployment", "web", "--image", lab::APP_IMAGE, "--", "lab-app", "http"])?;
/// cluster.rolled_out("default", "deployment/web", Duration::from_secs(60))?;
/// print!("{}", cluster.kubectl(&["get", "pods", "-o", "wide"])?);
/// # Ok(())
/// # }
/// ```
///
/// Dropping it ends all its processes and removes all that it made.
#[derive(Debug)]
pub struct Cluster {
    shared: Arc<Shared>,
    wire: Option<Wire>,
    reaper: Option<Reaper>,
}

/// What handles of a cluster share.
#[derive(Debug)]
pub(crate) struct Shared {
    run: Run,
    tools: Tools,
    kubectl: Kubectl,
    control: Control,
    nodes: Vec<Machine>,
    started: AtomicU32,
}

/// What starting a component takes.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) programs: Programs,
    pub(crate) own: Binaries,
    pub(crate) lab_run: PathBuf,
    pub(crate) lab_app: PathBuf,
    pub(crate) logs: PathBuf,
}

impl Cluster {
    /// Starts a cluster and waits until its nodes are ready. Needs root.
    pub fn start(config: ClusterConfig) -> Result<Self, LabError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(LabError::NotRoot);
        }
        if !(1..=MAX_NODES).contains(&config.nodes) {
            let reason = format!("a cluster has 1 to {MAX_NODES} nodes, not {}", config.nodes);
            return Err(LabError::Refused(reason));
        }
        let programs = Programs::locate()?;
        let own = Binaries::locate(config.binaries.as_deref())?;
        let (lab_run, lab_app) = (own.path("lab-run", "lab")?, own.path("lab-app", "lab")?);
        run::sweep();
        run::mount_bpffs()?;
        run::raise_inotify_limit();
        let (run, lock) = Run::create()?;
        let reaper = Reaper::start(&lab_run, &run.name, lock).inspect_err(|_| drop(run.remove()))?;
        // From here on every way out of this function removes the run: the reaper waits for its pipe.
        let logs = run.dir.join("logs");
        fs::create_dir(&logs).map_err(cannot(format!("create {}", logs.display())))?;
        let tools = Tools { programs, own, lab_run, lab_app, logs };
        let (shared, wire) = build(run, &config, tools)?;
        Ok(Self { shared: Arc::new(shared), wire, reaper: Some(reaper) })
    }

    /// The run's name, unique on this machine: `ag` and eight hexadecimal digits.
    pub fn name(&self) -> &str {
        &self.shared.run.name
    }

    /// The run's directory; `logs/<component>.log` are the components' logs.
    pub fn dir(&self) -> &Path {
        &self.shared.run.dir
    }

    /// The administrator's kubeconfig, for programs in this machine's own network.
    pub fn kubeconfig(&self) -> &Path {
        self.shared.kubectl.kubeconfig()
    }

    /// The kubectl that [`Self::kubectl`] runs, for people.
    pub fn kubectl_program(&self) -> &Path {
        self.shared.tools.programs.path("kubectl")
    }

    /// Runs kubectl as the administrator and returns what it printed; the error has what it complained of.
    pub fn kubectl(&self, args: &[&str]) -> Result<String, LabError> {
        self.shared.kubectl.run(args)
    }

    /// `kubectl apply` of manifests.
    pub fn apply(&self, yaml: &str) -> Result<String, LabError> {
        self.shared.kubectl.feed(&["apply", "-f", "-"], Some(yaml))
    }

    /// Waits for a workload, such as `deployment/web`, to be rolled out; says what its pods lack when it is not.
    pub fn rolled_out(&self, namespace: &str, workload: &str, within: Duration) -> Result<(), LabError> {
        let timeout = format!("--timeout={}s", within.as_secs());
        let waited = self.kubectl(&["-n", namespace, "rollout", "status", workload, &timeout]);
        waited.map(drop).map_err(|error| self.explain(namespace, workload, within, &error))
    }

    /// The node of that index, from 0.
    ///
    /// # Panics
    /// When there are fewer nodes.
    pub fn node(&self, index: usize) -> ClusterNode {
        assert!(index < self.shared.nodes.len(), "the cluster has {} nodes", self.shared.nodes.len());
        ClusterNode::new(Arc::clone(&self.shared), index)
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = ClusterNode> {
        (0..self.shared.nodes.len()).map(|index| self.node(index))
    }

    /// What crosses the bridge between nodes, and between them and the control plane.
    ///
    /// # Panics
    /// When the cluster was started without capture.
    pub fn wire(&self) -> &Wire {
        self.wire.as_ref().expect("this cluster was started with ClusterConfig::capture off")
    }

    /// Puts the images of an OCI archive on every node.
    pub fn load_image(&self, archive: &Path) -> Result<(), LabError> {
        self.nodes().try_for_each(|node| node.load_image(archive))
    }

    /// Ends a program of the control plane; pods and connections go on.
    pub fn stop(&self, which: ControlPlane, signal: nix::sys::signal::Signal) -> Result<(), LabError> {
        self.shared.control.stop_one(which, signal)
    }

    /// Starts a program of the control plane that was stopped.
    pub fn restart(&self, which: ControlPlane) -> Result<(), LabError> {
        self.shared.control.start_one(which, &self.shared.tools)?;
        self.shared.control.await_ready(&self.shared.kubectl)
    }

    /// Removes the cluster now and says what could not be removed.
    pub fn remove(mut self) -> Result<(), Vec<String>> {
        self.take_down()
    }

    fn explain(&self, namespace: &str, workload: &str, within: Duration, error: &LabError) -> LabError {
        let ask = |args: &[&str]| self.kubectl(args).unwrap_or_else(|error| error.to_string());
        let last = format!(
            "{error}\n{}\n{}\n{}\n{}\n{}",
            ask(&["-n", namespace, "get", "pods", "-o", "wide"]),
            ask(&["-n", namespace, "get", "events", "--sort-by=.lastTimestamp"]),
            ask(&["-n", namespace, "logs", workload, "--tail=25"]),
            ask(&["-n", namespace, "logs", workload, "--tail=25", "--previous"]),
            self.shared.control.check().err().unwrap_or_default(),
        );
        LabError::Deadline { what: format!("rollout of {namespace}/{workload}"), within, last }
    }

    fn take_down(&mut self) -> Result<(), Vec<String>> {
        let Some(reaper) = self.reaper.take() else { return Ok(()) };
        drop(self.wire.take());
        self.shared.control.close();
        let result = self.shared.run.remove();
        drop(reaper);
        result
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(failures) = self.take_down() {
            eprintln!("cluster {}: not removed: {}", self.shared.run.name, failures.join("; "));
        }
    }
}

impl Shared {
    /// A number that no process of this run had.
    pub(crate) fn next_number(&self) -> u32 {
        self.started.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl Tools {
    /// The environment of a component: our programs before the machine's, no proxy.
    pub(crate) fn furnish(&self, launcher: &mut Command) {
        launcher.current_dir("/").env("PATH", self.programs.search_path());
        without_proxies(launcher);
    }
}

/// Waits for a component's answer, looking often enough for people and seldom enough for the machine; fails as soon as `alive`
/// does.
pub(crate) fn await_up<T>(
    what: &str,
    within: Duration,
    alive: impl Fn() -> Result<(), String>,
    mut condition: impl FnMut() -> Result<T, String>,
) -> Result<T, LabError> {
    let outcome = wait_looking_every(LOOK_EVERY, what, within, || match alive() {
        Ok(()) => condition().map(Ok),
        Err(said) => Ok(Err(said)),
    })?;
    outcome.map_err(|said| LabError::Component { what: what.to_owned(), said })
}

fn build(run: Run, config: &ClusterConfig, tools: Tools) -> Result<(Shared, Option<Wire>), LabError> {
    let (switch, netns, nodes) = sites(&run, config)?;
    let mut members = vec![("control", &netns)];
    members.extend(nodes.iter().map(|node| (node.name(), node.netns())));
    wiring::switch(&switch, &members)?;
    let wire = config.capture.then(|| Wire::start(&switch, &members)).transpose()?;
    let numbers: Vec<u8> = nodes.iter().map(Machine::number).collect();
    wiring::control(&netns, &numbers, config.ipv6)?;
    for node in &nodes {
        let others: Vec<u8> = numbers.iter().copied().filter(|number| *number != node.number()).collect();
        wiring::node(node.netns(), node.number(), &others, config.ipv6)?;
    }
    let names: Vec<_> = nodes.iter().map(|node| node.name().to_owned()).collect();
    let control = Control::prepare(&run.dir, run.cgroup.join("control"), netns, &names, config.ipv6)?;
    let kubectl = Kubectl::new(tools.programs.path("kubectl"), &run.dir);
    let pause = run.dir.join("pause.tar");
    let image = Image::new(config::PAUSE_IMAGE).file("/lab-run", &tools.lab_run).with_libraries()?;
    image.entrypoint(["/lab-run", "pause"]).write(&pause)?;
    thread::scope(|scope| {
        let mut done = vec![scope.spawn(|| control.start(&tools, &kubectl))];
        for node in &nodes {
            let (run, tools, pause) = (&run, &tools, &pause);
            done.push(scope.spawn(move || {
                node.configure(run, tools)?;
                node.power_on(tools)?;
                node.start(Component::Containerd, tools)?;
                node.load_image(tools, pause)
            }));
        }
        done.into_iter().try_for_each(|thread| thread.join().expect("starting a component does not panic"))
    })?;
    let shared = Shared { run, tools, kubectl, control, nodes, started: AtomicU32::new(0) };
    join(&shared)?;
    Ok((shared, wire))
}

/// Makes nodes of the machines: kubelets find an API server that is ready, or they would ask ever more seldom.
fn join(shared: &Shared) -> Result<(), LabError> {
    thread::scope(|scope| {
        let start = |node, component| move || Machine::start(node, component, &shared.tools);
        let mut done = Vec::new();
        for node in &shared.nodes {
            done.push(scope.spawn(start(node, Component::Kubelet)));
            done.push(scope.spawn(start(node, Component::KubeProxy)));
        }
        done.into_iter().try_for_each(|thread| thread.join().expect("starting a component does not panic"))
    })?;
    let ready = "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}";
    let complete = vec!["True"; shared.nodes.len()].join(" ");
    let alive = || shared.control.check().and_then(|()| shared.nodes.iter().try_for_each(Machine::check));
    await_up("the nodes' readiness", NODES_WITHIN, alive, || {
        let said = shared.kubectl.run(&["get", "nodes", "-o", ready]).map_err(|error| error.to_string())?;
        if said != complete {
            return Err(format!("Ready is {said:?}"));
        }
        // Pods are refused until this one is there.
        let account = shared.kubectl.run(&["get", "serviceaccount", "default"]);
        account.map(drop).map_err(|error| error.to_string())
    })
    .map_err(|error| {
        let tails: Vec<_> = shared.nodes.iter().map(Machine::tails).collect();
        error.with_log(&tails.join("\n"))
    })
}

fn sites(run: &Run, config: &ClusterConfig) -> Result<(Netns, Netns, Vec<Machine>), LabError> {
    cgroup::create(&run.cgroup)?;
    let switch = Netns::create(&run.netns("switch"))?;
    let control = Netns::create(&run.netns("control"))?;
    let last = u8::try_from(config.nodes).expect("MAX_NODES fits a byte");
    let nodes: Vec<_> =
        (1..=last).map(|number| Machine::create(run, number, config.ipv6)).collect::<Result<_, _>>()?;
    let tuning = Tuning::default();
    tool::sysctl(&switch, &wiring::sysctls(Role::Switch, config.ipv6, &tuning))?;
    for netns in nodes.iter().map(Machine::netns).chain([&control]) {
        tool::sysctl(netns, &wiring::sysctls(Role::Router, config.ipv6, &tuning))?;
    }
    Ok((switch, control, nodes))
}
