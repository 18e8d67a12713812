//! The roots that everyone should trust, in a ConfigMap of every namespace, named and filled as Istio's is: pods mount it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use apiserver::{call, code, explain};
use http::Method;
use identity::authority::Authority;
use kube::Client;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::lease::Leader;
use super::{FIELD_MANAGER, Failing};
use crate::hub::Handle;
use crate::source::objects::Kind;

const NAME: &str = "istio-ca-root-cert";
const KEY: &str = "root-cert.pem";

/// No pod runs there.
const WITHOUT: [&str; 3] = ["kube-node-lease", "kube-public", "local-path-storage"];

/// How soon a new namespace or root is noticed; a pod that mounts the ConfigMap waits until it is there.
const LOOK: Duration = Duration::from_secs(1);

/// How often to look whether someone has changed or deleted what we wrote.
const RECHECK: Duration = Duration::from_secs(60);

/// Keeps the ConfigMap of every namespace that `hub` knows as it should be, while `leader` says so. Ends with the hub.
pub async fn publish_roots(client: Client, hub: Handle, authority: Arc<Authority>, mut leader: Leader) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut done: Option<(BTreeSet<String>, String, Instant)> = None;
    let mut failing = Failing::default();
    loop {
        ticks.tick().await;
        leader.leading().await;
        let Ok(namespaces) = hub.inspect(|view| wanted(view.index.keys())).await else { return };
        let roots = authority.roots_pem();
        let is_done = |(before, published, at): &(BTreeSet<String>, String, Instant)| {
            *before == namespaces && *published == roots && at.elapsed() < RECHECK
        };
        if done.as_ref().is_some_and(is_done) {
            continue;
        }
        let published = publish(&client, &namespaces, &roots, &leader).await;
        failing.note(&published, |error| {
            tracing::warn!(config_map = NAME, error = explain(error), "the roots can't be published");
        });
        if published.is_ok() {
            done = Some((namespaces, roots, Instant::now()));
        }
    }
}

fn wanted(keys: Vec<crate::source::objects::Key>) -> BTreeSet<String> {
    let namespaces = keys.into_iter().filter(|key| key.kind == Kind::Namespace).map(|key| key.name);
    namespaces.filter(|name| !WITHOUT.contains(&name.as_str())).collect()
}

async fn publish(
    client: &Client,
    namespaces: &BTreeSet<String>,
    roots: &str,
    leader: &Leader,
) -> Result<(), kube::Error> {
    let path = format!("/api/v1/configmaps?fieldSelector=metadata.name%3D{NAME}");
    let listed = call(client, Method::GET, &path, None).await?.unwrap_or_default();
    let there: BTreeSet<&str> = (listed["items"].as_array().into_iter().flatten())
        .filter(|map| map["data"][KEY] == roots)
        .filter_map(|map| map["metadata"]["namespace"].as_str())
        .collect();
    for namespace in namespaces.iter().filter(|namespace| !there.contains(namespace.as_str())) {
        if !leader.is_leading() {
            return Ok(());
        }
        let path = format!(
            "/api/v1/namespaces/{namespace}/configmaps/{NAME}?fieldManager={FIELD_MANAGER}&force=true"
        );
        match call(client, Method::PATCH, &path, Some(&config_map(roots))).await {
            Ok(_) => {}
            // A namespace that is about to go takes nothing new.
            Err(error) if code(&error) == Some(403) => {
                tracing::debug!(namespace, error = explain(&error), "the roots can't be published there");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn config_map(roots: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": NAME, "labels": { "istio.io/config": "true" } },
        "data": { KEY: roots },
    })
}
