//! The lab itself: made whole by `start`, removed whole when dropped.
//!
//! Calls block and are quick (milliseconds); from async code, make them on a thread that may block.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use crate::binaries::Binaries;
use crate::dns::server::Server;
use crate::error::{LabError, cannot};
use crate::inner::{Inner, Site, set};
use crate::node::Node;
use crate::process::{Output, Process, Program};
use crate::reaper::Reaper;
use crate::run::{self, Run};
use crate::spec::{Map, ServiceSpec};
use crate::state::{NodeRecord, ServiceRecord, State};
use crate::topology::{self, MAX_NODES, Pair};
use crate::wire::Wire;
use crate::wiring::{self, Role, Tuning};
use crate::{RunError, cgroup, netns, tool};

/// What a lab is made of.
#[derive(Clone, Debug)]
pub struct LabConfig {
    /// How many nodes; they are called n1, n2, ...
    pub nodes: usize,
    /// Whether pods, nodes and services have IPv6 addresses beside IPv4.
    pub ipv6: bool,
    /// Whether packets between nodes are captured from the start. Benches leave it off.
    pub capture: bool,
    /// TCP settings of nodes and pods.
    pub tuning: Tuning,
    /// Where our executables are; cargo's directory of the running executable when absent.
    pub binaries: Option<PathBuf>,
}

impl Default for LabConfig {
    /// Two dual-stack nodes with wire capture and the machine's own TCP settings.
    fn default() -> Self {
        Self { nodes: 2, ipv6: true, capture: true, tuning: Tuning::default(), binaries: None }
    }
}

/// A cluster of network namespaces.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use lab::{Env, Lab, LabConfig, PodSpec, ServiceSpec};
/// # use std::time::Duration;
///
/// let lab = Lab::start(LabConfig::default())?;
/// lab.add_service(ServiceSpec::new("shop", "web").selector("app", "web").port("http", 80, 8080))?;
/// let web = lab.node(1).add_pod(PodSpec::new("shop", "web-0").label("app", "web"))?;
/// let server = web.spawn(["lab-app", "http", "--name", "web-0"])?;
/// server.wait_for_line("listening on", Duration::from_secs(5))?;
/// let client = lab.node(0).add_pod(PodSpec::new("shop", "client"))?;
///
/// lab.start_controller(Env::new())?;
/// for node in lab.nodes() {
///     node.start_ztunnel(Env::new())?;
/// }
/// lab.label_namespace("shop", "istio.io/dataplane-mode", Some("ambient"))?;
/// client.wait_for_state("enrolled", Duration::from_secs(5))?;
/// web.wait_for_state("enrolled", Duration::from_secs(5))?;
///
/// let canary = lab.wire().watch("canary");
/// assert!(client.run(["curl", "-sS", "http://web/canary"])?.success());
/// assert_eq!(canary.sightings()?, []);
/// # Ok(())
/// # }
/// ```
///
/// Dropping it ends all its processes and removes all that it made, also while handles to
/// its parts are still held.
#[derive(Debug)]
pub struct Lab {
    inner: Arc<Inner>,
    wire: Option<Wire>,
    dns: Option<Server>,
    reaper: Option<Reaper>,
}

