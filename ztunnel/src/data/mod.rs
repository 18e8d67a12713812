//! The data plane: threads that carry bytes.
//!
//! Each thread is a runtime of its own; a connection and its tunnel live on one thread. Reads immutable snapshots only,
//! waits for no lock of the control side, and knows nothing of enrolment.

pub(crate) mod balance;
pub(crate) mod dns;
pub(crate) mod dns_tcp;
pub(crate) mod inbound;
pub(crate) mod local;
pub(crate) mod outbound;
pub(crate) mod plaintext;
pub(crate) mod relay;
pub(crate) mod serve;
pub(crate) mod thread;
pub(crate) mod upstream;

use std::sync::Arc;

use identity::Certificates;
use model::Str;
use proxy::handshakes::Handshakes;
use proxy::mesh::MeshState;
use proxy::tunnels::Tunnels;

use crate::flow::Flows;
use crate::pod::{Pod, Pods};
use crate::telemetry::Telemetry;

/// What every thread shares: snapshots and handles, no locks that anyone waits for.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) mesh: Arc<MeshState>,
    pub(crate) pods: Pods,
    pub(crate) certificates: Certificates,
    pub(crate) flows: Arc<Flows>,
    pub(crate) telemetry: Telemetry,
    pub(crate) demand: Option<xds::client::Demand>,
    pub(crate) settings: Settings,
}

/// Settings of the data plane.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// This node's name.
    pub(crate) node: Str,
    /// The network of this node's pods.
    pub(crate) network: Str,
    /// The cluster's DNS domain.
    pub(crate) cluster_domain: Str,
    /// Node-local connections go through a tunnel too, as if the pods were on two nodes.
    pub(crate) force_tunnel: bool,
    /// The congestion control of sockets towards applications of this node (`host` in the configuration, `None` here,
    /// keeps the host's).
    pub(crate) local_congestion: Option<Str>,
}

/// What a connection of one pod on one thread works with.
#[derive(Debug)]
pub(crate) struct PodContext {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) balance: balance::Balance,
    pub(crate) tunnels: Tunnels,
    pub(crate) buffers: relay::Buffers,
    pub(crate) handshakes: Handshakes,
}
