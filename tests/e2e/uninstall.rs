//! `ztunnel uninstall`: a node without a ztunnel is as if there had never been one, or it is said what is left.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use lab::{Env, Lab, LabConfig, Node, Output, Pod, Program, Slice};

use crate::cni::executable;
use crate::enrolment::{fingerprint, nothing_is_pinned};
use crate::mesh::{Mesh, comes_from, get, refused, serve};

/// What a cluster's own network plugin wrote.
const NETWORK: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"ptp"}]}"#;

/// Settings without which no ztunnel serves.
const DEMANDED: [&str; 4] = ["AIRGLOW_NODE", "AIRGLOW_CONTROLLER", "AIRGLOW_ROOT_CERT", "AIRGLOW_TOKEN"];

/// The node's folders of CNI configurations and plugins.
fn cni(mesh: &Mesh, node: &Node) -> [PathBuf; 2] {
    ["net.d", "bin"].map(|folder| mesh.lab.dir().join(format!("cni-{}-{folder}", node.name())))
}

fn cni_env(mesh: &Mesh, node: &Node) -> Env {
    let [conf, bin] = cni(mesh, node).map(|folder| folder.display().to_string());
    Env::from([("AIRGLOW_CNI_CONF_DIR".to_owned(), conf), ("AIRGLOW_CNI_BIN_DIR".to_owned(), bin)])
}

/// A mesh whose ztunnels install the CNI plugin.
fn start() -> Mesh {
    let mesh = Mesh { lab: Lab::start(LabConfig::default()).expect("a lab (root is needed)") };
    mesh.lab.start_controller(Env::new()).expect("a controller");
    for node in mesh.lab.nodes() {
        let [conf, bin] = cni(&mesh, &node);
        [&conf, &bin].into_iter().for_each(|folder| fs::create_dir(folder).expect("a folder"));
        fs::write(conf.join("10-lab.conflist"), NETWORK).expect("a network configuration");
        node.start_ztunnel(cni_env(&mesh, &node)).expect("a ztunnel");
        assert!(conf.join("10-lab.airglow.conflist").exists() && bin.join("ztunnel-cni").exists());
    }
    mesh
}

/// Runs `ztunnel uninstall` on the node with these settings.
fn run(node: &Node, settings: Env) -> Output {
    let program = Program::new(executable("ztunnel")).args(["uninstall"]);
    let program = settings.into_iter().fold(program, |program, (name, value)| program.env(name, value));
    node.run(Slice::System, program).expect("an end")
}

/// The settings of the ztunnel that served the node.
fn settings(mesh: &Mesh, node: &Node) -> Env {
    let mut settings = node.ztunnel_env();
    settings.extend(cni_env(mesh, node));
    settings
}

fn uninstall(mesh: &Mesh, node: &Node) {
    let output = run(node, settings(mesh, node));
    assert!(output.success(), "{}: {output:?}", node.name());
}

/// Nothing of ours is left on the node outside of its pods.
fn nothing_is_left(mesh: &Mesh, node: &Node) {
    let there = |folder: PathBuf| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten();
        entries.map(|entry| entry.expect("an entry").file_name().display().to_string()).collect()
    };
    assert!(!node.pins().exists(), "{:?}", there(node.pins()));
    assert!(!node.run_dir().exists(), "{:?}", there(node.run_dir().to_owned()));
    let [conf, bin] = cni(mesh, node).map(there);
    assert_eq!((conf, bin), (vec!["10-lab.conflist".to_owned()], Vec::new()));
}

/// Requests by both families, each way; says how often the wire showed them in the clear.
fn exchanged(mesh: &Mesh, canary: &str, pods: [&Pod; 2]) -> u64 {
    let seen = mesh.lab.wire().watch(canary);
    for (from, to) in [(pods[0], pods[1]), (pods[1], pods[0])] {
        for ip in to.ips() {
            let answer = get(from, &format!("http://{}/{canary}", SocketAddr::new(*ip, 8080)));
            assert!(comes_from(&answer, from), "{answer}");
        }
    }
    seen.count().expect("a whole capture")
}

