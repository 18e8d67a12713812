//! Which mesh a command asks, and how: the programs of this machine by their admin sockets, or those of a Kubernetes cluster by
//! a port-forward through its API server to the loopback of their pods.
//!
//! Asks only what reads. Knows the meaning of no answer.

use std::path::PathBuf;

use clap::Args;
use daemon::config::Vars;
use serde::de::DeserializeOwned;

use crate::admin_client::{self, AdminError};
use crate::cluster::manifest::NAMESPACE;
use crate::cluster::objects::{Metadata, Pod};
use crate::cluster::{At, Cluster, label};
use crate::nodes::{self, NoNodes, Node};

/// Where the chart lets root of a node (and who may forward ports to the pod) read the admin routes.
const PORT: u16 = 15000;

/// The label of waypoints' pods.
const GATEWAY: &str = "gateway.networking.k8s.io%2Fgateway-name";

/// The setting that says so.
const PORT_SETTING: &str = "AIRGLOW_ADMIN_PORT";

/// Which mesh.
#[derive(Args, Clone, Debug)]
pub(crate) struct Which {
    /// A ztunnel's run directory, or one with a directory per node (as a lab has). Without it and without --kubeconfig and
    /// --context: the mesh that runs on this machine, or else the cluster of the kubeconfig.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "context"])]
    pub(crate) run_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) at: At,
    /// The namespace of Airglow itself in a cluster.
    #[arg(long, value_name = "NAME", default_value = NAMESPACE, value_parser = label)]
    pub(crate) mesh_namespace: String,
}

/// A program that can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// A ztunnel's node; the pod's or directory's name otherwise.
    pub(crate) name: String,
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// An admin socket.
    Socket(PathBuf),
    /// A pod, its namespace and its admin port.
    Pod { namespace: String, name: String, port: u16 },
}

/// Why there is nobody to ask in a cluster.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoPods {
    /// Their list can't be had.
    #[error(
        "can't find Airglow's pods in namespace {0}: {1}; it takes the rights to list `pods` and to get and create `pods/portforward` there"
    )]
    Unlisted(String, String),
    /// There is no such pod.
    #[error(
        "no {1} runs in namespace {0} of this cluster; `airglow check` says what is wrong, --mesh-namespace names another one"
    )]
    None(String, &'static str),
    /// None on that node.
    #[error("no ztunnel runs on a node called `{wanted}`; there are {}", known.join(", "))]
    Unknown {
        /// The name that was asked for.
        wanted: String,
        /// The names that exist.
        known: Vec<String>,
    },
}

/// A mesh to ask.
pub(crate) enum Mesh {
    /// Of this machine.
    Here(Option<PathBuf>),
    /// Of a cluster, with the namespace of Airglow.
    Cluster(Box<Cluster>, String),
}

impl Mesh {
    /// Decides which one is meant. Asks nobody yet.
    pub(crate) fn find(which: &Which, vars: &dyn Vars) -> anyhow::Result<Self> {
        let Which { run_dir, at, mesh_namespace } = which;
        let named = at.kubeconfig.is_some() || at.context.is_some();
        if run_dir.is_some() || (!named && nodes::any()) {
            return Ok(Self::Here(run_dir.clone()));
        }
        if !named && !Cluster::is_known(at, vars) {
            return Err(NoNodes::Nowhere.into());
        }
        Ok(Self::Cluster(Box::new(Cluster::new(at, vars)?), mesh_namespace.clone()))
    }

    /// The cluster, if it is one's.
    pub(crate) fn cluster(&self) -> Option<&Cluster> {
        match self {
            Self::Here(_) => None,
            Self::Cluster(cluster, _) => Some(cluster),
        }
    }

    /// The nodes' ztunnels, by name of the node. `only`: one node's.
    pub(crate) fn nodes(&self, only: Option<&str>) -> anyhow::Result<Vec<Peer>> {
        match self {
            Self::Here(run_dir) => Ok(sockets(nodes::find(run_dir.as_deref(), only)?)),
            Self::Cluster(cluster, namespace) => {
                let pods = running(cluster, namespace, "ztunnel")?;
                Ok(one_per_node(pods, only)?)
            }
        }
    }

    /// The controllers; every one of them says the same of the mesh.
    pub(crate) fn controllers(&self) -> anyhow::Result<Vec<Peer>> {
        match self {
            Self::Here(run_dir) => Ok(sockets(nodes::controllers(run_dir.as_deref())?)),
            Self::Cluster(cluster, namespace) => {
                let pods = running(cluster, namespace, "airglow-controller")?;
                Ok(pods.iter().map(|pod| peer(pod.metadata.name.clone(), pod)).collect())
            }
        }
    }

    /// The waypoints of a namespace, or all.
    pub(crate) fn waypoints(&self, namespace: Option<&str>) -> anyhow::Result<Vec<Peer>> {
        match self {
            Self::Here(run_dir) => Ok(sockets(nodes::waypoints(run_dir.as_deref())?)),
            Self::Cluster(cluster, _) => {
                let within = namespace.map(|name| format!("/namespaces/{name}")).unwrap_or_default();
                let pods = pods(cluster, &format!("/api/v1{within}/pods?labelSelector={GATEWAY}"));
                let place = namespace.unwrap_or("all").to_owned();
                let pods = pods.map_err(|error| NoPods::Unlisted(place.clone(), error))?;
                anyhow::ensure!(!pods.is_empty(), NoPods::None(place, "waypoint"));
                Ok(pods.iter().map(|pod| peer(pod.metadata.path(), pod)).collect())
            }
        }
    }

