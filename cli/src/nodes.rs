//! Which programs there are to ask on this machine: those of a directory that was named, of this host, or of the lab that runs
//! here.
//!
//! Looks at directories only; asks nobody.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where a ztunnel on a plain host keeps its sockets (its `AIRGLOW_RUN_DIR`).
const HOST: &str = "/run/airglow";

/// Where labs keep their runs, one directory each.
const LABS: &str = "/run/airglow-lab";

/// The file name of a ztunnel's admin socket. Other programs of ours have one of that name.
const SOCKET: &str = "admin.sock";

/// The file name of the node API, which only a ztunnel has.
const NODE_API: &str = "node.sock";

/// Where a lab keeps what belongs to pods, a directory each, and there the run directory of a waypoint.
const PODS: &str = "pods";
const RUN: &str = "run";

/// Where a controller on a plain host keeps its own (its `AIRGLOW_STATE_DIR`).
const STATE: &str = "/var/lib/airglow";

/// A program that can be asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Node {
    /// A ztunnel's node in a lab; the directory's name otherwise.
    pub(crate) name: String,
    /// Its admin socket.
    pub(crate) socket: PathBuf,
}

/// Why there is nobody to ask.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoNodes {
    /// The directory has no admin socket, nor have the ones in it.
    #[error("no ztunnel has its admin socket in {} or in a directory below it", .0.display())]
    InDirectory(PathBuf),
    /// There is neither a lab nor a ztunnel of the host.
    #[error(
        "no ztunnel runs on this machine (looked in {HOST} and {LABS}), and there is no kubeconfig; name a cluster with --kubeconfig, a \
         ztunnel's directory with --run-dir, or start `airglow demo --keep`"
    )]
    Nowhere,
    /// No waypoint that can be asked.
    #[error("no waypoint runs in that mesh; name its own AIRGLOW_RUN_DIR with --run-dir")]
    NoWaypoint,
    /// It is not plain which is meant.
    #[error("several meshes run on this machine; choose one with --run-dir: {}", .0.join(", "))]
    Several(Vec<String>),
    /// None of that name.
    #[error("no node is called `{wanted}`; there are {}", known.join(", "))]
    Unknown {
        /// The name that was asked for.
        wanted: String,
        /// The names that exist.
        known: Vec<String>,
    },
}

/// The nodes to ask, sorted by name. `run_dir`: a ztunnel's directory, or one with several of them. `only`: one node's name.
pub(crate) fn find(run_dir: Option<&Path>, only: Option<&str>) -> Result<Vec<Node>, NoNodes> {
    let mut nodes = match run_dir {
        Some(dir) => {
            let found = in_directory(dir);
            if found.is_empty() {
                return Err(NoNodes::InDirectory(dir.to_owned()));
            }
            found
        }
        None => the_only(Path::new(HOST), Path::new(LABS))?,
    };
    if let Some(wanted) = only {
        let known = nodes.iter().map(|node| node.name.clone()).collect();
        nodes.retain(|node| node.name == wanted);
        if nodes.is_empty() {
            return Err(NoNodes::Unknown { wanted: wanted.to_owned(), known });
        }
    }
    Ok(nodes)
}

/// Whether any mesh runs on this machine.
pub(crate) fn any() -> bool {
    !matches!(the_only(Path::new(HOST), Path::new(LABS)), Err(NoNodes::Nowhere))
}

/// The controllers beside the nodes that [`find`] finds: in a lab a directory beside theirs, on a host its state directory.
pub(crate) fn controllers(run_dir: Option<&Path>) -> Result<Vec<Node>, NoNodes> {
    let nodes = find(run_dir, None)?;
    let dirs = nodes.iter().filter_map(|node| node.socket.parent());
    let beside = dirs.filter_map(Path::parent).flat_map(subdirectories).chain([PathBuf::from(STATE)]);
    let is_controllers = |dir: &PathBuf| dir.join(SOCKET).exists() && !dir.join(NODE_API).exists();
    let mut found: Vec<_> = beside.filter(is_controllers).map(|dir| node_in(&dir)).collect();
    found.sort();
    found.dedup();
    Ok(found)
}

