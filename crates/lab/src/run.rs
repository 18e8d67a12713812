//! One run of a lab on this machine: its name, its directories, and the removal of all that it made.
//!
//! Removal needs nothing but the name, runs any number of times, and is the same for a drop, a panic and a kill.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::error::{LabError, cannot};
use crate::{cgroup, netns};

/// Where runs keep their files. Short, because paths of unix sockets may have 107 bytes.
const RUNS: &str = "/run/airglow-lab";

/// Where ztunnels pin their programs; a run's are in directories that begin with its name.
const PINS: &str = "/sys/fs/bpf/airglow";

/// The directories of a run.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    pub(crate) cgroup: PathBuf,
}

impl Run {
    /// Claims a name that nobody uses and makes the run's directories. The run lives as long as the lock is held.
    pub(crate) fn create() -> Result<(Self, File), LabError> {
        let cgroups = cgroup::mount_point()?;
        loop {
            fs::create_dir_all(RUNS).map_err(cannot(format!("create {RUNS}")))?;
            let name = format!("ag{:08x}", fastrand::u32(..));
            let run = Self { dir: Path::new(RUNS).join(&name), cgroup: cgroups.join(&name), name };
            match fs::create_dir(&run.dir) {
                // Taken, or another run's removal took the empty parent away just now.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) =>
                {
                    continue;
                }
                made => made.map_err(cannot(format!("create {}", run.dir.display())))?,
            }
            let lock = File::create(run.lock()).map_err(cannot("create the run's lock"))?;
            lock.lock().map_err(cannot("lock the run"))?;
            if !run.lock().exists() {
                continue; // A sweep found the run before its lock was taken.
            }
            for dir in ["netns", "manifests", "staging", "pods"] {
                let dir = run.dir.join(dir);
                fs::create_dir(&dir).map_err(cannot(format!("create {}", dir.display())))?;
            }
            // Tokens and the authority's keys; those who read them insist on it.
            for dir in ["tokens", "controller"] {
                let dir = run.dir.join(dir);
                let made = fs::DirBuilder::new().mode(0o700).create(&dir);
                made.map_err(cannot(format!("create {}", dir.display())))?;
            }
            return Ok((run, lock));
        }
    }

    /// The run of that name, whether or not it still exists.
    pub(crate) fn named(name: &str) -> Result<Self, LabError> {
        if !is_run_name(name) {
            return Err(LabError::Refused(format!("`{name}` is not the name of a lab's run")));
        }
        let cgroup = cgroup::mount_point()?.join(name);
        Ok(Self { dir: Path::new(RUNS).join(name), cgroup, name: name.into() })
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    pub(crate) fn netns(&self, name: &str) -> PathBuf {
        self.dir.join("netns").join(name)
    }

    pub(crate) fn pins(&self, node: &str) -> PathBuf {
        Path::new(PINS).join(format!("{}-{node}", self.name))
    }

    /// Removes everything that belongs to this run. Goes on after a failure and returns all of them.
    pub(crate) fn remove(&self) -> Result<(), Vec<String>> {
        let mut failures = Vec::new();
        let mut attempt = |what: &Path, result: io::Result<()>| {
            if let Err(error) = result {
                failures.push(format!("{}: {error}", what.display()));
            }
        };
        // Processes first: they hold namespaces, sockets and mounts.
        attempt(&self.cgroup, if self.cgroup.exists() { cgroup::kill(&self.cgroup) } else { Ok(()) });
        for path in entries(&self.dir.join("netns")) {
            attempt(&path, netns::remove(&path));
        }
        let own_pins = format!("{}-", self.name);
        for path in entries(Path::new(PINS)) {
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&own_pins)) {
                attempt(&path, absent_is_fine(fs::remove_dir_all(&path)));
            }
        }
        // Fails while other runs have pins there, as it should.
        drop(fs::remove_dir(PINS));
        attempt(&self.cgroup, cgroup::remove(&self.cgroup));
        attempt(&self.cgroup, cgroup::remove_v1(&self.name, ""));
        attempt(&self.dir, absent_is_fine(fs::remove_dir_all(&self.dir)));
        drop(fs::remove_dir(RUNS));
        if failures.is_empty() { Ok(()) } else { Err(failures) }
    }
}

/// Instances of inotify that a user may have. A node with a mesh has ten; Linux gives 128, which some tests beside each other use up.
const INOTIFY_INSTANCES: u32 = 1024;

/// Raises the limit of inotify instances, which kubelets do not start without. It stays: it is everyone's.
pub(crate) fn raise_inotify_limit() {
    const LIMIT: &str = "/proc/sys/fs/inotify/max_user_instances";
    let now = fs::read_to_string(LIMIT).ok().and_then(|text| text.trim().parse::<u32>().ok());
    if now.is_some_and(|now| now < INOTIFY_INSTANCES) {
        // A container may forbid it. Then it may suffice as it is, and kubelet says so if not.
        drop(fs::write(LIMIT, INOTIFY_INSTANCES.to_string()));
    }
}

/// Mounts the BPF file system where it belongs if nobody has yet. It stays, as on any machine that boots with systemd: a
/// mount of each run's own would hide the pins of the others.
pub(crate) fn mount_bpffs() -> Result<(), LabError> {
    const BPFFS: &str = "/sys/fs/bpf";
    let is_mounted = || statfs(BPFFS).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    if is_mounted() {
        return Ok(());
    }
    // Two runs that start at once must not mount it twice.
    let lock = File::open(BPFFS).map_err(cannot(format!("open {BPFFS}")))?;
    lock.lock().map_err(cannot(format!("lock {BPFFS}")))?;
    if !is_mounted() {
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
            .map_err(cannot(format!("mount a BPF file system at {BPFFS}")))?;
    }
    Ok(())
}

/// Removes runs whose owner and whose reaper are both gone, as after a power cut of a container.
pub(crate) fn sweep() {
    for dir in entries(Path::new(RUNS)) {
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Ok(run) = Run::named(&name) else { continue };
        let Ok(lock) = File::open(run.lock()) else { continue };
        match lock.try_lock() {
            // What is left over here is reported by whoever owns the next run of that name: nobody.
            Ok(()) => drop(run.remove()),
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn is_run_name(name: &str) -> bool {
    name.len() == 10 && name.starts_with("ag") && name[2..].bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_runs_are_ever_removed() {
        assert!(is_run_name("ag0123abcd"));
        for name in ["", "ag", "..", "ag0123abc", "ag0123abcz", "kubepods00", "ag/../../x"] {
            assert!(!is_run_name(name), "{name}");
        }
    }
}
