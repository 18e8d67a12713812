//! A node of the tests: network namespaces without names (they vanish with the process, however it ends), a cgroup
//! subtree and a pins directory of its own, applications as processes, and a stand-in for the proxy.
//!
//! ```text
//! far 10.9.0.2 --- 10.9.0.1 node 10.4.0.1 --- 10.4.0.X pod X (eth0), X from 2
//!     fd09::2      fd09::1       fd04::1      fd04::X
//! ```

mod proxy;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ebpf::{Netns, Node, NodeConfig, Sandbox};
use nix::sched::{CloneFlags, unshare};

pub(crate) use proxy::Proxy;

/// Beginning of everything in the file system that is ours.
const PREFIX: &str = "agbpf";

/// Longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Where the pods' containers run, below the node's cgroup.
const KUBEPODS: &str = "kubepods";

pub(crate) struct World {
    pub(crate) cgroup: PathBuf,
    pub(crate) pins: PathBuf,
    /// The node's own namespace.
    pub(crate) host: Arc<Netns>,
    /// A host beyond the node.
    pub(crate) far: Arc<Netns>,
    pods: AtomicU32,
}

impl World {
    pub(crate) fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests make network namespaces and load BPF programs: run as root"
        );
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        sweep();
        let name = format!("{PREFIX}_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let cgroup = ebpf::cgroup::mount().expect("a cgroup v2 mount").join(&name);
        for directory in ["system", KUBEPODS, "proxy", "proxy2"] {
            std::fs::create_dir_all(cgroup.join(directory)).expect("a cgroup");
        }
        let pins = Path::new("/sys/fs/bpf").join(&name);
        let (host, far) = (namespace(), namespace());
        let world = Self { cgroup, pins, host, far, pods: AtomicU32::new(2) };
        ip(&world.host, "link set lo up");
        for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            world
                .host
                .run(|| std::fs::write(format!("/proc/sys/net/{setting}"), "1"))
                .expect("entered")
                .expect("a sysctl");
        }
        link(&world.host, &world.far, "far");
        address(&world.host, "far", 9, 1);
        address(&world.far, "eth0", 9, 2);
        ip(&world.far, "route add default via 10.9.0.1");
        ip(&world.far, "-6 route add default via fd09::1");
        ip(&world.host, "link add pods type bridge");
        ip(&world.host, "link set pods up");
        address(&world.host, "pods", 4, 1);
        world
    }

    pub(crate) fn config(&self) -> NodeConfig {
        NodeConfig {
            cgroup: self.cgroup.clone(),
            kubepods: Some(self.cgroup.join(KUBEPODS)),
            kubelet: None,
            pins: self.pins.clone(),
            own_cgroup: self.cgroup.join("proxy"),
            host: Arc::clone(&self.host),
        }
    }

    pub(crate) fn attach(&self) -> Node {
        Node::attach(&self.config()).expect("the node can be attached to")
    }

    /// A pod with a namespace, addresses and a cgroup; nothing is enrolled.
    pub(crate) fn pod(&self) -> Pod {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        let netns = namespace();
        let port = format!("pod{number}");
        link(&self.host, &netns, &port);
        ip(&self.host, &format!("link set {port} master pods"));
        address(&netns, "eth0", 4, number);
        ip(&netns, "route add default via 10.4.0.1");
        ip(&netns, "-6 route add default via fd04::1");
        let cgroup = self.cgroup.join(KUBEPODS).join(format!("pod{number}"));
        std::fs::create_dir_all(&cgroup).expect("a cgroup");
        let (v4, v6) = (IpAddr::from(v4(4, number)), IpAddr::from(v6(4, number)));
        let sandbox = Sandbox { uid: format!("pod-{number}"), netns, addresses: vec![v4, v6] };
        Pod { sandbox, cgroup, v4, v6 }
    }

    /// A process of the node itself: kubelet, or anything outside the pods.
    pub(crate) fn host_app(&self) -> App {
        App::start(&self.host, &self.cgroup.join("system"))
    }

    /// A process of a hostNetwork pod.
    pub(crate) fn host_network_pod(&self) -> App {
        App::start(&self.host, &self.cgroup.join(KUBEPODS))
    }

    /// A process on another machine.
    pub(crate) fn far_app(&self) -> App {
        App::start(&self.far, &self.cgroup.join("system"))
    }

    /// A process in a pod's namespace with the proxy's cgroup.
    pub(crate) fn proxy_app(&self, pod: &Pod) -> App {
        App::start(&pod.sandbox.netns, &self.cgroup.join("proxy"))
    }

    /// A process in a pod's namespace with the node's cgroup, as port forwarding is.
    pub(crate) fn visitor(&self, pod: &Pod) -> App {
        App::start(&pod.sandbox.netns, &self.cgroup.join("system"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        remove(&self.cgroup, &self.pins);
    }
}

pub(crate) struct Pod {
    pub(crate) sandbox: Sandbox,
    pub(crate) cgroup: PathBuf,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
}

impl Pod {
    pub(crate) fn app(&self) -> App {
        App::start(&self.sandbox.netns, &self.cgroup)
    }

    /// As an application that an administrator has given no right to raw sockets.
    pub(crate) fn unprivileged_app(&self) -> App {
        let mut command = Command::new("setpriv");
        command.args(["--inh-caps=-all", "--bounding-set=-all", env!("CARGO_BIN_EXE_ebpf-test-app")]);
        App::start_command(&self.sandbox.netns, &self.cgroup, command)
    }

    /// Everything in the namespace that enrolment could change.
    pub(crate) fn fingerprint(&self) -> String {
        let commands = ["-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all"];
        let listed = commands.map(|command| ip(&self.sandbox.netns, command)).concat();
        // The kernel adds link-local addresses when it is done with checking for duplicates.
        let late = |line: &&str| line.contains("fe80:");
        let mut found: Vec<String> = listed.lines().filter(|line| !late(line)).map(str::to_owned).collect();
        for name in
            ["ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect", "ipv4/tcp_migrate_req"]
        {
            let read = || std::fs::read_to_string(format!("/proc/sys/net/{name}")).expect("a sysctl");
            found.push(format!("{name}={}", self.sandbox.netns.run(read).expect("entered")));
        }
        found.join("\n")
    }
}

/// A process in a namespace and a cgroup that does what it is told.
pub(crate) struct App {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl App {
    pub(crate) fn start(netns: &Netns, cgroup: &Path) -> Self {
        Self::start_command(netns, cgroup, Command::new(env!("CARGO_BIN_EXE_ebpf-test-app")))
    }

    fn start_command(netns: &Netns, cgroup: &Path, mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = netns.run(|| command.spawn()).expect("entered").expect("the application starts");
        // It opens its first socket when it is first told something: until then it can be moved.
        std::fs::write(cgroup.join("cgroup.procs"), process.id().to_string()).expect("a cgroup");
        let input = process.stdin.take().expect("piped");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        Self { process, input, output }
    }

    /// Executes one command of `app.rs`; the answer is "ok ..." or "err ...".
    pub(crate) fn tell(&mut self, command: &str) -> String {
        writeln!(self.input, "{command}").expect("the application lives");
        let mut answer = String::new();
        self.output.read_line(&mut answer).expect("the application lives");
        answer.trim_end().to_owned()
    }

    /// Executes a command that must succeed, and returns what it says.
    pub(crate) fn must(&mut self, command: &str) -> String {
        let answer = self.tell(command);
        let Some(rest) = answer.strip_prefix("ok") else { panic!("`{command}` failed: {answer}") };
        rest.trim_start().to_owned()
    }

    /// Connects and returns who greeted: "app PEER" or "KIND LOCAL PEER"; or "err ERRNO".
    pub(crate) fn dial(&mut self, to: impl std::fmt::Display, options: &str) -> String {
        let command = format!("connect x {to} {options}");
        let answer = self.tell(command.trim_end());
        let Some(rest) = answer.strip_prefix("ok ") else { return answer };
        let words: Vec<&str> = rest.splitn(3, ' ').collect();
        assert_eq!(canonical(words[1]), canonical(&to.to_string()), "getpeername is truthful");
        words[2].to_owned()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An address without the mapped form.
pub(crate) fn canonical(address: &str) -> String {
    let address: std::net::SocketAddr = address.parse().expect("an address");
    std::net::SocketAddr::new(address.ip().to_canonical(), address.port()).to_string()
}

/// Waits until a condition holds; panics with `what` when it never does.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "gave up waiting for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs `ip` in a namespace.
pub(crate) fn ip(netns: &Netns, arguments: &str) -> String {
    run(netns, "ip", arguments)
}

pub(crate) fn run(netns: &Netns, program: &str, arguments: &str) -> String {
    let mut command = Command::new(program);
    command.args(arguments.split_whitespace());
    let output =
        netns.run(|| command.output()).expect("entered").unwrap_or_else(|error| panic!("{program}: {error}"));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {message}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A namespace without a name: a thread makes it, and only our descriptor keeps it.
fn namespace() -> Arc<Netns> {
    let make = || -> OwnedFd {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        File::open("/proc/thread-self/ns/net").expect("its file").into()
    };
    let fd = std::thread::spawn(make).join().expect("no panic");
    let netns = Netns::from_fd(fd).expect("a network namespace");
    ip(&netns, "link set lo up");
    Arc::new(netns)
}

/// A veth pair: `name` at this end, `eth0` at the other.
fn link(from: &Netns, to: &Netns, name: &str) {
    let file = format!("/proc/{}/fd/{}", std::process::id(), to.as_fd().as_raw_fd());
    ip(from, &format!("link add {name} type veth peer name eth0 netns {file}"));
    ip(from, &format!("link set {name} up"));
    ip(to, "link set eth0 up");
}

fn address(netns: &Netns, device: &str, subnet: u32, host: u32) {
    ip(netns, &format!("addr add {}/16 dev {device}", v4(subnet, host)));
    // nodad: an address under duplicate address detection cannot be used for a second.
    let v6 = v6(subnet, host);
    ip(netns, &format!("addr add {v6}/64 dev {device} nodad"));
    // The kernel makes the routes of IPv6 when it has noticed that the device is up.
    let ready = || {
        let routes = ip(netns, "-6 route show table local");
        routes.contains(&format!("local {v6} ")) && routes.contains(&format!("ff00::/8 dev {device}"))
    };
    wait_for("the address to be usable", ready);
}

fn v4(subnet: u32, host: u32) -> Ipv4Addr {
    Ipv4Addr::new(10, subnet as u8, 0, host as u8)
}

fn v6(subnet: u32, host: u32) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00 | subnet as u16, 0, 0, 0, 0, 0, 0, host as u16)
}

/// Clears what killed runs have left: theirs are the directories whose process is gone.
fn sweep() {
    let Ok(mount) = ebpf::cgroup::mount() else { return };
    for root in [mount.clone(), PathBuf::from("/sys/fs/bpf")] {
        for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(pid) = name.strip_prefix(&format!("{PREFIX}_")).and_then(|rest| rest.split('_').next())
            else {
                continue;
            };
            if !Path::new(&format!("/proc/{pid}")).exists() {
                remove(&mount.join(&name), &Path::new("/sys/fs/bpf").join(&name));
            }
        }
    }
}

fn remove(cgroup: &Path, pins: &Path) {
    remove_pins(pins);
    remove_cgroups(cgroup);
}

fn remove_pins(path: &Path) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_pins(&entry.path());
        } else {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    let _ = std::fs::remove_dir(path);
}

fn remove_cgroups(path: &Path) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    // A process that was just killed leaves its cgroup a moment later.
    let deadline = Instant::now() + PATIENCE;
    while path.exists() && std::fs::remove_dir(path).is_err() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}
