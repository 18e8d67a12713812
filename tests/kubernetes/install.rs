//! The mesh as its chart installs it, and how it goes: steps that tests of it share.

use std::path::{Path, PathBuf};

use lab::{Cluster, ClusterConfig, ClusterNode};

use crate::PATIENCE;
use crate::system::kubectl;

pub(crate) const SYSTEM: &str = "airglow-system";

pub(crate) fn executable(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("the running executable");
    let profile = own.parent().and_then(Path::parent).expect("target/<profile>/deps");
    profile.join(name)
}

fn chart() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart/airglow").display().to_string()
}

/// Takes from the nodes what outlives a ztunnel, and then the release, as docs/operations.md says under "From a cluster".
pub(crate) fn uninstall(cluster: &Cluster) {
    let system = |args: &[&str]| kubectl(cluster, &[&["-n", SYSTEM], args].concat());
    let helm = |args: &[&str]| {
        let args = [args, &["-n", SYSTEM]].concat();
        cluster.helm(&args).unwrap_or_else(|error| panic!("{error}"))
    };
    let file = |name: &str, text: String| {
        let path = cluster.dir().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    system(&["delete", "daemonset", "ztunnel", "--cascade=foreground", "--timeout=2m"]);
    let values = file("values-in-use.yaml", helm(&["get", "values", "airglow", "-o", "yaml"]));
    let nodes: Vec<String> = cluster.nodes().map(|node| node.name().to_owned()).collect();
    let from = format!("uninstallFrom={{{}}}", nodes.join(","));
    let only = ["--show-only", "templates/uninstall.yaml", "--set", &from];
    let jobs = helm(&[&["template", "airglow", &chart(), "-f", &values], &only[..]].concat());
    system(&["create", "-f", &file("uninstall.yaml", jobs)]);
    await_jobs(cluster);
    helm(&["uninstall", "airglow"]);
}

/// Waits until `ztunnel uninstall` has done its work on every node.
pub(crate) fn await_jobs(cluster: &Cluster) {
    let wait = [
        "-n",
        SYSTEM,
        "wait",
        "job",
        "-l",
        "app=airglow-uninstall",
        "--for=condition=complete",
        "--timeout=2m",
    ];
    if let Err(error) = cluster.kubectl(&wait) {
        let logs = ["-n", SYSTEM, "logs", "-l", "app=airglow-uninstall", "--prefix"];
        panic!("{error}: {}", kubectl(cluster, &logs));
    }
}

/// The chart, and values for this cluster.
pub(crate) fn chart_and_values(cluster: &Cluster) -> (String, String) {
    (chart(), cluster.mesh_values())
}

/// Installs the chart with these values besides, each after a comma.
pub(crate) fn install_with(cluster: &Cluster, more: &str) {
    let (chart, set) = chart_and_values(cluster);
    let set = set + more;
    cluster
        .helm(&["install", "airglow", &chart, "--namespace", SYSTEM, "--create-namespace", "--set", &set])
        .expect("installed");
    is_rolled_out(cluster);
}

/// Waits until controllers and ztunnels are those that were installed last.
pub(crate) fn is_rolled_out(cluster: &Cluster) {
    for workload in ["deployment/airglow-controller", "daemonset/ztunnel"] {
        cluster.rolled_out(SYSTEM, workload, PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// A cluster that a mesh can be installed on.
pub(crate) fn start() -> Cluster {
    let cluster = Cluster::start(ClusterConfig::default()).expect("a cluster (root is needed)");
    cluster.load_app_image().expect("the image for pods of tests");
    cluster.start_dns().expect("cluster DNS");
    cluster.load_mesh_images().expect("images of what was built: cargo build -p ztunnel -p controller");
    cluster
}

/// The chained configuration of a node.
pub(crate) fn chained(node: &ClusterNode) -> String {
    let networks = node.path("/etc/cni/net.d").expect("it is on");
    std::fs::read_to_string(networks.join("10-lab.airglow.conflist")).unwrap_or_default()
}
