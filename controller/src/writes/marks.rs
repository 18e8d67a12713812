//! The record of enrolment on each pod. A proof counts for all replicas, this one included, when it comes back by the watch:
//! so no peer hears of what would be forgotten.
//!
//! Decides nothing: `index` says which pods' marks are not as they should be.

use std::collections::HashMap;
use std::time::Duration;

use apiserver::{code, explain, merge};
use futures_util::{StreamExt as _, stream};
use kube::Client;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::lease::Leader;
use crate::hub::Handle;
use crate::index::{Mark, REDIRECTION, Remark};

/// Marks that are written at once: each takes some milliseconds, and a node that starts brings a hundred.
const AT_ONCE: usize = 16;

/// How long what was written may take to come back by the watch before it is written again.
const RETURN: Duration = Duration::from_secs(5);

/// How long to wait after a failure, and how often to look though nothing was told.
const AGAIN: Duration = Duration::from_secs(2);

/// Keeps the pods' marks as `hub` says they should be. What a node has told this replica alone it writes itself; the rest is
/// for the replica that leads. Ends with the hub.
pub async fn mark_pods(client: Client, hub: Handle, leader: Leader) {
    let mut changes = hub.changes();
    let mut written: HashMap<String, (Option<Mark>, Instant)> = HashMap::new();
    let mut failing = false;
    loop {
        changes.mark_unchanged();
        let Ok(remarks) = hub.inspect(|view| view.index.remarks().collect::<Vec<_>>()).await else { return };
        written.retain(|_, (_, at)| at.elapsed() < RETURN);
        let is_due = |remark: &Remark| {
            (remark.is_news || leader.is_leading())
                && written.get(&remark.uid).is_none_or(|(mark, _)| *mark != remark.mark)
        };
        let due = remarks.into_iter().filter(is_due).collect::<Vec<_>>();
        let mut writes =
            stream::iter(due.into_iter().map(|remark| write(&client, remark))).buffer_unordered(AT_ONCE);
        let mut failed = None;
        let mut done = Vec::new();
        while let Some(outcome) = writes.next().await {
            match outcome {
                Ok(remark) => done.push(remark),
                Err(error) => failed = Some(error),
            }
        }
        drop(writes);
        written.extend(done.into_iter().map(|remark| (remark.uid, (remark.mark, Instant::now()))));
        match failed {
            None => failing = false,
            Some(error) => {
                if !std::mem::replace(&mut failing, true) {
                    let error = explain(&error);
                    tracing::warn!(error, "pods can't be marked, so peers are not told who is enrolled now");
                }
                sleep(AGAIN).await;
            }
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = sleep(AGAIN) => {}
        }
    }
}

/// By the pod's status, as Istio's agent does it: whoever may write that need not be allowed to change pods.
async fn write(client: &Client, remark: Remark) -> Result<Remark, kube::Error> {
    let Remark { namespace, name, uid, mark, .. } = &remark;
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/status");
    let value = mark.map(Mark::value);
    // A pod with another uid is another pod: the patch is refused.
    let patch = json!({ "metadata": { "uid": uid, "annotations": { REDIRECTION: value } } });
    match merge(client, &path, &patch).await {
        Ok(_) => Ok(remark),
        Err(error) if matches!(code(&error), Some(409 | 422)) => Ok(remark),
        Err(error) => Err(error),
    }
}
