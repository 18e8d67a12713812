//! The control plane of a cluster: etcd, API server, controller manager and scheduler, in the control namespace.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use parking_lot::Mutex;

use crate::cgroup;
use crate::cluster::config::{self, User};
use crate::cluster::daemon::Daemon;
use crate::cluster::kubectl::Kubectl;
use crate::cluster::relay::Relay;
use crate::cluster::{Tools, await_up, certificates};
use crate::enter::Entry;
use crate::error::{LabError, cannot};
use crate::netns::Netns;
use crate::topology::CONTROL;

/// The API server of an idle machine is ready in three seconds; builds on all processors make that a minute.
const API_SERVER_WITHIN: Duration = Duration::from_secs(120);

/// A program of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlPlane {
    /// The database.
    Etcd,
    /// What everybody speaks to.
    ApiServer,
    /// Makes pods of deployments, service accounts of namespaces, slices of services.
    ControllerManager,
    /// Gives pods their nodes.
    Scheduler,
}

impl ControlPlane {
    fn program(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
        }
    }
}

/// The running control plane.
#[derive(Debug)]
pub(crate) struct Control {
    dir: PathBuf,
    cgroup: PathBuf,
    netns: Netns,
    ipv6: bool,
    daemons: Mutex<[Option<Daemon>; 4]>,
    relay: Mutex<Option<Relay>>,
}

impl Control {
    /// Writes keys, tokens and kubeconfigs to the run's directory and opens the way to the API server. Starts nothing.
    pub(crate) fn prepare(
        dir: &Path,
        cgroup: PathBuf,
        netns: Netns,
        nodes: &[String],
        ipv6: bool,
    ) -> Result<Self, LabError> {
        let service = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));
        let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), service];
        addresses.extend(CONTROL.ips(ipv6));
        certificates::write(&dir.join("pki"), &addresses)?;
        let users = config::users(nodes);
        write(&dir.join("tokens.csv"), &config::token_file(&users))?;
        let relay = Relay::start(&netns, SocketAddr::new(IpAddr::V4(CONTROL.v4), config::API_PORT))?;
        let ca = dir.join("pki").join("ca.crt");
        for user in &users {
            let (file, server, ca) = reader(dir, user, &ca, relay.address());
            write(&file, &config::kubeconfig(&server, &ca, user))?;
        }
        Ok(Self {
            dir: dir.to_owned(),
            cgroup,
            netns,
            ipv6,
            daemons: Mutex::new([const { None }; 4]),
            relay: Mutex::new(Some(relay)),
        })
    }

    /// Starts all of it and waits until the API server is ready.
    pub(crate) fn start(&self, tools: &Tools, kubectl: &Kubectl) -> Result<(), LabError> {
        for which in [ControlPlane::Etcd, ControlPlane::ApiServer] {
            self.start_one(which, tools)?;
        }
        self.await_ready(kubectl)?;
        // They would start before it as well, but only to ask again and again, ever more seldom.
        for which in [ControlPlane::ControllerManager, ControlPlane::Scheduler] {
            self.start_one(which, tools)?;
        }
        Ok(())
    }

    pub(crate) fn start_one(&self, which: ControlPlane, tools: &Tools) -> Result<(), LabError> {
        let name = which.program();
        let mut daemons = self.daemons.lock();
        let slot = &mut daemons[which as usize];
        if slot.as_ref().is_some_and(|daemon| daemon.check().is_ok()) {
            return Err(LabError::Refused(format!("{name} runs already; stop it first")));
        }
        let cgroup = self.cgroup.join(name);
        cgroup::create(&cgroup)?;
        let entry = Entry { cgroup, netns: Some(self.netns.path().to_owned()), ..Entry::default() };
        let mut launcher = Command::new(&tools.lab_run);
        launcher.args(entry.to_args()).arg(tools.programs.path(name)).args(self.flags(which));
        tools.furnish(&mut launcher);
        *slot = Some(Daemon::start(launcher, name, &tools.logs)?);
        Ok(())
    }

    pub(crate) fn stop_one(&self, which: ControlPlane, signal: Signal) -> Result<(), LabError> {
        let daemon = self.daemons.lock()[which as usize].take();
        daemon.map_or(Ok(()), |daemon| daemon.stop(signal))
    }

    /// Waits until the API server serves, with its roles in place.
    pub(crate) fn await_ready(&self, kubectl: &Kubectl) -> Result<(), LabError> {
        await_up(
            "the API server's readiness",
            API_SERVER_WITHIN,
            || self.check(),
            || kubectl.run(&["get", "--raw", "/readyz"]).map(drop).map_err(|error| error.to_string()),
        )
        .map_err(|error| error.with_log(&self.tails()))
    }

    /// Says that everything that was started still runs.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.daemons.lock().iter().flatten().try_for_each(Daemon::check)
    }

    pub(crate) fn tails(&self) -> String {
        self.daemons.lock().iter().flatten().map(Daemon::tail).collect::<Vec<_>>().join("\n")
    }

    /// Ends the way in; its thread keeps the namespace alive.
    pub(crate) fn close(&self) {
        drop(self.relay.lock().take());
    }

    fn flags(&self, which: ControlPlane) -> Vec<String> {
        let kubeconfig = |name: &str| self.dir.join(format!("{name}.kubeconfig"));
        match which {
            ControlPlane::Etcd => config::etcd(&self.dir),
            ControlPlane::ApiServer => config::api_server(&self.dir, self.ipv6),
            ControlPlane::ControllerManager => {
                config::controller_manager(&self.dir, &kubeconfig("system:kube-controller-manager"))
            }
            ControlPlane::Scheduler => config::scheduler(&kubeconfig("system:kube-scheduler")),
        }
    }
}

/// The file of a user's kubeconfig, and the API server and its authority's certificate as that user finds them.
fn reader(dir: &Path, user: &User, ca: &Path, relay: SocketAddr) -> (PathBuf, String, PathBuf) {
    if user.name == "admin" {
        return (dir.join("kubeconfig"), format!("https://{relay}"), ca.to_owned());
    }
    let on_a_node = user.name.starts_with("system:node:") || user.name == "system:kube-proxy";
    let ca = if on_a_node { Path::new("/etc/kubernetes/ca.crt") } else { ca };
    (dir.join(format!("{}.kubeconfig", user.name)), config::server_inside(), ca.to_owned())
}

fn write(path: &Path, text: &str) -> Result<(), LabError> {
    fs::write(path, text).map_err(cannot(format!("write {}", path.display())))
}
