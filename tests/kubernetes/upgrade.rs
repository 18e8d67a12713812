//! A mesh comes, is upgraded and goes, as docs/operations.md says, by Helm and by kubectl: it works in between, nobody is
//! disturbed, and afterwards the cluster is as it was before.

use std::path::Path;

use lab::Cluster;

use crate::install::{
    SYSTEM, await_jobs, chained, chart_and_values, install_with, is_rolled_out, start, uninstall,
};
use crate::system::{all_in_the_mesh, echo_server, kubectl, plaintext, replaced, succeeded, ztunnels};
use crate::traces::Inventory;
use crate::traffic::{Client, Traffic};
use crate::{Namespace, eventually};

/// Connections that a ztunnel holds may last longer than the test does.
const PATIENT: &str = ",ztunnel.drainDeadline=10m,ztunnel.terminationGracePeriodSeconds=660";

#[test]
fn a_mesh_comes_is_upgraded_and_goes_without_a_trace() {
    let cluster = start();
    let shop = Namespace::new(&cluster, "shop");
    shop.deploy_web(2);
    let servers = [0, 1].map(|index| {
        let node = cluster.node(index);
        echo_server(&shop, &format!("echo-{}", node.name()), &node)
    });
    let before = Inventory::of(&cluster);

    install_with(&cluster, PATIENT);
    join(&cluster, &shop);
    upgrade_under_load(&cluster, &shop, &servers);
    leave(&cluster, &shop);
    uninstall(&cluster);
    kubectl(&cluster, &["delete", "namespace", SYSTEM]);
    remove_what_stays(&cluster);
    before.must_be_that_of(&cluster);

    install_by_kubectl(&cluster);
    join(&cluster, &shop);
    leave(&cluster, &shop);
    uninstall_by_kubectl(&cluster);
    remove_what_stays(&cluster);
    before.must_be_that_of(&cluster);

    let plain = plaintext(&cluster);
    let (client, at, _) = &shop.pods()[0];
    let far = if at == "n1" { &servers[1] } else { &servers[0] };
    shop.kubectl(&["exec", client, "--", "lab-app", "load", "--to", far, "--mode", "new", "--requests", "8"]);
    assert!(plain.count().expect("a complete capture") > 0, "they talk plaintext again, and that is seen");
}

/// Puts pods that run, and new ones, into the mesh; they talk, and nothing is seen of it between the nodes.
fn join(cluster: &Cluster, shop: &Namespace<'_>) {
    kubectl(cluster, &["label", "namespace", shop.name, "istio.io/dataplane-mode=ambient"]);
    all_in_the_mesh(cluster, shop);
    let plain = plaintext(cluster);
    // New ones come in by the CNI plugin, chained behind the network's own.
    shop.kubectl(&["scale", "deployment/web", "--replicas=4"]);
    shop.rolled_out();
    all_in_the_mesh(cluster, shop);
    for node in cluster.nodes() {
        let ours = chained(&node);
        assert!(ours.contains("ztunnel-cni") && ours.contains("portmap"), "{ours}");
    }
    let pods = shop.pods();
    let on = |node: &str| pods.iter().find(|(_, at, _)| at == node).expect("a pod on each node");
    let ((client, ..), (server, _, ip)) = (on("n1"), on("n2"));
    assert_eq!(shop.curl(client, &format!("http://{ip}:8080/"))["name"], server.as_str());
    assert!(shop.curl(client, "http://web.shop/")["name"].is_string(), "a service by its name");
    assert_eq!(plain.count().expect("a complete capture"), 0, "nothing goes from node to node in the clear");
    shop.kubectl(&["scale", "deployment/web", "--replicas=2"]);
}

