//! TLS that is begun towards servers of no mesh, which prove a name of their own: as a BackendTLSPolicy asks for it.
//!
//! These servers are others', so what rustls holds to be safe is spoken, TLS 1.2 too: docs/design/0014-tls-with-backends.md. No
//! certificate of ours is shown, and no session is resumed.

use std::io;
use std::sync::Arc;

use model::l7::{Roots, ServerTls, SubjectName};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, version,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, DnsName, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use x509_parser::extensions::GeneralName;

use crate::clock::{Clock, TlsTime};
use crate::peer::parse;

/// Sealed bytes that a connection keeps while its server takes none: a full record. Nobody counts them, and rustls would keep four
/// times as much of each of thousands of connections to a server that has stopped reading.
const SEALED_MAX: usize = 16 << 10;

/// A connection inside TLS.
pub type Secured<Io> = tokio_rustls::client::TlsStream<Io>;

/// Why TLS can't be begun as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadOrigination {
    /// A block of PEM that is no certificate, or none that can sign.
    #[error("certificate {at} of the CA bundle can't be used ({why}); replace it or take it out")]
    Certificate {
        /// Which one, from 1.
        at: usize,
        /// What is wrong with it.
        why: String,
    },
    /// No name that a server could be asked for.
    #[error("{0:?} is no DNS name; name what the server's certificate names")]
    Hostname(String),
    /// Nobody could certify a server.
    #[error("the CA bundle has no certificate; put PEM blocks \"BEGIN CERTIFICATE\" into it")]
    NoRoots,
    /// The cryptography does not work.
    #[error("TLS can't be configured: {0}")]
    Tls(String),
}

/// What is spoken inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// Whatever the ends agree upon: nothing is said of it.
    Bytes,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2. A server that does not choose it is no use.
    Http2,
}

/// Begins TLS towards the servers of one name. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Originator {
    name: ServerName<'static>,
    bytes: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
}

impl Originator {
    /// Towards servers that prove this.
    ///
    /// # Errors
    /// When no server could.
    pub fn new(
        ServerTls { hostname, names, roots }: &ServerTls,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, BadOrigination> {
        let name = server_name(hostname)?;
        let roots = match roots {
            Roots::Pem(pem) => self::roots(pem)?,
            Roots::System => RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() },
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let verifier = Arc::new(Verifier { roots, names: names.clone(), algorithms });
        let mut config = ClientConfig::builder_with_details(provider, Arc::new(TlsTime(clock)))
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])
            .map_err(|error| BadOrigination::Tls(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        let speaking = |protocol: &[u8]| {
            let mut config = config.clone();
            config.alpn_protocols = vec![protocol.to_vec()];
            Arc::new(config)
        };
        let (http1, http2) = (speaking(b"http/1.1"), speaking(b"h2"));
        Ok(Self { name, bytes: Arc::new(config), http1, http2 })
    }

    /// Begins TLS on `io`.
    ///
    /// # Errors
    /// When the connection breaks, the server proves something else, or does not speak what is to be spoken.
    pub async fn begin<Io>(&self, io: Io, speaks: Speaks) -> io::Result<Secured<Io>>
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        let config = match speaks {
            Speaks::Bytes => &self.bytes,
            Speaks::Http1 => &self.http1,
            Speaks::Http2 => &self.http2,
        };
        let connecting = TlsConnector::from(Arc::clone(config)).connect(self.name.clone(), io);
        let mut secured = connecting.await?;
        secured.get_mut().1.set_buffer_limit(Some(SEALED_MAX));
        if speaks == Speaks::Http2 && secured.get_ref().1.alpn_protocol().is_none() {
            return Err(io::Error::other("the server does not offer HTTP/2 (ALPN h2)"));
        }
        Ok(secured)
    }
}

/// Whether servers can be verified by this bundle.
///
/// # Errors
/// With what is wrong with it.
pub fn check_roots(roots_pem: &str) -> Result<(), BadOrigination> {
    roots(roots_pem).map(drop)
}

