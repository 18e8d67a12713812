//! Which replica writes what all replicas could write: the one that holds a Lease. All of them serve.
//!
//! Only our own clock is used, and only to measure: what a holder's clock says is compared for change and nothing else.

use std::future::Future;
use std::time::{Duration, SystemTime};

use apiserver::{call, explain, is_conflict};
use http::Method;
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// The Lease's name.
const NAME: &str = "airglow-controller";

/// A holder that has not renewed for this long has gone, and another may take over.
const DURATION: Duration = Duration::from_secs(15);

/// A holder that could not renew for this long stops writing, well before another one begins.
const SURRENDER: Duration = Duration::from_secs(10);

/// How often the holder renews, and the others look.
const RENEW: Duration = Duration::from_secs(3);

/// Whether we hold the Lease. Clones see the same.
#[derive(Clone, Debug)]
pub struct Leader(watch::Receiver<bool>);

impl Leader {
    /// Whether we hold it at present.
    #[must_use]
    pub fn is_leading(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until we hold it.
    pub async fn leading(&mut self) {
        if self.0.wait_for(|leads| *leads).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Runs for the Lease of `namespace` as `identity`, which no other replica may have. The future has to run. It ends after `stop`
/// has, when the Lease was given back: another replica takes it at its next look, not when it has run out.
pub fn lead<S: Future<Output = ()>>(
    client: Client,
    namespace: &str,
    identity: String,
    stop: S,
) -> (Leader, impl Future<Output = ()> + use<S>) {
    let (leads, leader) = watch::channel(false);
    let mut election = Election { client, namespace: namespace.to_owned(), identity, seen: None };
    let run = async move {
        tokio::select! {
            () = election.run(&leads) => {}
            () = stop => {}
        }
        // We cease to write before anyone else may begin.
        leads.send_replace(false);
        match timeout(RENEW, election.give_back()).await {
            Ok(Ok(true)) => tracing::info!(lease = NAME, "the Lease is given back"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = explain(&error), "the Lease can't be given back, so it runs out")
            }
            Err(_) => tracing::warn!("the Lease can't be given back in time, so it runs out"),
        }
    };
    (Leader(leader), run)
}

struct Election {
    client: Client,
    namespace: String,
    identity: String,
    /// What a holder last wrote, and since when it has not changed.
    seen: Option<(Value, Instant)>,
}

impl Election {
    async fn run(&mut self, leads: &watch::Sender<bool>) {
        let mut ticks = interval(RENEW);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut renewed: Option<Instant> = None;
        loop {
            ticks.tick().await;
            // Counted from before the request: when it was written we do not know.
            let began = Instant::now();
            match timeout(RENEW, self.attempt()).await {
                Ok(Ok(true)) => renewed = Some(began),
                Ok(Ok(false)) => renewed = None,
                Ok(Err(error)) => tracing::debug!(error = explain(&error), "the Lease can't be renewed"),
                Err(_) => tracing::debug!("the Lease can't be renewed in time"),
            }
            let leading = renewed.is_some_and(|renewed| renewed.elapsed() < SURRENDER);
            leads.send_if_modified(|before| {
                let changed = *before != leading;
                if changed {
                    tracing::info!(leading, lease = NAME, "this replica writes, or has ceased to");
                }
                *before = leading;
                changed
            });
        }
    }

    /// Takes or renews the Lease if that is ours to do. Whether we hold it now.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let (leases, path) = self.paths();
        let (method, path, mut lease) = match call(&self.client, Method::GET, &path, None).await? {
            Some(lease) if !self.is_ours_to_take(&lease["spec"]) => return Ok(false),
            Some(lease) => (Method::PUT, path, lease),
            None => {
                let metadata = json!({ "name": NAME, "namespace": self.namespace });
                let new =
                    json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata });
                (Method::POST, leases, new)
            }
        };
        let now = timestamp(SystemTime::now());
        let spec = &mut lease["spec"];
        if spec["holderIdentity"] != *self.identity {
            spec["acquireTime"] = json!(now);
            spec["leaseTransitions"] = json!(spec["leaseTransitions"].as_u64().map_or(0, |count| count + 1));
        }
        spec["holderIdentity"] = json!(self.identity);
        spec["leaseDurationSeconds"] = json!(DURATION.as_secs());
        spec["renewTime"] = json!(now);
        // Its version goes with it: of two who take it, one is refused.
        match call(&self.client, method, &path, Some(&lease)).await {
            Ok(written) => Ok(written.is_some()),
            Err(error) if is_conflict(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Names nobody as the holder, if we are it. Whether we were.
    async fn give_back(&self) -> Result<bool, kube::Error> {
        let (_, path) = self.paths();
        let Some(mut lease) = call(&self.client, Method::GET, &path, None).await? else { return Ok(false) };
        if lease["spec"]["holderIdentity"] != *self.identity {
            return Ok(false);
        }
        lease["spec"]["holderIdentity"] = json!("");
        lease["spec"]["renewTime"] = json!(timestamp(SystemTime::now()));
        // Its version goes with it, should another replica have thought us gone meanwhile.
        match call(&self.client, Method::PUT, &path, Some(&lease)).await {
            Ok(written) => Ok(written.is_some()),
            Err(error) if is_conflict(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Of all Leases, and of ours.
    fn paths(&self) -> (String, String) {
        let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace);
        let ours = format!("{leases}/{NAME}");
        (leases, ours)
    }

    fn is_ours_to_take(&mut self, spec: &Value) -> bool {
        let holder = spec["holderIdentity"].as_str().unwrap_or_default();
        // Nobody's: it was given back.
        if holder.is_empty() || holder == self.identity {
            return true;
        }
        match &self.seen {
            Some((seen, since)) if seen == spec => since.elapsed() >= DURATION,
            _ => {
                self.seen = Some((spec.clone(), Instant::now()));
                false
            }
        }
    }
}

/// RFC 3339 with microseconds, as the API server wants it.
pub(super) fn timestamp(at: SystemTime) -> String {
    let at = time::OffsetDateTime::from(at);
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second, microsecond) = at.to_hms_micro();
    format!("{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{microsecond:06}Z", u8::from(month))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps() {
        for (microseconds, text) in
            [(0, "1970-01-01T00:00:00.000000Z"), (1_795_234_245_000_007, "2026-11-21T04:10:45.000007Z")]
        {
            assert_eq!(timestamp(SystemTime::UNIX_EPOCH + Duration::from_micros(microseconds)), text);
        }
    }
}
