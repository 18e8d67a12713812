//! Network namespaces: an open handle with its two names (inode, cookie), and running code inside one.
//! It never leaves a thread in a foreign namespace.

use std::cell::{Cell, OnceCell};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket};
use nix::sys::stat::fstat;
use thiserror::Error;

/// `SO_NETNS_COOKIE` (linux/socket.h, since 5.14).
const SO_NETNS_COOKIE: libc::c_int = 71;

#[derive(Clone, Copy, Debug)]
struct NetnsCookie;

nix::getsockopt_impl!(
    NetnsCookie,
    libc::SOL_SOCKET,
    SO_NETNS_COOKIE,
    u64,
    nix::sys::socket::sockopt::GetStruct<u64>
);

/// Why a network namespace could not be opened.
#[derive(Debug, Error)]
pub enum NetnsError {
    /// The path cannot be opened.
    #[error("cannot open the network namespace {path}: {source}. Does the pod's sandbox still run?")]
    Open {
        /// The path as given.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The descriptor is not a network namespace, or may not be entered.
    #[error(
        "cannot enter the network namespace: {0}. It takes CAP_SYS_ADMIN, and a file of the kind of /proc/PID/ns/net"
    )]
    Enter(#[source] io::Error),
    /// The kernel knows no cookie for it.
    #[error("the kernel gives no SO_NETNS_COOKIE: {0}. Linux 5.14 or newer is needed")]
    Cookie(#[source] io::Error),
}

/// An open network namespace. It exists at least as long as this value.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    inode: u64,
    cookie: u64,
}

impl Netns {
    /// Opens a namespace by a file such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NetnsError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| NetnsError::Open { path: path.to_owned(), source })?;
        Self::from_fd(file.into())
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// Takes an open descriptor, such as one received over a unix socket. Anything but a network namespace is refused.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NetnsError> {
        let inode = fstat(&fd).map_err(|errno| NetnsError::Enter(errno.into()))?.st_ino;
        let mut netns = Self { fd, inode, cookie: 0 };
        netns.cookie = netns.run(own_cookie).map_err(NetnsError::Enter)?.map_err(NetnsError::Cookie)?;
        Ok(netns)
    }

    /// The inode, as `ls -L /run/netns` shows it. The kernel reuses inodes of namespaces that are gone.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// The cookie (`SO_NETNS_COOKIE`). Never reused until the next boot.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Runs `work` with the calling thread inside the namespace, and returns the thread to where it was before.
    ///
    /// "Before" is where the thread was when it first ran anything: it is remembered, because opening it again costs
    /// more than entering. Calls do not nest. A panic of `work` returns the thread first.
    ///
    /// # Panics
    /// When called from within `run`: that is a bug of the caller, which would end up in the wrong namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered; `work` has not run then.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        HOME.with(|home| {
            let home = match home.get() {
                Some(home) => home,
                None => {
                    let opened = File::open("/proc/thread-self/ns/net")?;
                    home.get_or_init(|| opened.into())
                }
            };
            assert!(!AWAY.get(), "Netns::run does not nest");
            setns(&self.fd, CloneFlags::CLONE_NEWNET)?;
            AWAY.set(true);
            let _return = Return(home.as_fd());
            Ok(work())
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

thread_local! {
    /// The namespace this thread belongs to.
    static HOME: OnceCell<OwnedFd> = const { OnceCell::new() };
    /// Whether the thread is inside `run`.
    static AWAY: Cell<bool> = const { Cell::new(false) };
}

/// Brings the thread home, also when the work panics.
struct Return<'a>(BorrowedFd<'a>);

impl Drop for Return<'_> {
    fn drop(&mut self) {
        if let Err(errno) = setns(self.0, CloneFlags::CLONE_NEWNET) {
            // A thread left behind would open the node's sockets inside a pod, with the pod's identity. There is no
            // safe way to go on; the kernel keeps captured pods refused until the process is back.
            tracing::error!(%errno, "a thread cannot return to its network namespace");
            std::process::abort();
        }
        AWAY.set(false);
    }
}

fn own_cookie() -> io::Result<u64> {
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    getsockopt(&any, NetnsCookie).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_namespace_is_refused() {
        let error = Netns::open("/dev/null").expect_err("not a namespace");
        assert!(matches!(error, NetnsError::Enter(_)), "{error}");
    }

    #[test]
    fn a_missing_path_is_named() {
        let error = Netns::open("/nowhere/agbpf").expect_err("no such file");
        assert!(error.to_string().contains("/nowhere/agbpf"), "{error}");
    }
}
