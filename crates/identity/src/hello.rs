//! What a TLS client says first: whom it asks for. Answers nothing and decrypts nothing: the session is somebody else's.

use rustls::server::Acceptor;

use crate::tls::explain;

/// A ClientHello, as far as it has come.
#[derive(Default)]
pub struct ClientHello(Acceptor);

/// What came is not how TLS begins.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what the client says first is not a ClientHello of TLS: {0}")]
pub struct NotTls(String);

impl ClientHello {
    /// Takes what has come since. `Some` when it is complete: the name that the client asks for, if it asks for one. Nothing may
    /// be given to it afterwards.
    ///
    /// # Errors
    /// When it is not TLS.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<Option<Option<String>>, NotTls> {
        while !bytes.is_empty() {
            self.0.read_tls(&mut bytes).map_err(|error| NotTls(error.to_string()))?;
            let accepted = self.0.accept().map_err(|(error, _)| NotTls(explain(&error)))?;
            if let Some(accepted) = accepted {
                return Ok(Some(accepted.client_hello().server_name().map(str::to_owned)));
            }
        }
        Ok(None)
    }
}

impl std::fmt::Debug for ClientHello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientHello")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;
    use crate::tls::provider;

    fn hello(name: &'static str) -> Vec<u8> {
        let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let config = config.unwrap().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let mut client = ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
        let mut said = Vec::new();
        client.write_tls(&mut said).unwrap();
        said
    }

    #[test]
    fn a_name_is_read_however_it_comes() {
        let said = hello("Pay.Shop.Example");
        let name = Some("pay.shop.example".to_owned());
        assert_eq!(ClientHello::default().take(&said), Ok(Some(name.clone())));
        let mut slowly = ClientHello::default();
        let (last, before) = said.split_last().unwrap();
        for byte in before {
            assert_eq!(slowly.take(&[*byte]), Ok(None));
        }
        assert_eq!(slowly.take(&[*last]), Ok(Some(name)));
    }

    #[test]
    fn who_dials_an_address_asks_for_no_name() {
        assert_eq!(ClientHello::default().take(&hello("10.0.0.1")), Ok(Some(None)));
    }

    #[test]
    fn what_is_not_tls_is_told() {
        for said in ["GET / HTTP/1.1\r\n\r\n", "SSH-2.0-x\r\n", "\x16\x03\x01\x02\x00zzzzzzzz"] {
            let mut hello = ClientHello::default();
            let told = hello.take(&[said.as_bytes(), &[0; 600]].concat());
            assert!(told.is_err(), "{said:?}: {told:?}");
        }
    }
}
