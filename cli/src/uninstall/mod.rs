//! `airglow uninstall`: takes Airglow from every node, then from the cluster, and waits until it is gone.
//!
//! Can be interrupted and run again. Takes nobody out of the mesh: it refuses while someone is in it.

mod cleaner;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use daemon::config::Vars;
use serde_json::Value;

use crate::Terminal;
use crate::cluster::manifest::{self, Object};
use crate::cluster::objects::{Metadata, Named, Pod};
use crate::cluster::wait::{Patience, Wait};
use crate::cluster::{Answer, At, Cluster, is_ours};
use crate::interrupt::Interrupt;
use crate::progress::{Progress, To};
use crate::term::listed;

/// What the controller makes by itself in its namespace: the authority's key, and who writes.
const MADE: [&str; 2] = [
    "/api/v1/namespaces/{}/secrets/airglow-ca",
    "/apis/coordination.k8s.io/v1/namespaces/{}/leases/airglow-controller",
];

/// What it makes in every namespace.
const ROOTS: &str = "istio-ca-root-cert";

/// What it makes for the whole cluster, where the Gateway API is, and what those name as their controller.
const CLASSES: &str = "/apis/gateway.networking.k8s.io/v1/gatewayclasses";
const OF_WAYPOINTS: &str = "airglow.dev/waypoint-controller";

/// The name under which it does.
const CONTROLLER: &str = "airglow-controller";

#[derive(Args, Debug)]
pub(crate) struct Uninstall {
    #[command(flatten)]
    pub(crate) at: At,
    /// What was installed, if that is not what the chart makes with its defaults: the file that `install --manifest` got.
    #[arg(long, value_name = "FILE")]
    pub(crate) manifest: Option<PathBuf>,
    /// Go on though pods are in the mesh: they lose its protection, and connections that they have open.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) patience: Patience,
}

/// An uninstallation that is under way.
struct Removal<'a> {
    cluster: &'a Cluster,
    progress: &'a Progress,
    wait: Wait<'a>,
    terminal: Terminal,
    namespace: String,
}

/// Removes everything that `install` and what it installed have made.
pub(crate) fn run(
    args: &Uninstall,
    stdout: Terminal,
    vars: &dyn Vars,
    interrupt: &Interrupt,
) -> anyhow::Result<ExitCode> {
    let objects = manifest::load(args.manifest.as_deref())?;
    let ztunnel = manifest::find(&objects, "DaemonSet", "ztunnel")?;
    let namespace = ztunnel.text("namespace").to_owned();
    let cluster = Cluster::new(&args.at, vars)?;
    let progress = Progress::new(To::Stdout, stdout.live, stdout.style);
    let wait = Wait::new(args.patience, interrupt, &progress);
    let removal = Removal { cluster: &cluster, progress: &progress, wait, terminal: stdout, namespace };
    if !args.force {
        refuse_while_used(&cluster)?;
    }
    // Without its namespace there is no place to clean nodes from.
    if cluster.get::<Named>(&format!("/api/v1/namespaces/{}", removal.namespace)).map_err(asking)?.is_some() {
        removal.nodes(ztunnel)?;
    } else {
        progress.line(&format!("There is no namespace {}: nodes are not looked at", removal.namespace));
    }
    removal.objects(&objects)?;
    removal.definitions()?;
    progress.rest();
    removal.say("Airglow is gone");
    Ok(ExitCode::SUCCESS)
}

fn asking(error: String) -> anyhow::Error {
    anyhow::anyhow!("the API server: {error}")
}

/// Refuses while a pod is in the mesh or would be again.
fn refuse_while_used(cluster: &Cluster) -> anyhow::Result<()> {
    let namespaces: Vec<Named> = cluster
        .list("/api/v1/namespaces?labelSelector=istio.io%2Fdataplane-mode%3Dambient")
        .map_err(asking)?;
    let pods: Vec<Pod> = cluster.list("/api/v1/pods").map_err(asking)?;
    match in_use(&namespaces, &pods) {
        None => Ok(()),
        Some(why) => {
            anyhow::bail!("{why}; or say --force, and they lose its protection and their open connections")
        }
    }
}

