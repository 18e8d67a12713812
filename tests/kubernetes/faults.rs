//! What runs on nodes ends and comes back: without a mesh the cluster does, with one the mesh does too, and nothing is said in the
//! clear meanwhile. On clusters of their own: others would notice.

use std::fs;
use std::time::SystemTime;

use lab::{Cluster, ClusterConfig, ClusterNode, Component, ControlPlane, Signal, Watch};
use serde_json::Value;

use crate::install::{SYSTEM, chained, install_with, start, uninstall};
use crate::system::{all_in_the_mesh, crash, echo_server, kubectl, plaintext, replaced, serves, ztunnels};
use crate::traffic::{Client, Traffic};
use crate::{Namespace, PATIENCE, eventually};

/// A namespace in the mesh whose pods talk all the time.
pub(crate) struct World<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) shop: &'a Namespace<'a>,
    /// Calls of a pod on n1 to the service `web`, and to a server on n2 by its own address.
    pub(crate) traffic: Traffic<'a>,
    plain: Watch,
}

impl<'a> World<'a> {
    pub(crate) fn start(cluster: &'a Cluster, shop: &'a Namespace<'a>) -> Self {
        shop.deploy_web(2);
        echo_server(shop, "echo", &cluster.node(1));
        install_with(cluster, ",ztunnel.drainDeadline=2s");
        kubectl(cluster, &["label", "namespace", shop.name, "istio.io/dataplane-mode=ambient"]);
        all_in_the_mesh(cluster, shop);
        let plain = plaintext(cluster);
        Self { cluster, shop, traffic: talk(cluster, shop), plain }
    }

    /// Calls the server where it is now.
    pub(crate) fn talk_anew(&mut self) {
        self.traffic.end();
        all_in_the_mesh(self.cluster, self.shop);
        self.traffic = talk(self.cluster, self.shop);
    }

    /// Everybody is in the mesh, no call fails any more, and nothing was ever said in the clear.
    pub(crate) fn is_whole(&self, after: &str) {
        all_in_the_mesh(self.cluster, self.shop);
        self.traffic.progress();
        self.traffic.undisturbed(after, || ());
        assert_eq!(self.plain.count().expect("a complete capture"), 0, "{after}: plaintext between nodes");
    }

    /// So many pods of `web`, which are ready and in the mesh.
    pub(crate) fn scale(&self, replicas: usize) {
        self.shop.kubectl(&["scale", "deployment/web", &format!("--replicas={replicas}")]);
        self.shop.rolled_out();
    }

    /// Waits until kubelet says of a pod that does not start yet why that is.
    pub(crate) fn is_said(&self, why: &str) {
        eventually("kubelet says why", || {
            let events = self.shop.kubectl(&["get", "events"]);
            if events.contains(why) { Ok(()) } else { Err(events) }
        });
    }
}

fn talk<'a>(cluster: &Cluster, shop: &'a Namespace<'a>) -> Traffic<'a> {
    let text = |value: &Value| value.as_str().expect("an address").to_owned();
    let web = text(&shop.get(&["service", "web"])["spec"]["clusterIP"]);
    let echo = text(&shop.get(&["pod", "echo"])["status"]["podIP"]);
    let clients = vec![
        Client::calls("service", "http", &format!("{web}:80")),
        Client::calls("pod", "echo", &format!("{echo}:8080")),
    ];
    Traffic::start(shop, "traffic", &cluster.node(0), clients)
}

#[test]
fn what_ends_on_nodes_comes_back_and_nothing_is_said_in_the_clear() {
    let cluster = start();
    let shop = Namespace::new(&cluster, "shop");
    let world = World::start(&cluster, &shop);
    network_plugin_writes_anew(&world);
    ztunnels_are_deleted(&world);
    ztunnels_crash(&world);
    runtimes_and_api_server_are_away(&world);
    disks_are_full(&world);
    ztunnels_are_missed(&world);
    removed_with_pods_in_it(&world);
}

fn network_plugin_writes_anew(world: &World<'_>) {
    let node = world.cluster.node(0);
    world.traffic.undisturbed("a network configuration is written anew", || {
        let theirs = node.path("/etc/cni/net.d").expect("it is on").join("10-lab.conflist");
        let text = fs::read_to_string(&theirs).expect("the cluster's own");
        fs::write(&theirs, text.replacen('{', "{\"x-rewritten\": true,", 1)).expect("writable");
        eventually("ours follows", || {
            let ours = chained(&node);
            if ours.contains("x-rewritten") && ours.contains("ztunnel-cni") { Ok(()) } else { Err(ours) }
        });
    });
}

