//! Where the programs of Kubernetes are: asked of `scripts/cluster-binaries`, which also builds them. Never built from here,
//! because that takes minutes and a test should not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{LabError, cannot};

/// The script, in the tree that this was compiled from: only developers start clusters.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/cluster-binaries");

/// What a cluster cannot do without.
const NEEDED: [&str; 15] = [
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "etcd",
    "host-local",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
    "loopback",
    "portmap",
    "ptp",
    "runc",
];

/// The programs' paths, by name.
#[derive(Clone, Debug)]
pub(crate) struct Programs(BTreeMap<String, PathBuf>);

impl Programs {
    /// Finds them all; the error names the first that has not been built.
    pub(crate) fn locate() -> Result<Self, LabError> {
        let output = Command::new(SCRIPT).arg("--where").output();
        let output = output.map_err(cannot(format!("run {SCRIPT}")))?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(LabError::Tool { command: format!("{SCRIPT} --where"), stderr });
        }
        let found = Self(parse(&String::from_utf8_lossy(&output.stdout)));
        for name in NEEDED {
            found.on_request(name)?;
        }
        Ok(found)
    }

    /// The path of a program that [`Self::locate`] has found.
    pub(crate) fn path(&self, name: &str) -> &Path {
        self.0.get(name).expect("locate looks for every program that is used")
    }

    /// The path of a program that a cluster may do without.
    pub(crate) fn on_request(&self, name: &str) -> Result<&Path, LabError> {
        let path = self.0.get(name).filter(|path| path.is_file());
        path.map(PathBuf::as_path).ok_or_else(|| LabError::MissingBinary {
            name: name.into(),
            dir: self.0.get(name).and_then(|path| path.parent()).unwrap_or(Path::new("")).to_owned(),
            build: "scripts/cluster-binaries".to_owned(),
        })
    }

    /// The value of PATH for a node: every program's directory before the machine's own.
    pub(crate) fn search_path(&self) -> String {
        let mut dirs: Vec<_> = self.0.values().filter_map(|path| path.parent()).collect();
        dirs.dedup();
        let own: Vec<_> = dirs.into_iter().map(|dir| dir.display().to_string()).collect();
        format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", own.join(":"))
    }
}

/// Lines of a name, a tab and a path.
fn parse(lines: &str) -> BTreeMap<String, PathBuf> {
    let split = |line: &str| line.split_once('\t').map(|(name, path)| (name.to_owned(), path.into()));
    lines.lines().filter_map(split).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_was_not_built_names_the_command_that_builds_it() {
        let programs = Programs(parse("helm\t/none/helm-1/helm\nnot a line\n"));
        let error = programs.on_request("helm").expect_err("absent");
        let expected =
            "the executable `helm` is not in /none/helm-1; build it with `scripts/cluster-binaries`";
        assert_eq!(error.to_string(), expected);
    }
}
