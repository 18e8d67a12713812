//! Why the record layer cannot go on. Who is told, and how, is the tunnel's.

use std::io;

/// Why the record layer cannot go on. Cloneable, because the tunnel and its streams all want to know.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RecordError {
    /// The socket failed.
    #[error("connection failed: {0}")]
    Io(#[source] std::sync::Arc<io::Error>),
    /// The peer, or its certificate, is not acceptable, or it sent something that is not TLS.
    #[error("TLS failed: {0}")]
    Tls(#[source] rustls::Error),
    /// The peer closed the socket without saying goodbye: what came before may be cut short.
    #[error("connection was cut: the peer closed it without a TLS close_notify")]
    Truncated,
}

impl From<io::Error> for RecordError {
    fn from(error: io::Error) -> Self {
        Self::Io(std::sync::Arc::new(error))
    }
}
