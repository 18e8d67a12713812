//! The two sides of a TLS session behind one trait, so that handshake and record layer are written once. Adds nothing to
//! rustls.

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{UnbufferedConnectionCommon, UnbufferedStatus};
use rustls::{Error, ExtractedSecrets};

/// One side of a TLS session.
pub(crate) trait Session: Send + Unpin + 'static {
    /// What tells rustls' two sides apart.
    type Side: Send + Unpin + 'static;
    /// Whether the peer may send tickets to resume the session with.
    const MAY_GET_TICKETS: bool;
    /// Advances the handshake over what was received.
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Side>;
    /// What both sides share.
    fn common(&self) -> &UnbufferedConnectionCommon<Self::Side>;
    /// After the handshake: the keys of both directions, and what derives the next ones.
    fn into_keys(self) -> Result<(ExtractedSecrets, KernelConnection<Self::Side>), Error>;
}

impl Session for UnbufferedClientConnection {
    type Side = ClientConnectionData;
    const MAY_GET_TICKETS: bool = true;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Side> {
        self.process_tls_records(incoming)
    }
    fn common(&self) -> &UnbufferedConnectionCommon<Self::Side> {
        self
    }
    fn into_keys(self) -> Result<(ExtractedSecrets, KernelConnection<Self::Side>), Error> {
        self.dangerous_into_kernel_connection()
    }
}

impl Session for UnbufferedServerConnection {
    type Side = ServerConnectionData;
    const MAY_GET_TICKETS: bool = false;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Side> {
        self.process_tls_records(incoming)
    }
    fn common(&self) -> &UnbufferedConnectionCommon<Self::Side> {
        self
    }
    fn into_keys(self) -> Result<(ExtractedSecrets, KernelConnection<Self::Side>), Error> {
        self.dangerous_into_kernel_connection()
    }
}
