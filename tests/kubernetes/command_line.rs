//! `airglow check`, `install` and `uninstall` on a real cluster.

use std::process::{Command, Output};

use lab::Cluster;
use serde_json::Value;

use crate::install::{SYSTEM, chained, chart_and_values, executable, start};
use crate::system::all_in_the_mesh;
use crate::{Namespace, asking, eventually};

pub(crate) fn airglow(cluster: &Cluster, args: &[&str]) -> Output {
    let mut command = Command::new(executable("airglow"));
    command.args(args).arg("--kubeconfig").arg(cluster.kubeconfig());
    command.output().expect("it is built: cargo build -p airglow")
}

pub(crate) fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

/// What `airglow check` finds out: whether all is well, and each fact as `about: text`.
fn check(cluster: &Cluster) -> (bool, Vec<String>) {
    let output = airglow(cluster, &["check", "-o", "json"]);
    let answer: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(&output)));
    let fact = |fact: &Value| {
        let text = |field: &str| fact[field].as_str().expect("text").to_owned();
        format!("{} {}: {}", text("verdict"), text("about"), text("text"))
    };
    let facts = answer["facts"].as_array().expect("a list").iter().map(fact).collect();
    assert_eq!(answer["ok"], output.status.code() == Some(0), "{}", said(&output));
    (output.status.success(), facts)
}

#[track_caller]
fn contains(facts: &[String], part: &str) {
    assert!(facts.iter().any(|fact| fact.contains(part)), "{part}: {facts:#?}");
}

/// Everything of ours that the API server still has.
fn left(cluster: &Cluster) -> String {
    let list = |args: &[&str]| {
        let all = [&["get", "--ignore-not-found", "-o", "name"], args].concat();
        cluster.kubectl(&all).unwrap_or_else(|error| panic!("{error}"))
    };
    let kinds = "deployments,daemonsets,services,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,\
                 networkpolicies,poddisruptionbudgets,pods,namespaces,customresourcedefinitions";
    let labelled = list(&[kinds, "-A", "-l", "app.kubernetes.io/part-of=airglow"]);
    let roots = list(&["configmaps", "-A", "--field-selector", "metadata.name=istio-ca-root-cert"]);
    [labelled, roots, list(&["namespace", SYSTEM])].concat()
}

/// The manifest for this cluster, as a person makes one with other values than the chart's.
fn manifest(cluster: &Cluster) -> String {
    let (chart, set) = chart_and_values(cluster);
    let set = format!("{set},createNamespace=true");
    let rendered = cluster.helm(&["template", "airglow", &chart, "--namespace", SYSTEM, "--set", &set]);
    let path = cluster.dir().join("airglow.yaml");
    std::fs::write(&path, rendered.expect("a manifest")).expect("writable");
    path.display().to_string()
}

#[test]
fn the_command_line_checks_installs_and_removes() {
    let cluster = start();
    let shop = Namespace::new(&cluster, "shop");
    shop.deploy_web(2);
    let (ok, facts) = check(&cluster);
    assert!(ok, "{facts:#?}");
    for part in [
        "ok api server: Kubernetes v1.",
        "ok nodes: 2 with Linux",
        "ok rights:",
        "note airglow: not installed",
    ] {
        contains(&facts, part);
    }

    // Images that nobody has: it gives up, and says what it waited for and why.
    let manifest = manifest(&cluster);
    let nowhere = ["install", "--manifest", &manifest, "--tag", "none", "--timeout", "5"];
    let failed = airglow(&cluster, &nowhere);
    assert_eq!(failed.status.code(), Some(2));
    let complaint = said(&failed);
    assert!(
        complaint.contains("ztunnel: ready on 0 of 2 nodes") && complaint.contains("ErrImageNeverPull"),
        "{complaint}"
    );
    let (ok, facts) = check(&cluster);
    assert!(!ok, "{facts:#?}");
    contains(&facts, "wrong controller:");

    // Again, with those that are there.
    let installed = airglow(&cluster, &["install", "--manifest", &manifest, "--timeout", "120"]);
    assert!(installed.status.success(), "{}", said(&installed));
    let (ok, facts) = check(&cluster);
    assert!(ok, "{facts:#?}");
    contains(&facts, "ok controller: 2 of 2");
    contains(&facts, "ok ztunnel: ready on 2 of 2 nodes");
    contains(&facts, "ok policies:");
    let again = airglow(&cluster, &["install", "--manifest", &manifest, "--timeout", "120"]);
    assert!(said(&again).contains("DaemonSet airglow-system/ztunnel is as it should be"), "{}", said(&again));

    cluster.kubectl(&["label", "namespace", shop.name, "istio.io/dataplane-mode=ambient"]).expect("a label");
    all_in_the_mesh(&cluster, &shop);
    eventually("pods are marked as enrolled", || match check(&cluster) {
        (true, facts) if facts.iter().any(|fact| fact.contains("ok pods: shop: 2 pods enrolled")) => Ok(()),
        (_, facts) => Err(facts.join("\n")),
    });

    asking::look_around(&cluster, &shop);
    remove(&cluster, &shop, &manifest);
}

/// Takes the mesh away: refused while it is used, complete afterwards.
fn remove(cluster: &Cluster, shop: &Namespace<'_>, manifest: &str) {
    let uninstall = ["uninstall", "--manifest", manifest, "--timeout", "180"];
    let refused = airglow(cluster, &uninstall);
    assert!(!refused.status.success() && said(&refused).contains("shop"), "{}", said(&refused));
    cluster.kubectl(&["label", "namespace", shop.name, "istio.io/dataplane-mode-"]).expect("a label less");
    eventually("pods are not marked any more", || match check(cluster).1 {
        facts if facts.iter().any(|fact| fact.contains(" pods: shop:")) => Err(facts.join("\n")),
        _ => Ok(()),
    });

    let removed = airglow(cluster, &uninstall);
    assert!(removed.status.success(), "{}", said(&removed));
    assert_eq!(left(cluster), "", "{}", said(&removed));
    for node in cluster.nodes() {
        assert_eq!(chained(&node), "", "the plugin is gone from {}", node.name());
        for path in ["/run/airglow", "/sys/fs/bpf/airglow", "/opt/cni/bin/ztunnel-cni"] {
            assert!(!node.path(path).expect("it is on").exists(), "{path} is left on {}", node.name());
        }
    }
    let (ok, facts) = check(cluster);
    assert!(ok, "{facts:#?}");
    contains(&facts, "note airglow: not installed");
    let nothing = airglow(cluster, &uninstall);
    assert!(nothing.status.success(), "a second time there is nothing to do: {}", said(&nothing));
}
