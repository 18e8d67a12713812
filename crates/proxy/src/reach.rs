//! Why the other end was not reached, as both proxies judge it: TCP that is not answered, a tunnel that is not made, a peer
//! that refuses.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hbone::OpenError;
use http::StatusCode;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long one TCP connect may take before another endpoint is tried: three SYNs (1 + 2 + 4 s) and their answers.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);

/// A TCP connection, if there is one within [`CONNECT_TIMEOUT`].
///
/// # Errors
/// When it can't be made, or not in time.
pub async fn in_time(connecting: impl Future<Output = io::Result<TcpStream>>) -> io::Result<TcpStream> {
    timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| {
        let text = format!("no answer within {} s; does a NetworkPolicy drop it?", CONNECT_TIMEOUT.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    })
}

/// Why there is no stream to a target.
#[derive(Debug, thiserror::Error)]
pub enum NotOpened {
    /// The other end took the request and refused it.
    #[error(transparent)]
    Refused(RefusedByPeer),
    /// There is no tunnel, or it did not take the request.
    #[error("no tunnel to {0}: {1}")]
    Tunnel(SocketAddr, #[source] OpenError),
}

impl NotOpened {
    pub(crate) fn new(to: SocketAddr, error: OpenError) -> Self {
        if let OpenError::Refused(status) = error {
            return Self::Refused(RefusedByPeer { to, status });
        }
        Self::Tunnel(to, error)
    }
}

/// The other end of the tunnel took the request and refused it.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{to} refused the connection with status {status}{}", self.hint())]
pub struct RefusedByPeer {
    /// Where the tunnel goes.
    pub to: SocketAddr,
    /// What it answered.
    pub status: StatusCode,
}

impl RefusedByPeer {
    /// Whether policy does not allow it: our answer is 401, others say 403.
    #[must_use]
    pub fn is_denial(&self) -> bool {
        matches!(self.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
    }

    /// Whether another endpoint may be tried: it could not reach its application. Any other answer is a decision, which
    /// others would only repeat.
    #[must_use]
    pub fn is_endpoints_fault(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE
    }

    /// What to look at.
    fn hint(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                ": its policies do not allow it; its node's log names the policy"
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                ": it can't reach its application, or does not know its own pod yet"
            }
            StatusCode::BAD_REQUEST => {
                ": the address is not its own; do both nodes have the same view of the mesh?"
            }
            _ => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_answer_is_a_denial_or_a_failure() {
        let judged = |status| {
            let refused = RefusedByPeer { to: SocketAddr::from(([10, 0, 0, 1], 15008)), status };
            (refused.is_denial(), refused.is_endpoints_fault())
        };
        assert_eq!(judged(StatusCode::UNAUTHORIZED), (true, false));
        assert_eq!(judged(StatusCode::FORBIDDEN), (true, false));
        assert_eq!(judged(StatusCode::BAD_REQUEST), (false, false));
        assert_eq!(judged(StatusCode::SERVICE_UNAVAILABLE), (false, true));
    }
}
