//! Makes what Gateways of our classes ask for, and says in their statuses what came of it: once per change, by the replica that
//! leads.
//!
//! Decides nothing about the mesh: `index` says what is asked for, `objects` what is made for it. Never changes what it did not make.

mod automatic;
mod classes;
mod objects;
mod status;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use apiserver::{call, explain};
use http::Method;
use kube::Client;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use super::FIELD_MANAGER;
use super::lease::Leader;
use crate::hub::Handle;
use crate::index::Wanted;
use automatic::Unneeded;
use classes::Classes;
use objects::{Made, Part};

/// How long to wait after a failure.
const AGAIN: Duration = Duration::from_secs(5);

/// Changes come in groups, a rollout's for one.
const GATHER: Duration = Duration::from_millis(200);

/// How often to look whether someone has changed or deleted what we made, and whether the template is another one. Where a
/// waypoint is not ready, that may be the reason, and [`AGAIN`] counts.
const RECHECK: Duration = Duration::from_secs(60);

/// What is said of a Gateway of which nothing is made.
const SWITCHED_OFF: &str = "this controller makes no waypoints; set waypoint.enabled in the values of Airglow's chart \
                            (AIRGLOW_WAYPOINT_TEMPLATE), or run its pods yourself";

/// What was made for a Gateway.
struct Done {
    wanted: Vec<Made>,
    at: Instant,
    /// Why it could not be made.
    trouble: Option<String>,
}

/// Makes waypoints as `hub` says that they are asked for, by the pod template in the file `template`, while `leader` says so; without
/// a template, says of each that it is not made. Ends with the hub.
pub async fn make_waypoints(client: Client, hub: Handle, template: Option<PathBuf>, mut leader: Leader) {
    let mut changes = hub.changes();
    let mut done: BTreeMap<String, Done> = BTreeMap::new();
    let (mut classes, mut unneeded) = (Classes::default(), Unneeded::default());
    loop {
        leader.leading().await;
        changes.mark_unchanged();
        let looked = hub.inspect(|view| {
            let index = view.index;
            (index.wanted_waypoints(), index.gateway_classes(), index.automatic_waypoints())
        });
        let Ok((wanted, known, wishes)) = looked.await else { return };
        let mut failed = match &template {
            Some(_) => classes.keep(&client, known).await.err(),
            None => None,
        };
        done.retain(|uid, _| wanted.iter().any(|wanted| wanted.gateway.metadata.uid == *uid));
        for wanted in &wanted {
            let trouble = match &template {
                Some(template) => made(&client, wanted, template, &mut done).await,
                // Somebody may run its pods.
                None => (wanted.ready == 0).then(|| SWITCHED_OFF.to_owned()),
            };
            if let Err(error) = status::say(&client, wanted, trouble.as_deref()).await {
                failed = Some(error);
            }
        }
        let mut due = None;
        if template.is_some() {
            match unneeded.tend(&client, &wishes).await {
                Ok(next) => due = next,
                Err(error) => failed = Some(error),
            }
        }
        let wait = match failed {
            None if done.values().all(|done| done.trouble.is_none())
                && wanted.iter().all(Wanted::is_whole) =>
            {
                RECHECK
            }
            None => AGAIN,
            Some(error) => {
                tracing::warn!(
                    error = explain(&error),
                    "Gateways or their statuses can't be written; it is tried again"
                );
                sleep(AGAIN).await;
                continue;
            }
        };
        match timeout(due.map_or(wait, |due| wait.min(due)), changes.changed()).await {
            Ok(Ok(())) => sleep(GATHER).await,
            Ok(Err(_)) => return,
            Err(_) => {}
        }
    }
}

/// Makes what a Gateway asks for, unless that was done a moment ago. Why it could not be made.
async fn made(
    client: &Client,
    wanted: &Wanted,
    template: &PathBuf,
    done: &mut BTreeMap<String, Done>,
) -> Option<String> {
    if !wanted.is_waypoint() {
        return None;
    }
    let uid = &wanted.gateway.metadata.uid;
    let objects = match read(template).await.and_then(|template| objects::of(&wanted.gateway, &template)) {
        Ok(objects) => objects,
        Err(trouble) => return Some(trouble),
    };
    if let Some(before) = done.get(uid)
        && before.wanted == objects
        && before.at.elapsed() < if before.trouble.is_none() && wanted.is_whole() { RECHECK } else { AGAIN }
    {
        return before.trouble.clone();
    }
    let mut trouble = None;
    for object in &objects {
        if let Err(why) = make(client, object, uid).await {
            tracing::warn!(path = object.path(), why, "a part of a waypoint can't be made");
            trouble = Some(why);
        }
    }
    done.insert(uid.clone(), Done { wanted: objects, at: Instant::now(), trouble: trouble.clone() });
    trouble
}

/// Makes one object, or removes it, unless somebody else's has its name.
async fn make(client: &Client, made: &Made, gateway: &str) -> Result<(), String> {
    let path = made.path();
    let said = |error: kube::Error| format!("{path}: {}", explain(&error));
    let there = call(client, Method::GET, &path, None).await.map_err(said)?;
    let is_ours = |object: &Value| {
        let owners = object["metadata"]["ownerReferences"].as_array();
        owners.into_iter().flatten().any(|owner| owner["uid"] == *gateway)
    };
    if there.as_ref().is_some_and(|object| !is_ours(object)) {
        if made.part == Part::Unwanted {
            return Ok(());
        }
        return Err(format!("{path} is there and not ours; rename it or the Gateway"));
    }
    match (&made.part, there) {
        (Part::Unwanted, None) => Ok(()),
        (Part::Unwanted, Some(_)) => call(client, Method::DELETE, &path, None).await.map(drop).map_err(said),
        (Part::Wanted(object), there) => {
            let object = made.over(object, there.as_ref(), FIELD_MANAGER);
            let path = format!("{path}?fieldManager={FIELD_MANAGER}&force=true");
            call(client, Method::PATCH, &path, Some(&object)).await.map(drop).map_err(said)
        }
    }
}

/// The template, as it is now: whoever upgrades Airglow changes it.
async fn read(path: &PathBuf) -> Result<Value, String> {
    let text = tokio::fs::read_to_string(path).await;
    let text = text.map_err(|error| format!("the template {} can't be read: {error}", path.display()))?;
    serde_saphyr::from_str(&text).map_err(|error| format!("the template {}: {error}", path.display()))
}