/// Whether servers can be asked for this name.
///
/// # Errors
/// When it is no DNS name.
pub fn check_hostname(hostname: &str) -> Result<(), BadOrigination> {
    server_name(hostname).map(drop)
}

fn server_name(hostname: &str) -> Result<ServerName<'static>, BadOrigination> {
    let bad = || BadOrigination::Hostname(hostname.to_owned());
    // An address is not sent as a name.
    let name = DnsName::try_from(hostname.to_owned()).map_err(|_| bad())?;
    Ok(ServerName::DnsName(name))
}

fn roots(pem: &str) -> Result<RootCertStore, BadOrigination> {
    let mut store = RootCertStore::empty();
    for (at, certificate) in (1..).zip(CertificateDer::pem_slice_iter(pem.as_bytes())) {
        let bad = |why: String| BadOrigination::Certificate { at, why };
        let certificate = certificate.map_err(|error| bad(error.to_string()))?;
        store.add(certificate).map_err(|error| bad(error.to_string()))?;
    }
    if store.is_empty() { Err(BadOrigination::NoRoots) } else { Ok(store) }
}

#[derive(Debug)]
struct Verifier {
    roots: RootCertStore,
    /// Where there are none, the name that the server was asked for.
    names: Vec<SubjectName>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        if self.names.is_empty() {
            verify_server_name(&parsed, server_name)?;
        } else if !has_one(end_entity, &self.names) {
            return Err(Error::InvalidCertificate(CertificateError::NotValidForName));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Whether a certificate has one of these names among its subject alternative names.
fn has_one(certificate: &CertificateDer<'_>, expected: &[SubjectName]) -> bool {
    let Ok(parsed) = parse(certificate) else { return false };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return false };
    let is = |name: &GeneralName<'_>, expected: &SubjectName| match (name, expected) {
        (GeneralName::DNSName(name), SubjectName::Hostname(expected)) => is_dns(name, expected),
        (GeneralName::URI(uri), SubjectName::Uri(expected)) => **uri == **expected,
        (_, SubjectName::Hostname(_) | SubjectName::Uri(_)) => false,
    };
    names.value.general_names.iter().any(|name| expected.iter().any(|expected| is(name, expected)))
}

/// Whether a certificate's DNS name is one that is expected. Either may begin with `*.`, which is the same or one label.
fn is_dns(name: &str, expected: &str) -> bool {
    let below = |wild: &str, name: &str| {
        let parent = wild.strip_prefix("*.");
        let rest = name.split_once('.').filter(|(label, _)| !label.is_empty());
        parent.zip(rest).is_some_and(|(parent, (_, rest))| parent.eq_ignore_ascii_case(rest))
    };
    name.eq_ignore_ascii_case(expected) || below(name, expected) || below(expected, name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn wildcards_stand_for_one_label() {
        for (name, expected, is) in [
            ("api.example.com", "API.example.com", true),
            ("*.example.com", "api.example.com", true),
            ("api.example.com", "*.example.com", true),
            ("*.example.com", "*.example.com", true),
            ("a.b.example.com", "*.example.com", false),
            ("example.com", "*.example.com", false),
            ("api.example.org", "api.example.com", false),
        ] {
            assert_eq!(is_dns(name, expected), is, "{name} {expected}");
        }
    }

    #[test]
    fn what_no_server_can_prove_is_refused() {
        let new = |hostname: &str, pem: &str| {
            let roots = Roots::Pem(pem.into());
            let wanted = ServerTls { hostname: hostname.into(), names: Vec::new(), roots };
            Originator::new(&wanted, Arc::new(SystemClock)).err()
        };
        assert_eq!(new("10.0.0.1", ""), Some(BadOrigination::Hostname("10.0.0.1".into())));
        assert_eq!(new("not a name", ""), Some(BadOrigination::Hostname("not a name".into())));
        assert_eq!(new("api.example.com", "nothing"), Some(BadOrigination::NoRoots));
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(check_roots(broken), Err(BadOrigination::Certificate { at: 1, .. })));
    }
}
