//! The pod that cleans a node: the node's own ztunnel, once, with the command `uninstall`. One per node, because it has to see
//! the folders of that node and to have ztunnel's capabilities.
//!
//! Values in, values out; asks nobody.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::cluster::objects::{Metadata, Pod};

/// The label that cleaners are found by.
pub(crate) const APP: &str = "ztunnel-uninstall";

/// Volumes that only a serving ztunnel needs: its token, and the roots that the controller publishes. A cleaner must start without.
const NOT_NEEDED: [&str; 2] = ["configMap", "projected"];

/// Where a cleaner sees the folder that ztunnel's run directory is in, so that it can remove the directory too: a mount of its own
/// can't be removed from inside.
const ABOVE: &str = "/host/above";

/// The setting that says where the run directory is.
const RUN_DIR: &str = "AIRGLOW_RUN_DIR";

/// The volume with the run directory.
const RUN: &str = "run";

/// The cleaner of `node`, after the pods of the DaemonSet `ztunnel`.
pub(crate) fn pod(ztunnel: &Value, node: &str) -> Value {
    let mut spec = ztunnel["spec"]["template"]["spec"].clone();
    let is_needed = |volume: &Value| NOT_NEEDED.iter().all(|kind| volume.get(kind).is_none());
    let mut dropped = Vec::new();
    let run_dir = widen_run_volume(&mut spec);
    if let Some(volumes) = spec["volumes"].as_array_mut() {
        dropped =
            volumes.iter().filter(|volume| !is_needed(volume)).map(|volume| volume["name"].clone()).collect();
        volumes.retain(is_needed);
    }
    for container in spec["containers"].as_array_mut().into_iter().flatten() {
        container["args"] = json!(["uninstall"]);
        // What it says at its end is what a person gets to read.
        container["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
        if let Some(mounts) = container["volumeMounts"].as_array_mut() {
            mounts.retain(|mount| !dropped.contains(&mount["name"]));
            for mount in mounts.iter_mut().filter(|mount| run_dir.is_some() && mount["name"] == RUN) {
                *mount = json!({"name": RUN, "mountPath": ABOVE, "mountPropagation": "HostToContainer"});
            }
        }
        if let (Some(run_dir), Some(env)) = (&run_dir, container["env"].as_array_mut()) {
            env.retain(|variable| variable["name"] != RUN_DIR);
            env.push(json!({"name": RUN_DIR, "value": run_dir}));
        }
        if let Some(container) = container.as_object_mut() {
            container.remove("readinessProbe");
        }
    }
    if let Some(spec) = spec.as_object_mut() {
        for (key, value) in [
            ("nodeName", json!(node)),
            ("restartPolicy", json!("OnFailure")),
            ("terminationGracePeriodSeconds", json!(0)),
        ] {
            spec.insert(key.to_owned(), value);
        }
        // Its own account goes with the other objects, and an interrupted removal must be able to begin again.
        for key in ["nodeSelector", "serviceAccount", "serviceAccountName"] {
            spec.remove(key);
        }
    }
    let namespace = &ztunnel["metadata"]["namespace"];
    let labels =
        json!({"app": APP, "istio.io/dataplane-mode": "none", "app.kubernetes.io/part-of": "airglow"});
    json!({
        "apiVersion": "v1", "kind": "Pod", "spec": spec,
        "metadata": {"generateName": format!("{APP}-"), "namespace": namespace, "labels": labels},
    })
}

/// Makes the volume of the run directory that of the folder above it. Says where the directory is in the container then.
fn widen_run_volume(spec: &mut Value) -> Option<String> {
    let volume = spec["volumes"].as_array_mut()?.iter_mut().find(|volume| volume["name"] == RUN)?;
    let (above, name) = volume["hostPath"]["path"].as_str()?.trim_end_matches('/').rsplit_once('/')?;
    let run_dir = format!("{ABOVE}/{name}");
    let above = if above.is_empty() { "/" } else { above };
    volume["hostPath"] = json!({"path": above, "type": "Directory"});
    Some(run_dir)
}

/// The nodes that the DaemonSet `ztunnel` is for.
pub(crate) fn nodes<'a>(ztunnel: &Value, nodes: impl IntoIterator<Item = &'a Metadata>) -> Vec<&'a str> {
    let selector = &ztunnel["spec"]["template"]["spec"]["nodeSelector"];
    let selector: BTreeMap<String, String> = serde_json::from_value(selector.clone()).unwrap_or_default();
    let is_chosen =
        |node: &&Metadata| selector.iter().all(|(key, value)| node.label(key) == Some(value.as_str()));
    nodes.into_iter().filter(is_chosen).map(|node| node.name.as_str()).collect()
}

