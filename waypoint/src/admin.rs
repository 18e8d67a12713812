//! The admin socket: what this waypoint knows and does, for people and for `airglow`.
//!
//! A unix socket that only its owner can open. Reads by GET; what changes anything is a POST. Decides nothing.

use std::time::Duration;

use daemon::admin::{logging_routes, metrics_routes, readiness_routes};
use daemon::http::{Reply, Routes};

use crate::app::Process;

/// Every route of the socket. `patience`: how long what is open may go on after `POST /quitquitquit`.
pub(crate) fn routes(process: &Process, patience: Duration) -> Routes {
    let Process { logs, metrics, readiness, drain } = process;
    let drain = drain.clone();
    metrics_routes(metrics).merge(readiness_routes(readiness)).merge(logging_routes(logs)).post(
        "/quitquitquit",
        "drain and stop",
        move |_| {
            drain.begin(patience);
            async { Reply::text("draining\n") }
        },
    )
}
