//! Why a connection was not carried, or not to its end, and what the outside world is told of it.
//!
//! The only place where a failure becomes a status, a flag and a code. The peer learns the status, never the reason.

use std::io;
use std::net::{IpAddr, SocketAddr};

use http::StatusCode;
use identity::BadPeer;
use model::authority::InvalidAuthority;
use model::identity::Identity;
use model::policy::Denial;
use model::route::{BadAuthority, NoRoute};
use model::workload::WorkloadUid;
use proxy::reach::{NotOpened, RefusedByPeer};

use crate::flow::Denied;

/// Why a connection was refused or cut. `Display` is for logs and `airglow why`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// The pod is reached through waypoints only, and the peer is none of them.
    #[error("{0} is reached through its waypoint only, and this does not come from an instance of it")]
    AroundWaypoint(WorkloadUid),
    /// The tunnel names something that is not this pod's.
    #[error("the CONNECT authority is refused: {0}")]
    Authority(#[from] BadAuthority),
    /// There is no certificate to prove the pod's identity with.
    #[error("no certificate for {identity}: {reason}")]
    Certificate {
        /// Whose.
        identity: Identity,
        /// Why.
        reason: String,
    },
    /// The TCP connection was refused or timed out.
    #[error("can't connect to {to}: {error}")]
    Connect {
        /// Where to.
        to: SocketAddr,
        /// What happened.
        error: io::Error,
    },
    /// Policy, or the lack of knowledge to judge by.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Policy changed while the connection was open.
    #[error("closed because policy changed: {0}")]
    Revoked(Denial),
    /// It was cut because this ztunnel stops or the pod leaves the mesh.
    #[error("closed because {0}")]
    Drained(&'static str),
    /// The pod's application claims an address that is not its pod's.
    #[error("the source {0} is not one of this pod's addresses; announce it with the pod if it is")]
    ForeignSource(SocketAddr),
    /// The pod's connections hold more in tunnels than they may.
    #[error(
        "this pod's connections hold so much unread or unsent that their budget ({} MiB) is used up: those that have \
         stood still longest are reset, and none is opened until they are; who does not read?",
        hbone::limits::BUDGET >> 20
    )]
    Hoarded,
    /// The tunnel names nothing that is an authority.
    #[error("the CONNECT authority can't be read: {0}")]
    NotAnAuthority(InvalidAuthority),
    /// Too many that have not said who they are.
    #[error("{from} has {most} TLS handshakes under way with this pod already; finish or close some")]
    Handshakes {
        /// Where they come from.
        from: IpAddr,
        /// How many one address may have.
        most: usize,
    },
    /// There is nowhere to send it.
    #[error(transparent)]
    NoRoute(#[from] NoRoute),
    /// Too many at once.
    #[error("this pod has {0} connections open through ztunnel already; more are refused to bound memory")]
    Overload(usize),
    /// One of ztunnel's own addresses was dialled.
    #[error("{0} is ztunnel's own and is not for applications")]
    OwnPort(SocketAddr),
    /// The other end of a TLS session is not who it should be.
    #[error("{0}")]
    Peer(#[from] BadPeer),
    /// The other end of the tunnel took the request and refused it.
    #[error(transparent)]
    RefusedByPeer(RefusedByPeer),
    /// The pod must not be served.
    #[error("this pod is captured but refused: {0}")]
    PodRefused(String),
    /// A connection broke while bytes were copied.
    #[error("the connection broke: {0}")]
    Relay(#[source] io::Error),
    /// The tunnel could not be made or did not take the connection.
    #[error("no tunnel to {to}: {reason}")]
    Tunnel {
        /// Where to.
        to: SocketAddr,
        /// What happened.
        reason: String,
    },
    /// Discovery does not know the pod.
    #[error("workload {0} is not known to discovery yet; is the controller reachable?")]
    WorkloadUnknown(WorkloadUid),
}

impl Refusal {
    /// Stable across releases: documentation and `airglow why` refer to it.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::AroundWaypoint(_) => "around-waypoint",
            Self::Authority(_) | Self::NotAnAuthority(_) => "authority-refused",
            Self::Certificate { .. } => "no-certificate",
            Self::Connect { .. } => "connect-failed",
            Self::Denied(Denied::Policy(_)) => "policy-denied",
            Self::Denied(Denied::WorkloadGone(_)) | Self::WorkloadUnknown(_) => "workload-unknown",
            Self::Drained(_) => "drained",
            Self::ForeignSource(_) => "foreign-source",
            Self::Hoarded => "memory-budget",
            Self::NoRoute(_) => "no-route",
            Self::Handshakes { .. } | Self::Overload(_) => "too-many-connections",
            Self::OwnPort(_) => "own-port",
            Self::Peer(_) => "peer-identity",
            Self::PodRefused(_) => "pod-refused",
            Self::RefusedByPeer(_) => "refused-by-peer",
            Self::Relay(_) => "connection-broken",
            Self::Revoked(_) => "policy-revoked",
            Self::Tunnel { .. } => "tunnel-failed",
        }
    }

    /// The `response_flags` label (Istio's values where it has one).
    pub(crate) fn flag(&self) -> &'static str {
        match self {
            Self::AroundWaypoint(_) | Self::Denied(_) | Self::Revoked(_) => "DENY",
            Self::RefusedByPeer(refused) if refused.is_denial() => "DENY",
            Self::Connect { .. } | Self::RefusedByPeer(_) | Self::Tunnel { .. } => "CONNECT",
            Self::Peer(_) => "TLS_FAILURE",
            Self::Certificate { .. } => "IDENTITY_ERROR",
            Self::Authority(_)
            | Self::ForeignSource(_)
            | Self::Handshakes { .. }
            | Self::Hoarded
            | Self::NotAnAuthority(_)
            | Self::NoRoute(_)
            | Self::Overload(_)
            | Self::OwnPort(_)
            | Self::PodRefused(_)
            | Self::WorkloadUnknown(_) => "REFUSED",
            Self::Drained(_) | Self::Relay(_) => "-",
        }
    }

    /// What a CONNECT is answered with.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Authority(_) | Self::NotAnAuthority(_) => StatusCode::BAD_REQUEST,
            Self::AroundWaypoint(_) | Self::Denied(Denied::Policy(_)) | Self::Revoked(_) => {
                StatusCode::UNAUTHORIZED
            }
            Self::Certificate { .. }
            | Self::Connect { .. }
            | Self::Denied(Denied::WorkloadGone(_))
            | Self::Drained(_)
            | Self::ForeignSource(_)
            | Self::Handshakes { .. }
            | Self::Hoarded
            | Self::NoRoute(_)
            | Self::Overload(_)
            | Self::OwnPort(_)
            | Self::Peer(_)
            | Self::PodRefused(_)
            | Self::RefusedByPeer(_)
            | Self::Relay(_)
            | Self::Tunnel { .. }
            | Self::WorkloadUnknown(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Whether another endpoint may be tried: nothing was sent yet, and the fault is that endpoint's.
    pub(crate) fn is_endpoints_fault(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Peer(_) | Self::Tunnel { .. } => true,
            Self::RefusedByPeer(refused) => refused.is_endpoints_fault(),
            Self::AroundWaypoint(_)
            | Self::Authority(_)
            | Self::Certificate { .. }
            | Self::Denied(_)
            | Self::Drained(_)
            | Self::ForeignSource(_)
            | Self::Handshakes { .. }
            | Self::Hoarded
            | Self::NotAnAuthority(_)
            | Self::NoRoute(_)
            | Self::Overload(_)
            | Self::OwnPort(_)
            | Self::PodRefused(_)
            | Self::Relay(_)
            | Self::Revoked(_)
            | Self::WorkloadUnknown(_) => false,
        }
    }
}

impl From<NotOpened> for Refusal {
    fn from(error: NotOpened) -> Self {
        match error {
            NotOpened::Refused(refused) => Self::RefusedByPeer(refused),
            NotOpened::Tunnel(to, error) => Self::Tunnel { to, reason: error.to_string() },
        }
    }
}
