//! Sandboxes: the pods that exist on this node, as the container runtime's side announces them.
//!
//! Kept on disk, so that a restarted ztunnel knows its pods before anyone announces them again. Says where a pod is,
//! never whether it should be enrolled.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ebpf::{MAX_ADDRESSES, MAX_UID};
use serde::{Deserialize, Serialize};

/// Where they are kept in the run directory.
pub(crate) const FOLDER: &str = "sandboxes";

/// Kubernetes runs at most a few hundred pods on a node; ten times that bounds what the socket can make us hold.
const MAX_SANDBOXES: usize = 4096;

/// One pod's network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sandbox {
    /// The pod's UID.
    pub(crate) uid: String,
    /// The pod's namespace.
    pub(crate) namespace: String,
    /// The pod's name.
    pub(crate) name: String,
    /// The pod's service account; empty if whoever announces it does not know: container runtimes are not told.
    #[serde(default)]
    pub(crate) service_account: String,
    /// The container runtime's name for this sandbox; empty outside of one.
    #[serde(default)]
    pub(crate) sandbox_id: String,
    /// A path that opens the pod's network namespace.
    pub(crate) netns: PathBuf,
    /// The pod's addresses.
    pub(crate) addresses: Vec<IpAddr>,
}

/// Why a sandbox can't be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    /// The announcement itself is wrong.
    #[error("sandbox {uid:?}: {what}")]
    Invalid {
        /// Which one.
        uid: String,
        /// What is wrong with it, and what is expected.
        what: String,
    },
    /// Too many.
    #[error("{MAX_SANDBOXES} sandboxes are announced already; delete those whose pods are gone")]
    Full,
    /// It can't be remembered.
    #[error("can't remember sandbox {uid} in {path}: {error}")]
    Disk {
        /// Which one.
        uid: String,
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// All sandboxes, in memory and on disk.
#[derive(Debug)]
pub(crate) struct Sandboxes {
    folder: PathBuf,
    known: BTreeMap<String, Sandbox>,
}

impl Sandboxes {
    /// Reads what an earlier process left in `folder`, which is made if it is missing. Unreadable files are reported and
    /// left out: their pods stay captured and refused until they are announced again.
    pub(crate) fn open(folder: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        let mut sandboxes = Self { folder, known: BTreeMap::new() };
        sandboxes.read()?;
        Ok(sandboxes)
    }

    /// Reads the folder again, which another process may have changed.
    pub(crate) fn read(&mut self) -> io::Result<()> {
        let mut known = BTreeMap::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match parse(&path) {
                Ok(sandbox) => drop(known.insert(sandbox.uid.clone(), sandbox)),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a remembered sandbox can't be read; announce it again")
                }
            }
        }
        self.known = known;
        Ok(())
    }

    /// Remembers a sandbox; announcing the same one again changes nothing.
    pub(crate) fn add(&mut self, sandbox: Sandbox) -> Result<(), SandboxError> {
        check(&sandbox)?;
        if self.known.get(&sandbox.uid) == Some(&sandbox) {
            return Ok(());
        }
        if self.known.len() >= MAX_SANDBOXES && !self.known.contains_key(&sandbox.uid) {
            return Err(SandboxError::Full);
        }
        let path = self.path(&sandbox.uid);
        write(&path, &sandbox).map_err(|error| SandboxError::Disk {
            uid: sandbox.uid.clone(),
            path,
            error,
        })?;
        self.known.insert(sandbox.uid.clone(), sandbox);
        Ok(())
    }

    /// Forgets a sandbox, unless the pod has another by now than the one that is named; an unknown one is forgotten already.
    pub(crate) fn delete(&mut self, uid: &str, sandbox_id: Option<&str>) -> Result<(), SandboxError> {
        let other = |known: &Sandbox| sandbox_id.is_some_and(|id| id != known.sandbox_id);
        if self.known.get(uid).is_some_and(other) {
            return Ok(());
        }
        if self.known.remove(uid).is_some() {
            let path = self.path(uid);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(SandboxError::Disk { uid: uid.to_owned(), path, error });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the pod is known with another sandbox of the container runtime.
    pub(crate) fn is_another(&self, sandbox: &Sandbox) -> bool {
        let differs = |known: &Sandbox| {
            !known.sandbox_id.is_empty()
                && !sandbox.sandbox_id.is_empty()
                && known.sandbox_id != sandbox.sandbox_id
        };
        self.known.get(&sandbox.uid).is_some_and(differs)
    }

    pub(crate) fn get(&self, uid: &str) -> Option<&Sandbox> {
        self.known.get(uid)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Sandbox> {
        self.known.values()
    }

    fn path(&self, uid: &str) -> PathBuf {
        self.folder.join(format!("{uid}.json"))
    }
}

fn check(sandbox: &Sandbox) -> Result<(), SandboxError> {
    let invalid = |what: &str| Err(SandboxError::Invalid { uid: sandbox.uid.clone(), what: what.to_owned() });
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if sandbox.uid.is_empty() || sandbox.uid.len() > MAX_UID as usize || !sandbox.uid.chars().all(plain) {
        return invalid("the uid must be 1 to 63 letters, digits, '-' or '_'");
    }
    if sandbox.namespace.is_empty() || sandbox.name.is_empty() {
        return invalid("namespace and name must both be given");
    }
    if !sandbox.netns.is_absolute() {
        return invalid("netns must be an absolute path to the pod's network namespace");
    }
    if sandbox.addresses.is_empty() || sandbox.addresses.len() > MAX_ADDRESSES as usize {
        return invalid("addresses must list the pod's 1 to 8 IP addresses");
    }
    if sandbox.addresses.iter().any(|ip| ip.is_loopback() || ip.is_unspecified() || ip.is_multicast()) {
        return invalid("addresses must be the pod's own, not loopback, unspecified or multicast ones");
    }
    Ok(())
}

fn parse(path: &Path) -> io::Result<Sandbox> {
    let sandbox: Sandbox = serde_json::from_slice(&fs::read(path)?)?;
    check(&sandbox).map_err(io::Error::other)?;
    Ok(sandbox)
}

/// Whole or not at all: a crash between the two leaves the old file or the new one.
fn write(path: &Path, sandbox: &Sandbox) -> io::Result<()> {
    let draft = path.with_extension("draft");
    let mut file = fs::File::create(&draft)?;
    file.write_all(&serde_json::to_vec(sandbox)?)?;
    file.sync_all()?;
    fs::rename(draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(uid: &str) -> Sandbox {
        Sandbox {
            uid: uid.to_owned(),
            namespace: "shop".to_owned(),
            name: "cart-1".to_owned(),
            service_account: "cart".to_owned(),
            sandbox_id: String::new(),
            netns: "/run/netns/cart-1".into(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
        }
    }

    #[test]
    fn what_is_added_outlives_the_process_and_what_is_deleted_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Sandboxes::open(folder.path().into()).unwrap();
        first.add(sandbox("a-1")).unwrap();
        first.add(sandbox("a-2")).unwrap();
        first.delete("a-1", None).unwrap();
        let second = Sandboxes::open(folder.path().into()).unwrap();
        assert_eq!(second.all().cloned().collect::<Vec<_>>(), [sandbox("a-2")]);
    }

    #[test]
    fn the_end_of_an_old_sandbox_is_not_that_of_the_pods_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut sandboxes = Sandboxes::open(folder.path().into()).unwrap();
        sandboxes.add(Sandbox { sandbox_id: "second".to_owned(), ..sandbox("a-1") }).unwrap();
        sandboxes.delete("a-1", Some("first")).unwrap();
        assert!(sandboxes.get("a-1").is_some());
        sandboxes.delete("a-1", Some("second")).unwrap();
        assert!(sandboxes.get("a-1").is_none());
    }

    #[test]
    fn what_another_process_changed_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Sandboxes::open(folder.path().into()).unwrap();
        let mut second = Sandboxes::open(folder.path().into()).unwrap();
        second.add(sandbox("a-1")).unwrap();
        first.add(sandbox("a-2")).unwrap();
        first.delete("a-1", None).unwrap();
        first.read().unwrap();
        assert_eq!(first.all().count(), 2, "only what is known can be deleted");
        first.delete("a-1", None).unwrap();
        second.read().unwrap();
        assert_eq!(second.all().cloned().collect::<Vec<_>>(), [sandbox("a-2")]);
    }

    #[test]
    fn announcements_that_can_not_be_right_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut sandboxes = Sandboxes::open(folder.path().into()).unwrap();
        let mut check = |change: &dyn Fn(&mut Sandbox), expected: &str| {
            let mut wrong = sandbox("a-1");
            change(&mut wrong);
            let text = sandboxes.add(wrong).expect_err("refused").to_string();
            assert!(text.contains(expected), "{text:?} should mention {expected:?}");
        };
        check(&|s| s.uid = "../etc/passwd".to_owned(), "letters, digits");
        check(&|s| s.uid = String::new(), "letters, digits");
        check(&|s| s.namespace = String::new(), "must both be given");
        check(&|s| s.netns = "relative".into(), "absolute path");
        check(&|s| s.addresses.clear(), "1 to 8");
        check(&|s| s.addresses = vec!["127.0.0.1".parse().unwrap()], "not loopback");
    }

    #[test]
    fn a_broken_file_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a-1.json"), b"{").unwrap();
        assert_eq!(Sandboxes::open(folder.path().into()).unwrap().all().count(), 0);
    }
}
