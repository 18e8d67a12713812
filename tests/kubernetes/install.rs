//! The mesh as its chart installs it, under a real kubelet, containerd and API server.

use std::path::{Path, PathBuf};
use std::process::Command;

use lab::{Cluster, ClusterConfig, ClusterNode, Image, wait_until};
use serde_json::Value;

use crate::{Namespace, PATIENCE};

const SYSTEM: &str = "airglow-system";

/// Where Debian keeps shared libraries.
const LIBRARIES: &str = "/lib/x86_64-linux-gnu";

fn executable(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("the running executable");
    let profile = own.parent().and_then(Path::parent).expect("target/<profile>/deps");
    profile.join(name)
}

/// Images of the programs as they are built now, on every node.
fn load_images(cluster: &Cluster) {
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

/// Installs the chart. The nodes share this machine's kernel, so each ztunnel is told which cgroup is its node's.
fn install(cluster: &Cluster) {
    let group = cluster.node(0).cgroup().parent().expect("a group of the cluster").to_owned();
    let group = group.strip_prefix("/sys/fs/cgroup").expect("below the mount").display().to_string();
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart/airglow").display().to_string();
    let set = format!(
        "image.registry=airglow.test,image.tag=test,image.pullPolicy=Never,ztunnel.cgroup={group}/$(AIRGLOW_NODE),\
         ztunnel.kubepods={group}/$(AIRGLOW_NODE)/kubepods"
    );
    cluster
        .helm(&["install", "airglow", &chart, "--namespace", SYSTEM, "--create-namespace", "--set", &set])
        .expect("installed");
    for workload in ["deployment/airglow-controller", "daemonset/ztunnel"] {
        cluster.rolled_out(SYSTEM, workload, PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// What a node's ztunnel knows of a pod.
fn known(node: &ClusterNode, pod: &str) -> Value {
    let socket = node.path("/run/airglow/admin.sock").expect("the node is on").display().to_string();
    let curl = ["-sS", "-m", "10", "--unix-socket", &socket, "http://ztunnel/pods"];
    let output = Command::new("curl").args(curl).output().expect("curl runs");
    let pods: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    pods.as_array().into_iter().flatten().find(|known| known["pod"] == pod).cloned().unwrap_or_default()
}

fn enrolled(cluster: &Cluster, namespace: &Namespace<'_>) {
    for (pod, node, _) in namespace.pods() {
        let name = format!("{}/{pod}", namespace.name);
        let node = cluster.nodes().find(|known| known.name() == node).expect("its node");
        wait_until(&format!("{name} is enrolled"), PATIENCE, || {
            let known = known(&node, &name);
            if known["state"] == "enrolled" { Ok(()) } else { Err(known) }
        })
        .unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn the_chart_makes_a_mesh_of_pods_that_ran_before_and_of_new_ones() {
    let cluster = Cluster::start(ClusterConfig::default()).expect("a cluster (root is needed)");
    cluster.load_app_image().expect("the image for pods of tests");
    cluster.start_dns().expect("cluster DNS");
    let shop = Namespace::new(&cluster, "shop");
    shop.deploy_web(2);
    load_images(&cluster);
    install(&cluster);
    cluster.kubectl(&["label", "namespace", "shop", "istio.io/dataplane-mode=ambient"]).expect("a label");
    enrolled(&cluster, &shop);

    // New ones by the CNI plugin, chained behind the network's own.
    shop.kubectl(&["scale", "deployment/web", "--replicas=4"]);
    shop.rolled_out();
    enrolled(&cluster, &shop);
    for node in cluster.nodes() {
        let networks = node.path("/etc/cni/net.d").expect("it is on");
        let ours = std::fs::read_to_string(networks.join("10-lab.airglow.conflist")).expect("chained");
        assert!(ours.contains("ztunnel-cni") && ours.contains("portmap"), "{ours}");
    }

    let canary = cluster.wire().watch("a-canary-in-the-mesh");
    let pods = shop.pods();
    let on = |node: &str| pods.iter().find(|(_, at, _)| at == node).expect("a pod on each node");
    let ((client, ..), (server, _, ip)) = (on("n1"), on("n2"));
    let mut address = ip.clone();
    address.push_str(":8080");
    wait_until("nodes have heard of each other's pods", PATIENCE, || {
        let answer = shop.curl(client, &format!("http://{address}/hello"));
        if answer["name"] == server.as_str() { Ok(()) } else { Err(answer) }
    })
    .expect("an answer");
    let service = shop.get(&["service", "web"])["spec"]["clusterIP"].as_str().expect("an address").to_owned();
    for host in [&address, &service] {
        let answer = shop.curl(client, &format!("http://{host}/a-canary-in-the-mesh"));
        assert!(answer["name"].is_string(), "{answer}");
    }
    assert_eq!(canary.count().expect("a complete capture"), 0, "nothing goes from node to node in the clear");
}
