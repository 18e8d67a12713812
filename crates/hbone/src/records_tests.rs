//! The record layer against itself and against rustls, in memory: what peers may do after the handshake, and what they
//! may not.

use std::future::poll_fn;
use std::io::{Read as _, Write as _};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::*;
use crate::handshake::Handshake;

type Client = Records<DuplexStream, UnbufferedClientConnection>;
type Server = Records<DuplexStream, UnbufferedServerConnection>;

fn configs() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["peer.test".into()]).unwrap().signed_by(&key, &ca).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut client = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    let mut server = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    server.enable_secret_extraction = true;
    // Other proxies send tickets: a client has to live with them.
    server.send_tls13_tickets = 2;
    (Arc::new(client), Arc::new(server))
}

async fn shaken<S: Session>(io: DuplexStream, session: S) -> Records<DuplexStream, S> {
    let mut handshake = Handshake::new(io, session);
    poll_fn(|cx| handshake.poll(cx)).await.expect("the handshake succeeds");
    let (mut records, _) = handshake.finish().expect("the keys can be had");
    // The server waits for the client's last flight. Nobody reads the server's tickets yet, so they may have to wait.
    if S::MAY_GET_TICKETS {
        poll_fn(|cx| records.flush(cx)).await.expect("the last flight is sent");
    }
    records
}

/// Both ends of a session over a pipe that holds this many bytes.
async fn pair(pipe: usize) -> (Client, Server) {
    let (client, server) = configs();
    let (near, far) = duplex(pipe);
    let client = UnbufferedClientConnection::new(client, "peer.test".try_into().unwrap()).unwrap();
    let server = UnbufferedServerConnection::new(server).unwrap();
    tokio::join!(shaken(near, client), shaken(far, server))
}

async fn send<S: Session>(records: &mut Records<DuplexStream, S>, data: &[u8]) {
    for chunk in data.chunks(200_000) {
        records.put(chunk).unwrap();
        poll_fn(|cx| records.flush(cx)).await.unwrap();
    }
}

/// What is there next, at most this much; nothing at the end.
async fn next<S: Session>(
    records: &mut Records<DuplexStream, S>,
    room: usize,
) -> Result<Vec<u8>, RecordError> {
    let mut space = vec![0; room];
    loop {
        let mut into = ReadBuf::new(&mut space);
        if records.next_plain(&mut into).map_err(RecordError::Tls)? > 0 {
            return Ok(into.filled().to_vec());
        }
        if records.peer_closed() {
            return Ok(Vec::new());
        }
        if poll_fn(|cx| records.fill(cx)).await? == 0 {
            return Err(RecordError::Truncated);
        }
    }
}

async fn receive<S: Session>(records: &mut Records<DuplexStream, S>, length: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < length {
        let room = 1 + fastrand::usize(..40_000);
        let part = next(records, room.min(length - all.len())).await.unwrap();
        assert!(!part.is_empty(), "the peer closed after {} of {length} bytes", all.len());
        all.extend(part);
    }
    all
}

fn tls_error<T: std::fmt::Debug>(result: Result<T, RecordError>) -> Error {
    let error = result.expect_err("the peer is not to be believed");
    let RecordError::Tls(error) = error else { panic!("{error}") };
    error
}

/// Puts a message into a record of its own and sends it.
async fn say<S: Session>(records: &mut Records<DuplexStream, S>, kind: ContentType, content: &[u8]) {
    records.seal_message(kind, content).unwrap();
    poll_fn(|cx| records.flush(cx)).await.unwrap();
}

#[tokio::test]
async fn data_arrives_whole_whatever_the_pipe_holds() {
    for pipe in [1, 7, 1000, 20_000, 1 << 20] {
        let (mut client, mut server) = pair(pipe).await;
        let data: Vec<u8> =
            (0..if pipe < 100 { 50_000 } else { 3_000_000 }).map(|_| fastrand::u8(..)).collect();
        let back = async {
            let got = receive(&mut server, data.len()).await;
            send(&mut server, &got).await;
            server
        };
        let forth = async {
            send(&mut client, &data).await;
            receive(&mut client, data.len()).await
        };
        let (got, server) = tokio::join!(forth, back);
        assert!(got == data, "through a pipe of {pipe} bytes");
        assert!(server.wire.raw.len() == 0 && server.pending() == 0);
    }
}

