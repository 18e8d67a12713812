//! What the shop stands on: two nodes on this machine, with a wire between them, as a lab makes them or with a Kubernetes on them.
//!
//! Knows how to do things to pods and to the mesh, there. What is done, and what is promised of it, is the steps' business.

mod hosts;
mod kubernetes;

use std::fmt::Debug;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lab::{Output, Process, Wire};

pub(super) use hosts::{Hosts, Waypoint};
pub(super) use kubernetes::Kubernetes;

use super::error::DemoError;
use crate::interrupt::Interrupt;

/// The namespace of the shop.
pub(crate) const NAMESPACE: &str = "shop";

/// The label of a namespace whose pods are in the mesh, and its value.
pub(crate) const MODE: (&str, &str) = ("istio.io/dataplane-mode", "ambient");

/// Where the shop's programs listen.
pub(crate) const PORT: u16 = 8080;

/// A pod of the shop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    pub(crate) name: &'static str,
    /// The number of its node, from 0.
    pub(crate) node: usize,
    /// Its service account, and its label `app` unless it is not to be found by a service yet.
    pub(crate) app: &'static str,
    /// Whether it has that label from the start.
    pub(crate) is_found: bool,
    /// The services that it calls for every request.
    pub(crate) calls: &'static [&'static str],
    /// Every so many-th request is answered with 500, if any.
    pub(crate) fails_every: Option<u32>,
}

impl Member {
    /// What its program is told.
    fn args(&self) -> Vec<String> {
        let calls = self.calls.iter().flat_map(|service| ["--call".to_owned(), format!("http://{service}/")]);
        let fails = self.fails_every.map(|every| ["--fail-every".to_owned(), every.to_string()]);
        let own = ["serve", "--name", self.name].map(str::to_owned);
        own.into_iter().chain(calls).chain(fails.into_iter().flatten()).collect()
    }
}

/// A node, by what can be seen of it from here.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) name: String,
    /// Its ztunnel's admin socket.
    pub(crate) admin: PathBuf,
    /// Where its ztunnel keeps BPF programs and maps.
    pub(crate) pins: PathBuf,
}

/// A ztunnel that has a successor.
pub(crate) struct Handover<'a> {
    /// Who handed over to whom.
    pub(crate) text: String,
    /// Whether the one before has ended.
    pub(crate) is_over: Box<dyn Fn() -> Result<bool, DemoError> + 'a>,
}

/// Two nodes, what is on them, and the wire between them. What takes a pod's name panics when there is none of that name.
pub(crate) trait Ground: Debug {
    /// The name of this run.
    fn name(&self) -> &str;
    /// What crosses between the nodes.
    fn wire(&self) -> &Wire;
    /// How long something may take that takes seconds at most on an idle machine.
    fn patience(&self) -> Duration;
    /// Its nodes.
    fn places(&self) -> Result<Vec<Place>, DemoError>;
    /// Starts pods and returns when their programs listen.
    fn add(&mut self, members: &[Member]) -> Result<(), DemoError>;
    /// Starts the mesh and returns when it is ready.
    fn start_mesh(&mut self, interrupt: &Interrupt) -> Result<(), DemoError>;
    /// A pod's addresses, IPv4 first.
    fn ips(&self, pod: &str) -> Vec<IpAddr>;
    /// The name of a pod's node.
    fn node_of(&self, pod: &str) -> String;
    /// Starts the shop's program in a pod.
    fn spawn(&self, pod: &str, args: &[String]) -> Result<Process, DemoError>;
    /// Runs a script of this machine's shell and tools in a pod's network.
    fn look(&self, pod: &str, script: &str) -> Result<Output, DemoError>;
    /// Lets the service `app` find a pod.
    fn present(&self, pod: &str, app: &str) -> Result<(), DemoError>;
    /// Begins to delete a pod, which goes on to serve for a while.
    fn dismiss(&self, pod: &str) -> Result<(), DemoError>;
    /// Ends and removes a pod.
    fn take_away(&mut self, pod: &str) -> Result<(), DemoError>;
    /// Puts the shop into the mesh, or takes it out.
    fn label(&self, into_mesh: bool) -> Result<(), DemoError>;
    /// Puts an object in force.
    fn apply(&self, yaml: &str) -> Result<(), DemoError>;
    /// Takes an object away that was put in force.
    fn withdraw(&self, yaml: &str) -> Result<(), DemoError>;
    /// What a node's current ztunnel has written lately.
    fn ztunnel_log(&self, node: &str) -> Result<String, DemoError>;
    /// Starts the successor of a node's ztunnel. Returns when it serves.
    fn replace_ztunnel(&self, node: &str) -> Result<Handover<'_>, DemoError>;
    /// Ends a node's ztunnel as a crash does, and sees to it that none is started.
    fn kill_ztunnel(&self, node: &str) -> Result<(), DemoError>;
    /// Starts the ztunnel of a node that has none. Returns when it serves.
    fn start_ztunnel(&self, node: &str) -> Result<(), DemoError>;
    /// What a user can look at, and by which command. `front` is where customers shop.
    fn ways(&self, airglow: &Path, front: &str) -> Result<Vec<(&'static str, String)>, DemoError>;
    /// Removes everything, and says what is left.
    fn remove(self: Box<Self>) -> Vec<String>;
}

/// What is left of `traces` after `removed`.
fn left(removed: Result<(), Vec<String>>, traces: &[PathBuf]) -> Vec<String> {
    let exists = traces.iter().filter(|path| path.exists()).map(|path| path.display().to_string());
    removed.err().into_iter().flatten().chain(exists).collect()
}

/// Writes a file of the run's own.
fn write(path: &Path, text: &str) -> Result<(), DemoError> {
    let doing = || format!("write {}", path.display());
    Ok(fs::write(path, text).map_err(|source| lab::LabError::System { doing: doing(), source })?)
}
