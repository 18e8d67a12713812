//! The two sides of a TLS session behind one trait, so that the record layer is written once. Adds nothing to rustls.

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{UnbufferedConnectionCommon, UnbufferedStatus};

/// One side of a TLS session.
pub(crate) trait Session: Send + Unpin + 'static {
    /// What tells rustls' two sides apart.
    type Side;
    /// Advances the session over what was received.
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Side>;
    /// What both sides share.
    fn common(&self) -> &UnbufferedConnectionCommon<Self::Side>;
}

impl Session for UnbufferedClientConnection {
    type Side = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Side> {
        self.process_tls_records(incoming)
    }
    fn common(&self) -> &UnbufferedConnectionCommon<Self::Side> {
        self
    }
}

impl Session for UnbufferedServerConnection {
    type Side = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Side> {
        self.process_tls_records(incoming)
    }
    fn common(&self) -> &UnbufferedConnectionCommon<Self::Side> {
        self
    }
}
