//! Waypoints that scale: what is made of a Gateway that asks for it, that Kubernetes acts on it, and that requests notice none of it.
//! Nothing measures pods in the test cluster, so an autoscaler keeps to its bounds there and does nothing within them.

use std::fs;

use serde_json::{Value, json};

use crate::mesh::{AMBIENT, Pod};
use crate::traffic::{Client, Traffic};
use crate::waypoint::{client, with_waypoints};
use crate::{Namespace, eventually};

const GATEWAY: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: scaled, annotations: {airglow.dev/replicas: '2'}}
spec:
  gatewayClassName: airglow-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
";

impl Namespace<'_> {
    fn waypoints(&self) -> Vec<Pod> {
        self.all_pods().into_iter().filter(|pod| pod.name.starts_with("waypoint-")).collect()
    }

    /// Waits until so many pods of the waypoint are ready, and no others are there.
    fn scaled(&self, count: usize) {
        eventually(&format!("{count} pods of the waypoint"), || {
            let deployment = self.get(&["deployment", "waypoint"]);
            let (spec, status) = (&deployment["spec"], &deployment["status"]);
            let all = [&spec["replicas"], &status["replicas"], &status["readyReplicas"]];
            let is_so = all.iter().all(|number| **number == count) && self.waypoints().len() == count;
            if is_so { Ok(()) } else { Err(format!("{spec} {status}")) }
        });
    }

    fn exists(&self, what: &str) -> Result<(), String> {
        let found = self.kubectl(&["get", what, "--ignore-not-found", "-o", "name"]);
        if found.is_empty() { Err("it does not exist".to_owned()) } else { Ok(()) }
    }

    fn annotate(&self, annotations: &[&str]) {
        self.kubectl(&[&["annotate", "--overwrite", "gateway", "waypoint"], annotations].concat());
    }

    /// Asks for the pod to be evicted, as who drains a node does.
    fn evict(&self, pod: &Pod) -> Result<String, String> {
        let eviction = json!({
            "apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": pod.name, "namespace": self.name},
        });
        let file = self.cluster.dir().join(format!("evict-{}.json", pod.name));
        fs::write(&file, eviction.to_string()).expect("a file");
        let path = format!("/api/v1/namespaces/{}/pods/{}/eviction", self.name, pod.name);
        let words = ["create", "--raw", &path, "-f", &file.display().to_string()];
        self.cluster.kubectl(&words).map_err(|error| error.to_string())
    }

    /// Waits until the budget lets one pod go.
    fn may_disrupt_one(&self) {
        eventually("one disruption is allowed", || {
            let status = &self.get(&["poddisruptionbudget", "waypoint"])["status"];
            let is_so = status["disruptionsAllowed"] == 1 && status["currentHealthy"] == 2;
            if is_so { Ok(()) } else { Err(status.clone()) }
        });
    }
}

#[test]
fn a_waypoint_scales_and_gives_way_to_evictions_unnoticed() {
    let cluster = with_waypoints();
    let shop = Namespace::new(cluster, "scaled");
    shop.kubectl(&["label", "namespace", shop.name, &format!("{AMBIENT}=ambient")]);
    shop.deploy_web(2);
    let calls = Client::calls("calls", "http", "web.scaled:80");
    let traffic = Traffic::start(&shop, "traffic", &cluster.node(0), vec![calls]);
    shop.joined();
    cluster.apply(GATEWAY).expect("a Gateway");
    eventually("a waypoint is made", || shop.exists("deployment/waypoint"));
    shop.scaled(2);
    shop.kubectl(&["label", "namespace", shop.name, "istio.io/use-waypoint=waypoint"]);
    let waypoints = shop.waypoints();
    let by_waypoint = |answer: &Value| waypoints.iter().any(|pod| pod.ip == client(answer));
    shop.curl_until("traffic/calls", "http://web/", by_waypoint);

    traffic.undisturbed("an autoscaler that comes, and lifts a waypoint to its lower bound", || {
        shop.annotate(&["airglow.dev/max-replicas=3"]);
        eventually("an autoscaler is made", || shop.exists("horizontalpodautoscaler/waypoint"));
        eventually("the autoscaler has found what it scales", || {
            let status = &shop.get(&["horizontalpodautoscaler", "waypoint"])["status"];
            let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            let able = conditions.iter().any(|one| one["type"] == "AbleToScale" && one["status"] == "True");
            if able && status["currentReplicas"] == 2 { Ok(()) } else { Err(status.clone()) }
        });
        assert_eq!(shop.waypoints(), waypoints, "it takes them over as they are");
        shop.kubectl(&["scale", "deployment/waypoint", "--replicas=1"]);
        eventually("the autoscaler has acted", || {
            let hpa = shop.get(&["horizontalpodautoscaler", "waypoint"]);
            let is_so = hpa["status"]["desiredReplicas"] == 2 && hpa["status"]["lastScaleTime"].is_string();
            if is_so { Ok(()) } else { Err(hpa["status"].clone()) }
        });
        shop.scaled(2);
    });

    traffic.undisturbed("an eviction", || {
        shop.may_disrupt_one();
        let [first, second] = &shop.waypoints()[..] else { panic!("there are two") };
        shop.evict(first).expect("one may go");
        let refused = shop.evict(second).expect_err("not both");
        assert!(refused.contains("TooManyRequests") && refused.contains("disruption budget"), "{refused}");
        shop.scaled(2);
        let names: Vec<String> = shop.waypoints().into_iter().map(|pod| pod.name).collect();
        assert!(names.contains(&second.name) && !names.contains(&first.name), "{names:?}");
        shop.may_disrupt_one();
    });

    traffic.undisturbed("a waypoint that shrinks", || {
        shop.annotate(&["airglow.dev/replicas=1", "airglow.dev/max-replicas-"]);
        shop.scaled(1);
        eventually("neither of them is wanted any more", || {
            let left = shop.kubectl(&["get", "horizontalpodautoscaler,poddisruptionbudget", "-o", "name"]);
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
    });
    assert_eq!(traffic.account("calls")["failed"], 0);
    traffic.end();
}