#[tokio::test]
async fn small_messages_share_records() {
    let (mut client, mut server) = pair(1 << 20).await;
    let before = client.seals.used();
    for _ in 0..CONTENT {
        client.put(b"x").unwrap();
    }
    client.put(b"y").unwrap();
    poll_fn(|cx| client.flush(cx)).await.unwrap();
    assert_eq!(client.seals.used() - before, 2);
    assert_eq!(receive(&mut server, CONTENT + 1).await.last(), Some(&b'y'));
}

#[tokio::test]
async fn keys_are_changed_before_one_is_used_too_often() {
    let (mut client, mut server) = pair(1 << 20).await;
    client.limit = 5;
    let data: Vec<u8> = (0..40 * CONTENT).map(|at| at as u8).collect();
    let (got, ()) = tokio::join!(receive(&mut server, data.len()), async {
        for chunk in data.chunks(1000) {
            send(&mut client, chunk).await;
            assert!(client.seals.used() <= 5, "{}", client.seals.used());
        }
    });
    assert!(got == data);
}

#[tokio::test]
async fn a_key_update_that_is_asked_for_is_made_once() {
    let (mut client, mut server) = pair(1 << 20).await;
    let old = server.seals.used();
    for _ in 0..3 {
        say(&mut client, ContentType::Handshake, &[24, 0, 0, 1, 1]).await;
        let (sequence, secrets) = client.keys.update_tx_secret().unwrap();
        client.seals = Protection::new(&secrets, sequence).unwrap();
    }
    send(&mut client, b"still here").await;
    assert_eq!(receive(&mut server, 10).await, b"still here");
    send(&mut server, b"so am I").await;
    assert_eq!(server.seals.used(), 1, "one new key, used once, after {old} uses of the old one");
    assert_eq!(receive(&mut client, 7).await, b"so am I");
}

#[tokio::test]
async fn a_plain_rustls_client_may_change_its_keys_and_say_goodbye() {
    let (config, server) = configs();
    let (near, far) = duplex(1 << 20);
    let server = tokio::spawn(async move {
        let mut server = shaken(far, UnbufferedServerConnection::new(server).unwrap()).await;
        for _ in 0..20 {
            let question = receive(&mut server, 5).await;
            send(&mut server, &question).await;
        }
        assert!(next(&mut server, 100).await.unwrap().is_empty(), "a goodbye");
        poll_fn(|cx| server.shutdown(cx)).await.unwrap();
    });
    let (mut reads, mut writes) = tokio::io::split(near);
    let mut client = ClientConnection::new(config, "peer.test".try_into().unwrap()).unwrap();
    let mut answers = Vec::new();
    for round in 0..20 {
        client.refresh_traffic_keys().ok();
        client.writer().write_all(b"hello").unwrap();
        while answers.len() < (round + 1) * 5 {
            let mut out = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut out).unwrap();
            }
            writes.write_all(&out).await.unwrap();
            let mut space = [0; 5000];
            let count = reads.read(&mut space).await.unwrap();
            let mut received = &space[..count];
            while !received.is_empty() {
                client.read_tls(&mut received).unwrap();
                client.process_new_packets().unwrap();
            }
            let mut plain = Vec::new();
            let _ = client.reader().read_to_end(&mut plain);
            answers.extend(plain);
        }
    }
    assert_eq!(answers, b"hello".repeat(20));
    client.send_close_notify();
    let mut out = Vec::new();
    client.write_tls(&mut out).unwrap();
    writes.write_all(&out).await.unwrap();
    server.await.unwrap();
}

