//! The run's subtree in the cgroup v2 hierarchy: finding the mount, making groups, killing and removing them.
//!
//! No controller is enabled and no limit set; the groups exist so that cgroup programs can tell nodes and pods apart.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{LabError, cannot};

/// How long killed processes may take to be gone. Generous: a process in a core dump or on a slow disk is slow.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

/// The mount point of cgroup v2 on this machine (`/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on hybrid hosts).
pub(crate) fn mount_point() -> Result<PathBuf, LabError> {
    let mountinfo =
        fs::read_to_string("/proc/self/mountinfo").map_err(cannot("read /proc/self/mountinfo"))?;
    find_mount(&mountinfo).ok_or_else(|| LabError::Missing {
        what: "cgroup v2 mount".into(),
        mend: "mount one: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified"
            .into(),
    })
}

/// Mount points of the controllers of cgroup v1; none on machines that have moved on.
pub(crate) fn v1_mount_points() -> io::Result<Vec<PathBuf>> {
    Ok(mounts_of("cgroup", &fs::read_to_string("/proc/self/mountinfo")?))
}

/// Makes the group of a node, `run/node`, wherever a container runtime expects it: with controllers enabled in v2, or in every
/// hierarchy of v1.
pub(crate) fn create_node(run: &str, node: &str) -> Result<(), LabError> {
    let v2 = mount_point()?;
    create(&v2.join(run).join(node))?;
    let v1 = v1_mount_points().map_err(cannot("read /proc/self/mountinfo"))?;
    if v1.is_empty() {
        // A group has the controllers that all above it have enabled for those below.
        return [v2.clone(), v2.join(run), v2.join(run).join(node)]
            .iter()
            .try_for_each(|group| enable_all(group));
    }
    for root in v1 {
        create(&root.join(run).join(node))?;
        for settings in ["cpuset.cpus", "cpuset.mems"] {
            // A new group has none of them, and takes no process until it has.
            if let Ok(value) = fs::read(root.join(settings)) {
                for group in [root.join(run), root.join(run).join(node)] {
                    let path = group.join(settings);
                    fs::write(&path, &value).map_err(cannot(format!("write {}", path.display())))?;
                }
            }
        }
    }
    Ok(())
}

fn enable_all(group: &Path) -> Result<(), LabError> {
    let known = group.join("cgroup.controllers");
    let known = fs::read_to_string(&known).map_err(cannot(format!("read {}", known.display())))?;
    for name in known.split_whitespace() {
        // Some machines refuse some controllers; a kubelet that cannot do without says which.
        drop(fs::write(group.join("cgroup.subtree_control"), format!("+{name}")));
    }
    Ok(())
}

/// Makes a group and those above it.
pub(crate) fn create(path: &Path) -> Result<(), LabError> {
    fs::create_dir_all(path).map_err(cannot(format!("create the cgroup {}", path.display())))
}

/// Kills everything in the group and below, waits until it is empty and removes it. Absent is fine.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + EMPTY_WITHIN;
    while path.exists() {
        kill(path)?;
        match remove_tree(path) {
            // A program on its way into the group came after the kill.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {}
            other => return other,
        }
    }
    Ok(())
}

/// Removes the groups of v1 that a run, or one node of it (`below` the run), has; their processes are gone. Absent is fine.
pub(crate) fn remove_v1(run: &str, below: &str) -> io::Result<()> {
    let deadline = Instant::now() + EMPTY_WITHIN;
    for hierarchy in v1_mount_points()? {
        let group = hierarchy.join(run).join(below);
        loop {
            match if group.exists() { remove_tree(&group) } else { Ok(()) } {
                // A process is gone for its parent before it is for its groups.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                    std::thread::yield_now();
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => break,
            }
        }
    }
    Ok(())
}

/// Kills everything in the group and below and waits until no live process is left in it.
pub(crate) fn kill(path: &Path) -> io::Result<()> {
    let mut events = File::open(path.join("cgroup.events"))?;
    fs::write(path.join("cgroup.kill"), "1")?;
    let deadline = Instant::now() + EMPTY_WITHIN;
    loop {
        let mut text = String::new();
        events.rewind()?;
        events.read_to_string(&mut text)?;
        if text.lines().any(|line| line == "populated 0") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let message = format!("processes in {} survive cgroup.kill", path.display());
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        // The kernel signals POLLPRI when cgroup.events changes.
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
        let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        poll(&mut fds, wait)?;
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// `proc_pid_mountinfo(5)`: field 5 is the mount point, the file system type follows the separator "-".
fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    mounts_of("cgroup2", mountinfo).into_iter().next()
}

fn mounts_of(kind: &str, mountinfo: &str) -> Vec<PathBuf> {
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let is_asked_for = right.split(' ').next() == Some(kind);
        let path = is_asked_for.then(|| left.split(' ').nth(4)).flatten();
        path.map(|path| PathBuf::from(path.replace("\\040", " ")))
    };
    mountinfo.lines().filter_map(mount).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mountinfo: &str, expected: Option<&str>) {
        assert_eq!(find_mount(mountinfo), expected.map(PathBuf::from));
    }

    #[test]
    fn the_mount_is_found_on_unified_and_hybrid_hosts() {
        check("30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw", Some("/sys/fs/cgroup"));
        check(
            "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw",
            Some("/sys/fs/cgroup/unified"),
        );
        check("41 31 0:38 / /my\\040cgroup rw - cgroup2 none rw", Some("/my cgroup"));
        check("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup2 rw,cpu", None);
    }
}
