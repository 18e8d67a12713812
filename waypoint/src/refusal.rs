//! Why a connection was not carried, or not to its end, and what the outside world is told of it.
//!
//! The only place where a failure becomes a status, a flag and a code. The peer learns the status, never the reason.

use std::io;
use std::net::{IpAddr, SocketAddr};

use hbone::StreamError;
use http::StatusCode;
use identity::BadPeer;
use model::Str;
use model::authority::InvalidAuthority;
use model::l7::RuleKey;
use model::policy::Denial;
use model::route::{NoRoute, NotGuarded};
use model::service::ServiceName;
use model::workload::WorkloadUid;
use proxy::reach::{NotOpened, RefusedByPeer};

/// Why a connection was refused or cut. `Display` is for logs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// The tunnel names nothing that is an authority.
    #[error("the CONNECT authority can't be read: {0}")]
    Authority(#[from] InvalidAuthority),
    /// The endpoint proved something else in TLS than a policy wants, or nothing.
    #[error("no TLS with {to}: {error}; check its certificate and the BackendTLSPolicy")]
    BackendTls {
        /// With whom.
        to: SocketAddr,
        /// What happened.
        error: io::Error,
    },
    /// A policy wants TLS that can't be begun.
    #[error("port {port} of {service} wants TLS that can't be begun: {why}")]
    BackendTlsInvalid {
        /// Which service.
        service: ServiceName,
        /// Which port.
        port: u16,
        /// Why.
        why: Str,
    },
    /// The connection broke while bytes were copied.
    #[error("the connection broke: {0}")]
    Broken(#[source] io::Error),
    /// There is no certificate to prove ourselves with.
    #[error("no certificate for this waypoint: {0}")]
    Certificate(String),
    /// The endpoint's TCP connection was refused or timed out.
    #[error("can't connect to {to}: {error}")]
    Connect {
        /// Where to.
        to: SocketAddr,
        /// What happened.
        error: io::Error,
    },
    /// A policy of the endpoint denies the client, now or since the connection was opened.
    #[error("{0}")]
    Denied(#[from] Denial),
    /// A policy wants it broken.
    #[error("a TrafficPolicy breaks this connection on purpose")]
    Fault,
    /// Too many that have not said who they are.
    #[error("{from} has {most} TLS handshakes under way already; finish or close some")]
    Handshakes {
        /// Where they come from.
        from: IpAddr,
        /// How many one address may have.
        most: usize,
    },
    /// What is held unread or unsent has used up its budget.
    #[error("{}", StreamError::Hoarded)]
    Hoarded,
    /// There is nowhere to send it.
    #[error(transparent)]
    NoRoute(#[from] NoRoute),
    /// It names what this waypoint does not guard.
    #[error(transparent)]
    NotGuarded(#[from] NotGuarded),
    /// Too many at once.
    #[error("this waypoint has {0} tunnels open on a thread already; more are refused to bound memory")]
    Overload(usize),
    /// The endpoint's port is a proxy's.
    #[error("{0} is a port of a proxy, and no application can be reached there; check the target port")]
    OwnPort(SocketAddr),
    /// The client is not who it should be.
    #[error("{0}")]
    Peer(#[from] BadPeer),
    /// The other end of the tunnel took the request and refused it.
    #[error(transparent)]
    RefusedByPeer(RefusedByPeer),
    /// The rule that the connection meets leads nowhere.
    #[error("the rule {rule} can't be carried out for this connection: {why}")]
    Route {
        /// Which rule.
        rule: RuleKey,
        /// Why.
        why: String,
    },
    /// The tunnel could not be made or did not take the connection.
    #[error("no tunnel with {with}: {reason}")]
    Tunnel {
        /// With whom.
        with: SocketAddr,
        /// What happened.
        reason: String,
    },
    /// Discovery does not know this waypoint's own pod.
    #[error(
        "this waypoint's own pod {0} is not known to discovery; is it in the namespace that AIRGLOW_NAMESPACE says?"
    )]
    Unknown(WorkloadUid),
    /// There are routes for the connection's port, and none of their rules is about it.
    #[error("no rule about port {port} of {service} matches a connection {what}; add one if it should pass")]
    Unmatched {
        /// Which service.
        service: ServiceName,
        /// Which port.
        port: u16,
        /// What the connection is like.
        what: String,
    },
}

impl Refusal {
    /// Stable across releases: documentation refers to it.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Authority(_) => "authority-refused",
            Self::BackendTls { .. } => "backend-tls-failed",
            Self::BackendTlsInvalid { .. } => "backend-tls-invalid",
            Self::Broken(_) => "connection-broken",
            Self::Certificate(_) => "no-certificate",
            Self::Connect { .. } => "connect-failed",
            Self::Denied(_) => "policy-denied",
            Self::Fault => "fault-injected",
            Self::Handshakes { .. } | Self::Overload(_) => "too-many-connections",
            Self::Hoarded => "memory-budget",
            Self::NoRoute(_) => "no-route",
            Self::NotGuarded(_) => "not-guarded",
            Self::OwnPort(_) => "own-port",
            Self::Peer(_) => "peer-identity",
            Self::RefusedByPeer(_) => "refused-by-peer",
            Self::Route { .. } => "route-invalid",
            Self::Tunnel { .. } => "tunnel-failed",
            Self::Unknown(_) => "workload-unknown",
            Self::Unmatched { .. } => "route-unmatched",
        }
    }

    /// The `response_flags` label (Istio's values where it has one).
    pub(crate) fn flag(&self) -> &'static str {
        match self {
            Self::Denied(_) => "DENY",
            Self::RefusedByPeer(refused) if refused.is_denial() => "DENY",
            Self::Connect { .. } | Self::RefusedByPeer(_) | Self::Tunnel { .. } => "CONNECT",
            Self::Fault => "FI",
            Self::BackendTls { .. } | Self::Peer(_) => "TLS_FAILURE",
            Self::Certificate(_) => "IDENTITY_ERROR",
            Self::Authority(_)
            | Self::BackendTlsInvalid { .. }
            | Self::Handshakes { .. }
            | Self::Hoarded
            | Self::NoRoute(_)
            | Self::NotGuarded(_)
            | Self::Overload(_)
            | Self::OwnPort(_)
            | Self::Route { .. }
            | Self::Unknown(_)
            | Self::Unmatched { .. } => "REFUSED",
            Self::Broken(_) => "-",
        }
    }

    /// What a CONNECT is answered with.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Authority(_) | Self::NotGuarded(_) => StatusCode::BAD_REQUEST,
            Self::Denied(_) => StatusCode::UNAUTHORIZED,
            // The client's node is to know that another instance would not help.
            Self::RefusedByPeer(refused) if refused.is_denial() => StatusCode::UNAUTHORIZED,
            Self::BackendTls { .. }
            | Self::BackendTlsInvalid { .. }
            | Self::Broken(_)
            | Self::Certificate(_)
            | Self::Connect { .. }
            | Self::Fault
            | Self::Handshakes { .. }
            | Self::Hoarded
            | Self::NoRoute(_)
            | Self::Overload(_)
            | Self::OwnPort(_)
            | Self::Peer(_)
            | Self::RefusedByPeer(_)
            | Self::Route { .. }
            | Self::Tunnel { .. }
            | Self::Unknown(_)
            | Self::Unmatched { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Whether another endpoint may be tried: nothing was sent yet, and the fault is that endpoint's.
    pub(crate) fn is_endpoints_fault(&self) -> bool {
        match self {
            Self::BackendTls { .. } | Self::Connect { .. } | Self::Tunnel { .. } => true,
            Self::RefusedByPeer(refused) => refused.is_endpoints_fault(),
            Self::Authority(_)
            | Self::BackendTlsInvalid { .. }
            | Self::Broken(_)
            | Self::Certificate(_)
            | Self::Denied(_)
            | Self::Fault
            | Self::Handshakes { .. }
            | Self::Hoarded
            | Self::NoRoute(_)
            | Self::NotGuarded(_)
            | Self::Overload(_)
            | Self::OwnPort(_)
            | Self::Peer(_)
            | Self::Route { .. }
            | Self::Unknown(_)
            | Self::Unmatched { .. } => false,
        }
    }
}

impl From<StreamError> for Refusal {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Hoarded => Self::Hoarded,
            error @ (StreamError::Finished | StreamError::Lost(_) | StreamError::Reset(_)) => {
                Self::Broken(io::Error::other(error))
            }
        }
    }
}

impl From<NotOpened> for Refusal {
    fn from(error: NotOpened) -> Self {
        match error {
            NotOpened::Refused(refused) => Self::RefusedByPeer(refused),
            NotOpened::Tunnel(with, error) => Self::Tunnel { with, reason: error.to_string() },
        }
    }
}
