//! What was last known of who should be in the mesh, on disk for the CNI plugin to read while no ztunnel answers.
//!
//! Says only what holds for pods of this node now; of what is not in it nothing is known. Decides nothing: the plugin does.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use api::Enrolment;
use model::Str;
use serde::Serialize;

/// Its name in the run directory.
pub(super) const FILE: &str = "last-known.json";

/// The content of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct LastKnown {
    /// Whether any pod of a namespace should be in the mesh.
    namespaces: BTreeMap<String, bool>,
    /// The same for each pod, by UID.
    pods: BTreeMap<String, bool>,
}

impl LastKnown {
    /// What the controller's verdicts come to.
    pub(crate) fn of(wanted: &BTreeMap<Str, Enrolment>) -> Self {
        let mut known = Self::default();
        for verdict in wanted.values() {
            *known.namespaces.entry(verdict.identity.namespace.to_string()).or_default() |= verdict.enrol;
            known.pods.insert(verdict.uid.to_string(), verdict.enrol);
        }
        known
    }
}

/// The file, and what was last written to it.
#[derive(Debug)]
pub(crate) struct LastKnownFile {
    path: PathBuf,
    written: Option<LastKnown>,
}

impl LastKnownFile {
    /// The file at `path`, which an earlier process may have written.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, written: None }
    }

    /// Writes what is new. If that fails nothing is left: to know nothing is safe, and to know what is not so any more may
    /// let a pod start outside the mesh.
    pub(crate) fn write(&mut self, known: LastKnown) {
        if self.written.as_ref() == Some(&known) {
            return;
        }
        match write(&self.path, &known) {
            Ok(()) => self.written = Some(known),
            Err(error) => {
                self.written = None;
                tracing::error!(path = %self.path.display(), %error, "can't write down which pods should be in the mesh; while ztunnel is away no pod starts");
                if let Err(error) = fs::remove_file(&self.path)
                    && error.kind() != io::ErrorKind::NotFound
                {
                    tracing::error!(path = %self.path.display(), %error, "nor remove what was written before");
                }
            }
        }
    }
}

/// Whole or not at all.
fn write(path: &Path, known: &LastKnown) -> io::Result<()> {
    let draft = path.with_extension("draft");
    fs::write(&draft, serde_json::to_vec(known)?)?;
    fs::rename(draft, path)
}

#[cfg(test)]
mod tests {
    use model::identity::Identity;
    use model::workload::WorkloadUid;

    use super::*;

    fn verdicts(pods: &[(&str, &str, bool)]) -> BTreeMap<Str, Enrolment> {
        let verdict = |&(uid, namespace, enrol): &(&str, &str, bool)| Enrolment {
            uid: uid.into(),
            name: uid.into(),
            identity: Identity::new("cluster.local", namespace, "default").unwrap(),
            addresses: Vec::new(),
            enrol,
            reason: "".into(),
            workload: WorkloadUid(format!("Kubernetes//Pod/{namespace}/{uid}").into()),
        };
        pods.iter().map(|pod| (pod.0.into(), verdict(pod))).collect()
    }

    #[test]
    fn one_pod_in_the_mesh_makes_its_namespace_one_of_the_mesh() {
        let known =
            LastKnown::of(&verdicts(&[("a", "shop", false), ("b", "shop", true), ("c", "bank", false)]));
        let text = serde_json::to_string(&known).unwrap();
        assert_eq!(
            text,
            r#"{"namespaces":{"bank":false,"shop":true},"pods":{"a":false,"b":true,"c":false}}"#
        );
    }

    #[test]
    fn what_can_not_be_written_is_not_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last-known.json");
        let mut file = LastKnownFile::new(path.clone());
        file.write(LastKnown::of(&verdicts(&[("a", "shop", false)])));
        assert!(fs::read_to_string(&path).unwrap().contains("\"shop\":false"));
        // A folder in the draft's place can't be written to.
        fs::create_dir(path.with_extension("draft")).unwrap();
        file.write(LastKnown::of(&verdicts(&[("a", "shop", true)])));
        assert!(!path.exists());
        fs::remove_dir(path.with_extension("draft")).unwrap();
        file.write(LastKnown::of(&verdicts(&[("a", "shop", true)])));
        assert!(fs::read_to_string(&path).unwrap().contains("\"shop\":true"));
    }
}
