//! Network namespaces that live as files, and running code inside them.
//!
//! A thread that enters a namespace is always one of our own that ends afterwards; the caller's thread never moves.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::error::{LabError, cannot};

/// A network namespace, kept alive by a bind mount on its path and by this handle.
#[derive(Clone, Debug)]
pub struct Netns {
    path: PathBuf,
    file: Arc<File>,
}

impl Netns {
    /// Makes a new, empty namespace (only a loopback device, down) and mounts it at `path`.
    pub(crate) fn create(path: &Path) -> Result<Self, LabError> {
        File::create(path).map_err(cannot(format!("create {}", path.display())))?;
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(cannot("make a network namespace"))?;
            let own = Path::new("/proc/thread-self/ns/net");
            mount(Some(own), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(cannot(format!("mount a network namespace at {}", path.display())))
        })?;
        let file = File::open(path).map_err(cannot(format!("open {}", path.display())))?;
        Ok(Self { path: path.to_owned(), file: Arc::new(file) })
    }

    /// Where the namespace is mounted; `nsenter --net=<path>` enters it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` on a thread of its own inside this namespace. Sockets made there stay there. The thread keeps
    /// the *cgroup* of this process, so cgroup programs of the node do not see what it does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        on_own_thread(|| {
            setns(&*self.file, CloneFlags::CLONE_NEWNET)
                .map_err(cannot(format!("enter {}", self.path.display())))?;
            Ok(work())
        })
    }
}

/// Undoes [`Netns::create`]. Absent is fine: removal runs more than once.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    // Unlinking below also detaches the copies that mount namespaces of pods inherited.
    loop {
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
