//! The admin socket: what this waypoint knows and does, for people and for `airglow`.
//!
//! A unix socket that only its owner can open. Reads by GET; what changes anything is a POST. Decides nothing.

use std::sync::Arc;
use std::time::Duration;

use daemon::admin::{logging_routes, metrics_routes, readiness_routes};
use daemon::drain::Drain;
use daemon::http::{Reply, Routes};
use daemon::logs::Logs;
use daemon::metrics::Metrics;
use daemon::readiness::Readiness;
use proxy::dump;
use serde_json::{Value, json};

use crate::data::Shared;

/// What the routes read.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: Metrics,
    pub(crate) readiness: Readiness,
    pub(crate) logs: Logs,
    pub(crate) drain: Drain,
    /// How long what is open may go on after `POST /quitquitquit`.
    pub(crate) patience: Duration,
}

/// Every route of the socket.
pub(crate) fn routes(sources: &Sources) -> Routes {
    let Sources { metrics, readiness, logs, .. } = sources;
    let base = metrics_routes(metrics).merge(readiness_routes(readiness)).merge(logging_routes(logs));
    let (dumped, quit) = (Arc::clone(&sources.shared), sources.clone());
    base.get("/config_dump", "everything known, in the form that istioctl reads", move |_| {
        let reply = Reply::json(&config_dump(&dumped));
        async move { reply }
    })
    .post("/quitquitquit", "drain and stop", move |_| {
        quit.drain.begin(quit.patience);
        async { Reply::text("draining\n") }
    })
}

fn config_dump(shared: &Shared) -> Value {
    let mesh = shared.mesh.snapshot();
    json!({
        "workloads": dump::workloads(&mesh),
        "services": dump::services(&mesh),
        "policies": dump::policies(&mesh),
        "certificates": dump::certificates(&shared.certificates),
        "version": { "version": env!("CARGO_PKG_VERSION"), "cryptoProvider": "aws-lc-rs" },
        "config": {
            "identity": shared.own.identity.to_string(),
            "workload": shared.own.workload.to_string(),
        },
    })
}