/// Why the mesh can't go yet.
fn in_use(namespaces: &[Named], pods: &[Pod]) -> Option<String> {
    if let Some(first) = namespaces.first() {
        let names: Vec<_> = namespaces.iter().map(|namespace| namespace.metadata.name.as_str()).collect();
        return Some(format!(
            "these namespaces are in the mesh: {}; take them out, as with `kubectl label namespace {} istio.io/dataplane-mode-`",
            listed(names.iter().copied()),
            first.metadata.name
        ));
    }
    let is_in =
        |pod: &&Pod| !pod.is_over() && pod.metadata.annotations.contains_key("ambient.istio.io/redirection");
    let pods: Vec<_> = pods.iter().filter(is_in).map(|pod| pod.metadata.path()).collect();
    (!pods.is_empty()).then(|| {
        let pods = listed(pods.iter().map(String::as_str));
        format!("still in the mesh: {pods}; take the label istio.io/dataplane-mode from them, or wait")
    })
}

impl Removal<'_> {
    fn say(&self, what: &str) {
        self.progress.line(&format!("{} {what}", self.terminal.style.green(self.terminal.sign())));
    }

    /// Ends the ztunnels, then runs each once more to take from its node what outlives it.
    fn nodes(&self, wanted: &Object) -> anyhow::Result<()> {
        // What runs may have been installed with other values.
        let running: Option<Value> =
            if self.is_ours(wanted)? { self.cluster.get(&wanted.path()).map_err(asking)? } else { None };
        let ztunnel = running.as_ref().unwrap_or(&wanted.body);
        let all: Vec<Named> = self.cluster.list("/api/v1/nodes").map_err(asking)?;
        let nodes = cleaner::nodes(ztunnel, all.iter().map(|node| &node.metadata));
        let nodes: Vec<_> = nodes.into_iter().map(str::to_owned).collect();
        self.remove_pods(cleaner::APP, None)?;
        if let Some(running) = &running {
            let app =
                running["spec"]["selector"]["matchLabels"]["app"].as_str().unwrap_or("ztunnel").to_owned();
            self.remove(&wanted.path(), &wanted.title())?;
            self.wait.until("the ztunnels' end", || self.pods_left(&app))?;
            self.say(&format!("{} removed", wanted.title()));
        }
        let pods = format!("/api/v1/namespaces/{}/pods", self.namespace);
        for node in &nodes {
            self.cluster.create(&pods, &cleaner::pod(ztunnel, node)).map_err(asking)?;
        }
        self.wait.until("nodes to be cleaned", || match self.pods(cleaner::APP) {
            Ok(cleaners) => cleaner::awaited(&nodes, &cleaners),
            Err(error) => vec![error],
        })?;
        self.remove_pods(cleaner::APP, Some("the cleaners' end"))?;
        self.say(&format!("{} nodes cleaned", nodes.len()));
        Ok(())
    }

    /// The controller and what it has made, then the rest in the reverse order of its making, so that nothing that runs loses what
    /// it stands on.
    fn objects(&self, objects: &[Object]) -> anyhow::Result<()> {
        let is_controller = |object: &&Object| object.kind() == "Deployment";
        for object in objects.iter().filter(is_controller) {
            self.object(object)?;
        }
        self.wait.until("the controller's end", || self.pods_left(CONTROLLER))?;
        // From now on nobody makes it again.
        self.made()?;
        for object in objects.iter().rev().filter(|object| !is_controller(object) && !object.is_definition())
        {
            self.object(object)?;
        }
        Ok(())
    }

    /// Removes those definitions of ours of which nobody has an object: with a definition go its objects, which are the users' own.
    fn definitions(&self) -> anyhow::Result<()> {
        for definition in manifest::definitions() {
            if !self.is_ours(&definition)? {
                continue;
            }
            let objects: Vec<Named> = self.cluster.list(&definition.defined()).map_err(asking)?;
            if objects.is_empty() {
                self.object(&definition)?;
                continue;
            }
            let names = objects.iter().map(|object| object.metadata.path()).collect::<Vec<_>>();
            self.progress.line(&format!(
                "  {} stays, because there are {}; `kubectl delete crd {}` removes all of it",
                definition.title(),
                listed(names.iter().map(String::as_str)),
                definition.text("name")
            ));
        }
        Ok(())
    }

    /// Removes one, unless it is nobody's or somebody else's: such as a namespace that was there before.
    fn object(&self, object: &Object) -> anyhow::Result<()> {
        if self.is_ours(object)? {
            self.remove(&object.path(), &object.title())?;
            self.say(&format!("{} removed", object.title()));
        }
        Ok(())
    }

    /// Whether there is such an object, and it is of an Airglow.
    fn is_ours(&self, object: &Object) -> anyhow::Result<bool> {
        let found: Option<Named> = self.cluster.get(&object.path()).map_err(asking)?;
        Ok(found.is_some_and(|found| is_ours(&found.metadata.labels)))
    }

    /// Removes what the controller has made.
    fn made(&self) -> anyhow::Result<()> {
        for path in MADE {
            let path = path.replace("{}", &self.namespace);
            self.remove(&path, &path)?;
        }
        let maps = format!("/api/v1/configmaps?fieldSelector=metadata.name%3D{ROOTS}");
        let maps: Vec<Value> = self.cluster.list(&maps).map_err(asking)?;
        for map in maps.iter().filter(|map| is_made(map)) {
            let namespace = map["metadata"]["namespace"].as_str().unwrap_or_default();
            let path = format!("/api/v1/namespaces/{namespace}/configmaps/{ROOTS}");
            self.cluster
                .delete(&path)
                .map_err(|error| anyhow::anyhow!("ConfigMap {namespace}/{ROOTS}: {error}"))?;
        }
        self.classes()
    }

    /// Removes the classes of waypoints. Their Gateways are the users'; what was made for those goes with them.
    fn classes(&self) -> anyhow::Result<()> {
        // Without the Gateway API there are none.
        if self.cluster.get::<Value>(CLASSES).map_err(asking)?.is_none() {
            return Ok(());
        }
        let classes: Vec<Value> = self.cluster.list(CLASSES).map_err(asking)?;
        for class in classes.iter().filter(|class| class["spec"]["controllerName"] == OF_WAYPOINTS) {
            let name = class["metadata"]["name"].as_str().unwrap_or_default();
            self.remove(&format!("{CLASSES}/{name}"), &format!("GatewayClass {name}"))?;
        }
        Ok(())
    }

    /// Removes an object and waits until it is gone.
    fn remove(&self, path: &str, title: &str) -> anyhow::Result<()> {
        self.cluster.delete(path).map_err(|error| anyhow::anyhow!("{title}: {error}"))?;
        self.wait.until(&format!("the end of {title}"), || match self.cluster.get::<Named>(path) {
            Ok(None) => Vec::new(),
            Ok(Some(_)) => vec!["it is still there".to_owned()],
            Err(error) => vec![error],
        })
    }

    fn remove_pods(&self, app: &str, awaited: Option<&str>) -> anyhow::Result<()> {
        for pod in self.pods(app).map_err(asking)? {
            let Metadata { namespace, name, .. } = &pod.metadata;
            self.cluster.delete(&format!("/api/v1/namespaces/{namespace}/pods/{name}")).map_err(asking)?;
        }
        self.wait.until(awaited.unwrap_or("the end of an earlier attempt"), || self.pods_left(app))
    }

    fn pods(&self, app: &str) -> Answer<Vec<Pod>> {
        self.cluster.list(&format!("/api/v1/namespaces/{}/pods?labelSelector=app%3D{app}", self.namespace))
    }

    fn pods_left(&self, app: &str) -> Vec<String> {
        match self.pods(app) {
            Ok(pods) => pods
                .iter()
                .map(|pod| format!("pod {} on {}", pod.metadata.name, pod.spec.node_name))
                .collect(),
            Err(error) => vec![error],
        }
    }
}

