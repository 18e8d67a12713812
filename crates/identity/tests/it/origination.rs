//! TLS towards servers of no mesh: whom it trusts, by which name, and what is spoken inside.

use std::io;
use std::sync::Arc;

use identity::SystemClock;
use identity::origination::{Originator, Speaks};
use model::l7::{Roots, ServerTls, SubjectName};
use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::crypto::aws_lc_rs;
use rustls::{ServerConfig, SupportedProtocolVersion, version};
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA")
}

/// A server with these names that speaks these protocols.
fn server(ca: &Issuer, names: &[SanType], protocols: &[&[u8]]) -> TlsAcceptor {
    server_of(&[&version::TLS13, &version::TLS12], ca, names, protocols)
}

fn server_of(
    versions: &[&'static SupportedProtocolVersion],
    ca: &Issuer,
    names: &[SanType],
    protocols: &[&[u8]],
) -> TlsAcceptor {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.subject_alt_names = names.to_vec();
    let certificate = params.signed_by(&key, ca).expect("a certificate");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.into()], key)
        .expect("a configuration");
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// What the server was asked for and chose, when both ends agree.
async fn meet(
    originator: &Originator,
    speaks: Speaks,
    server: &TlsAcceptor,
) -> io::Result<(Option<String>, Option<Vec<u8>>)> {
    let (near, far) = tokio::io::duplex(64 << 10);
    let served = async {
        let mut tls = server.accept(far).await?;
        let session = tls.get_ref().1;
        let seen = (session.server_name().map(str::to_owned), session.alpn_protocol().map(<[u8]>::to_vec));
        tls.write_all(b"hello").await?;
        tls.flush().await?;
        // Until the client has read it.
        tls.read_to_end(&mut Vec::new()).await?;
        io::Result::Ok(seen)
    };
    let asked = async {
        let mut tls = originator.begin(near, speaks).await?;
        let mut heard = [0; 5];
        tls.read_exact(&mut heard).await?;
        assert_eq!(&heard, b"hello");
        tls.shutdown().await
    };
    let (seen, asked) = tokio::join!(served, asked);
    asked.and(seen)
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(Ia5String::try_from(name).expect("a name"))
}

fn uri(name: &str) -> SanType {
    SanType::URI(Ia5String::try_from(name).expect("a name"))
}

fn towards(hostname: &str, names: Vec<SubjectName>, ca: &Issuer) -> Originator {
    certified(hostname, names, Roots::Pem(ca.pem().into()))
}

fn certified(hostname: &str, names: Vec<SubjectName>, roots: Roots) -> Originator {
    let wanted = ServerTls { hostname: hostname.into(), names, roots };
    Originator::new(&wanted, Arc::new(SystemClock)).expect("it can be begun")
}

#[tokio::test]
async fn a_server_proves_the_name_that_it_is_asked_for() {
    let (ca, other) = (ca(), ca());
    let right = server(&ca, &[dns("api.example.com")], &[]);
    let seen = meet(&towards("api.example.com", Vec::new(), &ca), Speaks::Bytes, &right).await;
    assert_eq!(seen.expect("they agree"), (Some("api.example.com".to_owned()), None));
    for (originator, what) in [
        (towards("db.example.com", Vec::new(), &ca), "another name"),
        (towards("api.example.com", Vec::new(), &other), "another CA"),
    ] {
        assert!(meet(&originator, Speaks::Bytes, &right).await.is_err(), "{what}");
    }
    let both = Roots::Pem((other.pem() + &ca.pem()).into());
    let both = certified("api.example.com", Vec::new(), both);
    assert!(meet(&both, Speaks::Bytes, &right).await.is_ok(), "either CA");
    let public = certified("api.example.com", Vec::new(), Roots::System);
    let refused = meet(&public, Speaks::Bytes, &right).await.expect_err("no public CA");
    assert!(refused.to_string().contains("UnknownIssuer"), "{refused}");
}

#[tokio::test]
async fn servers_may_be_older_than_the_mesh() {
    let (ca, other) = (ca(), ca());
    let old = server_of(&[&version::TLS12], &ca, &[dns("api.example.com")], &[b"h2", b"http/1.1"]);
    for speaks in [Speaks::Bytes, Speaks::Http1, Speaks::Http2] {
        let seen = meet(&towards("api.example.com", Vec::new(), &ca), speaks, &old).await;
        assert!(seen.is_ok(), "{speaks:?}: {seen:?}");
    }
    for wrong in [towards("db.example.com", Vec::new(), &ca), towards("api.example.com", Vec::new(), &other)]
    {
        assert!(meet(&wrong, Speaks::Bytes, &old).await.is_err());
    }
}

#[tokio::test]
async fn names_that_are_listed_count_in_place_of_the_hostname() {
    let ca = ca();
    let workload = server(&ca, &[uri("spiffe://elsewhere/ns/a/sa/b"), dns("x.internal")], &[]);
    for (names, agree) in [
        (vec![SubjectName::Uri("spiffe://elsewhere/ns/a/sa/b".into())], true),
        (vec![SubjectName::Uri("spiffe://elsewhere/ns/a/sa/c".into())], false),
        (
            vec![SubjectName::Hostname("other.internal".into()), SubjectName::Hostname("*.internal".into())],
            true,
        ),
        (vec![SubjectName::Hostname("spiffe://elsewhere/ns/a/sa/b".into())], false),
        (Vec::new(), false),
    ] {
        let originator = towards("api.example.com", names.clone(), &ca);
        let seen = meet(&originator, Speaks::Bytes, &workload).await;
        assert_eq!(seen.is_ok(), agree, "{names:?}: {seen:?}");
    }
    // The hostname alone is not enough where others are listed.
    let api = server(&ca, &[dns("api.example.com")], &[]);
    let listed = towards("api.example.com", vec![SubjectName::Hostname("x.internal".into())], &ca);
    assert!(meet(&listed, Speaks::Bytes, &api).await.is_err());
}

#[tokio::test]
async fn it_is_said_what_is_spoken_inside() {
    let ca = ca();
    let originator = towards("api.example.com", Vec::new(), &ca);
    let of = |protocols: &[&[u8]]| server(&ca, &[dns("api.example.com")], protocols);
    let (both, one, none) = (of(&[b"h2", b"http/1.1"]), of(&[b"http/1.1"]), of(&[]));
    let chosen = |seen: io::Result<(_, Option<Vec<u8>>)>| seen.ok().map(|(_, protocol)| protocol);
    let h2 = Some(Some(b"h2".to_vec()));
    let http1 = Some(Some(b"http/1.1".to_vec()));
    assert_eq!(chosen(meet(&originator, Speaks::Http2, &both).await), h2);
    assert_eq!(chosen(meet(&originator, Speaks::Http1, &both).await), http1);
    assert_eq!(chosen(meet(&originator, Speaks::Bytes, &both).await), Some(None));
    assert_eq!(chosen(meet(&originator, Speaks::Http1, &none).await), Some(None));
    assert_eq!(chosen(meet(&originator, Speaks::Http2, &one).await), None);
    assert_eq!(chosen(meet(&originator, Speaks::Http2, &none).await), None, "it might speak anything");
}
