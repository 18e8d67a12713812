//! Components end and come back, and the cluster with them. On a cluster of its own: others would notice.

use lab::{Cluster, ClusterConfig, Component, ControlPlane, Signal, wait_until};

use crate::{Namespace, PATIENCE};

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
    wait_until("a new start of both pods", PATIENCE, || {
        match shop.kubectl(&["get", "pods", "-o", restarts]) {
            said if said == "1 1" => Ok(()),
            said => Err(said),
        }
    })
    .expect("kubelet starts them again");
    let service = &shop.get(&["service", "web"])["spec"]["clusterIP"];
    let answer = shop.curl(&client.0, &format!("http://{}/", service.as_str().expect("an address")));
    assert!(before.iter().any(|(name, ..)| answer["name"] == *name), "{answer}");
}
