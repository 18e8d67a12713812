//! Gateways as the API server answers them, with what makes one a waypoint.

use serde::Deserialize;

use crate::cluster::Cluster;
use crate::cluster::objects::{Condition, Metadata};

/// The class that is asked for.
pub(super) const CLASS: &str = "airglow-waypoint";
/// The protocol of a waypoint's listener.
pub(super) const PROTOCOL: &str = "HBONE";
pub(super) const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
pub(super) const FOR_SERVICE_ACCOUNT: &str = "istio.io/for-service-account";
/// By which a namespace, service or pod names the waypoint that guards it.
pub(super) const USE_WAYPOINT: &str = "istio.io/use-waypoint";
pub(super) const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";

/// What there is to say of a Gateway of which nobody has said anything.
const UNHEARD: &str =
    "no controller has said anything about it; `airglow check` says whether Airglow's is well";

const API: &str = "/apis/gateway.networking.k8s.io/v1";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Gateway {
    pub(super) metadata: Metadata,
    pub(super) spec: Spec,
    pub(super) status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Spec {
    pub(super) gateway_class_name: String,
    listeners: Vec<Listener>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Listener {
    protocol: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) addresses: Vec<Address>,
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Address {
    pub(super) value: String,
}

impl Gateway {
    pub(super) fn is_waypoint(&self) -> bool {
        self.spec.listeners.iter().any(|listener| listener.protocol == PROTOCOL)
    }

    /// The account whose workloads it guards, if it is for one.
    pub(super) fn account(&self) -> Option<&str> {
        self.metadata.annotations.get(FOR_SERVICE_ACCOUNT).map(String::as_str)
    }

    /// What it guards.
    pub(super) fn traffic_type(&self) -> &str {
        let unsaid = if self.account().is_some() { "all" } else { "service" };
        self.metadata.label(WAYPOINT_FOR).unwrap_or(unsaid)
    }

    /// Whether it is ready: yes, no or unknown, why in a word, and why for people.
    pub(super) fn programmed(&self) -> (&str, &str, &str) {
        let condition = self.status.conditions.iter().find(|condition| condition.kind == "Programmed");
        // The API server's own word until somebody says another one.
        let said = condition.filter(|condition| condition.status != "Unknown");
        said.map_or(("Unknown", "Unknown", UNHEARD), |it| (&it.status, &it.reason, &it.message))
    }
}

/// Where a Gateway is.
pub(super) fn path(namespace: &str, name: &str) -> String {
    format!("{API}/namespaces/{namespace}/gateways/{name}")
}

/// The waypoints of a namespace, or all of them.
pub(super) fn waypoints(cluster: &Cluster, namespace: Option<&str>) -> anyhow::Result<Vec<Gateway>> {
    is_there(cluster)?;
    let path = match namespace {
        Some(namespace) => path(namespace, ""),
        None => format!("{API}/gateways"),
    };
    let mut found: Vec<Gateway> =
        cluster.list(path.trim_end_matches('/')).map_err(|error| anyhow::anyhow!("Gateways: {error}"))?;
    found.retain(Gateway::is_waypoint);
    Ok(found)
}

/// Fails where the cluster has no Gateway API.
pub(super) fn is_there(cluster: &Cluster) -> anyhow::Result<()> {
    let found = cluster.get::<serde_json::Value>(API).map_err(|error| anyhow::anyhow!("{API}: {error}"))?;
    anyhow::ensure!(
        found.is_some(),
        "this cluster has no Gateway API; define its kinds first:\n  kubectl apply --server-side -f \
         https://github.com/kubernetes-sigs/gateway-api/releases/download/v1.6.1/standard-install.yaml"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_gateway_says_what_it_guards_and_how_it_is() {
        let read = |value| serde_json::from_value::<Gateway>(value).expect("a Gateway");
        let plain = read(json!({"spec": {"listeners": [{"protocol": "HTTP"}]}}));
        assert!(!plain.is_waypoint());
        assert_eq!((plain.traffic_type(), plain.programmed().0), ("service", "Unknown"));
        let of_account = read(json!({
            "metadata": {"annotations": {FOR_SERVICE_ACCOUNT: "reviews"}},
            "spec": {"listeners": [{"protocol": "HBONE"}]},
            "status": {"conditions": [{"type": "Programmed", "status": "False", "reason": "Pending", "message": "m"}]},
        }));
        assert!(of_account.is_waypoint());
        assert_eq!((of_account.traffic_type(), of_account.account()), ("all", Some("reviews")));
        assert_eq!(of_account.programmed(), ("False", "Pending", "m"));
        let labelled = read(json!({"metadata": {"labels": {WAYPOINT_FOR: "workload"}}}));
        assert_eq!(labelled.traffic_type(), "workload");
    }
}
