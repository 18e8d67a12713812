//! What a Gateway's status should say, and whether it says so already. Decides nothing: `index` says what there is to say.

use std::time::SystemTime;

use apiserver::call;
use http::Method;
use kube::Client;
use serde_json::{Value, json};

use super::super::FIELD_MANAGER;
use super::super::lease::timestamp;
use crate::index::{Said, Wanted};
use crate::source::objects::{Generation, Kind, PolicyCondition};

/// Writes what the status of a Gateway should say, unless it says so.
pub(super) async fn say(client: &Client, wanted: &Wanted, trouble: Option<&str>) -> Result<(), kube::Error> {
    let gateway = &wanted.gateway;
    let (metadata, status) = (&gateway.metadata, &gateway.status);
    let said = wanted.conditions(trouble);
    let mut is_said = wanted.addresses() == status.addresses
        && all_said(&said, &status.conditions, metadata.generation)
        && status.listeners.len() == gateway.spec.listeners.len();
    let mut listeners = Vec::new();
    for listener in &gateway.spec.listeners {
        let before = status.listeners.iter().find(|before| before.name == listener.name);
        let before = before.map_or(&[][..], |before| &before.conditions);
        let said = wanted.conditions_of(listener, trouble);
        is_said &= all_said(&said, before, metadata.generation);
        listeners.push(json!({
            "name": listener.name, "attachedRoutes": 0, "supportedKinds": [],
            "conditions": conditions(&said, before, metadata.generation),
        }));
    }
    if is_said {
        return Ok(());
    }
    let addresses = wanted.addresses();
    let addresses = addresses
        .iter()
        .map(|address| json!({ "type": address.kind, "value": address.value }))
        .collect::<Vec<_>>();
    let version = Kind::Gateway.api_version();
    let path = format!(
        "/apis/{version}/namespaces/{}/gateways/{}/status?fieldManager={FIELD_MANAGER}&force=true",
        metadata.namespace, metadata.name
    );
    let patch = json!({
        "apiVersion": version, "kind": "Gateway",
        "metadata": { "name": metadata.name, "namespace": metadata.namespace },
        "status": {
            "addresses": addresses, "listeners": listeners,
            "conditions": conditions(&said, &status.conditions, metadata.generation),
        },
    });
    call(client, Method::PATCH, &path, Some(&patch)).await.map(drop)
}

/// Whether all that is to be said of an object is said.
pub(super) fn all_said(said: &[Said], before: &[PolicyCondition], generation: Option<i64>) -> bool {
    said.iter().all(|said| {
        before.iter().any(|before| {
            is_same(said, before)
                && before.reason == said.reason
                && before.message == said.message
                && before.observed_generation.as_ref().and_then(Generation::number) == generation
        })
    })
}

/// Conditions as the API server takes them. One that was so before has been so since then.
pub(super) fn conditions(said: &[Said], before: &[PolicyCondition], generation: Option<i64>) -> Vec<Value> {
    let now = timestamp(SystemTime::now());
    let condition = |said: &Said| {
        let same = before.iter().find(|before| is_same(said, before));
        let since = same.and_then(|before| before.last_transition_time.as_deref()).unwrap_or(&now);
        json!({
            "type": said.kind, "status": word(said), "reason": said.reason, "message": said.message,
            "observedGeneration": generation.unwrap_or_default(), "lastTransitionTime": since,
        })
    };
    said.iter().map(condition).collect()
}

fn is_same(said: &Said, before: &PolicyCondition) -> bool {
    before.kind == said.kind && before.status == word(said)
}

fn word(said: &Said) -> &'static str {
    if said.is_so { "True" } else { "False" }
}
