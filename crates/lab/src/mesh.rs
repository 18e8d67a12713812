//! The mesh's own processes in the lab: the controller beside the bridge, one ztunnel per node.
//!
//! They are executables with an environment; the lab knows none of their code. What they decide, it does not.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::error::LabError;
use crate::inner::{Inner, Site};
use crate::lab::Lab;
use crate::node::Node;
use crate::pod::Pod;
use crate::process::{Process, Program};
use crate::state::PodRecord;
use crate::topology::CONTROL;
use crate::wait::wait_until;
use crate::{RunError, node_api};

/// Environment variables, by name.
pub type Env = BTreeMap<String, String>;

/// The port of discovery and certificates.
const CONTROLLER_PORT: u16 = 15012;

/// How long a mesh process may take until it is ready. Debug builds on a busy machine take seconds.
const READY_WITHIN: Duration = Duration::from_secs(30);

impl Lab {
    /// The environment that [`Self::start_controller`] gives the controller unless the caller says otherwise.
    pub fn controller_env(&self) -> Env {
        let run = &self.inner().run.dir;
        let any = if self.inner().config.ipv6 { "[::]" } else { "0.0.0.0" };
        env([
            ("AIRGLOW_SOURCE", format!("dir:{}", self.manifests().display())),
            ("AIRGLOW_STATE_DIR", run.join("controller").display().to_string()),
            ("AIRGLOW_LISTEN", format!("{any}:{CONTROLLER_PORT}")),
            ("AIRGLOW_JOIN_TOKENS", run.join("tokens").display().to_string()),
        ])
    }

    /// Starts the controller and waits until it is ready. `changes` are set over [`Self::controller_env`].
    pub fn start_controller(&self, changes: Env) -> Result<Process, RunError> {
        let inner = self.inner();
        let mut known = inner.controller.lock();
        if known.as_ref().is_some_and(Process::is_running) {
            return Err(LabError::Refused("the controller runs already; stop it first".into()).into());
        }
        let mut environment = self.controller_env();
        environment.extend(changes);
        let number = inner.next_number();
        let process = start(inner, &inner.control, ("controller", "controller"), (number, environment))?;
        let admin_socket = inner.run.dir.join("controller").join("admin.sock");
        await_ready(&process, "the controller's readiness", || {
            listens(&process, &admin_socket)?;
            is_ready(&admin_socket)
        })?;
        *known = Some(process.clone());
        Ok(process)
    }

    /// The controller that was started last.
    pub fn controller(&self) -> Option<Process> {
        self.inner().controller.lock().clone()
    }

    /// Ends the controller in good order.
    pub fn stop_controller(&self) -> Result<(), RunError> {
        if let Some(process) = self.inner().controller.lock().take() {
            process.terminate()?;
        }
        Ok(())
    }
}

impl Node {
    /// The environment that the node's ztunnel gets unless the caller says otherwise.
    pub fn ztunnel_env(&self) -> Env {
        let inner = self.inner();
        let text = |path: PathBuf| path.display().to_string();
        env([
            ("AIRGLOW_NODE", self.name().to_owned()),
            ("AIRGLOW_CONTROLLER", controller_address()),
            ("AIRGLOW_ROOT_CERT", text(roots(inner))),
            ("AIRGLOW_TOKEN", text(inner.run.dir.join("tokens").join(self.name()))),
            ("AIRGLOW_CGROUP", text(self.cgroup().to_owned())),
            ("AIRGLOW_KUBEPODS", text(self.cgroup().join("kubepods"))),
            ("AIRGLOW_PINS", text(self.pins())),
            ("AIRGLOW_RUN_DIR", text(self.run_dir().to_owned())),
        ])
    }

    /// Starts a ztunnel, tells it of every pod of the node and waits until it is ready. `changes` are set over
    /// [`Self::ztunnel_env`]. A ztunnel that still runs goes on: see [`Self::restart_ztunnel`].
    pub fn start_ztunnel(&self, changes: Env) -> Result<Process, RunError> {
        let (inner, site) = (self.inner(), self.site());
        let mut environment = self.ztunnel_env();
        environment.extend(changes);
        let number = inner.next_number();
        let process = start(inner, site, ("ztunnel", "ztunnel"), (number, environment))?;
        let node_socket = site.dir.join("node.sock");
        // Both processes of a handover use one path; who listens there is the kernel's to say.
        await_ready(&process, "ztunnel's node API", || listens(&process, &node_socket))?;
        *site.ztunnel.lock() = Some(process.clone());
        let cluster = inner.cluster();
        let pods: Vec<_> =
            cluster.state.pods.values().filter(|pod| pod.node == self.index()).cloned().collect();
        drop(cluster);
        for pod in &pods {
            node_api::announce(inner, pod)?;
        }
        self.retract_others(&pods)?;
        let admin_socket = site.dir.join("admin.sock");
        await_ready(&process, "ztunnel's readiness", || {
            listens(&process, &admin_socket)?;
            is_ready(&admin_socket)
        })?;
        Ok(process)
    }

    /// Pods that were removed while no ztunnel ran: a kubelet, too, repeats deletions until they are heard.
    fn retract_others(&self, pods: &[PodRecord]) -> Result<(), LabError> {
        let known = self.enrolment()?;
        let uids = known.as_array().into_iter().flatten().filter_map(|pod| pod["uid"].as_str());
        for uid in uids.filter(|uid| pods.iter().all(|pod| pod.uid != *uid)) {
            node_api::retract(self.inner(), self.index(), uid)?;
        }
        Ok(())
    }

