//! What a tunnel may ask to be connected to: the workload at its end, and nothing else.
//!
//! Every peer with a certificate of the mesh can name any authority. Whoever answered for another address would lend the
//! peer its place in the network (loopback, the node, a cloud's metadata service).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::waypoint;
use crate::Str;
use crate::address::{AppAddr, PROXY_PORTS};
use crate::authority::{Authority, Host};
use crate::service::{Service, ServiceName};
use crate::store::Mesh;
use crate::workload::Workload;

/// Why an authority is refused. `Display` is for the log; the peer learns a status and no reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAuthority {
    /// An address that is nobody's own: loopback, link-local, multicast, unspecified.
    #[error("a tunnel may not lead to {0}: it is not the address of a pod")]
    Forbidden(IpAddr),
    /// A hostname of no service that the workload backs.
    #[error("{0} is not a service that this workload backs; check the service's selector")]
    NotBacked(Str),
    /// An address of another workload, or one that the workload lost.
    #[error(
        "{0} is not an address of this workload; the peer's view of it may be stale, or the peer forged it"
    )]
    NotOwn(IpAddr),
    /// The service, or this endpoint of it, does not serve the port.
    #[error(
        "service {service} serves no port {port} on this workload; check its ports and the names of target ports"
    )]
    NoSuchPort {
        /// The service that was named.
        service: ServiceName,
        /// The port that was named.
        port: u16,
    },
    /// A port of the proxy's own.
    #[error("port {0} belongs to the proxy; an application can't be reached there")]
    ProxyPort(u16),
}

/// The application address that an authority stands for, at a tunnel that ended at `local_ip` of `local`.
///
/// A waypoint that runs behind this proxy (with an application tunnel) may be asked for what it guards as well.
///
/// # Errors
/// When the authority names anything but the workload itself.
pub fn inbound_authority(
    mesh: &Mesh,
    local: &Workload,
    local_ip: IpAddr,
    authority: &Authority,
) -> Result<AppAddr, BadAuthority> {
    let local_ip = own(local, local_ip)?;
    let (ip, port) = match &authority.host {
        Host::Ip(ip) if guards(mesh, local, *ip) => (local_ip, authority.port),
        Host::Ip(ip) => (own(local, *ip)?, authority.port),
        Host::Name(name) => (local_ip, served_port(mesh, local, name, authority.port)?),
    };
    let port = local.application_tunnel.and_then(|tunnel| tunnel.port).unwrap_or(port);
    if PROXY_PORTS.contains(&port) {
        return Err(BadAuthority::ProxyPort(port));
    }
    Ok(AppAddr(SocketAddr::new(ip, port)))
}

/// The canonical form of an address, if it is the workload's own.
fn own(local: &Workload, ip: IpAddr) -> Result<IpAddr, BadAuthority> {
    let ip = ip.to_canonical();
    // Checked first: even a workload that claims such an address does not get to be reached there.
    if is_nobodys(ip) {
        return Err(BadAuthority::Forbidden(ip));
    }
    if !local.addresses.iter().any(|own| own.to_canonical() == ip) {
        return Err(BadAuthority::NotOwn(ip));
    }
    Ok(ip)
}

fn is_nobodys(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || {
        match ip {
            IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        }
    }
}

/// Whether `local` is an instance of the waypoint of what is at an address, and runs behind this proxy.
fn guards(mesh: &Mesh, local: &Workload, ip: IpAddr) -> bool {
    if local.application_tunnel.is_none() {
        return false;
    }
    if let Some(service) = mesh.service_for(&local.network, ip, local.namespace()) {
        return waypoint::is_waypoint_of_service(mesh, local, service);
    }
    let workload = mesh.workload_at(&local.network, ip);
    let gateway = workload.and_then(|workload| workload.waypoint.as_ref());
    gateway.is_some_and(|gateway| waypoint::is_instance(mesh, local, gateway))
}

/// Where the workload serves a port of the service of that hostname: its own namespace's first.
fn served_port(mesh: &Mesh, local: &Workload, hostname: &Str, port: u16) -> Result<u16, BadAuthority> {
    let backed =
        || mesh.services_called(hostname).iter().filter(|service| local.services.contains_key(&service.id));
    let own = backed().find(|service| service.id.namespace == *local.namespace());
    let service: &Arc<Service> =
        own.or_else(|| backed().next()).ok_or_else(|| BadAuthority::NotBacked(hostname.clone()))?;
    let mapped =
        local.services.get(&service.id).into_iter().flatten().find(|mapping| mapping.service_port == port);
    let declared = service.ports.iter().find(|declared| declared.port == port);
    let target =
        mapped.map(|mapping| mapping.target_port).or(declared.and_then(|declared| declared.target_port));
    target.ok_or_else(|| BadAuthority::NoSuchPort { service: service.id.clone(), port })
}
