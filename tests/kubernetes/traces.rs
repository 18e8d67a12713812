//! What a cluster has, so that what it had before a mesh and after it can be compared: every object of the API, and of every node
//! the files that it has written, the BPF file system, and the network of itself and of its pods.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use lab::{Cluster, ClusterNode};
use serde_json::Value;

use crate::eventually;

/// Kinds whose objects come and go by themselves, or are told apart by the pods that they are about.
const PASSING: [&str; 4] = ["componentstatuses", "events", "events.events.k8s.io", "pods"];

/// Words that are nobody's but ours, or Istio's, whose names we use.
const OURS: [&str; 4] = ["istio", "ambient", "ztunnel", "airglow-"];

/// Where kubelet and container runtime keep what belongs to single pods.
const OF_PODS: [&str; 6] =
    ["run/containerd", "run/netns", "run/runc", "var/lib/cni", "var/lib/containerd", "var/lib/kubelet"];

/// Rules, routes, settings and listeners of one network namespace.
const NETWORK: &str = "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; ss -Hlntu; \
    grep -r . /proc/sys/net/ipv4 /proc/sys/net/ipv6 2>/dev/null | grep -v -e tcp_fastopen_key -e stable_secret";

/// All of that.
pub(crate) struct Inventory {
    objects: BTreeSet<String>,
    /// Of each node, in order.
    nodes: Vec<Node>,
}

struct Node {
    files: BTreeSet<String>,
    pinned: BTreeSet<String>,
    /// Rules, and tables that are not the usual ones. Routes to pods come and go.
    network: String,
    /// By the name of each pod's network namespace.
    pods: BTreeMap<String, String>,
}

impl Inventory {
    pub(crate) fn of(cluster: &Cluster) -> Self {
        Self {
            objects: objects(cluster),
            nodes: cluster.nodes().map(|node| Node::of(cluster, &node)).collect(),
        }
    }

    /// Waits until the cluster has again what it had at first: the API server removes some things a moment later.
    pub(crate) fn must_be_that_of(&self, cluster: &Cluster) {
        eventually("the cluster is as it was", || match self.differences(&Self::of(cluster)) {
            none if none.is_empty() => Ok(()),
            some => Err(some.join("\n")),
        });
    }

    fn differences(&self, now: &Self) -> Vec<String> {
        let mut found = difference("objects", &self.objects, &now.objects);
        for (before, now) in self.nodes.iter().zip(&now.nodes) {
            found.extend(difference("files", &before.files, &now.files));
            found.extend(difference("pins", &before.pinned, &now.pinned));
            found.extend(difference("network", &lines(&before.network), &lines(&now.network)));
            let stayed = before.pods.iter().filter_map(|(name, was)| Some((name, was, now.pods.get(name)?)));
            let mut count = 0;
            for (name, was, is) in stayed {
                found.extend(difference(name, &lines(was), &lines(is)));
                count += 1;
            }
            assert!(count > 0, "a pod of before is on each node");
        }
        found
    }
}

impl Node {
    fn of(cluster: &Cluster, node: &ClusterNode) -> Self {
        let run = |script: &str| {
            let output = node.run(["sh", "-c", script]).expect("an end");
            assert!(output.success(), "{output:?}");
            output.stdout
        };
        let own = cluster.dir().join(node.name());
        let mut files = BTreeSet::new();
        // What the node has written to /etc, /opt and /var, and its /run.
        for top in ["layers/etc", "layers/opt", "layers/var", "run"] {
            list(&own.join(top), top.trim_start_matches("layers/"), &mut files);
        }
        let mut pinned = BTreeSet::new();
        list(&node.path("/sys/fs/bpf").expect("the node is on"), "bpf", &mut pinned);
        let network = "ip rule; ip -6 rule; for family in -4 -6; do ip $family route show table all | \
                       grep 'table ' | grep -v 'table local'; done; true";
        // An IPv6 address gets its routes when nobody else was found to have it, a second or two after its pod began.
        let tentative =
            "for name in /run/netns/*; do nsenter --net=$name ip -6 -oneline address show tentative; done";
        eventually("every pod has its addresses", || match run(tentative) {
            none if none.is_empty() => Ok(()),
            some => Err(some),
        });
        let each = format!(
            "for name in /run/netns/*; do echo \"== $name\"; nsenter --net=$name sh -c '{NETWORK}'; done"
        );
        let each = run(&each);
        let pods = each.split("== ").filter_map(|part| part.split_once('\n'));
        let pods = pods.map(|(name, facts)| (format!("{} {name}", node.name()), facts.to_owned())).collect();
        Self { files, pinned, network: run(network), pods }
    }
}

/// The name of every object, with labels and annotations where it is a namespace; and all that mention us.
fn objects(cluster: &Cluster) -> BTreeSet<String> {
    let kubectl = |args: &[&str]| cluster.kubectl(args).unwrap_or_else(|error| panic!("{error}"));
    let kinds = kubectl(&["api-resources", "--verbs=list", "-o", "name"]);
    let kinds = kinds.lines().filter(|kind| !PASSING.contains(kind)).collect::<Vec<_>>().join(",");
    let mut all = items(&kubectl(&["get", &kinds, "-A", "-o", "json", "--show-managed-fields"]));
    // Kubelets make these whenever they get to it.
    all.retain(|object| object["metadata"]["namespace"] != "kube-node-lease");
    for object in &mut all {
        // A node lists the images that it has.
        object["status"]["images"] = Value::Null;
    }
    let mut found: BTreeSet<String> = all.iter().map(name).collect();
    for namespace in all.iter().filter(|object| object["kind"] == "Namespace") {
        let metadata = &namespace["metadata"];
        found.insert(format!("{} has {} {}", name(namespace), metadata["labels"], metadata["annotations"]));
    }
    all.extend(items(&kubectl(&["get", "pods", "-A", "-o", "json", "--show-managed-fields"])));
    for object in &all {
        let text = object.to_string();
        if let Some(word) = OURS.iter().find(|word| text.contains(**word)) {
            found.insert(format!("{} mentions {word}: {text}", name(object)));
        }
    }
    found
}

fn items(list: &str) -> Vec<Value> {
    let list: Value = serde_json::from_str(list).expect("kubectl prints JSON");
    list["items"].as_array().expect("a list").clone()
}

fn name(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    format!("{} {}/{}", text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]))
}

fn list(folder: &Path, named: &str, found: &mut BTreeSet<String>) {
    // What is gone by now is not there.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = format!("{named}/{}", entry.file_name().display());
        if OF_PODS.contains(&name.as_str()) {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(&entry.path(), &name, found);
        }
        found.insert(name);
    }
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

fn difference(what: &str, before: &BTreeSet<String>, now: &BTreeSet<String>) -> Vec<String> {
    let more = now.difference(before).map(|line| format!("{what}: there is now {line}"));
    let less = before.difference(now).map(|line| format!("{what}: gone is {line}"));
    more.chain(less).collect()
}
