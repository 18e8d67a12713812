//! Streams whose bytes are nobody's business but their ends': an endpoint where routes say, and the bytes both ways.
//!
//! A connect that fails before a byte was sent is tried again on another endpoint. What is allowed is decided at the endpoint,
//! apart from what it could not: see [`denied`].

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use hbone::{Incoming, Progress, Reason, RelayError, Stream};
use identity::origination::Speaks;
use model::address::AppAddr;
use model::l7::{AbortAnswer, Session};
use model::policy::{Connection, Denial};
use model::route::{self, Behind, NoRoute, Target};
use model::service::{Affinity, Service};
use model::store::Mesh;
use model::workload::{Workload, WorkloadUid};
use proxy::headers;
use proxy::tunnels::Opened;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until};

use super::Context;
use super::balancing::{self, How};
use super::relay::secured;
use super::routed::{self, Routed};
use super::stream::Asked;
use super::upstream::{self, ATTEMPTS, Aimed, Upstream};
use crate::balance::{Ask, Endpoint, Lease, Outcome, Set};
use crate::refusal::Refusal;
use crate::telemetry::{Facts, Live};

/// Carries one stream to its end and reports it.
pub(crate) async fn serve(context: &Arc<Context>, incoming: Incoming, asked: &Asked, mut facts: Facts) {
    let telemetry = &context.shared.telemetry;
    let policies = watched(context);
    let reached = match reach(context, (asked, None), &mut facts).await {
        Ok(reached) => reached,
        Err(refusal) => {
            telemetry.refused(&facts, &refusal);
            return incoming.refuse(refusal.status());
        }
    };
    match incoming.accept(headers::answer(Some(&asked.local))) {
        Ok(stream) => run(context, (stream, Vec::new()), (reached, Vec::new()), facts, policies).await,
        // The client gave up while the endpoint was being connected to.
        Err(error) => telemetry.refused(&facts, &error.into()),
    }
}

/// The same for a stream that was accepted, of which something was received that is not consumed, and whose client may have asked
/// for a name in TLS.
pub(crate) async fn carry(
    context: &Arc<Context>,
    (mut stream, said): (Stream, Vec<Bytes>),
    asked: (&Asked, Option<&str>),
    mut facts: Facts,
) {
    let policies = watched(context);
    match reach(context, asked, &mut facts).await {
        Ok(reached) => run(context, (stream, said), (reached, Vec::new()), facts, policies).await,
        Err(refusal) => {
            context.shared.telemetry.refused(&facts, &refusal);
            stream.reset(Reason::CONNECT_ERROR);
        }
    }
}

/// Policies, watched from before the first look at them, so that no change falls between.
pub(crate) fn watched(context: &Context) -> watch::Receiver<u64> {
    let mut policies = context.shared.policies.clone();
    policies.borrow_and_update();
    policies
}

/// An endpoint that was connected to.
pub(crate) type Reached = (Upstream, Aimed, Option<Lease>);

/// Carries bytes both ways; what the endpoint has said already is `answered`.
pub(crate) async fn run(
    context: &Arc<Context>,
    (mut stream, said): (Stream, Vec<Bytes>),
    ((upstream, aimed, _lease), answered): (Reached, Vec<Bytes>),
    facts: Facts,
    mut policies: watch::Receiver<u64>,
) {
    let live = context.shared.telemetry.opened(facts);
    let carried = async {
        match upstream {
            Upstream::Secured(inside) => secured((stream, said), (*inside, answered), &live).await,
            Upstream::Tunnel(opened) => {
                let Opened { stream: mut second, until, .. } = *opened;
                for bytes in answered {
                    second.consumed(bytes.len());
                    live.back(bytes.len() as u64);
                    stream.send(bytes)?;
                }
                tokio::select! {
                    outcome = hbone::splice(stream, second, said, &live) => Ok(outcome?),
                    () = sleep_until(until) => {
                        let why = "the certificates of its tunnel expired a day ago";
                        Err(Refusal::Broken(io::Error::other(why)))
                    }
                }
            }
            Upstream::Tcp(tcp) => plain(stream, said, tcp, &live).await,
        }
    };
    let outcome = tokio::select! {
        biased;
        denial = revoked(context, &aimed.target, &live.facts, &mut policies) => Err(denial.into()),
        outcome = carried => outcome,
    };
    context.shared.telemetry.closed(&live, outcome);
}

async fn plain(mut stream: Stream, said: Vec<Bytes>, mut tcp: TcpStream, live: &Live) -> Result<(), Refusal> {
    for bytes in said {
        tcp.write_all(&bytes).await.map_err(Refusal::Broken)?;
        stream.consumed(bytes.len());
        live.to_tcp(bytes.len() as u64);
    }
    hbone::relay(&tcp, stream, live).await.map_err(|error| match error {
        RelayError::Stream(error) => error.into(),
        RelayError::Tcp(error) => Refusal::Broken(error),
    })
}

/// A connection to an endpoint of what is asked for, or of where its routes lead.
pub(crate) async fn reach(
    context: &Arc<Context>,
    (asked, name): (&Asked, Option<&str>),
    facts: &mut Facts,
) -> Result<Reached, Refusal> {
    let Routed { asked, how, injected } = routed::route(context, asked, facts, name)?;
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
        Affinity::Client if how.hash.is_none() => How::by(balancing::client(facts).as_bytes()),
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
