//! What the derivation is told about the mesh. Reads no environment: that is for the program's settings.

use std::collections::BTreeSet;

use model::Str;

use super::cluster::Cluster;

/// What the derivation is told about the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Names the cluster in workload uids.
    pub cluster_id: Str,
    /// Of every identity.
    pub trust_domain: Str,
    /// Its policies hold for the whole mesh. The mesh's own pods live there and are never enrolled.
    pub root_namespace: String,
    /// The network of pods and services, unless a label says otherwise.
    pub network: String,
    /// The DNS suffix of services.
    pub cluster_domain: String,
    /// Namespaces that are never enrolled, besides the root namespace.
    pub excluded_namespaces: BTreeSet<String>,
    /// A proof counts when it is a mark on its pod, where every replica sees it; a report alone is none.
    pub proofs_on_pods: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cluster_id: "Kubernetes".into(),
            trust_domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            network: String::new(),
            cluster_domain: "cluster.local".into(),
            // What every other pod needs to start must not wait for the mesh.
            excluded_namespaces: ["kube-system".to_owned()].into(),
            proofs_on_pods: false,
        }
    }
}

impl Config {
    pub(super) fn excludes(&self, namespace: &str) -> bool {
        namespace == self.root_namespace || self.excluded_namespaces.contains(namespace)
    }

    pub(super) fn network_of_mesh(&self, cluster: &Cluster) -> String {
        let labels = cluster.namespace(&self.root_namespace).map(|metadata| &metadata.labels);
        labels.and_then(|labels| labels.get("topology.istio.io/network")).unwrap_or(&self.network).clone()
    }
}
