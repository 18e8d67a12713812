//! What rustls does when a session is resumed, and that ours never are (docs/design/0002-session-resumption.md).
//!
//! The first test states facts about a dependency: when it fails, the decision should be looked at again.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, HandshakeKind, RootCertStore, ServerConfig};
use rustls_pki_types::IpAddr;

use crate::support::{HOUR, Leaf, ManualClock, Session, TestCa, epoch, handshake, shop};

#[test]
fn rustls_resumes_sessions_of_certificates_that_have_expired_since() {
    let (ca, clock) = (TestCa::new("root"), ManualClock::new());
    let (client, server) = default_configs(&ca, &clock);

    let first = handshake(client.clone(), server.clone()).unwrap();
    assert_eq!(kinds(&first), (HandshakeKind::Full, HandshakeKind::Full));

    let second = handshake(client.clone(), server.clone()).unwrap();
    assert_eq!(kinds(&second), (HandshakeKind::Resumed, HandshakeKind::Resumed));
    assert_eq!(
        second.client.peer_certificates(),
        first.client.peer_certificates(),
        "from the client's memory"
    );
    assert_eq!(
        second.server.peer_certificates(),
        first.server.peer_certificates(),
        "from the server's memory"
    );

    // Both leaves expire, and no verifier is asked. Each resumption also hands out new tickets, so this goes on.
    clock.advance(2 * HOUR);
    for _ in 0..3 {
        let later = handshake(client.clone(), server.clone()).unwrap();
        assert_eq!(kinds(&later), (HandshakeKind::Resumed, HandshakeKind::Resumed));
        clock.advance(2 * HOUR);
    }
}

#[test]
fn our_sessions_are_never_resumed() {
    let (ca, clock) = (TestCa::new("root"), ManualClock::new());
    let (front, pay) = (ca.certificate(&shop("front"), &clock), ca.certificate(&shop("pay"), &clock));
    for _ in 0..3 {
        let session = handshake(front.client_config(), pay.server_config()).unwrap();
        assert_eq!(kinds(&session), (HandshakeKind::Full, HandshakeKind::Full));
        assert_eq!(session.client.tls13_tickets_received(), 0, "no ticket is offered");
    }
}

/// A peer with rustls' default settings keeps tickets if it is given any, and asks for resumption if it has one.
#[test]
fn our_sessions_are_never_resumed_with_peers_that_would_either() {
    let (ca, clock) = (TestCa::new("root"), ManualClock::new());
    let ours = ca.certificate(&shop("ours"), &clock);
    let (client, server) = default_configs(&ca, &clock);
    for _ in 0..3 {
        assert_eq!(
            handshake(client.clone(), ours.server_config()).server.handshake_kind(),
            Some(HandshakeKind::Full)
        );
        assert_eq!(
            handshake(ours.client_config(), server.clone()).client.handshake_kind(),
            Some(HandshakeKind::Full)
        );
    }
}

fn kinds(session: &Session) -> (HandshakeKind, HandshakeKind) {
    (session.client.handshake_kind().unwrap(), session.server.handshake_kind().unwrap())
}

/// Both sides verify each other as rustls does it by itself; the leaves live for an hour.
fn default_configs(ca: &TestCa, clock: &Arc<ManualClock>) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let mut leaf = Leaf::uri(&shop("peer").to_string());
    leaf.end = epoch() + HOUR;
    leaf.names.push(rcgen::SanType::IpAddress(IpAddr::try_from("10.0.0.1").unwrap().into()));
    let presented = ca.issue(&leaf);
    let mut roots = RootCertStore::empty();
    roots.add(ca.root.clone()).unwrap();
    let (roots, provider) = (Arc::new(roots), Arc::new(aws_lc_rs::default_provider()));
    let servers =
        WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build().unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build().unwrap();
    let mut client = ClientConfig::builder_with_details(provider.clone(), clock.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_webpki_verifier(servers)
        .with_client_auth_cert(presented.chain.clone(), presented.key.clone_key())
        .unwrap();
    let mut server = ServerConfig::builder_with_details(provider, clock.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(presented.chain, presented.key)
        .unwrap();
    client.alpn_protocols = vec![b"h2".to_vec()];
    server.alpn_protocols = vec![b"h2".to_vec()];
    (Arc::new(client), Arc::new(server))
}
