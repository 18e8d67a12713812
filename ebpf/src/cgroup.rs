//! The cgroup v2 tree: where it is mounted, where this process is in it, and the ids that BPF programs compare.
//! It reads only.

use std::io;
use std::os::linux::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use thiserror::Error;

/// Cgroups visited below one directory. A node has a few per container; this stops at a tree gone wild.
const MAX_CGROUPS: usize = 100_000;

/// Why there is no cgroup to attach to.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// No cgroup v2 hierarchy is mounted.
    #[error(
        "no cgroup v2 hierarchy is mounted (no line of type cgroup2 in /proc/self/mountinfo). Capture attaches to it; boot with systemd.unified_cgroup_hierarchy=1, or `mount -t cgroup2 none /sys/fs/cgroup/unified`"
    )]
    NotMounted,
    /// The path is not in a cgroup v2 hierarchy.
    #[error(
        "{0} is not a directory of a cgroup v2 hierarchy. On hybrid hosts that one is mounted at /sys/fs/cgroup/unified"
    )]
    NotCgroup2(PathBuf),
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Where cgroup v2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on hybrid hosts. In a container that is given
/// the host's tree besides its own part of it, the host's.
pub fn mount() -> Result<PathBuf, CgroupError> {
    outermost(&mounts(&read("/proc/self/mountinfo")?)).ok_or(CgroupError::NotMounted)
}

/// The directory of the calling process.
pub fn own() -> Result<PathBuf, CgroupError> {
    let mountinfo = read("/proc/self/mountinfo")?;
    let cgroups = read("/proc/self/cgroup")?;
    let relative = find_own(&cgroups).ok_or(CgroupError::NotMounted)?;
    own_below(&mounts(&mountinfo), Path::new(relative)).ok_or(CgroupError::NotMounted)
}

/// The id that `bpf_get_current_cgroup_id` gives for processes in this directory.
pub(crate) fn id(path: &Path) -> Result<u64, CgroupError> {
    let error = |source| CgroupError::Read { path: path.to_owned(), source };
    let kind = statfs(path).map_err(|errno| error(errno.into()))?.filesystem_type();
    if kind != CGROUP2_SUPER_MAGIC {
        return Err(CgroupError::NotCgroup2(path.to_owned()));
    }
    std::fs::metadata(path).map(|metadata| metadata.st_ino()).map_err(error)
}

/// The ids of a directory and of everything below it. What disappears meanwhile is left out.
pub(crate) fn ids_below(path: &Path) -> Vec<u64> {
    let mut ids = Vec::new();
    let mut open = vec![path.to_owned()];
    while let Some(directory) = open.pop() {
        let Ok(metadata) = std::fs::symlink_metadata(&directory) else { continue };
        if !metadata.is_dir() || ids.len() == MAX_CGROUPS {
            continue;
        }
        ids.push(metadata.st_ino());
        let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten();
        open.extend(
            entries
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    ids
}

fn read(path: &str) -> Result<String, CgroupError> {
    std::fs::read_to_string(path).map_err(|source| CgroupError::Read { path: path.into(), source })
}

/// Which part of the tree is mounted, as seen from the caller's cgroup namespace, and where.
type Mount<'a> = (&'a Path, &'a Path);

/// proc(5), mountinfo: field 4 is the root of the mount within its file system, field 5 the mount point; the type follows a
/// lone dash, behind optional fields.
fn mounts(mountinfo: &str) -> Vec<Mount<'_>> {
    let lines = mountinfo.lines().filter_map(|line| line.split_once(" - "));
    lines
        .filter(|(_, filesystem)| filesystem.split(' ').next() == Some("cgroup2"))
        .filter_map(|(mount, _)| {
            let mut fields = mount.split(' ').skip(3);
            Some((Path::new(fields.next()?), Path::new(fields.next()?)))
        })
        .collect()
}

/// The mount of the largest part of the tree. What is above the caller's namespace is shown as `/..`.
fn outermost(mounts: &[Mount<'_>]) -> Option<PathBuf> {
    let depth = |root: &Path| -> i32 {
        root.components()
            .map(|part| match part {
                Component::ParentDir => -1,
                Component::Normal(_) => 1,
                Component::CurDir | Component::Prefix(_) | Component::RootDir => 0,
            })
            .sum()
    };
    mounts.iter().min_by_key(|(root, _)| depth(root)).map(|(_, point)| point.to_path_buf())
}

/// A directory of the tree, by a mount of which it is a part. Names above the caller's namespace are not known.
fn own_below(mounts: &[Mount<'_>], own: &Path) -> Option<PathBuf> {
    mounts.iter().find_map(|(root, point)| Some(point.join(own.strip_prefix(root).ok()?)))
}

/// cgroups(7): the line of hierarchy 0 is cgroup v2's.
fn find_own(cgroups: &str) -> Option<&str> {
    cgroups.lines().find_map(|line| line.strip_prefix("0::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_host_has_it_at_unified() {
        let mountinfo = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                         32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:3 - cgroup cgroup rw,cpu\n\
                         41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 master:1 - cgroup2 cgroup2 rw\n";
        let mounts = mounts(mountinfo);
        assert_eq!(outermost(&mounts), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let own = own_below(&mounts, Path::new("/system.slice/ztunnel.service"));
        assert_eq!(own, Some(PathBuf::from("/sys/fs/cgroup/unified/system.slice/ztunnel.service")));
    }

    #[test]
    fn a_container_has_its_own_part_and_is_given_the_hosts() {
        let private = "41 31 0:38 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n\
                       52 31 0:38 /../../.. /host/sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let shared = "41 31 0:38 /kubepods/pod1/c1 /sys/fs/cgroup ro - cgroup2 cgroup rw\n\
                      52 31 0:38 / /host/sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        for (mountinfo, own, at) in
            [(private, "/", "/sys/fs/cgroup"), (shared, "/kubepods/pod1/c1", "/sys/fs/cgroup")]
        {
            let mounts = mounts(mountinfo);
            assert_eq!(outermost(&mounts), Some(PathBuf::from("/host/sys/fs/cgroup")));
            let own = own_below(&mounts, Path::new(own)).unwrap();
            assert_eq!(own.components().as_path(), Path::new(at));
        }
    }

    #[test]
    fn a_host_without_it_is_told_so() {
        assert_eq!(outermost(&mounts("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n")), None);
    }

    #[test]
    fn own_is_the_line_of_hierarchy_zero() {
        assert_eq!(
            find_own("9:name=systemd:/x\n0::/system.slice/ztunnel.service\n"),
            Some("/system.slice/ztunnel.service")
        );
    }

    #[test]
    fn a_path_of_another_kind_is_refused() {
        let error = id(Path::new("/proc")).expect_err("proc is no cgroup");
        assert!(matches!(error, CgroupError::NotCgroup2(_)), "{error}");
    }
}
