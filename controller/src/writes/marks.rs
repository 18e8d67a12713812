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

use super::Failing;
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
    let mut written = Written::default();
    let mut failing = Failing::default();
    loop {
        changes.mark_unchanged();
        let Ok(remarks) = hub.inspect(|view| view.index.remarks().collect::<Vec<_>>()).await else { return };
        let mut due = written.not_on_its_way(remarks, Instant::now());
        due.retain(|remark| remark.is_news || leader.is_leading());
        let mut writes =
            stream::iter(due.into_iter().map(|remark| write(&client, remark))).buffer_unordered(AT_ONCE);
        let mut outcome = Ok(());
        let mut done = Vec::new();
        while let Some(ended) = writes.next().await {
            match ended {
                Ok(remark) => done.push(remark),
                Err(error) => outcome = Err(error),
            }
        }
        drop(writes);
        written.0.extend(done.into_iter().map(|remark| (remark.uid, (remark.mark, Instant::now()))));
        failing.note(&outcome, |error| {
            let error = explain(error);
            tracing::warn!(error, "pods can't be marked, so peers are not told who is enrolled now");
        });
        if outcome.is_err() {
            sleep(AGAIN).await;
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = sleep(AGAIN) => {}
        }
    }
}

/// What was written of each pod, by uid, and has not come back by the watch yet.
#[derive(Default)]
struct Written(HashMap<String, (Option<Mark>, Instant)>);

impl Written {
    /// Those remarks that are to be written now. What has come back is remarked on no more, and is forgotten: another replica may
    /// write otherwise, and the same be due again.
    fn not_on_its_way(&mut self, mut remarks: Vec<Remark>, now: Instant) -> Vec<Remark> {
        let on_its_way: HashMap<_, _> = remarks
            .iter()
            .filter_map(|remark| self.0.remove_entry(&remark.uid))
            .filter(|(_, (_, at))| now.duration_since(*at) < RETURN)
            .collect();
        self.0 = on_its_way;
        remarks.retain(|remark| self.0.get(&remark.uid).is_none_or(|(mark, _)| *mark != remark.mark));
        remarks
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

#[cfg(test)]
mod tests {
    use super::*;

    fn remark(uid: &str, mark: Option<Mark>) -> Remark {
        let text = |text: &str| text.to_owned();
        Remark { namespace: text("shop"), name: text(uid), uid: text(uid), mark, is_news: true }
    }

    #[test]
    fn what_was_written_is_written_again_when_it_got_lost_or_was_undone() {
        let (start, mut written) = (Instant::now(), Written::default());
        let mut due = |remarks: &[(&str, Option<Mark>)], after: Duration| {
            let remarks = remarks.iter().map(|(uid, mark)| remark(uid, *mark)).collect();
            let due = written.not_on_its_way(remarks, start + after);
            written.0.extend(due.iter().map(|remark| (remark.uid.clone(), (remark.mark, start + after))));
            due.into_iter().map(|remark| remark.uid).collect::<Vec<_>>()
        };
        let (enabled, second) = (Some(Mark::Enabled), Duration::from_secs(1));
        assert_eq!(due(&[("a", enabled), ("b", enabled)], second), ["a", "b"]);
        assert_eq!(
            due(&[("a", enabled), ("b", None)], second),
            ["b"],
            "another mark than the one that was written"
        );
        assert!(due(&[("a", enabled)], second).is_empty(), "it is on its way, and b's has come back");
        assert_eq!(due(&[("a", enabled), ("b", None)], second), ["b"], "somebody else has written otherwise");
        assert_eq!(due(&[("a", enabled)], second + RETURN), ["a"], "it was lost");
    }
}
