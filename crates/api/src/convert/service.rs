//! `istio.workload.Service` to and from `model::service::Service`.

use ipnet::IpNet;
use model::service::{
    Affinity, AppProtocol, HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, Scope, Service,
    ServiceName, ServicePort, Vip, Visibility, WeightedWaypoint,
};

use super::{block, ip_bytes, known, optional_port, port, required};
use crate::invalid::{InvalidField, Problem};
use crate::workload as wire;
use wire::load_balancing as balancing;

impl TryFrom<wire::Service> for Service {
    type Error = InvalidField;

    fn try_from(service: wire::Service) -> Result<Self, InvalidField> {
        let wire::Service {
            name,
            namespace,
            hostname,
            addresses,
            ports,
            subject_alt_names,
            waypoint,
            load_balancing,
            ip_families,
            extensions: _, // Istio defines none, and what a proxy may do with a service does not hang on them.
            canonical,
            ingress_use_waypoint,
            weighted_waypoints,
            visibility,
        } = service;
        let namespace = required(namespace).map_err(|p| p.of("namespace"))?;
        let hostname = required(hostname).map_err(|p| p.of("hostname"))?;
        Ok(Self {
            id: ServiceName { namespace, hostname },
            name: name.into(),
            vips: all(addresses).map_err(|p| p.of("addresses"))?,
            ports: all(ports).map_err(|p| p.of("ports"))?,
            subject_alt_names: subject_alt_names.into_iter().map(Into::into).collect(),
            waypoint: waypoint.map(TryInto::try_into).transpose().map_err(|p: Problem| p.of("waypoint"))?,
            weighted_waypoints: all(weighted_waypoints).map_err(|p| p.of("weighted_waypoints"))?,
            load_balancing: load_balancing
                .map(TryInto::try_into)
                .transpose()
                .map_err(|p: Problem| p.of("load_balancing"))?
                .unwrap_or_default(),
            ip_families: families(ip_families).map_err(|p| p.of("ip_families"))?,
            canonical,
            ingress_use_waypoint,
            visibility: visible(visibility).map_err(|p| p.of("visibility"))?,
        })
    }
}

impl From<&Service> for wire::Service {
    fn from(service: &Service) -> Self {
        let Service {
            id: ServiceName { namespace, hostname },
            name,
            vips,
            ports,
            subject_alt_names,
            waypoint,
            weighted_waypoints,
            load_balancing,
            ip_families,
            canonical,
            ingress_use_waypoint,
            visibility,
        } = service;
        Self {
            name: name.to_string(),
            namespace: namespace.to_string(),
            hostname: hostname.to_string(),
            addresses: vips.iter().map(Into::into).collect(),
            ports: ports.iter().map(Into::into).collect(),
            subject_alt_names: subject_alt_names.iter().map(ToString::to_string).collect(),
            waypoint: waypoint.as_ref().map(Into::into),
            load_balancing: (*load_balancing != LoadBalancing::default()).then(|| load_balancing.into()),
            ip_families: wire_families(*ip_families).into(),
            extensions: Vec::new(),
            canonical: *canonical,
            ingress_use_waypoint: *ingress_use_waypoint,
            weighted_waypoints: weighted_waypoints.iter().map(Into::into).collect(),
            visibility: wire_visible(*visibility).into(),
        }
    }
}

fn all<W, M: TryFrom<W, Error = Problem>>(items: Vec<W>) -> Result<Vec<M>, Problem> {
    items.into_iter().map(M::try_from).collect()
}

impl TryFrom<wire::NetworkAddress> for Vip {
    type Error = Problem;

    fn try_from(address: wire::NetworkAddress) -> Result<Self, Problem> {
        let wire::NetworkAddress { network, address, length } = address;
        Ok(Self { network: network.into(), block: block(&address, length)? })
    }
}

impl From<&Vip> for wire::NetworkAddress {
    fn from(Vip { network, block }: &Vip) -> Self {
        Self { network: network.to_string(), address: ip_bytes(block.addr()), length: wire_length(block) }
    }
}

/// Absent for a single address, which is how Istio's control plane sends it.
fn wire_length(block: &IpNet) -> Option<u32> {
    (block.prefix_len() != block.max_prefix_len()).then(|| u32::from(block.prefix_len()))
}

impl TryFrom<wire::Port> for ServicePort {
    type Error = Problem;

    fn try_from(wire::Port { service_port, target_port, app_protocol }: wire::Port) -> Result<Self, Problem> {
        Ok(Self {
            port: port(service_port)?,
            target_port: optional_port(target_port)?,
            protocol: protocol(app_protocol),
        })
    }
}

impl From<&ServicePort> for wire::Port {
    fn from(ServicePort { port, target_port, protocol }: &ServicePort) -> Self {
        Self {
            service_port: u32::from(*port),
            target_port: target_port.map_or(0, u32::from),
            app_protocol: wire_protocol(*protocol).into(),
        }
    }
}

impl TryFrom<wire::WeightedWaypoint> for WeightedWaypoint {
    type Error = Problem;

    fn try_from(
        wire::WeightedWaypoint { destination, weight }: wire::WeightedWaypoint,
    ) -> Result<Self, Problem> {
        Ok(Self { destination: destination.ok_or(Problem::Missing)?.try_into()?, weight })
    }
}

impl From<&WeightedWaypoint> for wire::WeightedWaypoint {
    fn from(WeightedWaypoint { destination, weight }: &WeightedWaypoint) -> Self {
        Self { destination: Some(destination.into()), weight: *weight }
    }
}

