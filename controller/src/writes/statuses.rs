//! What became of each policy, route, entry and wish for a waypoint, in the object's status: once per change, by the replica that leads.
//!
//! Decides nothing: `index` says what is to be said.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use apiserver::{call, explain};
use http::Method;
use kube::Client;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::lease::{Leader, timestamp};
use super::{FIELD_MANAGER, entries};
use crate::hub::Handle;
use crate::index::{Index, Judgement, Ruling, Statement, WAYPOINT_BOUND};
use crate::source::Misunderstood;
use crate::source::objects::Key;

/// The manager of the condition about waypoints.
const WAYPOINT_MANAGER: &str = "airglow-controller-waypoints";

/// How long to wait after a failure.
const AGAIN: Duration = Duration::from_secs(5);

/// Changes come in groups, and people read statuses: nobody misses what was true in between.
const GATHER: Duration = Duration::from_millis(200);

/// What there is to say.
#[derive(PartialEq)]
enum Word {
    Judgement(Judgement),
    Statement(Statement),
}

/// Says what `hub` has to say about objects, while `leader` says so. Ends with the hub.
pub async fn say_statuses(client: Client, hub: Handle, mut leader: Leader) {
    let mut changes = hub.changes();
    // What was said already, for definitions of policies that keep no status or only a part of it.
    let mut said: BTreeMap<(Key, &str), Word> = BTreeMap::new();
    let mut failing = false;
    loop {
        leader.leading().await;
        changes.mark_unchanged();
        let Ok(words) = hub.inspect(|view| words(view.index, view.misunderstood)).await else { return };
        let open: BTreeSet<_> = words.iter().map(Word::place).collect();
        said.retain(|place, _| open.contains(place));
        let mut failed = None;
        for word in words {
            if said.get(&word.place()) == Some(&word) {
                continue;
            }
            let outcome = match &word {
                Word::Judgement(judgement) => say(&client, judgement).await,
                Word::Statement(statement) => entries::say(&client, statement).await,
            };
            match outcome {
                Ok(()) => drop(said.insert(word.place(), word)),
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
                    tracing::warn!(error = explain(&error), "statuses can't be written");
                }
                sleep(AGAIN).await;
            }
        }
    }
}

fn words(index: &Index, misunderstood: &[Misunderstood]) -> Vec<Word> {
    let judgements = index.judgements(misunderstood).into_iter().map(Word::Judgement);
    judgements.chain(index.statements(misunderstood).into_iter().map(Word::Statement)).collect()
}

impl Word {
    /// What it is about: an object, and of a judgement its condition.
    fn place(&self) -> (Key, &'static str) {
        match self {
            Self::Judgement(judgement) => (judgement.key.clone(), judgement.condition),
            Self::Statement(statement) => (statement.key.clone(), ""),
        }
    }
}

/// A definition without statuses says that there is nothing of that name, which is no failure.
async fn say(client: &Client, judgement: &Judgement) -> Result<(), kube::Error> {
    let Judgement { key: Key { kind, namespace, name }, condition: of, .. } = judgement;
    // What a manager does not say any more is removed, so that each condition has its own.
    let manager = if *of == WAYPOINT_BOUND { WAYPOINT_MANAGER } else { FIELD_MANAGER };
    for version in kind.versions() {
        let path = format!(
            "/{root}/{version}/namespaces/{namespace}/{plural}/{name}/status?fieldManager={manager}&force=true",
            root = if version.contains('/') { "apis" } else { "api" },
            plural = kind.plural()
        );
        let status = json!({
            "apiVersion": version, "kind": kind.to_string(),
            "metadata": { "name": name, "namespace": namespace },
            "status": { "conditions": condition(judgement).as_slice() },
        });
        // Not there in this version: the definition may be older than we are.
        if call(client, Method::PATCH, &path, Some(&status)).await?.is_some() {
            break;
        }
    }
    Ok(())
}

fn condition(judgement: &Judgement) -> Option<Value> {
    let Judgement { condition, generation, verdict, .. } = judgement;
    let Ruling { accepted, reason, message, since } = verdict.as_ref()?;
    let mut condition = json!({
        "type": condition, "status": if *accepted { "True" } else { "False" }, "reason": reason, "message": message,
        "lastTransitionTime": since.clone().unwrap_or_else(|| timestamp(SystemTime::now())),
    });
    // Objects of Kubernetes' own are not counted.
    if let Some(generation) = generation {
        condition["observedGeneration"] = json!(generation);
    }
    Some(condition)
}
