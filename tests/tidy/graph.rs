//! The dependency graph: which crate may use which. The table here is the one in ARCHITECTURE.md.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId};

use super::Violation;

/// The direction table, top to bottom: a crate uses crates of lower rows.
const ROWS: &[(&str, &[&str])] = &[
    ("check", &["bench", "integration"]),
    ("compose", &["airglow", "controller", "waypoint", "ztunnel"]),
    ("join", &["proxy"]),
    ("act", &["apiserver", "daemon", "ebpf", "hbone", "identity", "lab", "xds"]),
    ("speak", &["api"]),
    ("mean", &["model"]),
];

/// Neighbours that may be used all the same: the lab puts real programs on real kernels, and only identity makes TLS.
const EXCEPTIONS: &[(&str, &str)] = &[("apiserver", "identity"), ("lab", "ebpf")];

/// Crates that must not see the mesh though their row would let them: they would stop being reusable and testable alone.
const BLIND: &[(&str, &[&str])] = &[("daemon", &["api", "model"]), ("hbone", &["api", "model"])];

/// All that the model may use. Everything else would bring I/O, a clock or a wire format within its reach. `regex` computes
/// and does nothing else: users' routes have regular expressions, and whether one matches is a decision of the model.
const MODEL_USES: &[&str] = &["http", "imbl", "ipnet", "regex", "thiserror"];

/// One package uses another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Edge {
    /// Who.
    pub(crate) from: String,
    /// Whom.
    pub(crate) to: String,
    /// Only its tests do.
    pub(crate) dev: bool,
}

/// What cargo resolves for this machine.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    /// Packages of this workspace.
    pub(crate) members: BTreeSet<String>,
    /// Every use of a package by another.
    pub(crate) edges: BTreeSet<Edge>,
    /// The versions of each package.
    pub(crate) versions: BTreeMap<String, BTreeSet<String>>,
}

/// Asks cargo, without the network. Only for this machine's platform: others' crates were never downloaded.
pub(crate) fn read(root: &Path) -> Graph {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let options = ["--offline", "--filter-platform", &platform].map(str::to_owned).to_vec();
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .other_options(options)
        .exec()
        .unwrap_or_else(|error| panic!("cargo metadata: {error}"));
    from(&metadata)
}

fn from(metadata: &Metadata) -> Graph {
    let name = |id: &PackageId| metadata[id].name.to_string();
    let mut graph =
        Graph { members: metadata.workspace_members.iter().map(name).collect(), ..Graph::default() };
    let resolve = metadata.resolve.as_ref().expect("asked for with dependencies");
    let mut to_visit: Vec<_> = metadata.workspace_members.iter().collect();
    let mut visited = BTreeSet::new();
    while let Some(id) = to_visit.pop() {
        if !visited.insert(id) {
            continue;
        }
        let package = &metadata[id];
        graph.versions.entry(name(id)).or_default().insert(package.version.to_string());
        let node = resolve.nodes.iter().find(|node| node.id == *id).expect("every package is resolved");
        for dependency in &node.deps {
            let features = node.features.iter().map(|feature| feature.as_ref()).collect();
            if !is_switched_on(package, &features, &name(&dependency.pkg)) {
                continue;
            }
            let dev = dependency.dep_kinds.iter().all(|kind| kind.kind == DependencyKind::Development);
            graph.edges.insert(Edge { from: name(id), to: name(&dependency.pkg), dev });
            to_visit.push(&dependency.pkg);
        }
    }
    graph
}

/// Cargo also lists optional dependencies that only a weak feature (`ring?/std`) names: they are not built.
fn is_switched_on(package: &Package, features: &BTreeSet<&str>, dependency: &str) -> bool {
    let declared = || package.dependencies.iter().filter(|declared| declared.name == dependency);
    declared().any(|declared| !declared.optional)
        || declared().any(|declared| {
            let key = declared.rename.as_deref().unwrap_or(&declared.name);
            let (by_name, by_feature) = (format!("dep:{key}"), format!("{key}/"));
            let names_it = |item: &String| *item == by_name || item.starts_with(&by_feature) || item == key;
            features.iter().any(|feature| {
                *feature == key
                    || package.features.get(*feature).is_some_and(|items| items.iter().any(names_it))
            })
        })
}

