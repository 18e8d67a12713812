//! Where everything of one node is pinned: the layout below the pins directory, and the BPF file system it needs.
//! `NODE/maps/NAME`, `NODE/links/NAME`, `NODE/pods/UID/link`.

use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use thiserror::Error;

/// Where a BPF file system is mounted when there is none.
const BPFFS: &str = "/sys/fs/bpf";

/// Why the pins directory cannot be used.
#[derive(Debug, Error)]
pub enum PinsError {
    /// The directory is not on a BPF file system, and is not below the place where we may mount one.
    #[error(
        "{0} is not on a BPF file system: choose a directory below /sys/fs/bpf, or `mount -t bpf bpf DIRECTORY`"
    )]
    NotBpffs(PathBuf),
    /// A name that a BPF file system does not take.
    #[error(
        "{0} cannot be pinned to: BPF file systems refuse names with dots; replace them, as in a node's name"
    )]
    Dots(PathBuf),
    /// There is no BPF file system and mounting one failed.
    #[error(
        "no BPF file system at /sys/fs/bpf, and mounting one failed: {0}. Run `mount -t bpf bpf /sys/fs/bpf` on the host"
    )]
    Mount(#[source] io::Error),
    /// A directory or file below it could not be made, read or removed.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// The pins directory of one node.
#[derive(Debug)]
pub(crate) struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Makes the directories, mounting the BPF file system if `/sys/fs/bpf` has none.
    pub(crate) fn create(root: &Path) -> Result<Self, PinsError> {
        if root.to_string_lossy().contains('.') {
            return Err(PinsError::Dots(root.to_owned()));
        }
        if !is_bpffs(root) {
            if !root.starts_with(BPFFS) || is_bpffs(Path::new(BPFFS)) {
                return Err(PinsError::NotBpffs(root.to_owned()));
            }
            let nothing: Option<&str> = None;
            mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), nothing)
                .map_err(|errno| PinsError::Mount(errno.into()))?;
            tracing::info!(at = BPFFS, "mounted a BPF file system");
        }
        let pins = Self { root: root.to_owned() };
        for directory in ["maps", "links", "pods"] {
            let path = root.join(directory);
            std::fs::create_dir_all(&path).map_err(file("create", &path))?;
        }
        Ok(pins)
    }

    /// The directory, if there is one. That none is found where no BPF file system is mounted would say nothing.
    pub(crate) fn find(root: &Path) -> Result<Option<Self>, PinsError> {
        if !is_bpffs(root) {
            return Err(PinsError::NotBpffs(root.to_owned()));
        }
        match std::fs::metadata(root) {
            Ok(_) => Ok(Some(Self { root: root.to_owned() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(file("read", root)(error)),
        }
    }

    /// Whether a map is pinned; one that can't be looked for is taken to be.
    pub(crate) fn has_map(&self, name: &str) -> bool {
        self.map(name).try_exists().unwrap_or(true)
    }

    /// The uids of the pods that have a directory.
    pub(crate) fn pods(&self) -> Result<Vec<String>, PinsError> {
        let entries = list(&self.root.join("pods"))?;
        let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(entries.iter().filter_map(name).collect())
    }

    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    pub(crate) fn link(&self, name: &str) -> PathBuf {
        self.root.join("links").join(name)
    }

    pub(crate) fn pod_link(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("link")
    }

    /// Makes the directory of one pod; one that is there is a success.
    pub(crate) fn create_pod(&self, uid: &str) -> Result<(), PinsError> {
        let path = self.pod(uid);
        std::fs::create_dir_all(&path).map_err(file("create", &path))
    }

    /// Removes the directory of one pod with what is in it.
    pub(crate) fn remove_pod(&self, uid: &str) -> Result<(), PinsError> {
        remove_file(&self.pod_link(uid))?;
        remove_directory(&self.pod(uid))
    }

    /// Removes everything: the caller has made sure that no pod is enrolled.
    pub(crate) fn remove(&self) -> Result<(), PinsError> {
        for directory in ["maps", "links"] {
            let path = self.root.join(directory);
            list(&path)?.iter().try_for_each(|entry| remove_file(entry))?;
            remove_directory(&path)?;
        }
        remove_directory(&self.root.join("pods"))?;
        remove_directory(&self.root)
    }

    fn pod(&self, uid: &str) -> PathBuf {
        self.root.join("pods").join(uid)
    }
}

/// What is in a directory; nothing is in one that is not there.
fn list(path: &Path) -> Result<Vec<PathBuf>, PinsError> {
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect()),
    };
    entries.map_err(file("list", path))
}

/// Removes a file; one that is not there is a success.
pub(crate) fn remove_file(path: &Path) -> Result<(), PinsError> {
    gone(std::fs::remove_file(path)).map_err(file("remove", path))
}

fn remove_directory(path: &Path) -> Result<(), PinsError> {
    gone(std::fs::remove_dir(path)).map_err(file("remove", path))
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinsError {
    let path = path.to_owned();
    move |source| PinsError::File { action, path, source }
}

/// Whether the path, or the nearest directory above it that exists, is on a BPF file system.
fn is_bpffs(path: &Path) -> bool {
    path.ancestors()
        .find_map(|ancestor| statfs(ancestor).ok())
        .is_some_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_dots_is_refused() {
        let error = Pins::create(Path::new("/sys/fs/bpf/agbpf/node.example")).expect_err("dots");
        assert!(matches!(error, PinsError::Dots(_)), "{error}");
    }

    #[test]
    fn a_directory_elsewhere_is_refused() {
        let error = Pins::create(Path::new("/proc/agbpf")).expect_err("proc is no BPF file system");
        assert!(matches!(error, PinsError::NotBpffs(_)), "{error}");
    }
}