    /// Asks everyone for `path`, those of a cluster at once.
    pub(crate) fn ask_all(&self, peers: &[Peer], path: &str) -> Vec<Result<String, AdminError>> {
        match self {
            Self::Here(_) => peers.iter().map(|peer| self.ask(peer, path)).collect(),
            Self::Cluster(cluster, _) => {
                let pods = peers.iter().filter_map(|peer| match &peer.place {
                    Place::Pod { namespace, name, port } => Some((namespace.as_str(), name.as_str(), *port)),
                    Place::Socket(_) => None,
                });
                cluster.ask_pods(&pods.collect::<Vec<_>>(), path)
            }
        }
    }

    /// The body of the answer to `GET path`.
    pub(crate) fn ask(&self, peer: &Peer, path: &str) -> Result<String, AdminError> {
        match &peer.place {
            Place::Socket(socket) => admin_client::get(socket, path),
            Place::Pod { .. } => {
                let answers = self.ask_all(std::slice::from_ref(peer), path);
                let nobody = || Err(AdminError::unreachable(&peer.name, path, "it is in no cluster"));
                answers.into_iter().next().unwrap_or_else(nobody)
            }
        }
    }

    /// The same for an answer in JSON.
    pub(crate) fn ask_json<T: DeserializeOwned>(&self, peer: &Peer, path: &str) -> Result<T, AdminError> {
        admin_client::read(&peer.name, path, &self.ask(peer, path)?)
    }
}

fn sockets(nodes: Vec<Node>) -> Vec<Peer> {
    nodes.into_iter().map(|Node { name, socket }| Peer { name, place: Place::Socket(socket) }).collect()
}

/// The pods of a component that can be asked.
fn running(cluster: &Cluster, namespace: &str, app: &'static str) -> Result<Vec<Pod>, NoPods> {
    let path = format!(
        "/api/v1/namespaces/{namespace}/pods?labelSelector=app%3D{app},app.kubernetes.io%2Fpart-of%3Dairglow"
    );
    let pods = pods(cluster, &path).map_err(|error| NoPods::Unlisted(namespace.to_owned(), error))?;
    if pods.is_empty() { Err(NoPods::None(namespace.to_owned(), app)) } else { Ok(pods) }
}

/// Those of a list that run.
fn pods(cluster: &Cluster, path: &str) -> Result<Vec<Pod>, String> {
    let mut pods = cluster.list::<Pod>(path)?;
    pods.retain(|pod| pod.status.phase == "Running");
    // Who is ready and stays comes first.
    pods.sort_by_key(|pod| {
        (!pod.is_ready(), pod.metadata.deletion_timestamp.is_some(), pod.metadata.name.clone())
    });
    Ok(pods)
}

/// While one ztunnel replaces another, a node has two; the one in charge answers for both.
fn one_per_node(pods: Vec<Pod>, only: Option<&str>) -> Result<Vec<Peer>, NoPods> {
    let mut peers: Vec<Peer> = Vec::new();
    for pod in pods {
        if !peers.iter().any(|known| known.name == pod.spec.node_name) {
            peers.push(peer(pod.spec.node_name.clone(), &pod));
        }
    }
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(wanted) = only {
        let known = peers.iter().map(|peer| peer.name.clone()).collect();
        peers.retain(|peer| peer.name == wanted);
        if peers.is_empty() {
            return Err(NoPods::Unknown { wanted: wanted.to_owned(), known });
        }
    }
    Ok(peers)
}

fn peer(name: String, pod: &Pod) -> Peer {
    let variables = pod.spec.containers.iter().flat_map(|container| &container.env);
    let port = variables.filter(|variable| variable.name == PORT_SETTING).find_map(|v| v.value.parse().ok());
    let Metadata { name: own, namespace, .. } = &pod.metadata;
    let (namespace, own) = (namespace.clone(), own.clone());
    Peer { name, place: Place::Pod { namespace, name: own, port: port.unwrap_or(PORT) } }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, node: &str, env: Value) -> Pod {
        let pod = json!({
            "metadata": {"name": name, "namespace": "mesh"}, "spec": {"nodeName": node, "containers": [{"env": env}]},
            "status": {"phase": "Running"},
        });
        serde_json::from_value(pod).expect("as the API server has it")
    }

    #[test]
    fn a_node_is_asked_once_at_the_port_that_its_pod_has() {
        let other = json!([{"name": "AIRGLOW_ADMIN_PORT", "value": "15099"}]);
        let pods = vec![
            pod("ztunnel-c", "n2", json!([])),
            pod("ztunnel-a", "n1", other),
            pod("ztunnel-b", "n1", json!([])),
        ];
        let peers = one_per_node(pods.clone(), None).expect("there are some");
        let found: Vec<_> = peers.iter().map(|peer| (peer.name.as_str(), peer.place.clone())).collect();
        let place = |name: &str, port| Place::Pod { namespace: "mesh".into(), name: name.into(), port };
        assert_eq!(found, [("n1", place("ztunnel-a", 15099)), ("n2", place("ztunnel-c", 15000))]);
        assert_eq!(one_per_node(pods.clone(), Some("n2")).expect("it is there").len(), 1);
        let error = one_per_node(pods, Some("n9")).expect_err("it is not").to_string();
        assert_eq!(error, "no ztunnel runs on a node called `n9`; there are n1, n2");
    }
}
