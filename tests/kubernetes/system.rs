//! A mesh on a cluster of a test's own, which may break it: who is in it, who serves it, and how its parts end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use lab::{APP_IMAGE, Cluster, ClusterNode, Watch, wait_until};
use serde_json::{Value, json};

use crate::install::SYSTEM;
use crate::{Namespace, PATIENCE, eventually};

/// The annotation by which tools, and replicas of the controller, know who is in the mesh.
const REDIRECTION: &str = "ambient.istio.io/redirection";

pub(crate) fn kubectl(cluster: &Cluster, args: &[&str]) -> String {
    cluster.kubectl(args).unwrap_or_else(|error| panic!("{error}"))
}

fn get(cluster: &Cluster, args: &[&str]) -> Result<Vec<Value>, String> {
    let said =
        cluster.kubectl(&[&["get", "-o", "json"], args].concat()).map_err(|error| error.to_string())?;
    let mut list: Value = serde_json::from_str(&said).map_err(|error| error.to_string())?;
    Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What a node's ztunnel answers on its admin socket, if there is one and it does not refuse.
fn ask(node: &ClusterNode, path: &str) -> Result<String, String> {
    let socket = node.path("/run/airglow/admin.sock").map_err(|error| error.to_string())?;
    let url = format!("http://ztunnel{path}");
    let curl = ["-sSf", "-m", "10", "--unix-socket", &socket.display().to_string(), &url].map(str::to_owned);
    let output = Command::new("curl").args(curl).output().expect("curl runs");
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Waits until each pod of the namespace that has not ended is in the mesh: by what its node's ztunnel proves, by what its
/// annotation says, and by what every ztunnel has heard.
pub(crate) fn all_in_the_mesh(cluster: &Cluster, namespace: &Namespace<'_>) {
    eventually(&format!("every pod of {} is in the mesh", namespace.name), || {
        let (mut known, mut heard) = (BTreeMap::new(), Vec::new());
        for node in cluster.nodes() {
            let pods: Vec<Value> =
                serde_json::from_str(&ask(&node, "/pods")?).map_err(|error| error.to_string())?;
            known.extend(pods.into_iter().map(|pod| (text(&pod["uid"]), pod)));
            let dump: Value =
                serde_json::from_str(&ask(&node, "/config_dump")?).map_err(|error| error.to_string())?;
            let tunnels =
                dump["workloads"].as_array().into_iter().flatten().filter(|it| it["protocol"] == "HBONE");
            heard
                .push(tunnels.map(|it| (text(&it["namespace"]), text(&it["name"]))).collect::<BTreeSet<_>>());
        }
        for pod in get(cluster, &["pods", "-n", namespace.name])? {
            let metadata = &pod["metadata"];
            let (phase, of_it) = (text(&pod["status"]["phase"]), known.get(&text(&metadata["uid"])));
            let marked = metadata["annotations"][REDIRECTION] == "enabled";
            let own_name = (namespace.name.to_owned(), text(&metadata["name"]));
            let is_heard = heard.iter().all(|names| names.contains(&own_name));
            let is_in = marked && is_heard && of_it.is_some_and(|pod| pod["state"] == "enrolled");
            if !is_in && !["Succeeded", "Failed"].contains(&phase.as_str()) {
                let name = &metadata["name"];
                return Err(format!(
                    "{name} ({phase}) marked: {marked}, heard of: {is_heard}, ztunnel: {of_it:?}"
                ));
            }
        }
        Ok(())
    });
}

/// An echo server on a node, as a pod that is started again when its node is; its address and port.
pub(crate) fn echo_server(shop: &Namespace<'_>, name: &str, node: &ClusterNode) -> String {
    let manifest = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": shop.name, "labels": {"app": "echo"}},
        "spec": {
            "nodeName": node.name(), "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "echo", "image": APP_IMAGE, "args": ["echo"]}],
        },
    });
    shop.cluster.apply(&manifest.to_string()).expect("a pod");
    let timeout = format!("--timeout={}s", PATIENCE.as_secs());
    shop.kubectl(&["wait", "--for=condition=Ready", &timeout, "pod", name]);
    format!("{}:8080", text(&shop.get(&["pod", name])["status"]["podIP"]))
}

/// Watches for what the pods of tests say to each other and may not say in the clear: anything on the port where they listen.
pub(crate) fn plaintext(cluster: &Cluster) -> Watch {
    cluster.wire().watch_port(8080)
}

/// The pods of ztunnel: their names, and whether they are ready; those that are ending are not.
pub(crate) fn ztunnels(cluster: &Cluster) -> Result<BTreeMap<String, bool>, String> {
    let pods = get(cluster, &["pods", "-n", SYSTEM, "-l", "app=ztunnel"])?;
    let ready = |pod: &Value| {
        let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        let is_ready = conditions.any(|it| it["type"] == "Ready" && it["status"] == "True");
        is_ready && pod["metadata"]["deletionTimestamp"].is_null()
    };
    Ok(pods.iter().map(|pod| (text(&pod["metadata"]["name"]), ready(pod))).collect())
}

/// Waits until each node has a ztunnel that is ready and none of those, which may be ending still.
pub(crate) fn succeeded(cluster: &Cluster, before: &BTreeMap<String, bool>) {
    eventually("each node has a new ztunnel", || {
        let now = ztunnels(cluster)?;
        let new = now.iter().filter(|(name, ready)| **ready && !before.contains_key(*name)).count();
        if new == cluster.nodes().count() { Ok(()) } else { Err(format!("{now:?}")) }
    });
}

/// Waits until those are gone, too.
pub(crate) fn replaced(cluster: &Cluster, before: &BTreeMap<String, bool>) {
    succeeded(cluster, before);
    eventually("ztunnels of before have ended", || {
        let now = ztunnels(cluster)?;
        if now.keys().any(|name| before.contains_key(name)) { Err(format!("{now:?}")) } else { Ok(()) }
    });
}

/// Ends a node's ztunnel as a crash does.
pub(crate) fn crash(node: &ClusterNode) {
    let processes = fs::read_dir(node.path("/proc").expect("the node is on")).expect("its processes");
    let is_ztunnel = |entry: &fs::DirEntry| {
        fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim_end() == "ztunnel")
    };
    let found: Vec<_> = processes.flatten().filter(is_ztunnel).map(|entry| entry.file_name()).collect();
    let [ztunnel] = &found[..] else { panic!("one ztunnel on {}: {found:?}", node.name()) };
    let killed = node.run(["kill".as_ref(), "-9".as_ref(), ztunnel.as_os_str()]).expect("an end");
    assert!(killed.success(), "{killed:?}");
}

/// Waits until a node's ztunnel is ready, by its own word: kubelet hears of it up to two seconds later.
pub(crate) fn serves(node: &ClusterNode) {
    let what = format!("the ztunnel of {} is ready", node.name());
    // Looked for often: a test goes by the time.
    wait_until(&what, PATIENCE, || ask(node, "/healthz/ready")).unwrap_or_else(|error| panic!("{error}"));
}
