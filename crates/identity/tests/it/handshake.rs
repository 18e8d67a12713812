//! Who is let in and who is not, in both directions.

use std::sync::Arc;

use identity::{explain, peer_identity};
use rcgen::{KeyUsagePurpose, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::ClientCertVerifier;
use rustls::{
    CipherSuite, ClientConfig, DigitallySignedStruct, Error, HandshakeKind, NamedGroup, ProtocolVersion,
    ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::support::{
    DAY, HOUR, Leaf, ManualClock, Presented, TestCa, epoch, handshake, id, self_signed, shop,
};

const GOOD: &str = "spiffe://cluster.local/ns/shop/sa/peer";

#[test]
fn two_workloads_of_the_mesh_prove_themselves_to_each_other() {
    let (ca, clock) = (TestCa::new("root"), ManualClock::new());
    let (front, pay) = (ca.certificate(&shop("front"), &clock), ca.certificate(&shop("pay"), &clock));
    let session = handshake(front.client_config(), pay.server_config()).unwrap();
    assert_eq!(session.peers(), (shop("pay"), shop("front")));
    assert_eq!(session.server.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(
        session.server.negotiated_cipher_suite().unwrap().suite(),
        CipherSuite::TLS13_AES_128_GCM_SHA256
    );
    assert_eq!(session.server.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
    assert_eq!(session.server.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(session.client.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(session.server.server_name(), None, "no server name is sent");
    assert_eq!(session.server.handshake_kind(), Some(HandshakeKind::Full), "one round trip");
}

#[test]
fn configurations_are_built_once() {
    let (ca, clock) = (TestCa::new("root"), ManualClock::new());
    let front = ca.certificate(&shop("front"), &clock);
    assert!(Arc::ptr_eq(&front.server_config(), &front.server_config()));
    assert!(Arc::ptr_eq(&front.client_config(), &front.client_config()));
}

/// A server of the mesh that is not the one that was dialled: only the caller knows, and it is told who answered.
#[test]
fn the_caller_learns_who_answered() {
    let (ca, clock) = (TestCa::new("root"), ManualClock::new());
    let (front, thief) = (ca.certificate(&shop("front"), &clock), ca.certificate(&shop("thief"), &clock));
    let session = handshake(front.client_config(), thief.server_config()).unwrap();
    assert_eq!(peer_identity(session.client.peer_certificates().unwrap()), Ok(shop("thief")));
}

#[test]
fn an_alias_of_the_trust_domain_is_let_in_by_the_side_that_has_it() {
    let (ca, clock) = (TestCa::new("root"), ManualClock::new());
    let old = id("spiffe://old.example/ns/shop/sa/front");
    let strict = ca.certificate(&old, &clock);
    let tolerant = ca.certificate_with(&old, &["new.example"], &clock);
    let new = ca.certificate_with(&id("spiffe://new.example/ns/shop/sa/pay"), &["old.example"], &clock);
    handshake(tolerant.client_config(), new.server_config()).unwrap();
    handshake(new.client_config(), tolerant.server_config()).unwrap();
    assert_refused(
        &handshake(strict.client_config(), new.server_config()).client_says,
        "another trust domain",
    );
    assert_refused(
        &handshake(new.client_config(), strict.server_config()).server_says,
        "another trust domain",
    );
}

#[test]
fn a_certificate_stops_working_when_it_expires_although_its_configuration_lives_on() {
    let (ca, clock) = (TestCa::new("root"), ManualClock::new());
    let (front, pay) = (ca.certificate(&shop("front"), &clock), ca.certificate(&shop("pay"), &clock));
    handshake(front.client_config(), pay.server_config()).unwrap();
    clock.advance(DAY + HOUR);
    assert_refused(&handshake(front.client_config(), pay.server_config()).client_says, "expired");
}

/// Every refusal, with the peer as client and as server.
#[test]
fn whoever_is_not_of_the_mesh_is_refused() {
    let (ca, stranger) = (TestCa::new("root"), TestCa::new("stranger"));
    let good = Leaf::uri(GOOD);
    let dns = SanType::DnsName("pay.shop.svc".try_into().unwrap());
    let usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
    let cases: Vec<(&str, Presented, &str)> = vec![
        ("expired", ca.issue(&Leaf { end: epoch() - HOUR, start: epoch() - DAY, ..good.clone() }), "expired"),
        ("not yet valid", ca.issue(&Leaf { start: epoch() + HOUR, ..good.clone() }), "not valid yet"),
        ("another root", stranger.issue(&good), "UnknownIssuer"),
        ("self-signed", self_signed(&good), "UnknownIssuer"),
        (
            "another trust domain",
            ca.issue(&Leaf::uri("spiffe://evil.example/ns/shop/sa/peer")),
            "another trust domain",
        ),
        (
            "two URIs",
            ca.issue(&Leaf::names(&[GOOD, "spiffe://cluster.local/ns/shop/sa/admin"])),
            "2 URI names",
        ),
        ("the same URI twice", ca.issue(&Leaf::names(&[GOOD, GOOD])), "2 URI names"),
        ("no name", ca.issue(&Leaf::names(&[])), "no URI name"),
        ("only a DNS name", ca.issue(&Leaf { names: vec![dns], ..good.clone() }), "no URI name"),
        (
            "NUL",
            ca.issue(&Leaf::uri("spiffe://cluster.local/ns/shop/sa/peer\0.evil")),
            "not a SPIFFE identity",
        ),
        ("port", ca.issue(&Leaf::uri("spiffe://cluster.local:80/ns/shop/sa/peer")), "not a SPIFFE identity"),
        ("user", ca.issue(&Leaf::uri("spiffe://x@cluster.local/ns/shop/sa/peer")), "not a SPIFFE identity"),
        (
            "upper case",
            ca.issue(&Leaf::uri("spiffe://Cluster.Local/ns/shop/sa/peer")),
            "not a SPIFFE identity",
        ),
        ("escape", ca.issue(&Leaf::uri("spiffe://cluster.local/ns/shop/sa/pe%65r")), "not a SPIFFE identity"),
        (
            "dot segment",
            ca.issue(&Leaf::uri("spiffe://cluster.local/ns/../sa/peer")),
            "not a SPIFFE identity",
        ),
        ("query", ca.issue(&Leaf::uri("spiffe://cluster.local/ns/shop/sa/peer?x")), "not a SPIFFE identity"),
        (
            "another scheme",
            ca.issue(&Leaf::uri("https://cluster.local/ns/shop/sa/peer")),
            "not a SPIFFE identity",
        ),
        ("a CA's certificate", ca.issue(&Leaf { is_ca: true, ..good.clone() }), "CaUsedAsEndEntity"),
        ("a signing leaf", ca.issue(&Leaf { usages, ..good.clone() }), "certificate authority's certificate"),
    ];
    let clock = ManualClock::new();
    let ours = ca.certificate(&shop("ours"), &clock);
    for (case, presented, reason) in cases {
        let as_server = handshake(ours.client_config(), hostile_server(&presented));
        assert_refused_in(&format!("server with {case}"), &as_server.client_says, reason);
        let as_client = handshake(hostile_client(Some(&presented)), ours.server_config());
        assert_refused_in(&format!("client with {case}"), &as_client.server_says, reason);
        assert!(as_client.client_says.is_err(), "client with {case}: told so by an alert");
    }
    assert!(handshake(hostile_client(Some(&ca.issue(&good))), ours.server_config()).server_says.is_ok());
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let (ca, clock) = (TestCa::new("root"), ManualClock::new());
    let ours = ca.certificate(&shop("ours"), &clock);
    let session = handshake(hostile_client(None), ours.server_config());
    assert_refused(&session.server_says, "peer sent no certificates");
}

#[test]
fn a_stolen_chain_without_its_key_is_refused() {
    let (ca, clock) = (TestCa::new("root"), ManualClock::new());
    let ours = ca.certificate(&shop("ours"), &clock);
    let stolen = Presented { chain: ours.chain.clone(), key: ca.issue(&Leaf::uri(GOOD)).key };
    let key = aws_lc_rs::sign::any_supported_type(&stolen.key).unwrap();
    let certified = Arc::new(rustls::sign::CertifiedKey::new(stolen.chain, key));
    let mut config =
        client_builder().with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![b"h2".to_vec()];
    assert!(handshake(Arc::new(config), ours.server_config()).server_says.is_err());
}

#[test]
fn only_http2_is_negotiated() {
    let (ca, clock) = (TestCa::new("root"), ManualClock::new());
    let ours = ca.certificate(&shop("ours"), &clock);
    let mut client = (*hostile_client(Some(&ca.issue(&Leaf::uri(GOOD))))).clone();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    assert_refused(&handshake(Arc::new(client), ours.server_config()).server_says, "NoApplicationProtocol");
}

/// Peers that came before ML-KEM offer X25519 first; that must not cost them a second round trip, nor may it fail.
#[test]
fn peers_without_post_quantum_key_exchange_are_served_in_one_round_trip() {
    let (ca, clock) = (TestCa::new("root"), ManualClock::new());
    let ours = ca.certificate(&shop("ours"), &clock);
    let classic = Arc::new(CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1],
        ..aws_lc_rs::default_provider()
    });
    let Presented { chain, key } = ca.issue(&Leaf::uri(GOOD));
    let client = ClientConfig::builder_with_provider(classic.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_client_auth_cert(chain.clone(), key.clone_key())
        .unwrap();
    let session = handshake(Arc::new(client), ours.server_config());
    assert_eq!(session.server.handshake_kind(), Some(HandshakeKind::Full));
    assert_eq!(session.server.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519);

    let server = ServerConfig::builder_with_provider(classic)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let session = handshake(ours.client_config(), Arc::new(server));
    assert_eq!(session.client_says, Ok(()));
    assert_eq!(session.client.handshake_kind(), Some(HandshakeKind::Full));
}

fn assert_refused(result: &Result<(), Error>, reason: &str) {
    assert_refused_in("handshake", result, reason);
}

fn assert_refused_in(case: &str, result: &Result<(), Error>, reason: &str) {
    let Err(error) = result else { panic!("{case}: was let in") };
    let text = format!("{} ({error:?})", explain(error));
    assert!(text.contains(reason), "{case}: refused because of {text:?}, not because of {reason:?}");
}

fn hostile_server(presented: &Presented) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(any_client())
        .with_single_cert(presented.chain.clone(), presented.key.clone_key())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

fn any_client() -> Arc<dyn ClientCertVerifier> {
    rustls::server::WebPkiClientVerifier::no_client_auth()
}

fn hostile_client(presented: Option<&Presented>) -> Arc<ClientConfig> {
    let builder = client_builder();
    let mut config = match presented {
        Some(it) => builder.with_client_auth_cert(it.chain.clone(), it.key.clone_key()).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

fn client_builder() -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
}

/// A client that trusts whoever answers.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
