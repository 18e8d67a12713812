//! A node of a cluster as tests see it: its places, programs of theirs beside its own, and its power.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::signal::Signal;

use crate::RUN_WITHIN;
use crate::cluster::Shared;
use crate::cluster::machine::{Component, Machine};
use crate::error::{LabError, RunError};
use crate::netns::Netns;
use crate::process::{Output, Process, ProcessError, Program};
use crate::topology;

/// A node of the cluster.
#[derive(Clone, Debug)]
pub struct ClusterNode {
    shared: Arc<Shared>,
    index: usize,
}

impl ClusterNode {
    pub(crate) fn new(shared: Arc<Shared>, index: usize) -> Self {
        Self { shared, index }
    }

    /// Its name in the cluster: n1, n2, ...
    pub fn name(&self) -> &str {
        self.machine().name()
    }

    /// Its addresses on the bridge, IPv4 first.
    pub fn ips(&self) -> Vec<IpAddr> {
        topology::node(self.machine().number()).ips(self.machine().ipv6())
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        self.machine().netns()
    }

    /// Its cgroup v2 directory; its pods are below, in `kubepods`.
    pub fn cgroup(&self) -> &Path {
        self.machine().cgroup()
    }

    /// Its first process, as this machine numbers it. Its other programs and all pods are in the same process namespace.
    pub fn pid(&self) -> Result<u32, LabError> {
        self.machine().pid()
    }

    /// Where this machine sees a file of the node, such as `/etc/cni/net.d`, `/run/containerd/containerd.sock` or
    /// `/sys/fs/bpf`. For as long as the node is powered.
    pub fn path(&self, path: impl AsRef<Path>) -> Result<PathBuf, LabError> {
        let path = path.as_ref();
        let root = PathBuf::from(format!("/proc/{}/root", self.pid()?));
        Ok(root.join(path.strip_prefix("/").unwrap_or(path)))
    }

    /// Starts a program on the node, outside any pod, as an administrator logged in there would.
    pub fn spawn(&self, program: impl Into<Program>) -> Result<Process, LabError> {
        let program = program.into();
        let number = self.shared.next_number();
        let mut launcher = self.machine().launcher(&self.shared.tools, &format!("p{number}"))?;
        launcher.args(&program.args).envs(program.env.clone());
        Process::start(launcher, program.display()).map_err(|error| match error {
            ProcessError::System { doing, source } => LabError::System { doing, source },
            other @ (ProcessError::Deadline { .. } | ProcessError::Ended { .. }) => {
                LabError::Refused(other.to_string())
            }
        })
    }

    /// Runs a program on the node to its end, for at most half a minute.
    pub fn run(&self, program: impl Into<Program>) -> Result<Output, RunError> {
        let process = self.spawn(program)?;
        Ok(process.wait(RUN_WITHIN).inspect_err(|_| drop(process.kill()))?)
    }

    /// Puts an OCI archive's images where the node's pods find them.
    pub fn load_image(&self, archive: &Path) -> Result<(), LabError> {
        self.machine().load_image(&self.shared.tools, archive)
    }

    /// Ends one of its programs: `SIGTERM` as an upgrade does, `SIGKILL` as a crash. Pods go on.
    pub fn stop(&self, component: Component, signal: Signal) -> Result<(), LabError> {
        self.machine().stop(component, signal)
    }

    /// Starts a program that was stopped. Returns when it answers.
    pub fn start(&self, component: Component) -> Result<(), LabError> {
        self.machine().start(component, &self.shared.tools)
    }

    /// Ends everything on the node at once, pods included, as a power cut does.
    pub fn power_off(&self) -> Result<(), LabError> {
        self.machine().power_off()
    }

    /// Starts the node again, with its disk as it was and /run empty. Its pods come back by themselves.
    pub fn power_on(&self) -> Result<(), LabError> {
        self.machine().power_on(&self.shared.tools)?;
        Component::ALL.into_iter().try_for_each(|component| self.start(component))
    }

    fn machine(&self) -> &Machine {
        &self.shared.nodes[self.index]
    }
}
