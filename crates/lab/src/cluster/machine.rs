//! What a node consists of: its first process, containerd, kubelet and kube-proxy, their configuration, and their logs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use parking_lot::Mutex;
use serde_json::Value;

use crate::cgroup;
use crate::cluster::config;
use crate::cluster::daemon::Daemon;
use crate::cluster::host::{FOLDERS, LAYERS, READY, SETTINGS};
use crate::cluster::{Tools, await_up};
use crate::enter::Entry;
use crate::error::{LabError, cannot};
use crate::netns::Netns;
use crate::run::Run;

/// How long a node's programs may take until they answer. On an idle machine it is a fraction of a second.
const UP_WITHIN: Duration = Duration::from_secs(60);

/// A program that every node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// The container runtime.
    Containerd,
    /// What starts the pods.
    Kubelet,
    /// What makes service addresses work (nftables).
    KubeProxy,
}

impl Component {
    pub(crate) const ALL: [Self; 3] = [Self::Containerd, Self::Kubelet, Self::KubeProxy];

    fn program(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
        }
    }
}

/// What a node is made of.
#[derive(Debug)]
pub(crate) struct Machine {
    run: String,
    name: String,
    number: u8,
    netns: Netns,
    cgroup: PathBuf,
    dir: PathBuf,
    ipv6: bool,
    /// Its processes; nothing while its power is off.
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    keeper: Daemon,
    /// The node's first process, as this machine numbers it.
    pid: u32,
    daemons: [Option<Daemon>; 3],
}

