//! Gateways that nobody has written: made where a namespace needs a waypoint, and deleted when nothing needs it any more.
//!
//! Decides neither. What was guarded is detached by then; all that is decided here is how long that has had to get around.

use std::collections::BTreeMap;
use std::time::Duration;

use apiserver::{call, code, is_conflict};
use http::Method;
use kube::Client;
use serde_json::json;
use tokio::time::Instant;

use super::super::FIELD_MANAGER;
use crate::index::{AUTO, AUTOMATIC, AUTOMATIC_NAME, CLASSES, Wish};
use crate::source::objects::Kind;

/// How long a waypoint that nothing needs stays. Nodes hear within moments that nothing is guarded by it; one that has not by then
/// is refused by the services that it still believes to be guarded. Who changes a route by deleting and making it keeps it, too.
const STAY: Duration = Duration::from_secs(10);

/// Since when waypoints have not been needed, by the uids of their Gateways.
#[derive(Default)]
pub(super) struct Unneeded(BTreeMap<String, Instant>);

impl Unneeded {
    /// Makes and deletes what is due. Returns when the next is.
    pub(super) async fn tend(
        &mut self,
        client: &Client,
        wishes: &[Wish],
    ) -> Result<Option<Duration>, kube::Error> {
        self.0
            .retain(|uid, _| wishes.iter().any(|wish| matches!(wish, Wish::Remove(_, left) if left == uid)));
        let mut next: Option<Duration> = None;
        for wish in wishes {
            match wish {
                Wish::Make(namespace) => make(client, namespace).await?,
                Wish::Remove(namespace, uid) => {
                    let since = *self.0.entry(uid.clone()).or_insert_with(Instant::now);
                    match STAY.checked_sub(since.elapsed()).filter(|left| !left.is_zero()) {
                        None => remove(client, namespace, uid).await?,
                        Some(left) => next = Some(next.map_or(left, |next| next.min(left))),
                    }
                }
            }
        }
        Ok(next)
    }
}

fn gateways(namespace: &str) -> String {
    format!("/apis/{}/namespaces/{namespace}/gateways", Kind::Gateway.api_version())
}

async fn make(client: &Client, namespace: &str) -> Result<(), kube::Error> {
    let gateway = json!({
        "apiVersion": Kind::Gateway.api_version(), "kind": "Gateway",
        "metadata": { "name": AUTOMATIC_NAME, "namespace": namespace, "labels": { AUTOMATIC: AUTO } },
        "spec": {
            "gatewayClassName": CLASSES[0],
            "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }],
        },
    });
    let path = format!("{}?fieldManager={FIELD_MANAGER}", gateways(namespace));
    match call(client, Method::POST, &path, Some(&gateway)).await {
        Ok(Some(_)) => {
            tracing::info!(namespace, "a waypoint is needed, and made");
            Ok(())
        }
        Ok(None) => {
            tracing::debug!(namespace, "a waypoint is needed, and the cluster has no Gateway API");
            Ok(())
        }
        // It is there by now, whosever it is; or the namespace is about to go.
        Err(error) if is_conflict(&error) || code(&error) == Some(403) => {
            tracing::debug!(namespace, %error, "a waypoint is not made");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

async fn remove(client: &Client, namespace: &str, uid: &str) -> Result<(), kube::Error> {
    let path = format!("{}/{AUTOMATIC_NAME}", gateways(namespace));
    // Not one that has taken its name meanwhile.
    let options = json!({ "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": { "uid": uid } });
    match call(client, Method::DELETE, &path, Some(&options)).await {
        Ok(_) => {
            tracing::info!(namespace, "a waypoint is needed no more, and removed");
            Ok(())
        }
        Err(error) if is_conflict(&error) => Ok(()),
        Err(error) => Err(error),
    }
}