/// Their successors start when they have ended.
fn ztunnels_are_deleted(world: &World<'_>) {
    let before = ztunnels(world.cluster).expect("their names");
    kubectl(world.cluster, &["-n", SYSTEM, "delete", "pods", "-l", "app=ztunnel", "--wait=false"]);
    replaced(world.cluster, &before);
    world.is_whole("ztunnels were deleted");
}

/// Calls may fail that were begun before the next ztunnel is ready, and none after that.
fn ztunnels_crash(world: &World<'_>) {
    for node in world.cluster.nodes() {
        let before = world.traffic.now();
        crash(&node);
        serves(&node);
        let ready = SystemTime::now();
        world.is_whole("a ztunnel has crashed");
        let late = world.traffic.failures_begun_after(&before, ready);
        assert_eq!(late, Vec::<String>::new(), "begun after the next ztunnel of {} was ready", node.name());
    }
}

fn runtimes_and_api_server_are_away(world: &World<'_>) {
    let node = world.cluster.node(1);
    world.traffic.undisturbed("kubelet and containerd are away", || {
        for component in [Component::Kubelet, Component::Containerd] {
            node.stop(component, Signal::SIGKILL).expect("its end");
        }
        world.traffic.progress();
        for component in [Component::Containerd, Component::Kubelet] {
            node.start(component).expect("its return");
        }
    });
    world.traffic.undisturbed("the API server is away", || {
        world.cluster.stop(ControlPlane::ApiServer, Signal::SIGKILL).expect("its end");
        world.traffic.progress();
        world.cluster.restart(ControlPlane::ApiServer).expect("its return");
    });
    world.scale(4);
    world.is_whole("kubelet, containerd and the API server were away");
    world.scale(2);
}

/// The folders of one node that we write to, on disks of their own, which are full one after the other.
fn disks_are_full(world: &World<'_>) {
    let node = world.cluster.node(0);
    let folders = "cp -a /etc/cni/net.d /run/net.d && mount -t tmpfs -o size=64k small /etc/cni/net.d && \
                   cp -a /run/net.d/. /etc/cni/net.d/ && mount -t tmpfs -o size=64k small /run/airglow";
    on(&node, folders);
    // It looks at folders that it opened.
    node.stop(Component::Containerd, Signal::SIGKILL).expect("its end");
    node.start(Component::Containerd).expect("its return");
    let before = ztunnels(world.cluster).expect("their names");
    kubectl(world.cluster, &["-n", SYSTEM, "delete", "pods", "-l", "app=ztunnel", "--wait=false"]);
    replaced(world.cluster, &before);
    world.is_whole("a ztunnel began with an empty folder");
    world.traffic.undisturbed("a folder for sandboxes is full", || sandboxes_have_no_place(world, &node));
    world.is_whole("a folder for sandboxes was full");
    world.scale(2);
    world.traffic.undisturbed("a folder for networks is full", || network_has_no_place(world, &node));
    world.is_whole("a folder for networks was full");
    world.scale(2);
}

fn on(node: &ClusterNode, script: &str) {
    let output = node.run(["sh", "-c", script]).expect("an end");
    assert!(output.success(), "{output:?}");
}

/// What ztunnel can't remember it does not start; those that it knows already are served.
fn sandboxes_have_no_place(world: &World<'_>, node: &ClusterNode) {
    // Again and again: what ztunnel can't write anew it removes, which makes room.
    let fill = "while :; do cat /dev/zero >> /run/airglow/ballast; sleep 0.02; done 2>/dev/null";
    let filling = node.spawn(["sh", "-c", fill]).expect("it fills");
    world.shop.kubectl(&["scale", "deployment/web", "--replicas=4"]);
    world.is_said("can't remember sandbox");
    filling.kill().expect("its end");
    on(node, "rm /run/airglow/ballast");
    world.shop.rolled_out();
}

/// Our configuration can't follow that of the network plugin: pods go on to be started by the one that there is.
fn network_has_no_place(world: &World<'_>, node: &ClusterNode) {
    on(node, "cat /dev/zero > /etc/cni/net.d/ballast 2>/dev/null || true");
    // In its place, and as long as before.
    on(
        node,
        "printf '{\"x-rewritten\": null' | dd conv=notrunc status=none of=/etc/cni/net.d/10-lab.conflist",
    );
    eventually("ztunnel says so", || {
        let logs = ["-n", SYSTEM, "logs", "-l", "app=ztunnel", "--tail=-1"];
        let said = world.cluster.kubectl(&logs).map_err(|error| error.to_string())?;
        let mut lines = said.lines();
        let is_it = |line: &str| line.contains("can't be installed") && line.contains("No space left");
        if lines.any(is_it) { Ok(()) } else { Err(said) }
    });
    world.scale(4);
    all_in_the_mesh(world.cluster, world.shop);
    on(node, "rm /etc/cni/net.d/ballast");
    eventually("ours follows", || {
        let ours = chained(node);
        if ours.contains("\"x-rewritten\": null") { Ok(()) } else { Err(ours) }
    });
}

