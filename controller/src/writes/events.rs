//! Kubernetes Events for what a user must know: what can't be enrolled, what is refused, and a CA that has to be replaced.
//!
//! An Event is named after what it says, so that replicas, and a node's reports to several of them, make one and not many.
//! Decides nothing: `index` and the authority say what there is to complain of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use apiserver::{call, code, explain, is_conflict, merge};
use aws_lc_rs::digest::{SHA256, digest};
use http::Method;
use kube::Client;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::lease::{Leader, timestamp};
use super::secret::SharedAuthority;
use super::{FIELD_MANAGER, Failing};
use crate::hub::Handle;
use crate::index::Complaint;

/// A failure that is over within this time is not worth an Event: most nodes' first attempts that fail succeed at once after.
const GATHER: Duration = Duration::from_secs(1);

/// How often to look though nothing was told: for the authority, and for what is to be said again.
const LOOK: Duration = Duration::from_secs(30);

/// How often what lasts is said again. The API server forgets Events after an hour.
const AGAIN: Duration = Duration::from_secs(1800);

/// How long what is over is remembered, so that its return counts as the same: as long as its Event is there.
const REMEMBER: Duration = Duration::from_secs(3600);

/// Complaints that are remembered. More at once means that one cause has many effects, of which these are enough.
const MAX_SAID: usize = 2048;

/// Bytes of a message; the API server takes no more.
const MAX_MESSAGE_BYTES: usize = 1024;

/// Bytes of an object's name that become part of its Event's: a name has 253 at most, and ours adds 17.
const MAX_NAME_BYTES: usize = 230;

/// Says by Events what `hub` and `authority` complain of. What a node has told this replica alone it says itself; the rest is for
/// the replica that leads. Ends with the hub.
pub async fn say_events(client: Client, hub: Handle, authority: Arc<SharedAuthority>, leader: Leader) {
    let (mut changes, mut plugged) = (hub.changes(), authority.plugged());
    let mut said = Said::default();
    loop {
        changes.mark_unchanged();
        plugged.mark_unchanged();
        let Ok(complaints) = hub.inspect(|view| view.index.complaints(view.misunderstood)).await else {
            return;
        };
        let all = complaints.iter().map(|complaint| (complaint.is_told, Happening::of(complaint)));
        let trouble = authority.trouble().map(|trouble| {
            let regarding = json!({
                "apiVersion": "v1", "kind": "Secret", "namespace": authority.namespace(), "name": trouble.secret,
            });
            (false, Happening { regarding, reason: trouble.reason, message: trouble.message })
        });
        let leads = leader.is_leading();
        let due = all.chain(trouble).filter(|(is_told, _)| *is_told || leads).map(|(_, happening)| happening);
        said.say(&client, due.collect()).await;
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            _ = plugged.changed() => {}
            () = sleep(LOOK) => continue,
        }
        sleep(GATHER).await;
    }
}

/// What happens to an object.
struct Happening {
    regarding: Value,
    reason: &'static str,
    message: String,
}

/// What was said by this replica, by the names of Events.
#[derive(Default)]
struct Said {
    events: BTreeMap<String, Word>,
    failing: Failing,
}

/// An Event that was written.
struct Word {
    count: u64,
    /// When it was last written.
    at: Instant,
    /// Whether what it says still holds.
    lasts: bool,
}

impl Happening {
    fn of(Complaint { key, uid, reason, message, .. }: &Complaint) -> Self {
        let mut regarding = json!({
            "apiVersion": key.kind.api_version(), "kind": key.kind.to_string(), "namespace": key.namespace,
            "name": key.name,
        });
        // Empty would name another object.
        if !uid.is_empty() {
            regarding["uid"] = json!(uid);
        }
        Self { regarding, reason, message: message.clone() }
    }