impl TryFrom<wire::LoadBalancing> for LoadBalancing {
    type Error = Problem;

    fn try_from(balancing: wire::LoadBalancing) -> Result<Self, Problem> {
        let wire::LoadBalancing { routing_preference, mode, health_policy, client_affinity } = balancing;
        Ok(Self {
            preference: routing_preference.into_iter().map(scope).collect::<Result<_, _>>()?,
            mode: match known(mode)? {
                balancing::Mode::Failover => LoadBalancingMode::Failover,
                balancing::Mode::Passthrough => LoadBalancingMode::Passthrough,
                balancing::Mode::Strict => LoadBalancingMode::Strict,
                balancing::Mode::UnspecifiedMode => LoadBalancingMode::Any,
            },
            health: match known(health_policy)? {
                balancing::HealthPolicy::AllowAll => HealthPolicy::AllowAll,
                balancing::HealthPolicy::OnlyHealthy => HealthPolicy::OnlyHealthy,
            },
            affinity: if client_affinity { Affinity::Client } else { Affinity::None },
        })
    }
}

impl From<&LoadBalancing> for wire::LoadBalancing {
    fn from(LoadBalancing { preference, mode, health, affinity }: &LoadBalancing) -> Self {
        let mode = match mode {
            LoadBalancingMode::Any => balancing::Mode::UnspecifiedMode,
            LoadBalancingMode::Failover => balancing::Mode::Failover,
            LoadBalancingMode::Passthrough => balancing::Mode::Passthrough,
            LoadBalancingMode::Strict => balancing::Mode::Strict,
        };
        let health = match health {
            HealthPolicy::AllowAll => balancing::HealthPolicy::AllowAll,
            HealthPolicy::OnlyHealthy => balancing::HealthPolicy::OnlyHealthy,
        };
        Self {
            routing_preference: preference.iter().map(|scope| wire_scope(*scope).into()).collect(),
            mode: mode.into(),
            health_policy: health.into(),
            client_affinity: match affinity {
                Affinity::Client => true,
                Affinity::None => false,
            },
        }
    }
}

fn scope(number: i32) -> Result<Scope, Problem> {
    match known(number)? {
        balancing::Scope::Cluster => Ok(Scope::Cluster),
        balancing::Scope::Network => Ok(Scope::Network),
        balancing::Scope::Node => Ok(Scope::Node),
        balancing::Scope::Region => Ok(Scope::Region),
        balancing::Scope::Subzone => Ok(Scope::Subzone),
        balancing::Scope::Zone => Ok(Scope::Zone),
        balancing::Scope::UnspecifiedScope => Err(Problem::Enum { number }),
    }
}

fn wire_scope(scope: Scope) -> balancing::Scope {
    match scope {
        Scope::Cluster => balancing::Scope::Cluster,
        Scope::Network => balancing::Scope::Network,
        Scope::Node => balancing::Scope::Node,
        Scope::Region => balancing::Scope::Region,
        Scope::Subzone => balancing::Scope::Subzone,
        Scope::Zone => balancing::Scope::Zone,
    }
}

/// A hint, with a value for "not declared". A protocol that we do not know must not cost the service: traffic to the
/// addresses of an unknown service would leave in plaintext.
fn protocol(number: i32) -> AppProtocol {
    match wire::AppProtocol::try_from(number) {
        Ok(wire::AppProtocol::Grpc) => AppProtocol::Grpc,
        Ok(wire::AppProtocol::Http11) => AppProtocol::Http1,
        Ok(wire::AppProtocol::Http2) => AppProtocol::Http2,
        Ok(wire::AppProtocol::Tcp) => AppProtocol::Tcp,
        Ok(wire::AppProtocol::Tls) => AppProtocol::Tls,
        Ok(wire::AppProtocol::Unknown) | Err(_) => AppProtocol::Unknown,
    }
}

fn wire_protocol(protocol: AppProtocol) -> wire::AppProtocol {
    match protocol {
        AppProtocol::Grpc => wire::AppProtocol::Grpc,
        AppProtocol::Http1 => wire::AppProtocol::Http11,
        AppProtocol::Http2 => wire::AppProtocol::Http2,
        AppProtocol::Tcp => wire::AppProtocol::Tcp,
        AppProtocol::Tls => wire::AppProtocol::Tls,
        AppProtocol::Unknown => wire::AppProtocol::Unknown,
    }
}

fn families(number: i32) -> Result<IpFamilies, Problem> {
    Ok(match known(number)? {
        wire::IpFamilies::Automatic => IpFamilies::Automatic,
        wire::IpFamilies::Dual => IpFamilies::Dual,
        wire::IpFamilies::Ipv4Only => IpFamilies::V4,
        wire::IpFamilies::Ipv6Only => IpFamilies::V6,
    })
}

fn wire_families(families: IpFamilies) -> wire::IpFamilies {
    match families {
        IpFamilies::Automatic => wire::IpFamilies::Automatic,
        IpFamilies::Dual => wire::IpFamilies::Dual,
        IpFamilies::V4 => wire::IpFamilies::Ipv4Only,
        IpFamilies::V6 => wire::IpFamilies::Ipv6Only,
    }
}

fn visible(number: i32) -> Result<Visibility, Problem> {
    Ok(match known(number)? {
        wire::service::Visibility::Namespace => Visibility::Namespace,
        wire::service::Visibility::Public => Visibility::Public,
    })
}

fn wire_visible(visibility: Visibility) -> wire::service::Visibility {
    match visibility {
        Visibility::Namespace => wire::service::Visibility::Namespace,
        Visibility::Public => wire::service::Visibility::Public,
    }
}