    /// The ztunnel that was started last.
    pub fn ztunnel(&self) -> Option<Process> {
        self.site().ztunnel.lock().clone()
    }

    /// Starts a successor, waits until it is ready, and asks the old one to drain and end. The old one is returned while
    /// it may still hold connections.
    pub fn restart_ztunnel(&self, changes: Env) -> Result<Handover, RunError> {
        let Some(old) = self.ztunnel().filter(Process::is_running) else {
            let reason = format!("no ztunnel runs on {}; start one", self.name());
            return Err(LabError::Refused(reason).into());
        };
        let new = self.start_ztunnel(changes)?;
        old.signal(Signal::SIGTERM)?;
        Ok(Handover { new, old })
    }

    /// Ends the node's ztunnel in good order and waits for its end.
    pub fn stop_ztunnel(&self) -> Result<(), RunError> {
        let process = self.site().ztunnel.lock().take();
        if let Some(process) = process {
            process.terminate()?;
        }
        Ok(())
    }

    /// Ends the node's ztunnel as a crash would.
    pub fn kill_ztunnel(&self) -> Result<(), RunError> {
        let process = self.site().ztunnel.lock().take();
        if let Some(process) = process {
            process.kill()?;
        }
        Ok(())
    }

    /// What the node's ztunnel says of its pods: the `pods` of the node API's answer to `list`.
    pub fn enrolment(&self) -> Result<Value, LabError> {
        Ok(node_api::ask(self.site(), &json!({"list": {}}))?["pods"].take())
    }
}

impl Pod {
    /// Waits until the node's ztunnel says that the pod is in this state, such as `enrolled` or `not wanted`.
    pub fn wait_for_state(&self, state: &str, within: Duration) -> Result<(), LabError> {
        let what = format!("state `{state}` of pod {}/{}", self.namespace(), self.name());
        wait_until(&what, within, || {
            let pods = self.node().enrolment().map_err(|error| error.to_string())?;
            let own = pods.as_array().into_iter().flatten().find(|pod| pod["uid"] == self.uid());
            match own {
                Some(pod) if pod["state"] == state => Ok(()),
                Some(pod) => Err(pod.to_string()),
                None => Err(format!("not among {pods}")),
            }
        })
    }
}

/// Both processes of a restart without a gap.
#[derive(Clone, Debug)]
pub struct Handover {
    /// The successor, which is ready.
    pub new: Process,
    /// The predecessor, which was asked to end.
    pub old: Process,
}

/// Where pods and nodes find the controller.
pub(crate) fn controller_address() -> String {
    format!("https://{}:{CONTROLLER_PORT}", CONTROL.v4)
}

/// Where the controller publishes the roots that nodes verify it with.
pub(crate) fn roots(inner: &Inner) -> PathBuf {
    inner.run.dir.join("controller").join("roots.pem")
}

pub(crate) fn env<const N: usize>(variables: [(&str, String); N]) -> Env {
    variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn start(
    inner: &Inner,
    site: &Site,
    (binary, package): (&str, &str),
    (number, environment): (u32, Env),
) -> Result<Process, LabError> {
    let path = inner.binaries.path(binary, package)?;
    let mut program = Program::new(path);
    for (name, value) in environment {
        program = program.env(name, value);
    }
    // A cgroup of its own for each process: during a handover the node must tell two ztunnels from everything else.
    inner.spawn(&site.entry(&format!("system/{binary}-{number}")), program)
}

/// Waits for a condition, and stops waiting when the process ends.
pub(crate) fn await_ready(
    process: &Process,
    what: &str,
    mut condition: impl FnMut() -> Result<(), String>,
) -> Result<(), RunError> {
    let outcome = wait_until(what, READY_WITHIN, || match process.is_running() {
        true => condition().map(|()| true),
        false => Ok(false),
    });
    match outcome {
        Ok(true) => Ok(()),
        // Ends at once, with the status and the last words of the process.
        Ok(false) => {
            Err(process.wait_for_line("\0", Duration::from_secs(1)).expect_err("no line has a NUL").into())
        }
        Err(LabError::Deadline { what, within, last }) => {
            let said = process.output();
            let last = format!("{last}; its output: {}{}", said.stdout, said.stderr);
            drop(process.kill());
            Err(LabError::Deadline { what, within, last }.into())
        }
        Err(other) => Err(other.into()),
    }
}

fn listens(process: &Process, socket: &Path) -> Result<(), String> {
    match node_api::listener(socket) {
        Some(pid) if pid == process.pid() => Ok(()),
        Some(pid) => Err(format!("process {pid} listens on {}", socket.display())),
        None => Err(format!("nobody listens on {}", socket.display())),
    }
}

/// `GET /healthz/ready` on the admin socket: 200, or 503 with what is pending.
pub(crate) fn is_ready(socket: &Path) -> Result<(), String> {
    let ask = || {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(READY_WITHIN))?;
        stream.write_all(b"GET /healthz/ready HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n")?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).map(|_| reply)
    };
    let reply: String = ask().map_err(|error: std::io::Error| error.to_string())?;
    if reply.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(reply) }
}
