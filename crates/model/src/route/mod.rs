//! L4 route choice: where a captured connection goes.
//!
//! A pure function of the snapshot, the source, the dialled address, and what the caller knows of endpoints ([`Pick`]).
//! Owns no sockets, no randomness and no record of failures. One lookup order everywhere: service first, then workload.
//! What is known and can't be reached as it should be is refused, never reached another way.

mod balance;
mod guarded;
mod inbound;
mod waypoint;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

pub use guarded::{Behind, NotGuarded, goes_around, guarded};
pub use inbound::{BadAuthority, inbound_authority};

use crate::Str;
use crate::address::{AppAddr, HBONE_PORT, OriginalDst, TunnelPeer, canonical};
use crate::identity::Identity;
use crate::route::balance::{Chosen, Nothing, Wanted};
use crate::service::{GatewayAddress, GatewayDestination, LoadBalancingMode, Service, ServiceName};
use crate::store::Mesh;
use crate::workload::{NetworkMode, TunnelProtocol, Workload, WorkloadUid};

/// What the caller contributes to a choice among endpoints.
pub trait Pick {
    /// A uniformly random number below `below`, which is never 0.
    fn random(&mut self, below: u32) -> u32;

    /// How busy an endpoint is, as far as the caller knows.
    fn load(&self, uid: &WorkloadUid) -> Load;
}

/// How busy an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Load {
    /// Connections that are open to it.
    pub outstanding: u32,
    /// Attempts to connect to it that failed lately.
    pub recent_failures: u32,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The workload whose connection was captured.
    pub source: &'a Workload,
    /// What it dialled.
    pub dst: OriginalDst,
    /// Endpoints that were tried for this connection already.
    pub exclude: &'a [WorkloadUid],
}

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// To a workload.
    Workload(Target),
    /// To the waypoint that guards what was dialled, which takes it on.
    Waypoint(Target),
    /// To the dialled address as it is, which is no part of the mesh.
    Passthrough(SocketAddr),
}

/// The far end of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The workload that is connected to: the endpoint, or an instance of the waypoint.
    pub workload: Arc<Workload>,
    /// Where its application listens. For a waypoint, the address of its tunnel listener.
    pub app: AppAddr,
    /// How it is reached.
    pub tunnel: TunnelProtocol,
    /// The service that was dialled, if one was; for a waypoint too.
    pub service: Option<Arc<Service>>,
    /// What `CONNECT` names: the application's address, or for a waypoint what the client dialled.
    pub authority: String,
    /// Where the TCP connection goes. Without a tunnel, to the application.
    pub peer: TunnelPeer,
    /// The peer must prove to be one of these.
    pub identities: Vec<Identity>,
    /// Whether another endpoint could be tried if this one can't be connected to.
    pub alternatives: bool,
}

/// Why a connection has no route. The connection is refused; `Display` says what to look at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// The endpoints have no address that may be used.
    #[error(
        "the endpoints of service {0} have no IP address of the service's address families; check the pods' IPs and the \
         service's ipFamilies"
    )]
    NoAddress(ServiceName),
    /// No endpoint may take the connection.
    #[error(
        "service {0} has no endpoint for this connection: none is ready, admitted by its traffic policy and not tried \
         already; check that its pods are Ready and its selector matches them"
    )]
    NoHealthyEndpoint(ServiceName),
    /// The service, or every endpoint of it, does not serve the port.
    #[error(
        "service {service} serves no port {port}; check its ports and the target ports' names in its pods"
    )]
    NoSuchPort {
        /// What was dialled.
        service: ServiceName,
        /// The port that was dialled.
        port: u16,
    },
    /// Endpoints exist in another network only.
    #[error(
        "{destination} can be reached in network {network:?} only, and no way there is known; check the network labels of \
         its pods and of this node"
    )]
    OtherNetwork {
        /// What was dialled.
        destination: ServiceName,
        /// Where it is.
        network: Str,
    },
    /// The waypoint that guards the destination can't be used, and it is not bypassed.
    #[error("waypoint {waypoint}, which guards {guarded}, can't be used: {why}")]
    WaypointUnavailable {
        /// The waypoint.
        waypoint: GatewayDestination,
        /// What was dialled.
        guarded: Guarded,
        /// What is wrong with the waypoint.
        why: WaypointFault,
    },
}

/// What a waypoint guards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guarded {
    /// A service.
    Service(ServiceName),
    /// A workload.
    Workload(WorkloadUid),
}

impl fmt::Display for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "service {name}"),
            Self::Workload(uid) => write!(f, "workload {uid}"),
        }
    }
}

/// What is wrong with a waypoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaypointFault {
    /// It has no endpoint.
    #[error("none of its instances is ready and untried; check the waypoint's Deployment")]
    NoEndpoint,
    /// Its service does not serve the tunnel port.
    #[error("its service serves no port {0}; check the waypoint's Service")]
    NoSuchPort(u16),
    /// It does not accept tunnels.
    #[error("its instance {0} does not accept HBONE; check that it is a waypoint")]
    NotHbone(WorkloadUid),
    /// It is in another network.
    #[error("it is in network {0:?}, which can't be reached from here")]
    OtherNetwork(Str),
    /// It is not known.
    #[error(
        "neither a service nor a workload of that name or address is known; check the use-waypoint label"
    )]
    Unknown,
}

