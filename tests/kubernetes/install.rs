//! The mesh as its chart installs it, and how it goes: steps that tests of it share.

use std::path::{Path, PathBuf};

use lab::{Cluster, ClusterConfig, ClusterNode, Image};

use crate::PATIENCE;
use crate::system::kubectl;

pub(crate) const SYSTEM: &str = "airglow-system";

/// Where Debian keeps shared libraries.
const LIBRARIES: &str = "/lib/x86_64-linux-gnu";

pub(crate) fn executable(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("the running executable");
    let profile = own.parent().and_then(Path::parent).expect("target/<profile>/deps");
    profile.join(name)
}

/// Images of the programs as they are built now, on every node.
pub(crate) fn load_images(cluster: &Cluster) {
    let image = |name: &str, programs: &[&str]| {
        let all = programs.iter().fold(Image::new(&format!("airglow.test/{name}:test")), |image, program| {
            image.file(format!("/{program}"), executable(program))
        });
        // glibc looks names up with libraries that it loads only then; `make images` links without it.
        let resolver = ["libresolv.so.2", "libnss_dns.so.2"].map(|name| Path::new(LIBRARIES).join(name));
        let present = resolver.iter().filter(|path| path.exists());
        let all = present.fold(all, |image, path| image.file(path, path));
        let archive = cluster.dir().join(format!("{name}.tar"));
        let whole = all.with_libraries().expect("ldd").entrypoint([format!("/{name}")]);
        whole.write(&archive).expect("an archive: cargo build -p ztunnel -p controller");
        cluster.load_image(&archive).expect("loaded");
    };
    image("ztunnel", &["ztunnel", "ztunnel-cni"]);
    image("controller", &["controller"]);
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

/// The chart, and values for this cluster: the nodes share this machine's kernel, so each ztunnel is told which cgroup is its
/// node's.
pub(crate) fn chart_and_values(cluster: &Cluster) -> (String, String) {
    let group = cluster.node(0).cgroup().parent().expect("a group of the cluster").to_owned();
    let group = group.strip_prefix("/sys/fs/cgroup").expect("below the mount").display().to_string();
    let chart = chart();
    let set = format!(
        "image.registry=airglow.test,image.tag=test,image.pullPolicy=Never,ztunnel.cgroup={group}/$(AIRGLOW_NODE),\
         ztunnel.kubepods={group}/$(AIRGLOW_NODE)/kubepods"
    );
    (chart, set)
}

/// Installs the chart.
pub(crate) fn install(cluster: &Cluster) {
    install_with(cluster, "");
}

/// The same with more values, each after a comma.
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
    load_images(&cluster);
    cluster
}

/// The chained configuration of a node.
pub(crate) fn chained(node: &ClusterNode) -> String {
    let networks = node.path("/etc/cni/net.d").expect("it is on");
    std::fs::read_to_string(networks.join("10-lab.airglow.conflist")).unwrap_or_default()
}
