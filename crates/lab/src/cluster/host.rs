//! The inside of a node: its first process, with mounts and process numbers of its own, and how other programs get there.
//!
//! Runs in `lab-run`, single-threaded, after `lab-run exec` has joined the node's cgroup and network and has named the host. A
//! node sees the machine's files; what it writes to /etc, /opt and /var stays with it, and /run is its own.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What a node may change without the machine noticing: a layer over the machine's own.
pub(crate) const LAYERS: [&str; 3] = ["etc", "opt", "var"];

/// The node's own folders (in its directory) and where it sees them. Those below /var cannot be layers: containers' own
/// file systems are layers, and those do not go on top of one another.
pub(crate) const FOLDERS: [(&str, &str); 4] = [
    ("run", "/run"),
    ("containerd", "/var/lib/containerd"),
    ("kubelet", "/var/lib/kubelet"),
    ("log", "/var/log"),
];

/// Settings of the whole machine that a kubelet changes as it starts; a node changes copies.
pub(crate) const SETTINGS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// What the first process prints when the node is furnished.
pub(crate) const READY: &str = "the node is furnished";

/// What shells say for a program that could not be run.
const CANNOT_RUN: i32 = 126;

type Step<T> = Result<T, String>;

/// A command of `lab-run` that belongs to nodes of a cluster, with its arguments: nothing when it is none of those, else the
/// code to end with.
pub fn helper(command: &str, args: &[OsString]) -> Option<Result<u8, String>> {
    let dir = || Path::new(args.first().map_or(OsStr::new(""), OsString::as_os_str));
    Some(match command {
        "node" => node(dir()).map(code),
        "node-init" => node_init(dir()),
        "enter" => args.split_first().map_or_else(
            || Err("enter: no process is named".to_owned()),
            |(pid, program)| enter(Path::new(pid), program).map(code),
        ),
        "become" => Err(become_program(args)),
        "pause" => pause(),
        _ => return None,
    })
}

/// `lab-run node DIR`: begins a process number namespace and stays as its keeper. `DIR` holds the node's folders.
fn node(dir: &Path) -> Step<ExitStatus> {
    step("enter", dir, std::env::set_current_dir(dir))?;
    step("make namespaces for", dir, unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID))?;
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let first = Command::new(own).arg("node-init").arg(dir).spawn();
    keep(step("start the first process of", dir, first)?)
}

/// `lab-run node-init DIR`: the first process of a node. Furnishes it, says so, and buries the dead.
fn node_init(dir: &Path) -> Step<u8> {
    step("tie to its keeper", dir, set_pdeathsig(Signal::SIGKILL))?;
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    step("block signals of", dir, signals.thread_block())?;
    furnish(dir)?;
    println!("{READY}");
    loop {
        signals.wait().map_err(|errno| errno.to_string())?;
        bury();
    }
}

/// Takes note of every child that has ended; first processes inherit those that others leave behind.
fn bury() {
    while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status != WaitStatus::StillAlive) {}
}

/// `lab-run pause`: the first process of a pod, which holds its namespaces until it is told to end.
fn pause() -> Step<u8> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        signals.add(signal);
    }
    signals.thread_block().map_err(|errno| errno.to_string())?;
    while signals.wait().map_err(|errno| errno.to_string())? == Signal::SIGCHLD {
        bury();
    }
    Ok(0)
}

/// `lab-run enter PID PROGRAM...`: runs a program beside process `pid`, passes signals on to it, and ends as it does.
fn enter(pid: &Path, program: &[OsString]) -> Step<ExitStatus> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let namespaces = Path::new("/proc").join(pid).join("ns");
    let open = |name: &str| {
        let path = namespaces.join(name);
        step("open", &path, File::open(&path))
    };
    // All are opened before the first is entered: in the node /proc is another.
    let opened = [open("pid")?, open("net")?, open("uts")?, open("mnt")?];
    for file in opened {
        step("enter", &namespaces, setns(file, CloneFlags::empty()))?;
    }
    let child = Command::new(own).arg("become").args(program).spawn();
    keep(step("start a program beside process", pid, child)?)
}