    /// The Event's own name: the same for whoever says the same of the same object.
    fn name(&self) -> String {
        let Self { regarding, reason, message } = self;
        let hash = digest(&SHA256, format!("{regarding} {reason} {message}").as_bytes());
        let hash: String = hash.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let name = cut(regarding["name"].as_str().unwrap_or_default(), MAX_NAME_BYTES);
        format!("{}.{hash}", name.trim_end_matches(['.', '-']))
    }

    fn namespace(&self) -> &str {
        self.regarding["namespace"].as_str().unwrap_or_default()
    }

    fn event(&self, name: &str) -> Value {
        let now = timestamp(SystemTime::now());
        // These two have whole seconds.
        let now = format!("{}Z", now.split('.').next().unwrap_or_default());
        json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": { "name": name, "namespace": self.namespace() },
            "involvedObject": self.regarding,
            "type": "Warning", "reason": self.reason, "message": cut(&self.message, MAX_MESSAGE_BYTES),
            "source": { "component": FIELD_MANAGER }, "reportingComponent": FIELD_MANAGER,
            "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        })
    }
}

impl Said {
    /// Says what is new, has come back or has lasted, and forgets what has long been over.
    async fn say(&mut self, client: &Client, happenings: Vec<Happening>) {
        let named: Vec<_> = happenings.into_iter().map(|happening| (happening.name(), happening)).collect();
        let present: BTreeSet<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
        for (name, word) in &mut self.events {
            word.lasts &= present.contains(name.as_str());
        }
        self.events.retain(|_, word| word.lasts || word.at.elapsed() < REMEMBER);
        for (name, happening) in &named {
            let count = match self.events.get(name) {
                Some(word) if word.lasts && word.at.elapsed() < AGAIN => continue,
                Some(word) => word.count + 1,
                None if self.events.len() >= MAX_SAID => continue,
                None => 1,
            };
            let written = write(client, name, happening, count).await;
            self.failing.note(&written, |error| {
                tracing::warn!(error = explain(error), "Events can't be written; look into the logs instead");
            });
            if written.is_ok() {
                self.events.insert(name.clone(), Word { count, at: Instant::now(), lasts: true });
            }
        }
    }
}

async fn write(client: &Client, name: &str, happening: &Happening, count: u64) -> Result<(), kube::Error> {
    let events = format!("/api/v1/namespaces/{}/events", happening.namespace());
    let mut event = happening.event(name);
    if count > 1 {
        let again = json!({ "count": count, "lastTimestamp": event["lastTimestamp"] });
        if merge(client, &format!("{events}/{name}"), &again).await?.is_some() {
            return Ok(());
        }
        // Forgotten by the API server meanwhile.
        event["count"] = json!(count);
    }
    match call(client, Method::POST, &events, Some(&event)).await {
        Ok(_) => Ok(()),
        // Another replica has said so, or this one before a restart.
        Err(error) if is_conflict(&error) => Ok(()),
        // A namespace that is about to go takes nothing new, nor does one that has gone.
        Err(error) if matches!(code(&error), Some(403 | 404)) => {
            tracing::debug!(name, error = explain(&error), "an Event is not taken");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// The beginning of a text, of at most so many bytes.
fn cut(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn happening(name: &str, message: &str) -> Happening {
        let regarding = json!({ "kind": "Pod", "namespace": "shop", "name": name });
        Happening { regarding, reason: "EnrolmentFailed", message: message.into() }
    }

    #[test]
    fn the_same_has_the_same_name_and_every_name_is_one() {
        assert_eq!(happening("web", "no cgroup").name(), happening("web", "no cgroup").name());
        assert_ne!(happening("web", "no cgroup").name(), happening("web", "no netns").name());
        assert_ne!(happening("web", "no cgroup").name(), happening("db", "no cgroup").name());
        let long = happening(&"a.".repeat(126), "x").name();
        assert!(long.len() <= 253 && !long.contains(".."), "{long}");
    }

    #[test]
    fn a_message_is_cut_between_characters() {
        let event = happening("web", &"é".repeat(1000)).event("web.1");
        assert_eq!(event["message"].as_str().map(str::len), Some(MAX_MESSAGE_BYTES));
    }
}
