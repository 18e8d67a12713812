//! Connections to the endpoints of what is carried as bytes, where routes say.
//!
//! A connect that fails before a byte was sent is tried again on another endpoint.

use std::sync::Arc;

use identity::origination::Speaks;
use model::l7::AbortAnswer;
use model::workload::WorkloadUid;
use tokio::time::sleep;

use super::route::{self, Routed};
use crate::balance::{Lease, Outcome};
use crate::data::upstream::choice::endpoint;
use crate::data::upstream::{self, ATTEMPTS, Aimed, Upstream};
use crate::data::{Asked, Context};
use crate::refusal::Refusal;
use crate::telemetry::Facts;

/// An endpoint that was connected to.
pub(crate) type Reached = (Upstream, Aimed, Option<Lease>);

/// A connection to an endpoint of what is asked for, or of where its routes lead.
pub(crate) async fn reach(
    context: &Arc<Context>,
    (asked, name): (&Asked, Option<&str>),
    facts: &mut Facts,
) -> Result<Reached, Refusal> {
    let Routed { asked, how, injected } = route::route(context, asked, facts, name)?;
    if let Some(delay) = injected.delay {
        sleep(delay).await;
    }
    if injected.abort == Some(AbortAnswer::Reset) {
        return Err(Refusal::Fault);
    }
    let mut tried: Vec<WorkloadUid> = Vec::new();
    loop {
        let (aimed, lease) = endpoint(context, (&asked, facts), how, &tried)?;
        let target = &aimed.target;
        upstream::aim(context, target, facts)?;
        match upstream::connect(context, &aimed, Speaks::Bytes, facts).await {
            Ok(upstream) => return Ok((upstream, aimed, lease)),
            Err(refusal) if refusal.is_endpoints_fault() => {
                if let Some(lease) = lease {
                    lease.ended(Outcome::Unreachable, context.shared.now());
                }
                tried.push(target.workload.uid.clone());
                if tried.len() == ATTEMPTS || !target.alternatives {
                    return Err(refusal);
                }
                tracing::debug!(endpoint = %target.workload.uid, %refusal, "trying another endpoint");
            }
            Err(refusal) => return Err(refusal),
        }
    }
}