/// What is awaited of cleaners: one line for each node that is not clean yet.
pub(crate) fn awaited(nodes: &[String], cleaners: &[Pod]) -> Vec<String> {
    let state = |node: &String| {
        let on_node = cleaners.iter().filter(|pod| pod.spec.node_name == *node).collect::<Vec<_>>();
        if on_node.iter().any(|pod| pod.status.phase == "Succeeded") {
            return None;
        }
        let trouble =
            on_node.first().map_or_else(|| "no pod of ours is there".to_owned(), |pod| pod.trouble());
        Some(format!("node {node}: {trouble}"))
    };
    nodes.iter().filter_map(state).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::manifest::{embedded, find};

    fn ztunnel() -> Value {
        find(&embedded(), "DaemonSet", "ztunnel").expect("it is there").body.clone()
    }

    #[test]
    fn a_cleaner_has_the_folders_and_the_rights_of_a_ztunnel_and_no_more() {
        let pod = pod(&ztunnel(), "n1");
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["args"], json!(["uninstall"]));
        assert_eq!(
            (&pod["spec"]["nodeName"], &pod["spec"]["restartPolicy"]),
            (&json!("n1"), &json!("OnFailure"))
        );
        assert_eq!(container.get("readinessProbe"), None, "it serves nothing");
        let names = |list: &Value| -> Vec<String> {
            let names =
                list.as_array().expect("a list").iter().map(|item| item["name"].as_str().expect("a name"));
            names.map(str::to_owned).collect()
        };
        let expected = ["run", "netns", "bpf", "cgroup", "cri", "cni-conf", "cni-bin"];
        assert_eq!(names(&pod["spec"]["volumes"]), expected);
        assert_eq!(names(&container["volumeMounts"]), expected);
        let before = ztunnel();
        let before = &before["spec"]["template"]["spec"]["containers"][0];
        for same in ["image", "securityContext"] {
            assert_eq!(container[same], before[same], "{same}");
        }
        let mut env = before["env"].as_array().expect("a list").clone();
        env.push(json!({"name": "AIRGLOW_RUN_DIR", "value": "/host/above/airglow"}));
        assert_eq!(container["env"], Value::Array(env), "its run directory can be removed");
        assert_eq!(pod["spec"]["volumes"][0]["hostPath"]["path"], "/run");
        assert_eq!(container["volumeMounts"][0]["mountPath"], "/host/above");
        assert_eq!(pod["metadata"]["namespace"], "airglow-system");
        assert_eq!(pod["spec"].get("serviceAccountName"), None);
        assert_eq!(pod["spec"]["automountServiceAccountToken"], false, "it has no right on the API");
    }

    #[test]
    fn the_nodes_are_those_of_the_daemon_set() {
        let node = |name: &str, system: &str| Metadata {
            name: name.into(),
            labels: [("kubernetes.io/os".to_owned(), system.to_owned())].into(),
            ..Metadata::default()
        };
        let all = [node("n1", "linux"), node("w1", "windows")];
        assert_eq!(nodes(&ztunnel(), &all), ["n1"]);
        assert_eq!(nodes(&json!({}), &all), ["n1", "w1"], "one without a selector is for all");
    }

    #[test]
    fn each_node_that_is_not_clean_is_named() {
        let cleaner = |node: &str, phase: &str| -> Pod {
            serde_json::from_value(json!({"spec": {"nodeName": node}, "status": {"phase": phase}}))
                .expect("a pod")
        };
        let nodes = ["n1", "n2", "n3"].map(str::to_owned);
        let found = awaited(&nodes, &[cleaner("n1", "Succeeded"), cleaner("n2", "Pending")]);
        assert_eq!(found, ["node n2: phase Pending", "node n3: no pod of ours is there"]);
    }
}