#[tokio::test]
async fn what_brings_nothing_is_borne_for_a_while_only() {
    for (kind, content) in [(ContentType::ApplicationData, &b""[..]), (ContentType::Alert, &[1, 90])] {
        let (mut client, mut server) = pair(1 << 20).await;
        for _ in 0..BARREN {
            say(&mut client, kind, content).await;
        }
        send(&mut client, b"x").await;
        assert_eq!(receive(&mut server, 1).await, b"x", "{kind:?}");
        for _ in 0..=BARREN {
            say(&mut client, kind, content).await;
        }
        assert_eq!(tls_error(next(&mut server, 1).await), PeerMisbehaved::TooManyEmptyFragments.into());
    }
}

#[tokio::test]
async fn messages_that_do_not_belong_here_end_the_session_and_the_peer_is_told_why() {
    let ticket = [&[4, 0, 0, 2][..], b"ab"].concat();
    for (kind, content) in [
        (ContentType::Handshake, &ticket[..]),
        (ContentType::Handshake, &[1, 0, 0, 0]),
        (ContentType::Handshake, &[24, 0, 0, 1, 2]),
        (ContentType::Handshake, &[24, 0, 0, 1, 0, 24]),
        (ContentType::Handshake, &[4, 1, 0, 1]),
        (ContentType::Handshake, &[]),
        (ContentType::ChangeCipherSpec, &[1]),
        (ContentType::Alert, &[1]),
        (ContentType::Unknown(99), b"x"),
    ] {
        let (mut client, mut server) = pair(1 << 20).await;
        say(&mut client, kind, content).await;
        let error = tls_error(next(&mut server, 1).await);
        poll_fn(|cx| {
            server.flush_alert(cx, &error);
            Poll::Ready(())
        })
        .await;
        let told = tls_error(next(&mut client, 1).await);
        assert!(matches!(told, Error::AlertReceived(_)), "{kind:?} {content:?}: {told}");
    }
}

#[tokio::test]
async fn a_message_in_pieces_is_put_together_and_must_not_be_interrupted() {
    let (mut client, mut server) = pair(1 << 20).await;
    say(&mut server, ContentType::Handshake, &[4, 0, 0]).await;
    say(&mut server, ContentType::Handshake, &[3, b'a', b'b']).await;
    say(&mut server, ContentType::Handshake, b"c").await;
    send(&mut server, b"after").await;
    assert_eq!(receive(&mut client, 5).await, b"after");
    say(&mut server, ContentType::Handshake, &[4, 0, 0]).await;
    send(&mut server, b"within").await;
    let error = tls_error(next(&mut client, 1).await);
    assert_eq!(error, PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into());
}

#[tokio::test]
async fn a_changed_record_is_refused_and_nothing_of_it_is_handed_out() {
    let (mut client, mut server) = pair(1 << 20).await;
    client.put(b"transfer 10").unwrap();
    client.end_record(ContentType::ApplicationData).unwrap();
    let last = client.wire.sealed.len() - 1;
    client.wire.sealed.filled()[last] ^= 1;
    poll_fn(|cx| client.flush(cx)).await.unwrap();
    assert_eq!(tls_error(next(&mut server, 100).await), Error::DecryptError);
}

#[tokio::test]
async fn a_cut_stream_is_told_from_a_closed_one() {
    let (mut client, mut server) = pair(1 << 20).await;
    send(&mut client, b"last words").await;
    drop(client);
    assert_eq!(receive(&mut server, 10).await, b"last words");
    assert!(matches!(next(&mut server, 1).await, Err(RecordError::Truncated)));
    let (mut client, mut server) = pair(1 << 20).await;
    client.put(b"last words").unwrap();
    poll_fn(|cx| client.shutdown(cx)).await.unwrap();
    assert_eq!(receive(&mut server, 10).await, b"last words");
    assert!(next(&mut server, 1).await.unwrap().is_empty());
    send(&mut server, b"heard").await;
    assert_eq!(receive(&mut client, 5).await, b"heard", "our direction is still open");
}
