//! The admin routes that both proxies have. What they are alone to know is added by each.

use daemon::admin::{logging_routes, metrics_routes, readiness_routes};
use daemon::http::{Reply, Routes};

use crate::process::Process;

/// What can be asked and told of any proxy.
pub fn routes(process: &Process) -> Routes {
    let Process { metrics, readiness, logs, drain, patience, .. } = process.clone();
    let shown = metrics_routes(&metrics).merge(readiness_routes(&readiness)).merge(logging_routes(&logs));
    shown.post("/quitquitquit", "drain and stop", move |_| {
        drain.begin(patience);
        async { Reply::text("draining\n") }
    })
}
