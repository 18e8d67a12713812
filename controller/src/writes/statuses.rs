//! What became of each policy, in its status: once per change, by the replica that leads.
//!
//! Decides nothing: `index` says what is to be said.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use apiserver::{call, explain};
use http::Method;
use kube::Client;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::FIELD_MANAGER;
use super::lease::{Leader, timestamp};
use crate::hub::Handle;
use crate::index::{CONDITION, Judgement};
use crate::source::objects::Key;

/// How long to wait after a failure.
const AGAIN: Duration = Duration::from_secs(5);

/// Changes come in groups, and people read statuses: nobody misses what was true in between.
const GATHER: Duration = Duration::from_millis(200);

/// Says what `hub` has to say about policies, while `leader` says so. Ends with the hub.
pub async fn say_statuses(client: Client, hub: Handle, mut leader: Leader) {
    let mut changes = hub.changes();
    // What was said already, for definitions of policies that keep no status or only a part of it.
    let mut said: BTreeMap<Key, Judgement> = BTreeMap::new();
    let mut failing = false;
    loop {
        leader.leading().await;
        changes.mark_unchanged();
        let Ok(judgements) = hub.inspect(|view| view.index.judgements(view.misunderstood)).await else {
            return;
        };
        said.retain(|key, _| judgements.iter().any(|judgement| judgement.key == *key));
        let mut failed = None;
        for judgement in judgements {
            if said.get(&judgement.key) == Some(&judgement) {
                continue;
            }
            match say(&client, &judgement).await {
                Ok(()) => drop(said.insert(judgement.key.clone(), judgement)),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            None => {
                failing = false;
                if changes.changed().await.is_err() {
                    return;
                }
                sleep(GATHER).await;
            }
            Some(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(error = explain(&error), "statuses of policies can't be written");
                }
                sleep(AGAIN).await;
            }
        }
    }
}

/// A definition without statuses says that there is nothing of that name, which is no failure.
async fn say(client: &Client, judgement: &Judgement) -> Result<(), kube::Error> {
    let Judgement { key: Key { kind, namespace, name }, .. } = judgement;
    for version in kind.versions() {
        let path = format!(
            "/apis/{version}/namespaces/{namespace}/{plural}/{name}/status?fieldManager={FIELD_MANAGER}&force=true",
            plural = kind.plural()
        );
        let status = json!({
            "apiVersion": version, "kind": kind.to_string(),
            "metadata": { "name": name, "namespace": namespace },
            "status": { "conditions": [condition(judgement)] },
        });
        // Not there in this version: the definition may be older than we are.
        if call(client, Method::PATCH, &path, Some(&status)).await?.is_some() {
            break;
        }
    }
    Ok(())
}

fn condition(judgement: &Judgement) -> Value {
    let Judgement { generation, accepted, reason, message, since, .. } = judgement;
    json!({
        "type": CONDITION, "status": if *accepted { "True" } else { "False" }, "reason": reason, "message": message,
        "observedGeneration": generation,
        "lastTransitionTime": since.clone().unwrap_or_else(|| timestamp(SystemTime::now())),
    })
}
