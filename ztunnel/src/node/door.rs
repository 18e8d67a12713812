//! The sockets in the run directory, and the admin port: they belong to whoever is in charge of the node.
//!
//! Opens them in the place of whoever had them, and tells whether they were left to nobody. Who is in charge is
//! `succession`'s, what is said there is `api`'s and `admin`'s.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use daemon::http::{Routes, serve_unix};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::api::{self, COMMANDS, Command};
use crate::ports;

/// The node API's name in the run directory.
pub(super) const NODE_API: &str = "node.sock";
/// The admin socket's.
pub(crate) const ADMIN: &str = "admin.sock";

/// Device and inode: which socket a name leads to.
type FileId = (u64, u64);

/// The sockets of a process that may come to be in charge, and may be succeeded.
#[derive(Debug)]
pub(super) struct Door {
    node_api: Name,
    admin: Name,
    commands: mpsc::Sender<Command>,
    routes: Routes,
    /// Where root of this node can read what the admin socket tells, if anywhere.
    port: Option<u16>,
    at_port: Option<JoinHandle<()>>,
}

/// One of them.
#[derive(Debug)]
struct Name {
    path: PathBuf,
    open: Option<(FileId, JoinHandle<()>)>,
}

impl Door {
    /// Closed ones in `run_dir`, and what comes in by the node API. The admin socket will answer by `routes`, and so will the
    /// port as far as they only read.
    pub(super) fn new(
        run_dir: &Path,
        (routes, port): (Routes, Option<u16>),
    ) -> (Self, mpsc::Receiver<Command>) {
        let (commands, received) = mpsc::channel(COMMANDS);
        let name = |name| Name { path: run_dir.join(name), open: None };
        let (node_api, admin) = (name(NODE_API), name(ADMIN));
        (Self { node_api, admin, commands, routes, port, at_port: None }, received)
    }

    /// By which others of this process announce pods.
    pub(super) fn commands(&self) -> mpsc::Sender<Command> {
        self.commands.clone()
    }

    /// Where the node API is.
    pub(super) fn path(&self) -> &Path {
        &self.node_api.path
    }

    pub(super) fn is_open(&self) -> bool {
        self.node_api.open.is_some()
    }

    /// Listens, in the place of whoever does now.
    pub(super) fn open(&mut self) -> io::Result<()> {
        let commands = self.commands.clone();
        self.node_api.open(|listener| tokio::spawn(api::serve(listener, commands)))?;
        let routes = self.routes.clone();
        self.admin.open(|listener| tokio::spawn(serve_unix(listener, routes)))?;
        self.close_port();
        self.at_port = self.port.map(|port| tokio::spawn(answer_at(port, self.routes.clone())));
        Ok(())
    }

    /// Announces are not accepted any more. Conversations go on, and who asks for this process by the admin socket is
    /// answered until its name is another's.
    pub(super) fn close(&mut self) {
        self.node_api.close();
        self.close_port();
    }

    /// Whoever is in charge has the port to themselves.
    fn close_port(&mut self) {
        if let Some(serving) = self.at_port.take() {
            serving.abort();
        }
    }

    /// Whether a name leads to nobody: a successor took it and ended before it was in charge, or somebody removed it.
    pub(super) async fn is_deserted(&self) -> bool {
        self.node_api.is_deserted().await || self.admin.is_deserted().await
    }
}

/// The port is a convenience: without it the node is served all the same, and the socket answers.
async fn answer_at(port: u16, routes: Routes) {
    if let Err(error) = ports::serve_root(port, routes).await {
        tracing::warn!(
            error = format!("{error:#}"),
            "no admin port: `airglow` can't ask this node by a port-forward; set AIRGLOW_ADMIN_PORT to a free one"
        );
    }
}

impl Name {
    fn open(&mut self, serve: impl FnOnce(UnixListener) -> JoinHandle<()>) -> io::Result<()> {
        let (listener, id) = listen(&self.path)?;
        self.close();
        self.open = Some((id, serve(listener)));
        Ok(())
    }

    fn close(&mut self) {
        if let Some((_, serving)) = self.open.take() {
            serving.abort();
        }
    }

    async fn is_deserted(&self) -> bool {
        let Some((own, _)) = &self.open else { return false };
        if fs::metadata(&self.path).is_ok_and(|file| id(&file) == *own) {
            return false;
        }
        // Any other failure is that of somebody who is busy.
        let nobody = [io::ErrorKind::ConnectionRefused, io::ErrorKind::NotFound];
        UnixStream::connect(&self.path).await.is_err_and(|error| nobody.contains(&error.kind()))
    }
}

/// Listens at `path`, replacing what an earlier process left there. The socket is root's alone.
pub(super) fn listen(path: &Path) -> io::Result<(UnixListener, FileId)> {
    let draft = path.with_extension("starting");
    let _ = fs::remove_file(&draft);
    let listener = UnixListener::bind(&draft)?;
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o600))?;
    let id = id(&fs::metadata(&draft)?);
    // A rename replaces the old process's socket without a moment in which there is none.
    fs::rename(&draft, path)?;
    Ok((listener, id))
}

fn id(file: &fs::Metadata) -> FileId {
    (file.dev(), file.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_that_lead_to_nobody_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let (mut door, _commands) = Door::new(folder.path(), (Routes::new(), None));
        assert!(!door.is_deserted().await, "it has none yet");
        door.open().unwrap();
        assert!(!door.is_deserted().await);
        for name in ["node.sock", "admin.sock"] {
            let path = folder.path().join(name);
            let (successor, _) = listen(&path).unwrap();
            assert!(!door.is_deserted().await, "a successor has {name}");
            drop(successor);
            assert!(door.is_deserted().await, "{name}");
            door.open().unwrap();
            assert!(!door.is_deserted().await, "{name} leads here again");
            UnixStream::connect(&path).await.expect("somebody listens");
            fs::remove_file(&path).unwrap();
            assert!(door.is_deserted().await, "{name}");
            door.open().unwrap();
        }
    }
}
