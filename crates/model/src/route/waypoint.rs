//! Which waypoint guards something, who is an instance of it, and how one is reached.

use std::net::SocketAddr;
use std::sync::Arc;

use super::balance::{self, Chosen, Nothing, Wanted};
use super::{Pick, Query, Target, WaypointFault, further_identities};
use crate::address::{AppAddr, NetworkAddress, TunnelPeer, canonical};
use crate::service::{GatewayAddress, GatewayDestination, Service};
use crate::store::Mesh;
use crate::workload::{TunnelProtocol, Workload};

/// The waypoint that takes this connection to a service: one of the weighted ones by their weights, else the only one.
pub(super) fn of_service<'a>(service: &'a Service, pick: &mut dyn Pick) -> Option<&'a GatewayAddress> {
    let weighted = &service.weighted_waypoints;
    let total: u64 = weighted.iter().map(|waypoint| u64::from(waypoint.weight)).sum();
    if total == 0 {
        return service.waypoint.as_ref();
    }
    let mut ticket = balance::random(pick, total);
    let chosen = weighted.iter().find(|waypoint| {
        let hit = ticket < u64::from(waypoint.weight);
        ticket = ticket.saturating_sub(u64::from(waypoint.weight));
        hit
    });
    // Never nothing: a service with waypoints is not reached without one.
    chosen.or(weighted.last()).map(|waypoint| &waypoint.destination)
}

/// Whether a workload is an instance of a waypoint that guards a service: it then is where the service's rules are kept.
/// Weights don't matter, or a canary that goes down to nothing would refuse what is still on its way.
pub(super) fn is_waypoint_of_service(mesh: &Mesh, workload: &Workload, service: &Service) -> bool {
    let weighted = service.weighted_waypoints.iter().map(|waypoint| &waypoint.destination);
    service.waypoint.iter().chain(weighted).any(|gateway| is_instance(mesh, workload, gateway))
}

/// Whether a workload is an instance of a waypoint.
pub(super) fn is_instance(mesh: &Mesh, workload: &Workload, gateway: &GatewayAddress) -> bool {
    match &gateway.destination {
        GatewayDestination::Service(name) => workload.services.contains_key(name),
        GatewayDestination::Address(NetworkAddress { network, ip }) => match mesh.service_at(network, *ip) {
            Some(service) => workload.services.contains_key(&service.id),
            None => mesh.workload_at(network, *ip).is_some_and(|owner| owner.uid == workload.uid),
        },
    }
}

/// An instance of a waypoint, for what the query's source dialled.
pub(super) fn target(
    mesh: &Mesh,
    query: &Query<'_>,
    gateway: &GatewayAddress,
    pick: &mut dyn Pick,
) -> Result<Target, WaypointFault> {
    let service = match &gateway.destination {
        GatewayDestination::Service(name) => Some(mesh.service_named(name).ok_or(WaypointFault::Unknown)?),
        GatewayDestination::Address(addr) if addr.network != query.source.network => {
            return Err(WaypointFault::OtherNetwork(addr.network.clone()));
        }
        GatewayDestination::Address(addr) => mesh.service_at(&addr.network, addr.ip),
    };
    let Chosen { workload, addr, alternatives } = match (service, &gateway.destination) {
        (Some(service), _) => from_service(mesh, query, (service, gateway.hbone_port), pick)?,
        (None, GatewayDestination::Address(addr)) => single(mesh, query, addr, gateway.hbone_port)?,
        (None, GatewayDestination::Service(_)) => return Err(WaypointFault::Unknown),
    };
    if workload.tunnel != TunnelProtocol::Hbone {
        return Err(WaypointFault::NotHbone(workload.uid.clone()));
    }
    let further = service.into_iter().flat_map(|service| further_identities(service));
    Ok(Target {
        workload: workload.clone(),
        app: AppAddr(addr),
        tunnel: workload.tunnel,
        service: None,
        authority: canonical(query.dst.0).to_string(),
        peer: TunnelPeer(addr),
        identities: std::iter::once(workload.identity.clone()).chain(further).collect(),
        alternatives,
    })
}

fn from_service<'a>(
    mesh: &'a Mesh,
    query: &Query<'_>,
    (service, port): (&'a Service, u16),
    pick: &mut dyn Pick,
) -> Result<Chosen<'a>, WaypointFault> {
    let wanted = Wanted { service, port, ip: canonical(query.dst.0).ip(), is_waypoint: true };
    balance::choose(mesh, query, &wanted, pick).map_err(|nothing| match nothing {
        Nothing::Address | Nothing::Endpoint => WaypointFault::NoEndpoint,
        Nothing::OtherNetwork(network) => WaypointFault::OtherNetwork(network),
        Nothing::Port => WaypointFault::NoSuchPort(port),
    })
}

/// A waypoint that is one workload, named by its address.
fn single<'a>(
    mesh: &'a Mesh,
    query: &Query<'_>,
    addr: &NetworkAddress,
    port: u16,
) -> Result<Chosen<'a>, WaypointFault> {
    let workload: &Arc<Workload> = mesh.workload_at(&addr.network, addr.ip).ok_or(WaypointFault::Unknown)?;
    if query.exclude.contains(&workload.uid) {
        return Err(WaypointFault::NoEndpoint);
    }
    Ok(Chosen { workload, addr: SocketAddr::new(addr.ip.to_canonical(), port), alternatives: false })
}