impl Lab {
    /// Makes nodes, bridge, cluster DNS and service rules. Needs root.
    pub fn start(config: LabConfig) -> Result<Self, LabError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(LabError::NotRoot);
        }
        if !(1..=MAX_NODES).contains(&config.nodes) {
            return Err(LabError::Refused(format!("a lab has 1 to {MAX_NODES} nodes, not {}", config.nodes)));
        }
        let binaries = Binaries::locate(config.binaries.as_deref())?;
        let lab_run = binaries.path("lab-run", "lab")?;
        run::sweep();
        run::mount_bpffs()?;
        let (run, lock) = Run::create()?;
        let reaper = Reaper::start(&lab_run, &run.name, lock).inspect_err(|_| drop(run.remove()))?;
        // From here on every way out of this function removes the run: the reaper waits for its pipe.
        build(run, config, binaries).map(|(inner, wire, dns)| Self {
            inner: Arc::new(inner),
            wire,
            dns: Some(dns),
            reaper: Some(reaper),
        })
    }

    /// The run's name, unique on this machine: `ag` and eight hexadecimal digits.
    pub fn name(&self) -> &str {
        &self.inner.run.name
    }

    /// The run's directory: `netns/<name>` are its namespaces, `manifests/` what the controller reads.
    pub fn dir(&self) -> &Path {
        &self.inner.run.dir
    }

    /// The directory of manifests that the lab keeps up to date.
    pub fn manifests(&self) -> PathBuf {
        self.inner.run.dir.join("manifests")
    }

    /// The cgroup that all its processes live below.
    pub fn cgroup(&self) -> &Path {
        &self.inner.run.cgroup
    }

    /// The node of that index, from 0.
    ///
    /// # Panics
    /// When there are fewer nodes.
    pub fn node(&self, index: usize) -> Node {
        assert!(index < self.inner.nodes.len(), "the lab has {} nodes", self.inner.nodes.len());
        Node::new(Arc::clone(&self.inner), index)
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = Node> {
        (0..self.inner.nodes.len()).map(|index| self.node(index))
    }

    /// What crosses the bridge between nodes.
    ///
    /// # Panics
    /// When the lab was started without capture.
    pub fn wire(&self) -> &Wire {
        self.wire.as_ref().expect("this lab was started with LabConfig::capture off")
    }

    /// Sets or removes a namespace's label; makes the namespace if need be.
    pub fn label_namespace(&self, name: &str, key: &str, value: Option<&str>) -> Result<(), LabError> {
        self.inner.change(|cluster| {
            set(cluster.state.namespaces.entry(name.to_owned()).or_default(), key, value);
            Ok(())
        })
    }

    /// Adds a service, or replaces it under the same addresses.
    pub fn add_service(&self, spec: ServiceSpec) -> Result<Service, LabError> {
        let ipv6 = self.inner.config.ipv6;
        let hostname = format!("{}.{}.svc.cluster.local", spec.name, spec.namespace);
        let vips = self.inner.change(|cluster| {
            Inner::ensure_namespace(cluster, &spec.namespace);
            let key = (spec.namespace.clone(), spec.name.clone());
            let known = cluster.state.services.get(&key).and_then(|service| service.vips);
            let vips = match (spec.headless, known) {
                (true, _) => None,
                (false, Some(vips)) => Some(vips),
                (false, None) => {
                    cluster.services_made += 1;
                    Some(topology::service(cluster.services_made - 1)?)
                }
            };
            cluster.state.services.insert(key, ServiceRecord { spec, vips });
            Ok(vips)
        })?;
        Ok(Service { hostname, ips: vips.map(|vips: Pair| vips.ips(ipv6)).unwrap_or_default() })
    }

    /// Removes a service.
    pub fn remove_service(&self, namespace: &str, name: &str) -> Result<(), LabError> {
        self.inner.change(|cluster| match cluster.state.services.remove(&(namespace.into(), name.into())) {
            Some(_) => Ok(()),
            None => Err(LabError::Refused(format!("there is no service {namespace}/{name}"))),
        })
    }

    /// Puts a file of the user's own (policies, or anything that the lab has no words for) among the manifests.
    pub fn apply_yaml(&self, file: &str, yaml: &str) -> Result<(), LabError> {
        if file.contains('/') || !file.ends_with(".yaml") {
            return Err(LabError::Refused(format!("`{file}` is not a file name that ends in .yaml")));
        }
        self.inner.change(|cluster| {
            cluster.state.verbatim.insert(file.to_owned(), yaml.to_owned());
            Ok(())
        })
    }

    /// Takes a file of [`Self::apply_yaml`] away.
    pub fn delete_yaml(&self, file: &str) -> Result<(), LabError> {
        self.inner.change(|cluster| match cluster.state.verbatim.remove(file) {
            Some(_) => Ok(()),
            None => Err(LabError::Refused(format!("no file `{file}` was applied"))),
        })
    }

    /// Makes the cluster's DNS answer for a name outside the cluster.
    pub fn add_outside_name(&self, name: &str, ips: &[IpAddr]) -> Result<(), LabError> {
        self.inner.change(|cluster| {
            cluster.state.outside_names.insert(name.to_ascii_lowercase(), ips.to_vec());
            Ok(())
        })
    }

    /// Starts a program outside the cluster: in the control namespace, which has the [`OUTSIDE`](crate::OUTSIDE) addresses.
    pub fn spawn_outside(&self, program: impl Into<Program>) -> Result<Process, LabError> {
        let entry = self.inner.control.entry(&format!("system/p{}", self.inner.next_number()));
        self.inner.spawn(&entry, program.into())
    }

    /// Runs a program outside the cluster to its end.
    pub fn run_outside(&self, program: impl Into<Program>) -> Result<Output, RunError> {
        Ok(self.spawn_outside(program)?.wait(crate::RUN_WITHIN)?)
    }

    /// Removes the lab now and says what could not be removed.
    pub fn remove(mut self) -> Result<(), Vec<String>> {
        self.take_down()
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    fn take_down(&mut self) -> Result<(), Vec<String>> {
        let Some(reaper) = self.reaper.take() else { return Ok(()) };
        self.inner.close();
        // Their sockets would keep namespaces alive.
        drop((self.wire.take(), self.dns.take()));
        let result = self.inner.run.remove();
        drop(reaper);
        result
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(failures) = self.take_down() {
            eprintln!("lab {}: not removed: {}", self.inner.run.name, failures.join("; "));
        }
    }
}

/// A service that was added.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its full name in the cluster's DNS.
    pub hostname: String,
    /// Its addresses, IPv4 first; none for a headless service.
    pub ips: Vec<IpAddr>,
}

