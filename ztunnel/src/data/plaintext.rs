//! Plaintext inbound: a connection into an enrolled pod from outside the mesh.
//!
//! Policy sees no identity, so a policy that asks for one refuses it. The application sees the client's real address.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use model::address::{AppAddr, ClientAddr, NetworkAddress, OriginalDst, PROXY_PORTS, canonical};
use model::route;
use tokio::net::TcpStream;

use super::{PodContext, relay, upstream};
use crate::flow::{Registered, Traffic};
use crate::pod::Pod;
use crate::refusal::Refusal;
use crate::tcp_info;
use crate::telemetry::{Facts, Party, Reporter, Transport};

/// Carries one connection to the application and reports it.
pub(crate) async fn handle(context: Arc<PodContext>, mut outside: TcpStream, client: SocketAddr) {
    let Some(facts) = seen(&context, &outside, client) else { return };
    let telemetry = &context.shared.telemetry;
    match connect(&context, &facts).await {
        Ok((flow, mut server)) => {
            telemetry.opened(&flow);
            let outcome = tokio::select! {
                biased;
                ending = flow.ended() => Err(ending.into()),
                outcome = relay::relay(&mut outside, &mut server, &flow.traffic, Bytes::new(), &context.buffers) => outcome.map_err(Refusal::Relay),
            };
            telemetry.closed(&flow, &outcome, tcp_info::of(&outside));
            if outcome.is_err() {
                relay::reset(&outside);
            }
        }
        Err(refusal) => {
            telemetry.refused(&facts, &refusal);
            relay::reset(&outside);
        }
    }
}

async fn connect(context: &PodContext, facts: &Facts) -> Result<(Registered, TcpStream), Refusal> {
    let pod = &context.pod;
    may_reach(pod, facts.dialled)?;
    let shared = &context.shared;
    let workload = shared.mesh.local_workload(&pod.workload).await;
    let workload = workload.ok_or_else(|| Refusal::WorkloadUnknown(pod.workload.clone()))?;
    // Nobody proves here to be a waypoint.
    if route::goes_around(&shared.mesh.snapshot(), &workload, None) {
        return Err(Refusal::AroundWaypoint(workload.uid.clone()));
    }
    let traffic = Arc::new(Traffic::default());
    let (flow, verdict) = shared.flows.admit(&shared.mesh, &pod.workload, facts.clone(), traffic);
    let server = upstream::to_app(context, pod, &verdict?).await?;
    Ok((flow, server))
}

/// Whether connections from outside the mesh to an address are `pod`'s, whatever its policies say.
pub(crate) fn may_reach(pod: &Pod, OriginalDst(dialled): OriginalDst) -> Result<(), Refusal> {
    if let Some(reason) = &pod.refused {
        return Err(Refusal::PodRefused(reason.clone()));
    }
    if !pod.owns(dialled.ip()) || PROXY_PORTS.contains(&dialled.port()) {
        return Err(Refusal::OwnPort(dialled));
    }
    Ok(())
}

/// What a connection shows; `None` if it is gone already.
pub(crate) fn seen(context: &PodContext, outside: &TcpStream, client: SocketAddr) -> Option<Facts> {
    let (client, dialled) =
        (ClientAddr(canonical(client)), OriginalDst(canonical(outside.local_addr().ok()?)));
    let mesh = context.shared.mesh.snapshot();
    let source = NetworkAddress { network: context.shared.settings.network.clone(), ip: client.0.ip() };
    Some(Facts {
        reporter: Reporter::Destination,
        transport: Transport::Plaintext,
        // The address tells whom dashboards should show; it proves nothing, so there is no identity.
        source: Party { workload: mesh.workload_by_address(&source), identity: None },
        destination: Party {
            workload: mesh.workload(&context.pod.workload),
            identity: Some(context.pod.identity.clone()),
        },
        client,
        dialled,
        app: AppAddr(dialled.0),
        authority: None,
        service: None,
        pod: context.pod.uid.clone(),
        generation: context.pod.generation,
    })
}
