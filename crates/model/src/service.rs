//! A service: names, virtual addresses, ports, and how its endpoints are chosen.
//!
//! Field meanings follow `istio.workload.Service`; owns no endpoints (the store joins them).

use std::fmt;

use ipnet::IpNet;

use crate::Str;
use crate::address::NetworkAddress;

/// `namespace/hostname`, unique in the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// The namespace that owns the service.
    pub namespace: Str,
    /// The fully qualified hostname, such as `cart.shop.svc.cluster.local`.
    pub hostname: Str,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// One service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Unique in the mesh.
    pub id: ServiceName,
    /// The object's name (`cart`).
    pub name: Str,
    /// Virtual addresses; a full-length block is a single address. Empty for a headless service.
    pub vips: Vec<Vip>,
    /// Ports that clients dial.
    pub ports: Vec<ServicePort>,
    /// Further identities that may answer for the service (SPIFFE IDs).
    pub subject_alt_names: Vec<Str>,
    /// The waypoint that guards service-addressed traffic.
    pub waypoint: Option<GatewayAddress>,
    /// A weighted choice of waypoints; stands in for `waypoint` when its weights sum to more than zero.
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// How an endpoint is chosen.
    pub load_balancing: LoadBalancing,
    /// Which address families clients may use.
    pub ip_families: IpFamilies,
    /// Wins among services of one hostname in several namespaces.
    pub canonical: bool,
    /// Ingress traffic passes the waypoint too.
    pub ingress_use_waypoint: bool,
    /// Who may resolve it.
    pub visibility: Visibility,
}

/// A virtual address, or a block of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vip {
    /// The network it is valid in.
    pub network: Str,
    /// The addresses it stands for.
    pub block: IpNet,
}

/// A port that clients dial, and the port that endpoints serve it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// What the client dials.
    pub port: u16,
    /// Where endpoints listen unless they map it themselves; `None` when only they know (a named target port).
    pub target_port: Option<u16>,
    /// What is spoken on it.
    pub protocol: AppProtocol,
}

/// An endpoint's own answer to where a service port is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortMapping {
    /// What the client dials.
    pub service_port: u16,
    /// Where this endpoint listens.
    pub target_port: u16,
}

/// The application protocol declared for a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum AppProtocol {
    /// gRPC.
    Grpc,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Opaque TCP.
    Tcp,
    /// Opaque TLS.
    Tls,
    /// Not declared.
    #[default]
    Unknown,
}

/// How endpoints of a service are chosen.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LoadBalancing {
    /// Localities in order of importance.
    pub preference: Vec<Scope>,
    /// What the preference means.
    pub mode: LoadBalancingMode,
    /// Whether unhealthy endpoints take part.
    pub health: HealthPolicy,
    /// Whether a client stays with an endpoint.
    pub affinity: Affinity,
}

/// Something that source and endpoint may have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The cluster.
    Cluster,
    /// The network.
    Network,
    /// The node.
    Node,
    /// The region.
    Region,
    /// The subzone.
    Subzone,
    /// The zone.
    Zone,
}

/// Whether the connections of a client go to one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Affinity {
    /// All of them, for as long as it may take connections.
    Client,
    /// Each goes its own way.
    #[default]
    None,
}

/// What a locality preference means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum LoadBalancingMode {
    /// Any endpoint.
    #[default]
    Any,
    /// The best-matching endpoints that exist.
    Failover,
    /// No choice at all: the dialled address is used as it is.
    Passthrough,
    /// Only endpoints that match every scope.
    Strict,
}

/// Whether unhealthy endpoints take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum HealthPolicy {
    /// All endpoints (`publishNotReadyAddresses`).
    AllowAll,
    /// Only healthy ones.
    #[default]
    OnlyHealthy,
}

/// Address families of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum IpFamilies {
    /// No restriction.
    #[default]
    Automatic,
    /// Both.
    Dual,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

/// Who may resolve a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Visibility {
    /// Only workloads of its own namespace.
    Namespace,
    /// Everyone.
    #[default]
    Public,
}

/// Where a gateway or waypoint is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatewayAddress {
    /// What it is called.
    pub destination: GatewayDestination,
    /// The port of its HBONE listener (a service port where `destination` is a service).
    pub hbone_port: u16,
}

/// A gateway's name or address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GatewayDestination {
    /// An address.
    Address(NetworkAddress),
    /// A service.
    Service(ServiceName),
}

impl fmt::Display for GatewayDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(addr) => addr.fmt(f),
            Self::Service(name) => name.fmt(f),
        }
    }
}

/// One of several waypoints, with its share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WeightedWaypoint {
    /// Where it is.
    pub destination: GatewayAddress,
    /// Its share, relative to the others' weights.
    pub weight: u32,
}