fn build(run: Run, config: LabConfig, binaries: Binaries) -> Result<(Inner, Option<Wire>, Server), LabError> {
    let numbers: Vec<u8> = (1..=u8::try_from(config.nodes).expect("MAX_NODES fits a byte")).collect();
    let (switch, control, nodes) = sites(&run, &config, &numbers)?;
    let mut members = vec![("control", &control.netns)];
    members.extend(nodes.iter().map(|node| (node.name.as_str(), &node.netns)));
    wiring::switch(&switch, &members)?;
    let wire = config.capture.then(|| Wire::start(&switch, &members)).transpose()?;
    thread::scope(|scope| {
        let mut done = vec![scope.spawn(|| wiring::control(&control.netns, &numbers, config.ipv6))];
        for node in &nodes {
            let (numbers, ipv6) = (&numbers, config.ipv6);
            done.push(scope.spawn(move || {
                let others: Vec<u8> =
                    numbers.iter().copied().filter(|number| *number != node.number).collect();
                wiring::node(&node.netns, node.number, &others, ipv6)
            }));
        }
        done.into_iter().try_for_each(|thread| thread.join().expect("setting up a node does not panic"))
    })?;
    let record =
        |node: &Site| NodeRecord { name: node.name.clone(), number: node.number, labels: Map::new() };
    let state = State { ipv6: config.ipv6, nodes: nodes.iter().map(record).collect(), ..State::default() };
    for node in &nodes {
        let token: String = (0..4).map(|_| format!("{:08x}", fastrand::u32(..))).collect();
        let path = run.dir.join("tokens").join(&node.name);
        fs::write(&path, token).map_err(cannot(format!("write {}", path.display())))?;
    }
    let ipv6 = config.ipv6;
    let inner = Inner::new(run, config, binaries, (control, nodes), state)?;
    let dns = Server::start(&inner.control.netns, &topology::CONTROL.ips(ipv6), Arc::clone(&inner.zone))?;
    inner.change(|_| Ok(()))?;
    Ok((inner, wire, dns))
}

fn sites(run: &Run, config: &LabConfig, numbers: &[u8]) -> Result<(netns::Netns, Site, Vec<Site>), LabError> {
    cgroup::create(&run.cgroup)?;
    let switch = netns::Netns::create(&run.netns("switch"))?;
    let control = Site::create(run, "control", 0)?;
    let nodes: Vec<_> =
        numbers.iter().map(|n| Site::create(run, &format!("n{n}"), *n)).collect::<Result<_, _>>()?;
    tool::sysctl(&switch, &wiring::sysctls(Role::Switch, config.ipv6, &config.tuning))?;
    for site in nodes.iter().chain([&control]) {
        tool::sysctl(&site.netns, &wiring::sysctls(Role::Router, config.ipv6, &config.tuning))?;
    }
    Ok((switch, control, nodes))
}
