//! Rows of what discovery told a ztunnel, as its admin server has it; spelt as Istio's tools have it.
//!
//! Pure.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::term::Table;

/// A workload in the answer to `/workloads`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Workload {
    uid: String,
    name: String,
    namespace: String,
    service_account: String,
    workload_ips: Vec<String>,
    protocol: String,
    node: String,
    status: String,
    authorization_policies: Vec<String>,
    services: Map<String, Value>,
    waypoint: Option<Waypoint>,
}

#[derive(Debug, Deserialize)]
struct Waypoint {
    destination: String,
}

pub(super) fn workloads() -> Table {
    Table::new([
        "NAMESPACE",
        "NAME",
        "ADDRESSES",
        "NODE",
        "PROTOCOL",
        "STATUS",
        "SERVICE ACCOUNT",
        "+WAYPOINT",
        "+SERVICES",
        "+POLICIES",
        "+UID",
    ])
}

pub(super) fn workload_row(workload: Workload) -> [String; 11] {
    [
        workload.namespace,
        workload.name,
        workload.workload_ips.join(","),
        workload.node,
        workload.protocol,
        workload.status,
        workload.service_account,
        waypoint(workload.waypoint),
        workload.services.keys().map(String::as_str).collect::<Vec<_>>().join(","),
        workload.authorization_policies.join(","),
        workload.uid,
    ]
}

fn waypoint(waypoint: Option<Waypoint>) -> String {
    waypoint.map_or_else(|| "-".to_owned(), |waypoint| waypoint.destination)
}

/// A service in the answer to `/services`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Service {
    namespace: String,
    hostname: String,
    vips: Vec<String>,
    ports: Map<String, Value>,
    endpoints: Map<String, Value>,
    waypoint: Option<Waypoint>,
    load_balancer: LoadBalancer,
}

#[derive(Debug, Deserialize)]
struct LoadBalancer {
    mode: String,
}

pub(super) fn services() -> Table {
    Table::new(["NAMESPACE", "HOSTNAME", "ADDRESSES", "PORTS", ">ENDPOINTS", "+WAYPOINT", "+LOAD BALANCING"])
}

pub(super) fn service_row(service: Service) -> [String; 7] {
    let address = |vip: &String| vip.trim_start_matches('/').to_owned();
    let port = |(port, target): (&String, &Value)| match target.as_u64() {
        None | Some(0) => port.clone(),
        Some(target) => format!("{port}->{target}"),
    };
    [
        service.namespace,
        service.hostname,
        service.vips.iter().map(address).collect::<Vec<_>>().join(","),
        service.ports.iter().map(port).collect::<Vec<_>>().join(","),
        service.endpoints.len().to_string(),
        waypoint(service.waypoint),
        service.load_balancer.mode,
    ]
}

/// A policy in the answer to `/policies`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AuthorizationPolicy {
    name: String,
    namespace: String,
    scope: String,
    action: String,
    rules: Vec<Value>,
    dry_run: bool,
}

pub(super) fn policies() -> Table {
    Table::new(["NAMESPACE", "NAME", "SCOPE", "ACTION", ">RULES", "DRY RUN"])
}

pub(super) fn policy_row(policy: AuthorizationPolicy) -> [String; 6] {
    let dry_run = if policy.dry_run { "yes" } else { "no" };
    let AuthorizationPolicy { name, namespace, scope, action, rules, .. } = policy;
    [namespace, name, scope, action, rules.len().to_string(), dry_run.to_owned()]
}