impl Machine {
    pub(crate) fn create(run: &Run, number: u8, ipv6: bool) -> Result<Self, LabError> {
        let name = format!("n{number}");
        let netns = Netns::create(&run.netns(&name))?;
        let cgroup = run.cgroup.join(&name);
        let dir = run.dir.join(&name);
        Ok(Self { run: run.name.clone(), name, number, netns, cgroup, dir, ipv6, running: Mutex::new(None) })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn number(&self) -> u8 {
        self.number
    }

    pub(crate) fn ipv6(&self) -> bool {
        self.ipv6
    }

    pub(crate) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    pub(crate) fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Writes what its programs are told.
    pub(crate) fn configure(&self, run: &Run, tools: &Tools) -> Result<(), LabError> {
        for (name, _) in FOLDERS {
            directory(&self.dir.join(name))?;
        }
        for name in LAYERS {
            directory(&self.dir.join("layers").join(name))?;
            directory(&self.dir.join("layers").join(format!("{name}-work")))?;
        }
        directory(&self.dir.join("cgroup"))?;
        for name in SETTINGS {
            let value =
                fs::read(Path::new("/proc/sys").join(name)).map_err(cannot(format!("read {name}")))?;
            self.write(&Path::new("settings").join(name), &value)?;
        }
        for at in ["var/lib/containerd", "var/lib/kubelet", "var/log"] {
            directory(&self.dir.join("layers").join(at))?;
        }
        let etc = Path::new("layers/etc/kubernetes");
        let copy = |from: &str, to: &str| {
            let bytes = fs::read(run.dir.join(from)).map_err(cannot(format!("read {from}")))?;
            self.write(&etc.join(to), &bytes)
        };
        copy("pki/ca.crt", "ca.crt")?;
        copy(&format!("system:node:{}.kubeconfig", self.name), "kubelet.kubeconfig")?;
        copy("system:kube-proxy.kubeconfig", "kube-proxy.kubeconfig")?;
        let json = |path: &Path, value: Value| self.write(path, value.to_string().as_bytes());
        json(&etc.join("kubelet.json"), config::kubelet(&format!("/{}/{}", run.name, self.name)))?;
        json(&etc.join("kube-proxy.json"), config::kube_proxy(&self.name, self.ipv6))?;
        self.write(&etc.join("resolv.conf"), b"")?;
        let containerd = config::containerd(tools.programs.path("runc"));
        self.write(Path::new("layers/etc/containerd/config.toml"), containerd.as_bytes())?;
        json(Path::new("layers/etc/cni/net.d/10-lab.conflist"), config::cni(self.number, self.ipv6))?;
        for plugin in ["host-local", "loopback", "portmap", "ptp"] {
            let at = self.dir.join("layers/opt/cni/bin").join(plugin);
            directory(at.parent().expect("it has directories above"))?;
            fs::copy(tools.programs.path(plugin), &at).map_err(cannot(format!("write {}", at.display())))?;
        }
        Ok(())
    }

    /// Starts its first process.
    pub(crate) fn power_on(&self, tools: &Tools) -> Result<(), LabError> {
        let mut running = self.running.lock();
        if running.is_some() {
            return Err(LabError::Refused(format!("node {} is on already", self.name)));
        }
        cgroup::create_node(&self.run, &self.name)?;
        let cgroup = self.cgroup.join("system").join("init");
        cgroup::create(&cgroup)?;
        let entry = Entry {
            cgroup,
            netns: Some(self.netns.path().to_owned()),
            hostname: Some(self.name.clone()),
            files: Vec::new(),
        };
        let mut launcher = Command::new(&tools.lab_run);
        launcher.args(entry.to_args()).arg(&tools.lab_run).arg("node").arg(&self.dir);
        tools.furnish(&mut launcher);
        let name = format!("{}-init", self.name);
        let log = tools.logs.join(format!("{name}.log"));
        drop(fs::remove_file(&log));
        let keeper = Daemon::start(launcher, &name, &tools.logs)?;
        await_up(
            &format!("the start of node {}", self.name),
            UP_WITHIN,
            || keeper.check(),
            || {
                let said = fs::read_to_string(&log).map_err(|error| error.to_string())?;
                if said.contains(READY) { Ok(()) } else { Err(said) }
            },
        )?;
        let pid = keeper.only_child()?;
        *running = Some(Running { keeper, pid, daemons: [const { None }; 3] });
        Ok(())
    }

    pub(crate) fn power_off(&self) -> Result<(), LabError> {
        let Some(running) = self.running.lock().take() else {
            return Err(LabError::Refused(format!("node {} is off already", self.name)));
        };
        // Groups go too: a kubelet takes seconds for each that has no container.
        let ended = cgroup::remove(&self.cgroup).and_then(|()| cgroup::remove_v1(&self.run, &self.name));
        ended.map_err(cannot(format!("end everything on node {}", self.name)))?;
        running.keeper.stop(Signal::SIGKILL)?;
        for daemon in running.daemons.iter().flatten() {
            daemon.stop(Signal::SIGKILL)?;
        }
        let run = self.dir.join("run");
        fs::remove_dir_all(&run).map_err(cannot(format!("empty {}", run.display())))?;
        directory(&run)
    }

    /// Starts one of its programs and waits until it answers.
    pub(crate) fn start(&self, component: Component, tools: &Tools) -> Result<(), LabError> {
        let name = component.program();
        if self.check_one(component).is_some_and(|result| result.is_ok()) {
            return Err(LabError::Refused(format!("{name} runs on {} already; stop it first", self.name)));
        }
        let mut launcher = self.launcher(tools, name)?;
        launcher.arg(tools.programs.path(name)).args(self.flags(component));
        let daemon = Daemon::start(launcher, &format!("{}-{name}", self.name), &tools.logs)?;
        if let Some(running) = self.running.lock().as_mut() {
            running.daemons[component as usize] = Some(daemon);
        }
        let alive = || self.check_one(component).unwrap_or(Ok(()));
        await_up(&format!("an answer of {name} on {}", self.name), UP_WITHIN, alive, || {
            self.answers(component, tools)
        })
        .map_err(|error| error.with_log(&self.tails()))
    }

    pub(crate) fn stop(&self, component: Component, signal: Signal) -> Result<(), LabError> {
        let mut running = self.running.lock();
        let daemon = running.as_mut().and_then(|running| running.daemons[component as usize].take());
        drop(running);
        daemon.map_or(Ok(()), |daemon| daemon.stop(signal))
    }

    pub(crate) fn load_image(&self, tools: &Tools, archive: &Path) -> Result<(), LabError> {
        let output = Command::new(tools.programs.path("ctr"))
            .arg("--address")
            .arg(self.dir.join("run/containerd/containerd.sock"))
            .args(["--namespace", "k8s.io", "images", "import", "--local", "--no-unpack"])
            .arg(archive)
            .output()
            .map_err(cannot("run ctr"))?;
        if output.status.success() {
            return Ok(());
        }
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(LabError::Tool { command: format!("ctr images import {}", archive.display()), stderr })
    }

    /// Says that everything that was started still runs.
    pub(crate) fn check(&self) -> Result<(), String> {
        let running = self.running.lock();
        running.iter().flat_map(|running| running.daemons.iter().flatten()).try_for_each(Daemon::check)
    }

    pub(crate) fn tails(&self) -> String {
        let running = self.running.lock();
        let daemons = running.iter().flat_map(|running| running.daemons.iter().flatten());
        daemons.map(Daemon::tail).collect::<Vec<_>>().join("\n")
    }

    fn check_one(&self, component: Component) -> Option<Result<(), String>> {
        let running = self.running.lock();
        running.as_ref().and_then(|running| running.daemons[component as usize].as_ref()).map(Daemon::check)
    }

    pub(crate) fn pid(&self) -> Result<u32, LabError> {
        let running = self.running.lock();
        let off = || LabError::Refused(format!("node {} is off", self.name));
        running.as_ref().map(|running| running.pid).ok_or_else(off)
    }

    /// A command that becomes the program whose name and arguments follow, on this node.
    pub(crate) fn launcher(&self, tools: &Tools, name: &str) -> Result<Command, LabError> {
        let cgroup = self.cgroup.join("system").join(name);
        cgroup::create(&cgroup)?;
        let mut launcher = Command::new(&tools.lab_run);
        launcher.args(Entry { cgroup, ..Entry::default() }.to_args());
        launcher.arg(&tools.lab_run).arg("enter").arg(self.pid()?.to_string());
        tools.furnish(&mut launcher);
        Ok(launcher)
    }

    fn flags(&self, component: Component) -> Vec<String> {
        let file = |name: &str| format!("/etc/kubernetes/{name}");
        match component {
            Component::Containerd => vec!["--config=/etc/containerd/config.toml".to_owned()],
            Component::Kubelet => vec![
                config::flag("config", file("kubelet.json")),
                config::flag("kubeconfig", file("kubelet.kubeconfig")),
                config::flag("hostname-override", &self.name),
                config::flag("node-ip", config::node_ips(self.number, self.ipv6)),
                "--root-dir=/var/lib/kubelet".to_owned(),
                "--cert-dir=/var/lib/kubelet/pki".to_owned(),
            ],
            Component::KubeProxy => vec![config::flag("config", file("kube-proxy.json"))],
        }
    }

    /// Whether a program does its work, as far as that shows on the node.
    fn answers(&self, component: Component, tools: &Tools) -> Result<(), String> {
        match component {
            Component::Containerd => {
                let socket = self.dir.join("run/containerd/containerd.sock");
                let mut ctr = Command::new(tools.programs.path("ctr"));
                let output = ctr.arg("--address").arg(&socket).arg("version").output();
                let output = output.map_err(|error| error.to_string())?;
                let complaint = || String::from_utf8_lossy(&output.stderr).into_owned();
                if output.status.success() { Ok(()) } else { Err(complaint()) }
            }
            // Their health ports are on the node's loopback.
            Component::Kubelet => healthy(&self.netns, 10248),
            Component::KubeProxy => healthy(&self.netns, 10256),
        }
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), LabError> {
        let path = self.dir.join(path);
        directory(path.parent().expect("it has directories above"))?;
        fs::write(&path, bytes).map_err(cannot(format!("write {}", path.display())))
    }
}

/// `GET /healthz` on loopback of a namespace.
fn healthy(netns: &Netns, port: u16) -> Result<(), String> {
    use std::io::{Read, Write};
    let ask = || -> io::Result<String> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(UP_WITHIN))?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        Ok(reply)
    };
    let reply = netns.run(ask).map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    if reply.starts_with("HTTP/1.0 200") { Ok(()) } else { Err(reply) }
}

fn directory(path: &Path) -> Result<(), LabError> {
    fs::create_dir_all(path).map_err(cannot(format!("create {}", path.display())))
}
