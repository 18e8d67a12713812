//! A workload: one pod, VM or external endpoint, as discovery describes it.
//!
//! Field meanings follow `istio.workload.Workload`; owns no wire form.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::Str;
use crate::identity::Identity;
use crate::policy::PolicyName;
use crate::service::{GatewayAddress, PortMapping, ServiceName};

/// A workload's unique name in the mesh, such as `Kubernetes//Pod/shop/cart-7d9f`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadUid(pub Str);

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Unique in the mesh.
    pub uid: WorkloadUid,
    /// The pod's name.
    pub name: Str,
    /// Who it is: trust domain, namespace and service account. The namespace of the workload is the identity's.
    pub identity: Identity,
    /// Its addresses, canonical, most preferred first. May be empty (a hostname or a gateway then stands for it).
    pub addresses: Vec<IpAddr>,
    /// The network that its addresses belong to.
    pub network: Str,
    /// How to reach it.
    pub tunnel: TunnelProtocol,
    /// It terminates HBONE itself: never captured, never tunnelled for.
    pub native_tunnel: bool,
    /// The node it runs on; empty when it runs on none.
    pub node: Str,
    /// `service.istio.io/canonical-name` or what stands in for it.
    pub canonical_name: Str,
    /// `service.istio.io/canonical-revision` or what stands in for it.
    pub canonical_revision: Str,
    /// What kind of object owns it.
    pub workload_type: WorkloadType,
    /// The owner's name (a Deployment's, say).
    pub workload_name: Str,
    /// The cluster it runs in.
    pub cluster_id: Str,
    /// A DNS name to reach it by, where it has no address.
    pub hostname: Str,
    /// The services it backs, with the ports it serves of each.
    pub services: BTreeMap<ServiceName, Vec<PortMapping>>,
    /// Policies attached to it by selector. One that is named here and not known is refused, not skipped.
    pub authorization_policies: Vec<PolicyName>,
    /// Ready for traffic or not.
    pub health: Health,
    /// Where it runs.
    pub locality: Locality,
    /// Whether the address is the workload's own.
    pub network_mode: NetworkMode,
    /// The waypoint that guards workload-addressed traffic.
    pub waypoint: Option<GatewayAddress>,
    /// How to reach its network from another.
    pub network_gateway: Option<GatewayAddress>,
    /// How a waypoint behind this proxy is spoken to.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Relative weight among the endpoints of a service; 1 when unset.
    pub capacity: u32,
}

impl Workload {
    /// The namespace of the workload.
    #[must_use]
    pub fn namespace(&self) -> &Str {
        &self.identity.namespace
    }
}

/// How a workload is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum TunnelProtocol {
    /// Mutual TLS with HTTP/2 CONNECT, port 15008.
    Hbone,
    /// Plain TCP.
    #[default]
    None,
}

/// The kind of a workload's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum WorkloadType {
    /// A CronJob's pod.
    CronJob,
    /// A Deployment's pod.
    Deployment,
    /// A Job's pod.
    Job,
    /// Any pod.
    #[default]
    Pod,
}

impl WorkloadType {
    /// The word used in `k8s.<word>.name` of the baggage header.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CronJob => "cronjob",
            Self::Deployment => "deployment",
            Self::Job => "job",
            Self::Pod => "pod",
        }
    }
}

/// Whether a workload is ready for traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Health {
    /// Ready.
    #[default]
    Healthy,
    /// Not ready, or terminating.
    Unhealthy,
}

/// Whether an address belongs to the workload alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum NetworkMode {
    /// Shared with the node: the address does not identify the workload.
    HostNetwork,
    /// The workload's own.
    #[default]
    Standard,
}

/// Region, zone and subzone; empty where unknown.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Locality {
    /// `topology.kubernetes.io/region`.
    pub region: Str,
    /// `topology.kubernetes.io/zone`.
    pub zone: Str,
    /// `topology.istio.io/subzone`.
    pub subzone: Str,
}

/// How the proxy hands tunnelled connections to a waypoint that runs behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ApplicationTunnel {
    /// What precedes the bytes.
    pub protocol: ApplicationProtocol,
    /// The port to connect to instead of the authority's; `None` keeps it.
    pub port: Option<u16>,
}

/// What precedes the application's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ApplicationProtocol {
    /// Nothing.
    None,
    /// A PROXY protocol v2 header.
    Proxy,
}