/// Removes a pod while nobody hears of it. Its network namespace would live for as long as its handle.
fn end(pod: Pod) {
    pod.remove().expect("removed");
    drop(pod);
}

#[test]
fn a_node_that_is_uninstalled_is_as_it_was_before() {
    let mesh = start();
    let [near, far, gone] = [(0, "near"), (1, "far"), (1, "gone")].map(|(node, name)| mesh.pod(node, name));
    let before = [&near, &far].map(fingerprint);
    for pod in [&near, &far] {
        serve(pod, &["http"]);
    }
    mesh.enrol("shop", &[&near, &far, &gone]);
    assert_eq!(exchanged(&mesh, "canary-before", [&near, &far]), 0, "the mesh hides it");
    assert_ne!(fingerprint(&far), before[1], "enrolment leaves traces while it lasts");

    let output = run(&mesh.node(1), settings(&mesh, &mesh.node(1)));
    assert_eq!(output.code(), Some(1), "{output:?}");
    assert!(output.stderr.contains("still serves this node"), "{output:?}");
    assert_eq!(exchanged(&mesh, "canary-still", [&near, &far]), 0, "nothing has changed");

    for node in mesh.lab.nodes() {
        node.kill_ztunnel().expect("killed");
    }
    refused(&near, &format!("http://{}:8080/", far.ip()));
    end(gone);
    // The one with all settings, as a DaemonSet has them, the other with those that matter.
    uninstall(&mesh, &mesh.node(0));
    let mut few = settings(&mesh, &mesh.node(1));
    few.retain(|name, _| !DEMANDED.contains(&name.as_str()));
    let output = run(&mesh.node(1), few);
    assert!(output.success(), "{output:?}");
    for (pod, before) in [&near, &far].into_iter().zip(&before) {
        assert_eq!(&fingerprint(pod), before, "rules, routes and sysctls of {}", pod.name());
        nothing_is_left(&mesh, &pod.node());
    }
    assert!(exchanged(&mesh, "canary-after", [&near, &far]) >= 4, "they talk plaintext again");

    for node in mesh.lab.nodes() {
        uninstall(&mesh, &node);
        nothing_is_left(&mesh, &node);
        node.start_ztunnel(cni_env(&mesh, &node)).expect("a ztunnel on a node as new");
    }
    mesh.settled(&[&near, &far]);
    assert_eq!(exchanged(&mesh, "canary-again", [&near, &far]), 0, "and are in the mesh again");
}

#[test]
fn a_pod_that_can_not_be_found_is_named_and_stays_refused_until_it_is_gone() {
    let mesh = start();
    let [peer, found, lost] =
        [(0, "peer"), (1, "found"), (1, "lost")].map(|(node, name)| mesh.pod(node, name));
    let before = fingerprint(&found);
    for pod in [&peer, &found] {
        serve(pod, &["http"]);
    }
    mesh.enrol("shop", &[&found, &lost]);
    let node = mesh.node(1);
    node.kill_ztunnel().expect("killed");
    let remembered = node.run_dir().join("sandboxes").join(format!("{}.json", lost.uid()));
    fs::remove_file(remembered).expect("it was remembered");

    let output = run(&node, settings(&mesh, &node));
    assert_eq!(output.code(), Some(1), "{output:?}");
    for part in ["1 pod(s)", lost.uid(), "Delete them, and uninstall again"] {
        assert!(output.stderr.contains(part), "{part}: {output:?}");
    }
    assert_eq!(fingerprint(&found), before, "others are released");
    nothing_is_pinned(&found);
    get(&found, &format!("http://{}:8080/", peer.ip()));
    refused(&lost, &format!("http://{}:8080/", peer.ip()));

    end(lost);
    uninstall(&mesh, &node);
    nothing_is_left(&mesh, &node);
}
