//! What all handles of a lab share: its namespaces, the cluster's state, and the one way to change that state.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard};

use crate::binaries::Binaries;
use crate::dns::Zone;
use crate::dns::server::Current;
use crate::enter::Entry;
use crate::error::{LabError, cannot};
use crate::lab::LabConfig;
use crate::manifests::{self, Directory};
use crate::netns::Netns;
use crate::process::{Process, ProcessError, Program};
use crate::run::Run;
use crate::spec::Map;
use crate::state::State;
use crate::topology::Pool;
use crate::{cgroup, kubeproxy, tool};

/// Proxies that the machine's own environment may name; traffic of the lab must not leave it.
const PROXY_VARIABLES: [&str; 8] = [
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
];

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) run: Run,
    pub(crate) config: LabConfig,
    pub(crate) binaries: Binaries,
    pub(crate) control: Site,
    pub(crate) nodes: Vec<Site>,
    pub(crate) controller: Mutex<Option<Process>>,
    pub(crate) zone: Current,
    pub(crate) lab_run: PathBuf,
    started: AtomicU32,
    /// Whether the lab still stands. Whoever makes something holds it, so that removal comes before or after.
    standing: RwLock<bool>,
    cluster: Mutex<Cluster>,
}

/// A namespace with a node's worth of directories: a node, or the control namespace.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) name: String,
    pub(crate) number: u8,
    pub(crate) netns: Netns,
    pub(crate) cgroup: PathBuf,
    /// Where its processes keep sockets and files.
    pub(crate) dir: PathBuf,
    pub(crate) ztunnel: Mutex<Option<Process>>,
}

/// The state, and what was last made of it.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) state: State,
    pub(crate) pools: Vec<Pool>,
    pub(crate) services_made: u32,
    directory: Directory,
    rules: String,
}

impl Inner {
    pub(crate) fn new(
        run: Run,
        config: LabConfig,
        binaries: Binaries,
        (control, nodes): (Site, Vec<Site>),
        state: State,
    ) -> Result<Self, LabError> {
        let directory = Directory::new(run.dir.join("manifests"), run.dir.join("staging"));
        let pools = nodes.iter().map(|_| Pool::new()).collect();
        let lab_run = binaries.path("lab-run", "lab")?;
        Ok(Self {
            run,
            config,
            binaries,
            control,
            nodes,
            controller: Mutex::new(None),
            zone: Arc::new(Mutex::new(Arc::new(Zone::default()))),
            lab_run,
            started: AtomicU32::new(0),
            standing: RwLock::new(true),
            cluster: Mutex::new(Cluster { state, pools, services_made: 0, directory, rules: String::new() }),
        })
    }

    /// Leave to make something; removal waits until it is given back. An error once the lab was removed.
    pub(crate) fn standing(&self) -> Result<RwLockReadGuard<'_, bool>, LabError> {
        let standing = self.standing.read();
        match *standing {
            true => Ok(standing),
            false => Err(LabError::Refused(format!("the lab {} was removed", self.run.name))),
        }
    }

    /// From here on nothing is made any more.
    pub(crate) fn close(&self) {
        *self.standing.write() = false;
    }

    /// Changes the cluster and makes manifests, DNS and service rules follow before it returns.
    pub(crate) fn change<T>(
        &self,
        edit: impl FnOnce(&mut Cluster) -> Result<T, LabError>,
    ) -> Result<T, LabError> {
        let _standing = self.standing()?;
        let mut cluster = self.cluster.lock();
        let value = edit(&mut cluster)?;
        self.publish(&mut cluster)?;
        Ok(value)
    }

    pub(crate) fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock()
    }

    fn publish(&self, cluster: &mut Cluster) -> Result<(), LabError> {
        *self.zone.lock() = Arc::new(Zone::of(&cluster.state));
        let rules = kubeproxy::ruleset(&cluster.state);
        if rules != cluster.rules {
            thread::scope(|scope| {
                let applied: Vec<_> =
                    self.nodes.iter().map(|node| scope.spawn(|| tool::nft(&node.netns, &rules))).collect();
                applied
                    .into_iter()
                    .try_for_each(|thread| thread.join().expect("applying rules does not panic"))
            })?;
            cluster.rules = rules;
        }
        cluster.directory.update(manifests::render(&cluster.state))
    }

    /// Starts a program. `lab-app` as its name means the lab's own.
    pub(crate) fn spawn(&self, entry: &Entry, mut program: Program) -> Result<Process, LabError> {
        if program.args[0] == "lab-app" {
            program.args[0] = self.binaries.path("lab-app", "lab")?.into();
        }
        let _standing = self.standing()?;
        cgroup::create(&entry.cgroup)?;
        let command = program.display();
        let mut launcher = Command::new(&self.lab_run);
        launcher.args(entry.to_args()).args(&program.args).current_dir("/");
        without_proxies(&mut launcher);
        launcher.envs(program.env);
        Process::start(launcher, command).map_err(|error| match error {
            ProcessError::System { doing, source } => LabError::System { doing, source },
            other @ (ProcessError::Deadline { .. } | ProcessError::Ended { .. }) => {
                LabError::Refused(other.to_string())
            }
        })
    }

    /// A number that no process of this run had.
    pub(crate) fn next_number(&self) -> u32 {
        self.started.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn ensure_namespace(cluster: &mut Cluster, name: &str) {
        cluster.state.namespaces.entry(name.to_owned()).or_default();
    }
}

impl Site {
    pub(crate) fn create(run: &Run, name: &str, number: u8) -> Result<Self, LabError> {
        let dir = run.dir.join(name);
        fs::create_dir(&dir).map_err(cannot(format!("create {}", dir.display())))?;
        let group = run.cgroup.join(name);
        for below in ["system", "kubepods", "kubelet"] {
            cgroup::create(&group.join(below))?;
        }
        let netns = Netns::create(&run.netns(name))?;
        Ok(Self { name: name.to_owned(), number, netns, cgroup: group, dir, ztunnel: Mutex::new(None) })
    }

    /// An entry for a process of the node itself, in the cgroup `below` the node's.
    pub(crate) fn entry(&self, below: &str) -> Entry {
        Entry {
            cgroup: self.cgroup.join(below),
            netns: Some(self.netns.path().to_owned()),
            ..Entry::default()
        }
    }
}

/// Keeps a program's traffic away from proxies of the machine.
pub(crate) fn without_proxies(command: &mut Command) {
    for name in PROXY_VARIABLES {
        command.env_remove(name);
    }
}

/// Sets or removes a label or annotation.
pub(crate) fn set(map: &mut Map, key: &str, value: Option<&str>) {
    match value {
        Some(value) => map.insert(key.to_owned(), value.to_owned()),
        None => map.remove(key),
    };
}

/// The first address of each family, for places that name one.
pub(crate) fn first_v4(ips: &[IpAddr]) -> IpAddr {
    *ips.iter().find(|ip| ip.is_ipv4()).expect("every pod and node has an IPv4 address")
}