/// The waypoints: one whose own directory was named, or those of a lab, whose pods' directories are beside the nodes'.
pub(crate) fn waypoints(run_dir: Option<&Path>) -> Result<Vec<Node>, NoNodes> {
    let is_waypoints = |dir: &Path| dir.join(SOCKET).exists() && !dir.join(NODE_API).exists();
    if let Some(dir) = run_dir.filter(|dir| is_waypoints(dir)) {
        return Ok(vec![node_in(dir)]);
    }
    let nodes = find(run_dir, None)?;
    let labs: BTreeSet<&Path> = nodes.iter().filter_map(|node| node.socket.parent()?.parent()).collect();
    let pods = labs.into_iter().flat_map(|lab| subdirectories(&lab.join(PODS)));
    let found: Vec<_> = pods
        .filter(|pod| is_waypoints(&pod.join(RUN)))
        .map(|pod| Node { socket: pod.join(RUN).join(SOCKET), ..node_in(&pod) })
        .collect();
    if found.is_empty() { Err(NoNodes::NoWaypoint) } else { Ok(found) }
}

/// The nodes of the one mesh of this machine: the host's own ztunnel, or a lab.
fn the_only(host: &Path, labs: &Path) -> Result<Vec<Node>, NoNodes> {
    let candidates = std::iter::once(host.to_owned()).chain(subdirectories(labs));
    let mut meshes: Vec<_> =
        candidates.map(|dir| (in_directory(&dir), dir)).filter(|(nodes, _)| !nodes.is_empty()).collect();
    match (meshes.pop(), meshes.is_empty()) {
        (None, _) => Err(NoNodes::Nowhere),
        (Some((nodes, _)), true) => Ok(nodes),
        (Some((_, last)), false) => {
            let dirs = meshes.into_iter().map(|(_, dir)| dir).chain([last]);
            Err(NoNodes::Several(dirs.map(|dir| dir.display().to_string()).collect()))
        }
    }
}

fn in_directory(dir: &Path) -> Vec<Node> {
    let node = |dir: &Path| (dir.join(SOCKET).exists() && dir.join(NODE_API).exists()).then(|| node_in(dir));
    match node(dir) {
        Some(node) => vec![node],
        None => {
            let mut nodes: Vec<_> = subdirectories(dir).iter().filter_map(|dir| node(dir)).collect();
            nodes.sort();
            nodes
        }
    }
}

fn node_in(dir: &Path) -> Node {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Node { name, socket: dir.join(SOCKET) }
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut dirs: Vec<_> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    dirs.sort();
    dirs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that goes when the test ends.
    struct Dir(PathBuf);

    impl Dir {
        fn with(nodes: &[&str]) -> Self {
            let dir = std::env::temp_dir().join(format!("airglow-nodes-{:016x}", fastrand::u64(..)));
            for node in nodes {
                let node = dir.join(node);
                fs::create_dir_all(&node).unwrap();
                for socket in ["admin.sock", "node.sock"] {
                    fs::write(node.join(socket), "").unwrap();
                }
            }
            Self(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn names(nodes: &[Node]) -> Vec<&str> {
        nodes.iter().map(|node| node.name.as_str()).collect()
    }

    #[test]
    fn a_directory_is_a_node_or_holds_nodes() {
        let dir = Dir::with(&["lab/n2", "lab/n1"]);
        let lab = dir.0.join("lab");
        fs::create_dir(lab.join("controller")).unwrap();
        fs::write(lab.join("controller/admin.sock"), "").unwrap();
        assert_eq!(names(&find(Some(&lab), None).unwrap()), ["n1", "n2"]);
        assert_eq!(names(&find(Some(&lab.join("n2")), None).unwrap()), ["n2"]);
        assert_eq!(names(&find(Some(&lab), Some("n1")).unwrap()), ["n1"]);
        assert_eq!(names(&controllers(Some(&lab)).unwrap())[0], "controller");
        let error = find(Some(&lab), Some("n9")).unwrap_err().to_string();
        assert_eq!(error, "no node is called `n9`; there are n1, n2");
        assert!(matches!(find(Some(&lab.join("controller")), None), Err(NoNodes::InDirectory(_))));
    }

    #[test]
    fn one_mesh_is_found_and_several_are_to_be_chosen_from() {
        let dir = Dir::with(&["one/a/n1", "two/a/n1", "two/b/n1", "host"]);
        let none = dir.0.join("none");
        assert_eq!(names(&the_only(&none, &dir.0.join("one")).unwrap()), ["n1"]);
        assert_eq!(names(&the_only(&dir.0.join("host"), &none).unwrap()), ["host"]);
        assert!(matches!(the_only(&none, &none), Err(NoNodes::Nowhere)));
        let error = the_only(&dir.0.join("host"), &dir.0.join("two")).unwrap_err().to_string();
        assert!(error.contains("two/a") && error.contains("two/b") && error.contains("host"), "{error}");
    }
}