/// Other controllers and other ztunnels, while connections are made and held.
fn upgrade_under_load(cluster: &Cluster, shop: &Namespace<'_>, [near, far]: &[String; 2]) {
    for node in cluster.nodes() {
        for name in ["controller", "ztunnel"] {
            let [from, to] = ["test", "next"].map(|tag| format!("airglow.test/{name}:{tag}"));
            let tagged = node.run(["ctr", "-n", "k8s.io", "images", "tag", &from, &to]).expect("an end");
            assert!(tagged.success(), "{tagged:?}");
        }
    }
    let clients = vec![
        Client::calls("by-name", "http", "web.shop:80"),
        Client::calls("far", "echo", far),
        Client::calls("near", "echo", near),
        Client::holds("held-far", far),
        Client::holds("held-near", near),
    ];
    let traffic = Traffic::start(shop, "traffic", &cluster.node(0), clients);
    all_in_the_mesh(cluster, shop);
    let (plain, before) = (plaintext(cluster), ztunnels(cluster).expect("their names"));
    traffic.undisturbed("an upgrade", || {
        let (chart, _) = chart_and_values(cluster);
        let upgrade =
            ["upgrade", "airglow", &chart, "-n", SYSTEM, "--reuse-values", "--set", "image.tag=next"];
        cluster.helm(&upgrade).unwrap_or_else(|error| panic!("{error}"));
        // The rollout is complete when those of before have ended, and they hold connections.
        succeeded(cluster, &before);
        let controller = ["-n", SYSTEM, "rollout", "status", "deployment/airglow-controller", "--timeout=2m"];
        kubectl(cluster, &controller);
        traffic.progress();
    });
    for name in ["held-far", "held-near"] {
        let account = traffic.account(name);
        assert_eq!(
            (&account["held"], account["errors"].to_string().as_str()),
            (&4.into(), "{}"),
            "{account}"
        );
    }
    // The ones before end with the last connection that they hold.
    replaced(cluster, &before);
    traffic.progress();
    for name in ["by-name", "far", "near"] {
        let account = traffic.account(name);
        assert_eq!(account["failed"], 0, "{name}: {account}");
    }
    all_in_the_mesh(cluster, shop);
    traffic.end();
    assert_eq!(plain.count().expect("a complete capture"), 0, "nothing was sent in the clear");
}

/// The first step of an uninstall.
fn leave(cluster: &Cluster, shop: &Namespace<'_>) {
    kubectl(
        cluster,
        &["label", "namespace", "-l", "istio.io/dataplane-mode=ambient", "istio.io/dataplane-mode-"],
    );
    eventually("no pod is marked", || {
        let pods = kubectl(cluster, &["get", "pods", "-A", "-o", "yaml"]);
        if pods.contains("ambient.istio.io/redirection: enabled") { Err("some are") } else { Ok(()) }
    });
    shop.rolled_out();
}

/// The last one, of a user who has no policy left.
fn remove_what_stays(cluster: &Cluster) {
    kubectl(cluster, &["delete", "configmap", "-A", "--field-selector", "metadata.name=istio-ca-root-cert"]);
    kubectl(cluster, &["delete", "crd", "-l", "app.kubernetes.io/part-of=airglow"]);
}

fn deployed(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// As it is delivered, but for the cgroups: the nodes share this machine's kernel.
fn install_by_kubectl(cluster: &Cluster) {
    let (_, values) = chart_and_values(cluster);
    let value = |name: &str| {
        let found = values.split(',').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        format!("/host/sys/fs/cgroup/{}", found.expect("a value"))
    };
    let first = "          valueFrom: {fieldRef: {fieldPath: spec.nodeName}}\n";
    let more = format!(
        "{first}        - {{name: AIRGLOW_CGROUP, value: {}}}\n        - {{name: AIRGLOW_KUBEPODS, value: {}}}\n",
        value("ztunnel.cgroup"),
        value("ztunnel.kubepods"),
    );
    cluster.load_waypoint_image().expect("an image of what was built: cargo build -p waypoint");
    let delivered = deployed("airglow.yaml");
    assert_eq!(delivered.matches(first).count(), 1, "where ztunnel's settings begin");
    for image in delivered.lines().filter_map(|line| line.trim().strip_prefix("image: ")) {
        let (_, name) = image.rsplit_once('/').expect("a registry");
        let (name, _) = name.split_once(':').expect("a tag");
        for node in cluster.nodes() {
            let from = format!("airglow.test/{name}:test");
            let tagged = node.run(["ctr", "-n", "k8s.io", "images", "tag", &from, image]).expect("an end");
            assert!(tagged.success(), "{tagged:?}");
        }
    }
    let path = cluster.dir().join("delivered.yaml");
    std::fs::write(&path, delivered.replace(first, &more)).expect("a file");
    kubectl(cluster, &["apply", "--server-side", "-f", &path.display().to_string()]);
    is_rolled_out(cluster);
}

fn uninstall_by_kubectl(cluster: &Cluster) {
    kubectl(cluster, &["-n", SYSTEM, "delete", "daemonset", "ztunnel", "--cascade=foreground"]);
    let job = deployed("airglow-uninstall.yaml");
    for node in cluster.nodes() {
        let path = cluster.dir().join(format!("uninstall-{}.yaml", node.name()));
        std::fs::write(&path, job.replace("NODE", node.name())).expect("a file");
        kubectl(cluster, &["create", "-f", &path.display().to_string()]);
    }
    await_jobs(cluster);
    let path = cluster.dir().join("delivered.yaml");
    kubectl(cluster, &["delete", "--ignore-not-found", "-f", &path.display().to_string()]);
}
