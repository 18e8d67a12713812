//! What `airglow waypoint apply` waits for, and when waiting is of no use. Changes nothing.

use std::time::{Duration, Instant};

use super::gateway::{self, Gateway};
use crate::cluster::Cluster;
use crate::cluster::objects::Pod;

/// What the controller could not make for so long, it can't make: it tries again every five seconds.
const TRIED: Duration = Duration::from_secs(12);

/// The reason of a Gateway of which nothing can be made.
const NOT_MADE: &str = "NoResources";

/// A waypoint that is to become ready.
pub(super) struct Awaited<'a> {
    cluster: &'a Cluster,
    namespace: &'a str,
    name: &'a str,
    /// Since when it can't be made.
    not_made: Option<Instant>,
}

impl<'a> Awaited<'a> {
    /// Nothing is known of it yet.
    pub(super) fn new(cluster: &'a Cluster, namespace: &'a str, name: &'a str) -> Self {
        Self { cluster, namespace, name, not_made: None }
    }

    /// What is awaited of it, or why that won't come.
    pub(super) fn look(&mut self) -> anyhow::Result<Vec<String>> {
        let Self { cluster, namespace, name, .. } = *self;
        let gateway = match cluster.get::<Gateway>(&gateway::path(namespace, name)) {
            Ok(Some(gateway)) => gateway,
            Ok(None) => anyhow::bail!("somebody has deleted Gateway {namespace}/{name}"),
            Err(error) => return Ok(vec![error]),
        };
        let (status, reason, message) = gateway.programmed();
        if status == "True" {
            return Ok(Vec::new());
        }
        match reason {
            NOT_MADE => {
                let since = *self.not_made.get_or_insert_with(Instant::now);
                anyhow::ensure!(
                    since.elapsed() < TRIED,
                    "waypoint {namespace}/{name} can't be made: {message}\nIts Gateway stays; the controller tries again"
                );
            }
            _ => self.not_made = None,
        }
        Ok([format!("{reason}: {message}")].into_iter().chain(self.pods()).collect())
    }

    /// What keeps its pods from being ready.
    fn pods(&self) -> Vec<String> {
        let Self { cluster, namespace, name, .. } = self;
        let path = format!(
            "/api/v1/namespaces/{namespace}/pods?labelSelector=gateway.networking.k8s.io%2Fgateway-name%3D{name}"
        );
        match cluster.list::<Pod>(&path) {
            Ok(pods) => {
                let unready = pods.iter().filter(|pod| !pod.is_ready() && !pod.is_over());
                unready.map(|pod| format!("pod {}: {}", pod.metadata.name, pod.trouble())).collect()
            }
            Err(error) => vec![error],
        }
    }
}
