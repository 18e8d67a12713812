//! Which endpoint of what is asked for: the one that balancing chooses, or the client's own where it has a session.
//!
//! Connects to nothing, and knows no protocol.

use std::net::IpAddr;
use std::sync::Arc;

use model::l7::Session;
use model::route::{self, Behind, NoRoute, Target};
use model::service::{Affinity, Service};
use model::workload::{Workload, WorkloadUid};
use twox_hash::XxHash64;

use super::connect::Aimed;
use crate::balance::{Ask, Endpoint, Lease, Set, Strategy};
use crate::data::{Asked, Context};
use crate::refusal::Refusal;
use crate::telemetry::Facts;

/// How an endpoint is chosen where nobody says so.
pub(crate) const LEAST_LOAD: How = How { strategy: Strategy::PeakEwma, hash: None, session: None };

/// How an endpoint is chosen. A hash stands above the service's own affinity.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    pub(crate) strategy: Strategy,
    pub(crate) hash: Option<u64>,
    /// Before anything else, the endpoint of this session.
    pub(crate) session: Option<Session>,
}

impl How {
    /// By the hash of these bytes.
    pub(crate) fn by(bytes: &[u8]) -> Self {
        Self { strategy: Strategy::Hash, hash: Some(XxHash64::oneshot(0, bytes)), session: None }
    }
}

/// The endpoint that takes what is asked for: the workload itself, or one of the service's that was not tried.
pub(crate) fn endpoint(
    context: &Context,
    (asked, facts): (&Asked, &Facts),
    how: How,
    tried: &[WorkloadUid],
) -> Result<(Aimed, Option<Lease>), Refusal> {
    let (service, port, dialled) = match &asked.behind {
        Behind::Workload(workload, app) => {
            return Ok((Aimed { target: Arc::new(route::direct(workload, *app)), tls: None }, None));
        }
        Behind::Service(service, port, dialled) => (service, *port, *dialled),
    };
    let How { strategy, hash, .. } = match service.load_balancing.affinity {
        Affinity::Client if how.hash.is_none() => How::by(client(facts).as_bytes()),
        Affinity::Client | Affinity::None => how,
    };
    let shared = &context.shared;
    let book = shared.book.load();
    let tls = book.secured(&service.id, port).map_err(|why| Refusal::BackendTlsInvalid {
        service: service.id.clone(),
        port,
        why: why.clone(),
    })?;
    let set = endpoints(context, &asked.local, service, (port, dialled))?;
    let random = &mut |below| fastrand::usize(..below);
    let is_kept = |one: &Endpoint, session: Session| {
        let uid = &one.target.workload.uid;
        session.is_with(&service.id, uid) && !tried.contains(uid)
    };
    let kept = how.session.and_then(|session| set.iter().find(|one| is_kept(one, session)));
    let choose = || set.choose(strategy, &mut Ask { now: shared.now(), hash, tried, random });
    let chosen = kept.or_else(choose);
    let chosen = chosen.ok_or_else(|| NoRoute::NoHealthyEndpoint(service.id.clone()))?;
    // What was tried may be another backend's.
    let untried = |one: &&Endpoint| !tried.contains(&one.target.workload.uid);
    let target = match tried {
        [] => Arc::clone(&chosen.target),
        _ => {
            let alternatives = set.iter().filter(untried).nth(1).is_some();
            Arc::new(Target { alternatives, ..(*chosen.target).clone() })
        }
    };
    Ok((Aimed { target, tls: tls.cloned() }, Some(chosen.state.begin())))
}

/// The endpoints of a port of a service.
pub(crate) fn endpoints(
    context: &Context,
    local: &Workload,
    service: &Arc<Service>,
    port: (u16, Option<IpAddr>),
) -> Result<Arc<Set>, NoRoute> {
    let mesh = Arc::clone(&context.shared.mesh.snapshot());
    context.endpoints.get((&mesh, &context.shared.endpoints), local, service, port)
}

/// What a client is known by, from whichever port it connects. Not its workload, which may be known a moment later only.
pub(crate) fn client(facts: &Facts) -> String {
    facts.client.0.ip().to_string()
}
