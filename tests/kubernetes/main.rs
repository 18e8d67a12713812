//! What the test cluster promises to everything that is tested on it: a Kubernetes as users have it, alone with itself, and gone
//! without a trace. Needs root and the programs that `scripts/cluster-binaries` builds, and fails without.
//!
//! Tests that leave the cluster as they found it share one; it is removed when this program ends.

mod asking;
mod command_line;
mod conformance;
mod enrolment;
mod faults;
mod identity;
mod install;
mod lifecycles;
mod mesh;
mod outages;
mod probes;
mod removal;
mod scaling;
mod services;
mod system;
mod traces;
mod traffic;
mod upgrade;
mod waypoint;
mod workloads;

use std::fmt::Display;
use std::sync::LazyLock;
use std::time::Duration;

use lab::{APP_IMAGE, Cluster, ClusterConfig, wait_looking_every};
use serde_json::Value;

/// For things that take seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Between two looks, most of which are programs of their own: on a small machine they would take the time of what they wait for.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Waits until this is so.
#[track_caller]
fn eventually<T, E: Display>(what: &str, condition: impl FnMut() -> Result<T, E>) -> T {
    wait_looking_every(LOOK_EVERY, what, PATIENCE, condition).unwrap_or_else(|error| panic!("{error}"))
}

static SHARED: LazyLock<Cluster> = LazyLock::new(|| {
    let cluster = Cluster::start(ClusterConfig::default()).expect("a cluster (root is needed)");
    cluster.load_app_image().expect("the image for pods of tests");
    cluster
});

/// The cluster's own DNS, which not all tests need.
static DNS: LazyLock<()> = LazyLock::new(|| shared().start_dns().expect("cluster DNS"));

/// The cluster of this program, with two nodes and [`APP_IMAGE`].
fn shared() -> &'static Cluster {
    &SHARED
}

/// The same with cluster DNS.
fn named() -> &'static Cluster {
    LazyLock::force(&DNS);
    shared()
}

/// A namespace of a test's own, which goes when the test ends.
struct Namespace<'a> {
    cluster: &'a Cluster,
    name: &'static str,
}

impl<'a> Namespace<'a> {
    fn new(cluster: &'a Cluster, name: &'static str) -> Self {
        cluster.kubectl(&["create", "namespace", name]).expect("a namespace");
        Self { cluster, name }
    }

    /// Runs kubectl, which must succeed, in this namespace.
    fn kubectl(&self, args: &[&str]) -> String {
        let args = [&["-n", self.name], args].concat();
        self.cluster.kubectl(&args).unwrap_or_else(|error| panic!("{error}"))
    }

    fn get(&self, what: &[&str]) -> Value {
        let said = self.kubectl(&[&["get", "-o", "json"], what].concat());
        serde_json::from_str(&said).expect("kubectl prints JSON")
    }

    /// A web server on `replicas` pods, as many on each node, behind the Service `web`; every answer has its pod's name.
    fn deploy_web(&self, replicas: usize) {
        let name = self.name;
        let yaml = format!(
            r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints:
      - {{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule,
          labelSelector: {{matchLabels: {{app: web}}}}}}
      containers:
      - name: web
        image: {APP_IMAGE}
        args: [http, --name, $(POD)]
        env: [{{name: POD, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]
        securityContext: {{runAsNonRoot: true}}
        readinessProbe: {{httpGet: {{path: /ready, port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: {name}}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
"#
        );
        self.cluster.apply(&yaml).expect("valid manifests");
        self.rolled_out();
    }

    fn rolled_out(&self) {
        self.cluster
            .rolled_out(self.name, "deployment/web", PATIENCE)
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// The pods of `web`: name, node and address.
    fn pods(&self) -> Vec<(String, String, String)> {
        let pods = self.get(&["pods", "-l", "app=web"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let pod = |pod: &Value| {
            (text(&pod["metadata"]["name"]), text(&pod["spec"]["nodeName"]), text(&pod["status"]["podIP"]))
        };
        pods["items"].as_array().expect("a list").iter().map(pod).collect()
    }

    /// What a web server answers to curl in a pod, once it does: nodes and DNS hear of a new service a moment later than its
    /// pods are ready.
    fn curl(&self, pod: &str, url: &str) -> Value {
        let ask = ["-n", self.name, "exec", pod, "--", "curl", "-sS", "-m", "10", url];
        eventually(&format!("an answer of {url}"), || {
            let said = self.cluster.kubectl(&ask).map_err(|error| error.to_string())?;
            serde_json::from_str(&said).map_err(|error| format!("{said:?}: {error}"))
        })
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // The cluster is removed soon; waiting for finalizers would be for nothing.
        drop(self.cluster.kubectl(&["delete", "namespace", self.name, "--wait=false"]));
    }
}
