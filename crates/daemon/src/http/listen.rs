//! Unix sockets that only their owner can use, from the first moment on.
//!
//! Takes over the path of a process that is gone, never that of one that listens.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;

/// Connections that wait to be accepted. An operator's tool or two at a time; more is a mistake or an attack.
const BACKLOG: i32 = 64;

/// Why a Unix socket could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum UnixBindError {
    /// Somebody listens there.
    #[error("{0}: another process listens there; stop it or choose another path")]
    InUse(PathBuf),
    /// Something that is not a socket is there.
    #[error("{0}: exists and is not a socket; remove it or choose another path")]
    NotASocket(PathBuf),
    /// The operating system refuses.
    #[error("{path}: cannot listen: {source}; check that its directory exists and is writable")]
    Os {
        /// The path.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
}

/// Listens on `path` with mode 0600. A socket file left by a process that is gone is replaced.
///
/// # Errors
/// See [`UnixBindError`].
///
/// # Panics
/// Outside a runtime.
pub fn bind_unix(path: &Path) -> Result<UnixListener, UnixBindError> {
    let os = |source| UnixBindError::Os { path: path.to_owned(), source };
    clear(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(os)?;
    // On Linux the file gets the mode of the socket: set before bind, there is no moment in which others could connect.
    fchmod(socket.as_fd(), Mode::S_IRUSR | Mode::S_IWUSR).map_err(|errno| os(errno.into()))?;
    socket.bind(&SockAddr::unix(path).map_err(os)?).map_err(os)?;
    socket.listen(BACKLOG).map_err(os)?;
    socket.set_nonblocking(true).map_err(os)?;
    UnixListener::from_std(socket.into()).map_err(os)
}

/// Removes a socket file that nobody listens on.
fn clear(path: &Path) -> Result<(), UnixBindError> {
    let os = |source| UnixBindError::Os { path: path.to_owned(), source };
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(os(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(UnixBindError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(os)
        }
        Err(error) => Err(os(error)),
        Ok(_) => Err(UnixBindError::InUse(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn the_file_belongs_to_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let _listener = bind_unix(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let first = bind_unix(&path).unwrap();
        assert!(matches!(bind_unix(&path), Err(UnixBindError::InUse(_))));
        drop(first);
        assert!(path.exists());
        bind_unix(&path).unwrap();
    }

    #[tokio::test]
    async fn other_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(bind_unix(&path), Err(UnixBindError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        let nowhere = dir.path().join("missing/admin.sock");
        assert!(matches!(bind_unix(&nowhere), Err(UnixBindError::Os { .. })));
    }
}