/// Every member has a row, and uses only lower rows; its tests may also use neighbours.
pub(crate) fn direction(graph: &Graph) -> Vec<Violation> {
    let row = |name: &str| ROWS.iter().position(|(_, members)| members.contains(&name));
    let mut violations: Vec<_> = graph
        .members
        .iter()
        .filter(|member| row(member).is_none())
        .map(|member| {
            Violation::new(member, "has no row in the direction table (tests/tidy/graph.rs, ARCHITECTURE.md)")
        })
        .collect();
    for Edge { from, to, dev } in &graph.edges {
        let (Some(above), Some(below)) = (row(from), row(to)) else { continue };
        let down = above < below || (*dev && above == below);
        let excepted = EXCEPTIONS.contains(&(from, to));
        if !down && !excepted {
            let message = format!("({}) uses {to} ({}): only lower rows", ROWS[above].0, ROWS[below].0);
            violations.push(Violation::new(from, message));
        }
    }
    violations
}

/// The model uses nothing impure, and crates that know nothing of the mesh do not look at it.
pub(crate) fn sight(graph: &Graph) -> Vec<Violation> {
    let built = graph.edges.iter().filter(|edge| !edge.dev);
    let forbidden = |edge: &&Edge| {
        let blind =
            BLIND.iter().any(|(from, unseen)| edge.from == *from && unseen.contains(&edge.to.as_str()));
        let impure = edge.from == "model" && !MODEL_USES.contains(&edge.to.as_str());
        blind || impure
    };
    built
        .filter(forbidden)
        .map(|edge| Violation::new(&edge.from, format!("uses {}, which it must not see", edge.to)))
        .collect()
}

/// A graph for tests: `a>b` uses, `a~b` uses in tests.
#[cfg(test)]
pub(crate) fn drawn(edges: &[&str]) -> Graph {
    let mut graph = Graph::default();
    for edge in edges {
        let (from, to) = edge.split_once(['>', '~']).expect("an arrow");
        graph.edges.insert(Edge { from: from.into(), to: to.into(), dev: edge.contains('~') });
        for name in [from, to] {
            graph.versions.entry(name.to_owned()).or_default().insert("1.0.0".to_owned());
        }
    }
    graph
}

#[test]
fn wrong_directions_are_found() {
    let wrong = |edge: &str| direction(&drawn(&[edge])).len();
    for fine in [
        "ztunnel>hbone",
        "xds>api",
        "api>model",
        "lab>ebpf",
        "integration>ztunnel",
        "xds~identity",
        "hbone>tokio",
    ] {
        assert_eq!(wrong(fine), 0, "{fine}");
    }
    for bad in [
        "model>api",
        "hbone>identity",
        "ebpf>lab",
        "xds>controller",
        "ztunnel>controller",
        "model~api",
        "lab>bench",
    ] {
        assert_eq!(wrong(bad), 1, "{bad}");
    }
    let mut graph = drawn(&[]);
    graph.members.insert("newcomer".to_owned());
    assert_eq!(direction(&graph).len(), 1);
}

#[test]
fn forbidden_sights_are_found() {
    let wrong = |edge: &str| sight(&drawn(&[edge])).len();
    for fine in ["model>imbl", "model~proptest", "xds>model", "hbone>h2"] {
        assert_eq!(wrong(fine), 0, "{fine}");
    }
    for bad in ["model>tokio", "hbone>model", "daemon>api"] {
        assert_eq!(wrong(bad), 1, "{bad}");
    }
}

#[test]
fn this_workspace_is_read() {
    let graph = read(&super::root());
    assert!(graph.members.contains("model") && graph.members.contains("integration"));
    let edge = Edge { from: "api".into(), to: "model".into(), dev: false };
    assert!(graph.edges.contains(&edge), "api uses model");
    assert!(graph.versions.contains_key("tokio"));
    assert!(!graph.versions.contains_key("ring"), "only weak features name ring");
}
