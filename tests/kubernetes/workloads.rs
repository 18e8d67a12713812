//! What users do with a cluster works on this one.

use std::collections::BTreeSet;
use std::fs;

use crate::{Namespace, eventually, named, shared};

#[test]
fn two_nodes_are_ready_and_run_the_pinned_release() {
    let said = shared().kubectl(&["get", "nodes", "--no-headers"]).expect("nodes");
    let nodes: Vec<Vec<_>> = said.lines().map(|line| line.split_whitespace().collect()).collect();
    let of = |column: usize| nodes.iter().map(|node| node[column]).collect::<Vec<_>>();
    assert_eq!((of(0), of(1)), (vec!["n1", "n2"], vec!["Ready", "Ready"]), "{said}");
    let server = shared().kubectl(&["version", "-o", "json"]).expect("versions");
    let server: serde_json::Value = serde_json::from_str(&server).expect("JSON");
    assert_eq!(server["serverVersion"]["gitVersion"], of(4)[0], "nodes and API server are of one release");
}

#[test]
fn a_deployment_is_rolled_out_on_both_nodes_and_served_across_them() {
    let shop = Namespace::new(shared(), "workloads");
    shop.deploy_web(4);
    let pods = shop.pods();
    let nodes: Vec<_> = pods.iter().map(|(_, node, _)| node.as_str()).collect();
    assert_eq!(nodes.iter().filter(|node| **node == "n1").count(), 2, "{pods:?}");
    let canary = shared().wire().watch("a-canary-in-plain-text");
    let (client, ..) = pods.iter().find(|(_, node, _)| node == "n1").expect("a pod on n1");
    let address = shop.get(&["service", "web"])["spec"]["clusterIP"].as_str().expect("an address").to_owned();
    let mut answered = BTreeSet::new();
    eventually("an answer of every pod at the service's address", || {
        let answer = shop.curl(client, &format!("http://{address}/a-canary-in-plain-text"));
        answered.insert(answer["name"].as_str().unwrap_or_default().to_owned());
        if answered.len() == pods.len() { Ok(()) } else { Err(format!("{answered:?}")) }
    });
    let seen = canary.sightings().expect("a complete capture");
    assert!(!seen.is_empty(), "what goes from node to node without a mesh is seen on the wire");
}

#[test]
fn exec_logs_and_scale_work() {
    let shop = Namespace::new(shared(), "tools");
    shop.deploy_web(1);
    let [(pod, ..)] = &shop.pods()[..] else { panic!("one pod") };
    assert_eq!(shop.kubectl(&["exec", pod, "--", "sh", "-c", "echo $POD"]).trim(), pod);
    assert!(shop.kubectl(&["logs", pod]).contains("listening on"));
    shop.kubectl(&["scale", "deployment/web", "--replicas=3"]);
    shop.rolled_out();
    assert_eq!(shop.pods().len(), 3);
}

#[test]
fn pods_reach_the_api_server_with_their_own_account() {
    let shop = Namespace::new(shared(), "account");
    shop.deploy_web(1);
    let [(pod, ..)] = &shop.pods()[..] else { panic!("one pod") };
    let folder = "/var/run/secrets/kubernetes.io/serviceaccount";
    let script = format!(
        "curl -sS -m 10 --cacert {folder}/ca.crt -H \"Authorization: Bearer $(cat {folder}/token)\" \
         https://$KUBERNETES_SERVICE_HOST/api/v1/namespaces/account/pods"
    );
    let answer = shop.kubectl(&["exec", pod, "--", "sh", "-c", &script]);
    assert!(answer.contains("system:serviceaccount:account:default"), "RBAC refuses it by name: {answer}");
}

#[test]
fn a_node_shows_its_own_files_network_and_processes() {
    let node = shared().node(0);
    let hostname = node.run(["hostname"]).expect("a program on the node");
    assert_eq!(hostname.stdout.trim(), "n1");
    let addresses = node.run(["ip", "-brief", "address"]).expect("ip").stdout;
    assert!(addresses.contains(&node.ips()[0].to_string()), "{addresses}");
    let first = node.run(["cat", "/proc/1/cmdline"]).expect("cat").stdout;
    assert!(first.contains("node-init"), "{first}");
    let networks = node.path("/etc/cni/net.d").expect("it is on");
    assert!(networks.join("10-lab.conflist").is_file());
    assert!(!std::path::Path::new("/etc/cni/net.d/10-lab.conflist").exists(), "the machine has none");
    assert!(node.cgroup().join("kubepods").is_dir(), "pods are below the node's group");
}

#[test]
fn names_of_services_are_known_in_pods() {
    let shop = Namespace::new(named(), "names");
    shop.deploy_web(2);
    let (client, ..) = &shop.pods()[0];
    let answer = shop.curl(client, "http://web.names/by-name");
    assert_eq!(answer["path"], "/by-name");
    let unknown = ["-n", "names", "exec", client, "--", "curl", "-sS", "-m", "10", "http://nobody.names/"];
    let complaint = shared().kubectl(&unknown).expect_err("there is no such service").to_string();
    assert!(complaint.contains("Could not resolve host"), "{complaint}");
}

#[test]
fn helm_installs_upgrades_and_uninstalls() {
    let chart = shared().dir().join("chart");
    fs::create_dir_all(chart.join("templates")).expect("a directory");
    fs::write(chart.join("Chart.yaml"), "{apiVersion: v2, name: said, version: 1.0.0}").expect("a chart");
    let template =
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: said}, data: {word: {{ .Values.word }}}}";
    fs::write(chart.join("templates/said.yaml"), template).expect("a template");
    let chart = chart.to_str().expect("a path in ASCII");
    let shop = Namespace::new(shared(), "charts");
    let helm = |args: &[&str]| shared().helm(args).unwrap_or_else(|error| panic!("{error}"));
    for (verb, word) in [("install", "word=one"), ("upgrade", "word=two")] {
        helm(&[verb, "said", chart, "-n", "charts", "--set", word]);
        assert_eq!(shop.get(&["configmap", "said"])["data"]["word"], word[5..]);
    }
    helm(&["uninstall", "said", "-n", "charts"]);
    assert_eq!(shop.kubectl(&["get", "configmap", "said", "--ignore-not-found"]), "");
}