/// `lab-run become PROGRAM...`: becomes the program, which is killed when its parent ends. Returns only when that failed.
fn become_program(program: &[OsString]) -> String {
    let Some((name, args)) = program.split_first() else { return "become: no program".to_owned() };
    if let Err(errno) = set_pdeathsig(Signal::SIGKILL).and_then(|()| SigSet::empty().thread_set_mask()) {
        return format!("cannot tie {} to its keeper: {errno}", name.to_string_lossy());
    }
    let error = Command::new(name).args(args).exec();
    format!("cannot run {}: {error}", name.to_string_lossy())
}

/// The code that a keeper ends with, as shells do it: of its program, or of the signal that ended it.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    u8::try_from(code.unwrap_or(CANNOT_RUN)).unwrap_or(u8::MAX)
}

/// Passes signals on until the child ends.
fn keep(mut child: Child) -> Step<ExitStatus> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1] {
        signals.add(signal);
    }
    signals.thread_block().map_err(|errno| errno.to_string())?;
    loop {
        // Asked first: the child may have ended before its signal was blocked.
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            return Ok(status);
        }
        let signal = signals.wait().map_err(|errno| errno.to_string())?;
        if signal != Signal::SIGCHLD {
            // Fails only for a child that has just ended, which the next turn sees.
            let _ = kill(Pid::from_raw(child.id().cast_signed()), signal);
        }
    }
}

fn furnish(dir: &Path) -> Step<()> {
    let nothing = None::<&str>;
    let remount = |flags| mount(nothing, "/", nothing, flags | MsFlags::MS_REC, nothing);
    step("separate the mounts of", dir, remount(MsFlags::MS_PRIVATE))?;
    for name in LAYERS {
        layer(dir, name)?;
    }
    // The node's folders are named from its directory: its absolute path disappears with the machine's /run.
    detach_below("/run/")?;
    for (name, at) in FOLDERS {
        bind(Path::new(name), Path::new(at))?;
    }
    step("mount /proc of", dir, mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), nothing))?;
    system(dir)?;
    for name in SETTINGS {
        bind(&Path::new("settings").join(name), &Path::new("/proc/sys").join(name))?;
    }
    // Pods that mount folders of the node expect later mounts to reach them, as systemd sets it up everywhere.
    step("share the mounts of", dir, remount(MsFlags::MS_SHARED))
}

/// /sys shows this network namespace; control groups are the machine's, BPF's file system is the node's.
fn system(dir: &Path) -> Step<()> {
    let nothing = None::<&str>;
    let (groups, kept) = ("/sys/fs/cgroup", "cgroup");
    let both = MsFlags::MS_BIND | MsFlags::MS_REC;
    step("keep control groups of", dir, mount(Some(groups), kept, nothing, both, nothing))?;
    step("mount /sys of", dir, mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), nothing))?;
    step("move control groups of", dir, mount(Some(kept), groups, nothing, MsFlags::MS_MOVE, nothing))?;
    let bpf = mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), nothing);
    step("mount the BPF file system of", dir, bpf)
}

fn layer(dir: &Path, name: &str) -> Step<()> {
    let (at, layers) = (Path::new("/").join(name), dir.join("layers"));
    let (upper, work) = (layers.join(name), layers.join(format!("{name}-work")));
    let options =
        format!("lowerdir={},upperdir={},workdir={}", at.display(), upper.display(), work.display());
    let mounted = mount(Some("overlay"), &at, Some("overlay"), MsFlags::empty(), Some(options.as_str()));
    step("lay the node's own files over", &at, mounted)
}

fn bind(what: &Path, at: &Path) -> Step<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    step("replace", at, mount(Some(what), AsRef::<OsStr>::as_ref(at), None::<&str>, flags, None::<&str>))
}

/// What is mounted in the machine's /run would be held by the node for as long as it lives, and confuses container runtimes.
fn detach_below(prefix: &str) -> Step<()> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    let mut below: Vec<_> = points.filter(|point| point.starts_with(prefix)).map(PathBuf::from).collect();
    below.reverse();
    for path in below {
        match umount2(&path, MntFlags::MNT_DETACH) {
            // Another one of these contained it, or its owner has removed it meanwhile.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            failed => step("detach", &path, failed)?,
        }
    }
    Ok(())
}

fn step<T, E: Into<io::Error>>(what: &str, at: &Path, result: Result<T, E>) -> Step<T> {
    result.map_err(|error| format!("cannot {what} {}: {}", at.display(), error.into()))
}
