//! What a waypoint may be asked for: what names it as its waypoint, and nothing else.
//!
//! Every peer with a certificate of the mesh can name any authority. A waypoint that carried connections to anything else would
//! lend its peers its identity. Decides nothing about what becomes of the connection.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Guarded, waypoint};
use crate::Str;
use crate::authority::{Authority, Host};
use crate::service::{Service, ServiceName};
use crate::store::Mesh;
use crate::workload::Workload;

/// What a tunnel to a waypoint asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behind {
    /// A port of a service, at the address that was dialled, if one was.
    Service(Arc<Service>, u16, Option<IpAddr>),
    /// A workload, by its own address.
    Workload(Arc<Workload>, SocketAddr),
}

/// Why a waypoint does not carry a connection. `Display` is for the log; the peer learns a status and no reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotGuarded {
    /// The service does not serve the port.
    #[error("service {0} serves no port {1}; check its ports")]
    NoSuchPort(ServiceName, u16),
    /// It has another waypoint, or none.
    #[error(
        "{0} does not name this waypoint as its own; check the use-waypoint label, and whether the peer's view is stale"
    )]
    NotOurs(Guarded),
    /// No service or workload has the address.
    #[error("no service and no workload of the mesh has the address {0}; is discovery up to date?")]
    UnknownAddress(IpAddr),
    /// No service has the hostname.
    #[error("no service of the mesh is called {0}; is discovery up to date?")]
    UnknownName(Str),
}

/// What an authority stands for at `local`, an instance of a waypoint, asked by a client of `client_namespace`.
///
/// # Errors
/// When it names anything that this waypoint does not guard.
pub fn guarded(
    mesh: &Mesh,
    local: &Workload,
    client_namespace: &str,
    authority: &Authority,
) -> Result<Behind, NotGuarded> {
    let port = authority.port;
    match &authority.host {
        Host::Ip(ip) => {
            let ip = ip.to_canonical();
            if let Some(service) = mesh.service_for(&local.network, ip, client_namespace) {
                return of_service(mesh, local, service, port, Some(ip));
            }
            let workload = mesh.workload_at(&local.network, ip).ok_or(NotGuarded::UnknownAddress(ip))?;
            let gateway = workload.waypoint.as_ref();
            if !gateway.is_some_and(|gateway| waypoint::is_instance(mesh, local, gateway)) {
                return Err(NotGuarded::NotOurs(Guarded::Workload(workload.uid.clone())));
            }
            Ok(Behind::Workload(workload.clone(), SocketAddr::new(ip, port)))
        }
        Host::Name(name) => {
            // The client's own namespace first, then the canonical one, as in name resolution.
            let called = mesh.services_called(name);
            let own = called.iter().find(|service| &*service.id.namespace == client_namespace);
            let canonical = || called.iter().find(|service| service.canonical);
            let service = own.or_else(canonical).or(called.first());
            let service = service.ok_or_else(|| NotGuarded::UnknownName(name.clone()))?;
            of_service(mesh, local, service, port, None)
        }
    }
}

/// Whether a connection that came to `local` from `source` has gone around the waypoints that guard it: every way there leads through
/// one, and `source` is an instance of none of them.
///
/// A workload that backs a service without a waypoint is reached past its own by that service's clients, which at its end can't be
/// told from others; the same goes for who dials the address of a workload that only its services' waypoints guard.
#[must_use]
pub fn goes_around(mesh: &Mesh, local: &Workload, source: Option<&Workload>) -> bool {
    let Some(gateway) = &local.waypoint else { return false };
    let backed = || local.services.keys().filter_map(|name| mesh.service_named(name));
    if backed().any(|service| service.waypoint.is_none() && service.weighted_waypoints.is_empty()) {
        return false;
    }
    let is_waypoint = |source: &Workload| {
        waypoint::is_instance(mesh, source, gateway)
            || backed().any(|service| waypoint::is_waypoint_of_service(mesh, source, service))
    };
    !source.is_some_and(is_waypoint)
}

fn of_service(
    mesh: &Mesh,
    local: &Workload,
    service: &Arc<Service>,
    port: u16,
    ip: Option<IpAddr>,
) -> Result<Behind, NotGuarded> {
    if !waypoint::is_waypoint_of_service(mesh, local, service) {
        return Err(NotGuarded::NotOurs(Guarded::Service(service.id.clone())));
    }
    if !service.ports.iter().any(|declared| declared.port == port) {
        return Err(NotGuarded::NoSuchPort(service.id.clone(), port));
    }
    Ok(Behind::Service(service.clone(), port, ip))
}
