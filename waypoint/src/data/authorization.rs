//! Whether policies let a client have an endpoint, when it is chosen and whenever they change.
//!
//! Decides nothing that the endpoint's own node can: see [`denied`].

use model::address::AppAddr;
use model::policy::{Connection, Denial};
use model::route::Target;
use model::store::Mesh;
use model::workload::Workload;
use tokio::sync::watch;

use super::Context;
use crate::telemetry::Facts;

/// Policies, watched from before the first look at them, so that no change falls between.
pub(crate) fn watched(context: &Context) -> watch::Receiver<u64> {
    let mut policies = context.shared.policies.clone();
    policies.borrow_and_update();
    policies
}

/// Whether a policy of the endpoint denies the client. The endpoint's own node sees this waypoint as its peer, so it enforces
/// what is allowed to waypoints, and a DENY of the client would pass it by: that is kept here. An ALLOW is not asked for here,
/// because it may name the waypoint alone.
pub(crate) fn denied(mesh: &Mesh, workload: &Workload, app: AppAddr, facts: &Facts) -> Option<Denial> {
    let connection = Connection { peer: facts.source.identity.clone(), client: facts.client, app };
    let verdict = mesh.authorize(workload, connection);
    verdict.enforced.err().filter(|denial| !matches!(denial, Denial::NotAllowed(_)))
}

/// The same of what was connected to a while ago: which policies are about the endpoint may have changed too.
pub(crate) fn denied_now(
    context: &Context,
    workload: &Workload,
    app: AppAddr,
    facts: &Facts,
) -> Option<Denial> {
    let mesh = context.shared.mesh.snapshot();
    let current = mesh.workload(&workload.uid);
    denied(&mesh, current.as_deref().unwrap_or(workload), app, facts)
}

/// Resolves when policies have changed so that the client is denied what it has.
pub(crate) async fn revoked(
    context: &Context,
    target: &Target,
    facts: &Facts,
    policies: &mut watch::Receiver<u64>,
) -> Denial {
    while policies.changed().await.is_ok() {
        if let Some(denial) = denied_now(context, &target.workload, target.app, facts) {
            return denial;
        }
    }
    // Nobody tells any more: the process is about to end.
    std::future::pending().await
}
