//! `airglow waypoint delete`: away with a waypoint that nothing names any more.

use std::process::ExitCode;

use clap::Args;
use daemon::config::Vars;

use super::gateway::{self, USE_WAYPOINT, USE_WAYPOINT_NAMESPACE};
use crate::Terminal;
use crate::cluster::objects::{Metadata, Named};
use crate::cluster::{At, Cluster, label};
use crate::progress::print;

#[derive(Args, Debug)]
pub(super) struct Delete {
    /// Which ones.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    names: Vec<String>,
    /// Every waypoint of the namespace.
    #[arg(long)]
    all: bool,
    /// Also those that something names: connections to that are refused from then on.
    #[arg(long)]
    force: bool,
    /// Where they are; without it, the kubeconfig's namespace.
    #[arg(short = 'n', long, value_name = "NAME", value_parser = label)]
    namespace: Option<String>,
    #[command(flatten)]
    at: At,
}

/// Has the Gateways removed; the API server removes with them what was made for them.
pub(super) fn run(args: &Delete, stdout: Terminal, vars: &dyn Vars) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::new(&args.at, vars)?;
    let namespace = args.namespace.as_deref().unwrap_or(cluster.default_namespace());
    let found = gateway::waypoints(&cluster, Some(namespace))?;
    let names: Vec<&str> = match args.all {
        true => found.iter().map(|gateway| gateway.metadata.name.as_str()).collect(),
        false => args.names.iter().map(String::as_str).collect(),
    };
    for name in &names {
        let is_there = found.iter().any(|gateway| gateway.metadata.name == *name);
        anyhow::ensure!(is_there, "there is no waypoint {namespace}/{name}");
    }
    if !args.force {
        let named = users(&cluster, namespace, &names)?;
        anyhow::ensure!(
            named.is_empty(),
            "named still, so that connections would be refused without it; take the label {USE_WAYPOINT} away first, or \
             --force:\n  {}",
            named.join("\n  ")
        );
    }
    for name in names {
        cluster
            .delete(&gateway::path(namespace, name))
            .map_err(|error| anyhow::anyhow!("waypoint {namespace}/{name}: {error}"))?;
        print(&format!("{} waypoint {namespace}/{name} deleted\n", stdout.style.green(stdout.sign())))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What names one of the waypoints.
fn users(cluster: &Cluster, namespace: &str, names: &[&str]) -> anyhow::Result<Vec<String>> {
    let mut users = Vec::new();
    for (kind, plural) in [("namespace", "namespaces"), ("service", "services"), ("pod", "pods")] {
        // Everything with the label, in all namespaces: it may name a waypoint of another one.
        let path = format!("/api/v1/{plural}?labelSelector={}", USE_WAYPOINT.replace('/', "%2F"));
        let found: Vec<Named> = cluster.list(&path).map_err(|error| anyhow::anyhow!("{plural}: {error}"))?;
        let naming = found.iter().filter(|object| names_one(&object.metadata, namespace, names));
        users.extend(naming.map(|Named { metadata }| match kind {
            "namespace" => format!("namespace {}", metadata.name),
            _ => format!("{kind} {}", metadata.path()),
        }));
    }
    Ok(users)
}

fn names_one(metadata: &Metadata, namespace: &str, names: &[&str]) -> bool {
    // A namespace's own waypoint is in the namespace.
    let own = if metadata.namespace.is_empty() { &metadata.name } else { &metadata.namespace };
    let place = metadata.label(USE_WAYPOINT_NAMESPACE).unwrap_or(own);
    place == namespace && metadata.label(USE_WAYPOINT).is_some_and(|name| names.contains(&name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_names_a_waypoint() {
        let check = |metadata, expected| {
            let Named { metadata } =
                serde_json::from_value(json!({ "metadata": metadata })).expect("an object");
            assert_eq!(names_one(&metadata, "shop", &["wp"]), expected, "{metadata:?}");
        };
        check(json!({"name": "shop", "labels": {USE_WAYPOINT: "wp"}}), true);
        check(json!({"name": "shop", "labels": {USE_WAYPOINT: "other"}}), false);
        check(json!({"name": "away", "labels": {USE_WAYPOINT: "wp"}}), false);
        check(json!({"name": "away", "labels": {USE_WAYPOINT: "wp", USE_WAYPOINT_NAMESPACE: "shop"}}), true);
        check(json!({"name": "web", "namespace": "shop", "labels": {USE_WAYPOINT: "wp"}}), true);
        check(json!({"name": "web", "namespace": "shop", "labels": {}}), false);
    }
}
