//! Inbound HBONE: tunnels from other nodes to one of this node's pods.
//!
//! TLS -> who is the peer? -> CONNECT authority -> policy -> the application, which sees the client's real address. A
//! tunnel reaches the pod whose listener it came in by, and nothing else.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hbone::Incoming;
use model::address::{AppAddr, ClientAddr, NetworkAddress, OriginalDst, canonical};
use model::identity::Identity;
use model::route;
use model::workload::Workload;
use proxy::accept::{self, Accepted, NotAccepted};
use proxy::handshakes::MAX_HANDSHAKES;
use proxy::headers;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::serve::Phase;
use super::{PodContext, relay, upstream};
use crate::flow::{Registered, Traffic};
use crate::refusal::Refusal;
use crate::tcp_info;
use crate::telemetry::{Facts, Party, Reporter, Transport};

/// The two ends of a tunnel's TCP connection.
#[derive(Clone, Copy, Debug)]
struct Ends {
    client: ClientAddr,
    /// The pod's address that was connected to.
    local: IpAddr,
}

impl Ends {
    /// `None` if the connection is gone already.
    fn of(tunnel: &TcpStream, client: SocketAddr) -> Option<Self> {
        let local = canonical(tunnel.local_addr().ok()?).ip();
        Some(Self { client: ClientAddr(canonical(client)), local })
    }
}

/// What a connection shows before its handshake; `None` if it is gone already.
pub(crate) fn seen(context: &PodContext, tunnel: &TcpStream, client: SocketAddr) -> Option<Facts> {
    Some(facts(context, Ends::of(tunnel, client)?, None))
}

/// Serves one tunnel until it ends, or until the pod's phase says that it must.
pub(crate) async fn handle(
    context: Arc<PodContext>,
    tunnel: TcpStream,
    client: SocketAddr,
    mut phase: watch::Receiver<Phase>,
) {
    let Some(ends) = Ends::of(&tunnel, client) else { return };
    let tunnel = match accept(&context, tunnel, ends).await {
        Ok(accepted) => accepted,
        Err(refusal) => {
            let facts = facts(&context, ends, None);
            context.shared.telemetry.refused(&facts, &refusal);
            return;
        }
    };
    let leave = async move {
        let _ = phase.wait_for(|phase| *phase >= Phase::Ending).await;
    };
    let peer = Arc::new(tunnel.peer.clone());
    accept::serve(tunnel, ends.client.0, leave, |incoming| {
        let (context, peer) = (Arc::clone(&context), Arc::clone(&peer));
        async move { serve(&context, incoming, ends, &peer).await }
    })
    .await;
}

/// The handshakes, and who the peer is.
async fn accept(context: &PodContext, tunnel: TcpStream, ends: Ends) -> Result<Accepted, Refusal> {
    let pod = &context.pod;
    let from = ends.client.0;
    let Some(_handshake) = context.handshakes.begin(from.ip()) else {
        relay::reset(&tunnel);
        return Err(Refusal::Handshakes { from: from.ip(), most: MAX_HANDSHAKES });
    };
    if let Some(reason) = &pod.refused {
        return Err(Refusal::PodRefused(reason.clone()));
    }
    hbone::socket::prepare(&tunnel).map_err(Refusal::Relay)?;
    let certificate = upstream::certificate(context).await?;
    let limits = upstream::server_limits(pod);
    accept::accept(tunnel, &certificate, &limits).await.map_err(|error| match error {
        NotAccepted::Handshake(error) => Refusal::Tunnel { to: from, reason: error.to_string() },
        NotAccepted::Peer(error) => error.into(),
    })
}

/// One CONNECT, from its authority to its last byte.
async fn serve(context: &PodContext, incoming: Incoming, ends: Ends, peer: &Identity) {
    let telemetry = &context.shared.telemetry;
    let mut facts = facts(context, ends, Some(peer));
    facts.authority = Some(incoming.authority.as_str().into());
    let app = match destination(context, incoming.authority.as_str(), ends, &mut facts).await {
        Ok(app) => app,
        Err(refusal) => {
            telemetry.refused(&facts, &refusal);
            incoming.refuse(refusal.status());
            return;
        }
    };
    facts.app = app;
    facts.dialled = OriginalDst(app.0);
    match connect(context, facts.clone()).await {
        Ok((flow, server)) => {
            telemetry.opened(&flow);
            let stream = match incoming.accept(headers::answer(flow.facts.destination.workload.as_deref())) {
                Ok(stream) => stream,
                // The peer gave up while the application was being connected to.
                Err(error) => {
                    let outcome = Err(Refusal::Relay(io::Error::other(error)));
                    return telemetry.closed(&flow, &outcome, None);
                }
            };
            let outcome = tokio::select! {
                biased;
                ending = flow.ended() => Err(ending.into()),
                outcome = upstream::relay(&server, stream, &flow.traffic, upstream::End::Server) => outcome,
            };
            telemetry.closed(&flow, &outcome, tcp_info::of(&server));
            if outcome.is_err() {
                relay::reset(&server);
            }
        }
        Err(refusal) => {
            telemetry.refused(&facts, &refusal);
            incoming.refuse(refusal.status());
        }
    }
}

/// Where the application is that the authority names: always this pod.
async fn destination(
    context: &PodContext,
    authority: &str,
    ends: Ends,
    facts: &mut Facts,
) -> Result<AppAddr, Refusal> {
    let shared = &context.shared;
    let pod = &context.pod;
    if pod.budget.is_exceeded() {
        return Err(Refusal::Hoarded);
    }
    let workload: Option<Arc<Workload>> = shared.mesh.local_workload(&pod.workload).await;
    let workload = workload.ok_or_else(|| Refusal::WorkloadUnknown(pod.workload.clone()))?;
    facts.destination.workload = Some(Arc::clone(&workload));
    let parsed = authority.parse().map_err(Refusal::NotAnAuthority)?;
    let mesh = shared.mesh.snapshot();
    let app = route::inbound_authority(&mesh, &workload, ends.local, &parsed)?;
    if route::goes_around(&mesh, &workload, facts.source.workload.as_deref()) {
        return Err(Refusal::AroundWaypoint(workload.uid.clone()));
    }
    Ok(app)
}

async fn connect(context: &PodContext, facts: Facts) -> Result<(Registered, TcpStream), Refusal> {
    let shared = &context.shared;
    let traffic = Arc::new(Traffic::default());
    let (flow, verdict) = shared.flows.admit(&shared.mesh, &context.pod.workload, facts, traffic);
    let server = upstream::to_app(context, &context.pod, &verdict?).await?;
    Ok((flow, server))
}

fn facts(context: &PodContext, ends: Ends, peer: Option<&Identity>) -> Facts {
    let Ends { client, local } = ends;
    let mesh = context.shared.mesh.snapshot();
    let source = NetworkAddress { network: context.shared.settings.network.clone(), ip: client.0.ip() };
    let workload = mesh.workload_by_address(&source);
    // A workload that is not who the peer has proven to be is another one that had the address before or after.
    let workload = workload.filter(|workload| peer.is_none_or(|peer| workload.identity == *peer));
    Facts {
        reporter: Reporter::Destination,
        transport: Transport::Hbone,
        source: Party { workload, identity: peer.cloned() },
        destination: Party {
            workload: mesh.workload(&context.pod.workload),
            identity: Some(context.pod.identity.clone()),
        },
        client,
        dialled: OriginalDst(SocketAddr::new(local, 0)),
        app: AppAddr(SocketAddr::new(local, 0)),
        authority: None,
        service: None,
        pod: context.pod.uid.clone(),
        generation: context.pod.generation,
    }
}