/// Whether our controller wrote it, and not that of another mesh.
fn is_made(map: &Value) -> bool {
    let managers = map["metadata"]["managedFields"].as_array();
    managers.into_iter().flatten().any(|entry| entry["manager"] == CONTROLLER)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_is_in_the_mesh_keeps_it_there() {
        let named = |name: &str| Named { metadata: Metadata { name: name.into(), ..Metadata::default() } };
        let pod = |phase: &str, annotations: Value| -> Pod {
            let metadata = json!({"namespace": "shop", "name": "web", "annotations": annotations});
            serde_json::from_value(json!({"metadata": metadata, "status": {"phase": phase}})).expect("a pod")
        };
        let mark = json!({"ambient.istio.io/redirection": "enabled"});
        assert_eq!(in_use(&[], &[pod("Running", json!({})), pod("Succeeded", mark.clone())]), None);
        let labelled = in_use(&[named("shop"), named("cart")], &[]).expect("in use");
        assert!(labelled.contains("shop, cart") && labelled.contains("label namespace shop"), "{labelled}");
        assert!(
            in_use(&[], &[pod("Running", mark)]).expect("in use").contains("still in the mesh: shop/web")
        );
    }

    #[test]
    fn only_our_own_config_maps_go() {
        let map = |manager: &str| json!({"metadata": {"managedFields": [{"manager": "kubectl"}, {"manager": manager}]}});
        assert!(is_made(&map("airglow-controller")));
        assert!(!is_made(&map("pilot-discovery")) && !is_made(&json!({})));
    }
}
