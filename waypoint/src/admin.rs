//! The admin socket: what this waypoint knows and does, for people and for `airglow`.
//!
//! A unix socket that only its owner can open. Reads by GET; what changes anything is a POST. Decides nothing.

use std::sync::Arc;

use daemon::admin::{logging_routes, metrics_routes, readiness_routes};
use daemon::http::{Reply, Routes};
use proxy::dump;
use proxy::process::Process;
use serde_json::{Value, json};

use crate::data::Shared;

/// What the routes read.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) shared: Arc<Shared>,
    pub(crate) process: Process,
}

/// Every route of the socket.
pub(crate) fn routes(sources: &Sources) -> Routes {
    let Process { metrics, readiness, logs, .. } = &sources.process;
    let base = metrics_routes(metrics).merge(readiness_routes(readiness)).merge(logging_routes(logs));
    let (dumped, quit) = (Arc::clone(&sources.shared), sources.process.clone());
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