/// Chooses where a captured connection goes.
///
/// # Errors
/// When what was dialled is part of the mesh and can't be reached the way it has to be.
pub fn outbound(mesh: &Mesh, query: Query<'_>, pick: &mut dyn Pick) -> Result<Route, NoRoute> {
    let dst = canonical(query.dst.0);
    let source = query.source;
    if let Some(service) = mesh.service_for(&source.network, dst.ip(), source.namespace()) {
        if !waypoint::is_waypoint_of_service(mesh, source, service)
            && let Some(gateway) = waypoint::of_service(service, pick)
        {
            let target = waypoint::target(mesh, &query, gateway, pick)
                .map_err(|why| unavailable(gateway, Guarded::Service(service.id.clone()), why))?;
            return Ok(Route::Waypoint(Target { service: Some(service.clone()), ..target }));
        }
        // A service without load balancing only describes an address; what is known of the address still counts, or a
        // wide block of such a service would take enrolled pods out of the mesh.
        if service.load_balancing.mode != LoadBalancingMode::Passthrough {
            return to_service(mesh, &query, service, pick).map(Route::Workload);
        }
    }
    let Some(workload) = mesh.workload_at(&source.network, dst.ip()) else {
        return Ok(Route::Passthrough(dst));
    };
    if let Some(gateway) = &workload.waypoint
        && !waypoint::is_instance(mesh, source, gateway)
    {
        return waypoint::target(mesh, &query, gateway, pick)
            .map(Route::Waypoint)
            .map_err(|why| unavailable(gateway, Guarded::Workload(workload.uid.clone()), why));
    }
    Ok(Route::Workload(direct(workload, dst)))
}

/// An endpoint of a service, for who keeps a choice of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reachable {
    /// How it is reached.
    pub target: Target,
    /// How near it is by the service's preference; higher is nearer.
    pub rank: usize,
    /// Whether it takes connections now.
    pub up: bool,
}

/// Every endpoint of the service whose port was dialled that can be connected to from the query's source, which is to be the
/// service's waypoint: where the service's rules are kept, they don't lead anywhere else. Leaves the choice to the caller.
///
/// # Errors
/// When there is none.
pub fn reachable(mesh: &Mesh, query: &Query<'_>, service: &Arc<Service>) -> Result<Vec<Reachable>, NoRoute> {
    let wanted = wanted(query, service);
    let all = balance::ranked(mesh, query, &wanted).map_err(|nothing| no_endpoint(nothing, &wanted))?;
    let reachable = all.into_iter().map(|(chosen, rank, up)| Reachable {
        target: endpoint_target(mesh, query, service, &chosen),
        rank,
        up,
    });
    Ok(reachable.collect())
}

fn to_service(
    mesh: &Mesh,
    query: &Query<'_>,
    service: &Arc<Service>,
    pick: &mut dyn Pick,
) -> Result<Target, NoRoute> {
    let wanted = wanted(query, service);
    let chosen =
        balance::choose(mesh, query, &wanted, pick).map_err(|nothing| no_endpoint(nothing, &wanted))?;
    Ok(endpoint_target(mesh, query, service, &chosen))
}

fn wanted<'a>(query: &Query<'_>, service: &'a Service) -> Wanted<'a> {
    let dst = canonical(query.dst.0);
    Wanted { service, port: dst.port(), ip: dst.ip(), is_waypoint: false }
}

fn no_endpoint(nothing: Nothing, wanted: &Wanted<'_>) -> NoRoute {
    let service = wanted.service.id.clone();
    match nothing {
        Nothing::Address => NoRoute::NoAddress(service),
        Nothing::Endpoint => NoRoute::NoHealthyEndpoint(service),
        Nothing::OtherNetwork(network) => NoRoute::OtherNetwork { destination: service, network },
        Nothing::Port => NoRoute::NoSuchPort { service, port: wanted.port },
    }
}

fn endpoint_target(mesh: &Mesh, query: &Query<'_>, service: &Arc<Service>, chosen: &Chosen<'_>) -> Target {
    let &Chosen { workload, addr, alternatives } = chosen;
    let mut target = direct(whoever_has(mesh, query, workload, addr.ip()), addr);
    target.identities.extend(further_identities(service));
    Target { service: Some(service.clone()), alternatives, ..target }
}

/// An endpoint that somebody wrote down by nothing but an address is whoever has that address: dialled through a service, a
/// pod of the mesh is no less one.
fn whoever_has<'a>(
    mesh: &'a Mesh,
    query: &Query<'_>,
    endpoint: &'a Arc<Workload>,
    ip: IpAddr,
) -> &'a Arc<Workload> {
    match endpoint.network_mode {
        NetworkMode::HostNetwork => mesh.workload_at(&query.source.network, ip).unwrap_or(endpoint),
        NetworkMode::Standard => endpoint,
    }
}

/// Straight to a workload's application. For a captured connection [`outbound`] says whether it may be reached so.
#[must_use]
pub fn direct(workload: &Arc<Workload>, app: SocketAddr) -> Target {
    let peer = match workload.tunnel {
        TunnelProtocol::Hbone => SocketAddr::new(app.ip(), HBONE_PORT),
        TunnelProtocol::None => app,
    };
    Target {
        workload: workload.clone(),
        app: AppAddr(app),
        tunnel: workload.tunnel,
        service: None,
        authority: app.to_string(),
        peer: TunnelPeer(peer),
        identities: vec![workload.identity.clone()],
        alternatives: false,
    }
}

/// Identities that may answer for any endpoint of a service. One that can't be read admits nobody.
fn further_identities(service: &Service) -> impl Iterator<Item = Identity> + '_ {
    service.subject_alt_names.iter().filter_map(|name| name.parse().ok())
}

fn unavailable(gateway: &GatewayAddress, guarded: Guarded, why: WaypointFault) -> NoRoute {
    NoRoute::WaypointUnavailable { waypoint: gateway.destination.clone(), guarded, why }
}

/// Whether both are of one family.
fn same_family(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}
