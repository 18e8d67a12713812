//! `ztunnel uninstall`: takes from a node all that outlives a ztunnel.
//!
//! The CNI plugin first, so that no pod waits for a ztunnel any more; then what was done in pods, then the node's programs and
//! maps, then the run directory. What the kernel shows counts; a pod that can't be found is named, and keeps its node as it is,
//! so that this can be done again. Enrols nobody and asks no controller.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use ebpf::{LinkState, Netns, Node, Observed};

use super::cni;
use super::door::{ADMIN, NODE_API};
use super::last_known;
use super::sandbox::{self, Sandbox, Sandboxes};
use crate::config::Uninstall;

/// The kernel ends a network namespace some time after its last name is gone, on a busy node seconds.
const GONE_WITHIN: Duration = Duration::from_secs(5);
/// Between two looks whether it has.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Takes everything away, or says what is left and why.
pub(crate) fn uninstall(config: &Uninstall) -> anyhow::Result<()> {
    refuse_while_served(&config.run_dir)?;
    if let Some(cni) = &config.cni {
        cni::uninstall(&cni.conf_dir, &cni.bin_dir)?;
        tracing::info!(folder = %cni.conf_dir.display(), "the CNI plugin is removed");
    }
    match Node::open(&config.pins)? {
        Some(node) => {
            release_all(&node, &config.run_dir)?;
            node.uninstall()?;
        }
        None => Node::clear(&config.pins)?,
    }
    tracing::info!(pins = %config.pins.display(), "nothing is captured on this node, and nothing is pinned");
    clear(&config.run_dir)?;
    tracing::info!(folder = %config.run_dir.display(), "the run directory is cleared");
    Ok(())
}

/// Connections that a ztunnel holds would be cut, and it would capture again what is released here.
fn refuse_while_served(run_dir: &Path) -> anyhow::Result<()> {
    let socket = run_dir.join(NODE_API);
    match UnixStream::connect(&socket) {
        Ok(_) => bail!(
            "a ztunnel still serves this node: it answers at {}. Stop it, and whatever would start it again, before you uninstall",
            socket.display()
        ),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(()),
        Err(error) => Err(error)
            .with_context(|| format!("can't tell whether a ztunnel answers at {}", socket.display())),
    }
}

/// Releases every pod that the kernel shows. One that can't be released does not hold up others.
fn release_all(node: &Node, run_dir: &Path) -> anyhow::Result<()> {
    let sandboxes =
        Sandboxes::open(run_dir.join(sandbox::FOLDER)).context("can't read the known sandboxes")?;
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        let left = release_known(node, &sandboxes)?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!(
                "{} pod(s) can't be released, and without a ztunnel they are refused; all others are released. Delete \
                 them, and uninstall again:{}",
                left.len(),
                left.concat()
            );
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// One line about each pod that can't be released.
fn release_known(node: &Node, sandboxes: &Sandboxes) -> anyhow::Result<Vec<String>> {
    let mut left = Vec::new();
    for pod in node.observe([])? {
        let sandbox = sandboxes.get(&pod.uid);
        match release(node, &pod, sandbox) {
            Ok(()) => tracing::info!(uid = %pod.uid, "a pod is as it was before it was captured"),
            Err(error) => {
                let name = sandbox.map(|known| format!(" ({}/{})", known.namespace, known.name));
                left.push(format!("\n  {}{}: {error:#}", pod.uid, name.unwrap_or_default()));
            }
        }
    }
    Ok(left)
}

fn release(node: &Node, pod: &Observed, sandbox: Option<&Sandbox>) -> anyhow::Result<()> {
    match (find(pod, sandbox), pod.link) {
        (Ok(netns), _) => {
            // As it was enrolled: what was told of the pod may have changed since.
            let (uid, addresses) = (pod.uid.clone(), pod.addresses.clone());
            node.remove(&ebpf::Sandbox { uid, netns: Arc::new(netns), addresses })?;
        }
        // Its namespace is gone, or nothing leads to us there.
        (Err(_), LinkState::Orphaned | LinkState::Absent) => node.forget(&pod.uid)?,
        (Err(error), LinkState::Attached | LinkState::Outdated) => return Err(error),
    }
    Ok(())
}

/// The network namespace that was enrolled, where the pod was announced to have it.
fn find(pod: &Observed, sandbox: Option<&Sandbox>) -> anyhow::Result<Netns> {
    let inode = pod.netns_inode;
    let Some(sandbox) = sandbox else {
        bail!("it is not remembered where its network namespace {inode} is");
    };
    let netns = Netns::open(&sandbox.netns)?;
    if netns.cookie() != pod.netns_cookie {
        bail!("{} is not its network namespace {inode} any more", sandbox.netns.display());
    }
    Ok(netns)
}

/// Removes what is ours from the run directory, and the directory if nothing else is in it.
fn clear(run_dir: &Path) -> anyhow::Result<()> {
    let files = [NODE_API, ADMIN, last_known::FILE].map(|name| run_dir.join(name));
    let drafts = files.iter().flat_map(|path| ["starting", "draft"].map(|end| path.with_extension(end)));
    for path in files.iter().cloned().chain(drafts) {
        absent(fs::remove_file(&path), &path)?;
    }
    let sandboxes = run_dir.join(sandbox::FOLDER);
    absent(fs::remove_dir_all(&sandboxes), &sandboxes)?;
    match fs::remove_dir(run_dir) {
        // It holds what others put there, or is mounted here.
        Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::ResourceBusy) => {
            tracing::info!(folder = %run_dir.display(), %error, "the run directory itself is left");
            Ok(())
        }
        removed => absent(removed, run_dir),
    }
}

/// What is not there need not be removed.
fn absent(removed: io::Result<()>, path: &Path) -> anyhow::Result<()> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_node_that_is_served_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = folder.path();
        refuse_while_served(run_dir).unwrap();
        let ztunnel = UnixListener::bind(run_dir.join(NODE_API)).unwrap();
        let error = refuse_while_served(run_dir).unwrap_err().to_string();
        assert!(error.contains("still serves") && error.contains("Stop it"), "{error}");
        drop(ztunnel);
        refuse_while_served(run_dir).unwrap();
    }

    #[test]
    fn what_others_put_into_the_run_directory_stays() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = folder.path().join("airglow");
        clear(&run_dir).unwrap();
        fs::create_dir_all(run_dir.join(sandbox::FOLDER)).unwrap();
        let ours = [
            "node.sock",
            "admin.sock",
            "node.starting",
            "last-known.json",
            "last-known.draft",
            "sandboxes/a.json",
        ];
        for name in ours.into_iter().chain(["theirs"]) {
            fs::write(run_dir.join(name), "").unwrap();
        }
        clear(&run_dir).unwrap();
        let left: Vec<_> = fs::read_dir(&run_dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["theirs"]);
        fs::remove_file(run_dir.join("theirs")).unwrap();
        clear(&run_dir).unwrap();
        assert!(!run_dir.exists());
    }
}
