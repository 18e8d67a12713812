//! What became of each policy, route, entry and wish for a waypoint, in the object's status, once per change: by the replica that
//! leads, and of a node that refuses by the replica that serves it.
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
use super::{FIELD_MANAGER, Failing, entries};
use crate::hub::Handle;
use crate::index::{Answers, Index, Judgement, Statement, WAYPOINT_BOUND};
use crate::serve::Discovery;
use crate::source::Misunderstood;
use crate::source::objects::{Generation, Key, PolicyCondition};

/// The manager of the condition about waypoints.
const WAYPOINT_MANAGER: &str = "airglow-controller-waypoints";

/// How long to wait after a failure.
const AGAIN: Duration = Duration::from_secs(5);

/// Changes come in groups, and people read statuses: nobody misses what was true in between.
const GATHER: Duration = Duration::from_millis(200);

/// How often to look though nothing was told: a node that has moved here may use what it refused elsewhere.
const LOOK: Duration = Duration::from_secs(30);

/// What there is to say.
#[derive(PartialEq)]
enum Word {
    Judgement(Judgement),
    Statement(Statement),
}

/// Says what `hub` has to say about objects: what nodes answer to `discovery`, and the rest while `leader` says so. Ends with the
/// hub.
pub async fn say_statuses(client: Client, hub: Handle, discovery: Discovery, mut leader: Leader) {
    let (mut changes, mut refusals) = (hub.changes(), discovery.refusals());
    // What was said already, for definitions of policies that keep no status or only a part of it.
    let mut said: BTreeMap<(Key, &str), Word> = BTreeMap::new();
    let mut failing = Failing::default();
    loop {
        changes.mark_unchanged();
        refusals.mark_unchanged();
        let (leads, asked) = (leader.is_leading(), discovery.clone());
        let judge = hub.inspect(move |view| words(view.index, view.misunderstood, &asked.answers(), leads));
        let Ok(words) = judge.await else { return };
        let open: BTreeSet<_> = words.iter().map(Word::place).collect();
        said.retain(|place, _| open.contains(place));
        let mut outcome = Ok(());
        for word in words {
            if said.get(&word.place()) == Some(&word) {
                continue;
            }
            let written = match &word {
                Word::Judgement(judgement) => say(&client, judgement).await,
                Word::Statement(statement) => entries::say(&client, statement).await,
            };
            match written {
                Ok(()) => drop(said.insert(word.place(), word)),
                Err(error) => outcome = Err(error),
            }
        }
        failing.note(&outcome, |error| {
            tracing::warn!(error = explain(error), "statuses can't be written");
        });
        if outcome.is_err() {
            sleep(AGAIN).await;
            continue;
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            _ = refusals.changed() => {}
            () = leader.leading(), if !leads => continue,
            () = sleep(LOOK) => continue,
        }
        sleep(GATHER).await;
    }
}

fn words(index: &Index, misunderstood: &[Misunderstood], answers: &dyn Answers, leads: bool) -> Vec<Word> {
    let statements = if leads { index.statements(misunderstood) } else { Vec::new() };
    let judgements = index.judgements(misunderstood, answers, leads).into_iter().map(Word::Judgement);
    judgements.chain(statements.into_iter().map(Word::Statement)).collect()
}

impl Word {
    /// What it is about: an object, and of a judgement which conditions.
    fn place(&self) -> (Key, &'static str) {
        match self {
            Self::Judgement(judgement) => (judgement.key.clone(), judgement.about),
            Self::Statement(statement) => (statement.key.clone(), ""),
        }
    }
}

/// A definition without statuses says that there is nothing of that name, which is no failure.
async fn say(client: &Client, judgement: &Judgement) -> Result<(), kube::Error> {
    let Judgement { key: Key { kind, namespace, name }, about, conditions, .. } = judgement;
    // What a manager does not say any more is removed, so that each group of conditions has its own.
    let manager = if *about == WAYPOINT_BOUND { WAYPOINT_MANAGER } else { FIELD_MANAGER };
    let conditions: Vec<_> = conditions.iter().map(written).collect();
    for version in kind.versions() {
        let path = format!(
            "/{root}/{version}/namespaces/{namespace}/{plural}/{name}/status?fieldManager={manager}&force=true",
            root = if version.contains('/') { "apis" } else { "api" },
            plural = kind.plural()
        );
        let status = json!({
            "apiVersion": version, "kind": kind.to_string(),
            "metadata": { "name": name, "namespace": namespace },
            "status": { "conditions": conditions },
        });
        // Not there in this version: the definition may be older than we are.
        if call(client, Method::PATCH, &path, Some(&status)).await?.is_some() {
            break;
        }
    }
    Ok(())
}

fn written(condition: &PolicyCondition) -> Value {
    let PolicyCondition { kind, status, reason, message, observed_generation, last_transition_time } =
        condition;
    let mut written = json!({
        "type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": last_transition_time.clone().unwrap_or_else(|| timestamp(SystemTime::now())),
    });
    // Objects of Kubernetes' own are not counted.
    if let Some(generation) = observed_generation.as_ref().and_then(Generation::number) {
        written["observedGeneration"] = json!(generation);
    }
    written
}