fn ztunnels_are_missed(world: &World<'_>) {
    let World { cluster, shop, .. } = world;
    // Without any, no pod of the mesh starts, and others do.
    let nowhere = r#"{"spec":{"template":{"spec":{"nodeSelector":{"nowhere":"true"}}}}}"#;
    kubectl(cluster, &["-n", SYSTEM, "patch", "daemonset/ztunnel", "-p", nowhere]);
    eventually("no ztunnel is left", || match ztunnels(cluster)? {
        none if none.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    });
    shop.kubectl(&["scale", "deployment/web", "--replicas=4"]);
    world.is_said("is not started outside the mesh: ztunnel does not answer");
    let ready = shop.get(&["deployment", "web"])["status"]["readyReplicas"].clone();
    assert_eq!(ready, 2, "none of the new ones");
    kubectl(cluster, &["-n", "kube-system", "scale", "deployment/coredns", "--replicas=3"]);
    cluster
        .rolled_out("kube-system", "deployment/coredns", PATIENCE)
        .unwrap_or_else(|error| panic!("the cluster's own pods start: {error}"));

    // And with one again they do.
    let anywhere = r#"[{"op":"remove","path":"/spec/template/spec/nodeSelector/nowhere"}]"#;
    kubectl(cluster, &["-n", SYSTEM, "patch", "daemonset/ztunnel", "--type=json", "-p", anywhere]);
    shop.rolled_out();
    world.is_whole("there was no ztunnel");
}

/// Nothing of ours is on the nodes, and the pods talk as before.
fn removed_with_pods_in_it(world: &World<'_>) {
    let World { cluster, shop, .. } = world;
    uninstall(cluster);
    for node in cluster.nodes() {
        for path in ["/sys/fs/bpf/airglow", "/opt/cni/bin/ztunnel-cni"] {
            assert!(!node.path(path).expect("it is on").exists(), "{path} is left on {}", node.name());
        }
        assert_eq!(chained(&node), "");
    }
    world.scale(6);
    let plain = plaintext(cluster);
    let pods = shop.pods();
    for (client, at, _) in &pods {
        let (_, _, ip) = pods.iter().find(|(_, other, _)| other != at).expect("a pod on each node");
        shop.curl(client, &format!("http://{ip}:8080/"));
    }
    assert!(plain.count().expect("a complete capture") >= 6, "they talk plaintext");
}

#[test]
fn components_and_nodes_end_and_come_back() {
    let config = ClusterConfig { nodes: 1, ipv6: true, ..ClusterConfig::default() };
    let cluster = Cluster::start(config).expect("a cluster (root is needed)");
    cluster.load_app_image().expect("the image for pods of tests");
    let shop = Namespace::new(&cluster, "shop");
    shop.deploy_web(2);
    let before = shop.pods();
    let families = &shop.get(&["pods"])["items"][0]["status"]["podIPs"];
    assert_eq!(families.as_array().map(Vec::len), Some(2), "a dual-stack cluster: {families}");

    let node = cluster.node(0);
    for component in [Component::Kubelet, Component::Containerd, Component::KubeProxy] {
        node.stop(component, Signal::SIGKILL).expect("its end");
    }
    cluster.stop(ControlPlane::ApiServer, Signal::SIGKILL).expect("its end");
    cluster.kubectl(&["get", "--raw", "/readyz"]).expect_err("nobody answers");
    cluster.restart(ControlPlane::ApiServer).expect("its return");
    for component in [Component::Containerd, Component::Kubelet, Component::KubeProxy] {
        node.start(component).expect("its return");
    }
    let (client, server) = (&before[0], &before[1]);
    assert_eq!(shop.curl(&client.0, &format!("http://{}:8080/", server.2))["name"], server.0);
    assert_eq!(shop.pods(), before, "pods did not notice");

    node.power_off().expect("a power cut");
    node.pid().expect_err("there is no first process");
    node.power_on().expect("power");
    let restarts = "jsonpath={.items[*].status.containerStatuses[0].restartCount}";
    eventually("a new start of both pods", || match shop.kubectl(&["get", "pods", "-o", restarts]) {
        said if said == "1 1" => Ok(()),
        said => Err(said),
    });
    let service = &shop.get(&["service", "web"])["spec"]["clusterIP"];
    let answer = shop.curl(&client.0, &format!("http://{}/", service.as_str().expect("an address")));
    assert!(before.iter().any(|(name, ..)| answer["name"] == *name), "{answer}");
}
