//! The mesh as its chart installs it, under a real kubelet, containerd and API server.

use std::path::{Path, PathBuf};
use std::process::Command;

use lab::{Cluster, ClusterConfig, ClusterNode, Image, wait_until};
use serde_json::Value;

use crate::{Namespace, PATIENCE};

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

/// Takes the mesh away as docs/operations.md says, with pods that are still in it.
fn uninstall(cluster: &Cluster) {
    let kubectl = |args: &[&str]| {
        let args = [&["-n", SYSTEM], args].concat();
        cluster.kubectl(&args).unwrap_or_else(|error| panic!("{error}"))
    };
    let helm = |args: &[&str]| {
        let args = [args, &["-n", SYSTEM]].concat();
        cluster.helm(&args).unwrap_or_else(|error| panic!("{error}"))
    };
    let file = |name: &str, text: String| {
        let path = cluster.dir().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    kubectl(&["delete", "daemonset", "ztunnel", "--cascade=foreground", "--timeout=2m"]);
    let values = file("values-in-use.yaml", helm(&["get", "values", "airglow", "-o", "yaml"]));
    let nodes: Vec<String> = cluster.nodes().map(|node| node.name().to_owned()).collect();
    let from = format!("uninstallFrom={{{}}}", nodes.join(","));
    let only = ["--show-only", "templates/uninstall.yaml", "--set", &from];
    let jobs = helm(&[&["template", "airglow", &chart(), "-f", &values], &only[..]].concat());
    kubectl(&["create", "-f", &file("uninstall.yaml", jobs)]);
    let wait = ["-l", "app=airglow-uninstall", "--for=condition=complete", "--timeout=2m"];
    if let Err(error) = cluster.kubectl(&[&["-n", SYSTEM, "wait", "job"], &wait[..]].concat()) {
        panic!("{error}: {}", kubectl(&["logs", "-l", "app=airglow-uninstall", "--prefix"]));
    }
    helm(&["uninstall", "airglow"]);
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
    let (chart, set) = chart_and_values(cluster);
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

pub(crate) fn enrolled(cluster: &Cluster, namespace: &Namespace<'_>) {
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

/// A cluster that a mesh can be installed on.
pub(crate) fn start() -> Cluster {
    let cluster = Cluster::start(ClusterConfig::default()).expect("a cluster (root is needed)");
    cluster.load_app_image().expect("the image for pods of tests");
    cluster.start_dns().expect("cluster DNS");
    load_images(&cluster);
    cluster
}

/// Installs the mesh and puts pods of `shop` into it that ran before.
fn enrol(cluster: &Cluster, shop: &Namespace<'_>) {
    shop.deploy_web(2);
    install(cluster);
    cluster.kubectl(&["label", "namespace", shop.name, "istio.io/dataplane-mode=ambient"]).expect("a label");
    enrolled(cluster, shop);
}

/// The chained configuration of a node.
pub(crate) fn chained(node: &ClusterNode) -> String {
    let networks = node.path("/etc/cni/net.d").expect("it is on");
    std::fs::read_to_string(networks.join("10-lab.airglow.conflist")).unwrap_or_default()
}

#[test]
fn the_chart_makes_a_mesh_of_pods_that_ran_before_and_of_new_ones() {
    let cluster = start();
    let shop = Namespace::new(&cluster, "shop");
    enrol(&cluster, &shop);
    // New ones by the CNI plugin, chained behind the network's own.
    shop.kubectl(&["scale", "deployment/web", "--replicas=4"]);
    shop.rolled_out();
    enrolled(&cluster, &shop);
    for node in cluster.nodes() {
        let ours = chained(&node);
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

#[test]
fn ztunnels_are_replaced_missed_and_removed() {
    let cluster = start();
    let shop = Namespace::new(&cluster, "shop");
    enrol(&cluster, &shop);

    // Another network plugin writes its configuration anew.
    let node = cluster.node(0);
    let theirs = node.path("/etc/cni/net.d").expect("it is on").join("10-lab.conflist");
    let text = std::fs::read_to_string(&theirs).expect("the cluster's own");
    std::fs::write(&theirs, text.replacen('{', "{\"x-rewritten\": true,", 1)).expect("writable");
    wait_until("ours follows", PATIENCE, || {
        let ours = chained(&node);
        if ours.contains("x-rewritten") && ours.contains("ztunnel-cni") { Ok(()) } else { Err(ours) }
    })
    .expect("rewritten");

    // Two ztunnels share a node for a while.
    cluster.kubectl(&["-n", SYSTEM, "rollout", "restart", "daemonset/ztunnel"]).expect("restarted");
    cluster.rolled_out(SYSTEM, "daemonset/ztunnel", PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    enrolled(&cluster, &shop);

    // Without any, no pod of the mesh starts, and others do.
    let nowhere = r#"{"spec":{"template":{"spec":{"nodeSelector":{"nowhere":"true"}}}}}"#;
    cluster.kubectl(&["-n", SYSTEM, "patch", "daemonset/ztunnel", "-p", nowhere]).expect("patched");
    wait_until("no ztunnel is left", PATIENCE, || {
        let left = cluster.kubectl(&["-n", SYSTEM, "get", "pods", "-l", "app=ztunnel", "-o", "name"]);
        left.map_err(|error| error.to_string())
            .and_then(|left| if left.is_empty() { Ok(()) } else { Err(left) })
    })
    .expect("gone");
    shop.kubectl(&["scale", "deployment/web", "--replicas=4"]);
    wait_until("kubelet says why", PATIENCE, || {
        let events = shop.kubectl(&["get", "events"]);
        if events.contains("is not started outside the mesh") { Ok(()) } else { Err(events) }
    })
    .expect("a sentence");
    let ready = shop.get(&["deployment", "web"])["status"]["readyReplicas"].clone();
    assert_eq!(ready, 2, "none of the new ones");
    cluster.kubectl(&["-n", "kube-system", "scale", "deployment/coredns", "--replicas=3"]).expect("scaled");
    cluster
        .rolled_out("kube-system", "deployment/coredns", PATIENCE)
        .unwrap_or_else(|error| panic!("the cluster's own pods start: {error}"));

    // And with one again they do.
    let anywhere = r#"[{"op":"remove","path":"/spec/template/spec/nodeSelector/nowhere"}]"#;
    cluster
        .kubectl(&["-n", SYSTEM, "patch", "daemonset/ztunnel", "--type=json", "-p", anywhere])
        .expect("patched");
    shop.rolled_out();
    enrolled(&cluster, &shop);

    // Nothing is left when they are gone for good.
    uninstall(&cluster);
    for node in cluster.nodes() {
        for path in ["/run/airglow", "/sys/fs/bpf/airglow", "/opt/cni/bin/ztunnel-cni"] {
            assert!(!node.path(path).expect("it is on").exists(), "{path} is left on {}", node.name());
        }
        assert_eq!(chained(&node), "");
    }
    shop.kubectl(&["scale", "deployment/web", "--replicas=6"]);
    shop.rolled_out();
    let canary = cluster.wire().watch("a-canary-without-a-mesh");
    let pods = shop.pods();
    for (client, at, _) in &pods {
        let (_, _, ip) = pods.iter().find(|(_, other, _)| other != at).expect("a pod on each node");
        shop.curl(client, &format!("http://{ip}:8080/a-canary-without-a-mesh"));
    }
    assert!(canary.count().expect("a complete capture") >= 6, "they talk plaintext");
}
