//! TLS that a waypoint begins with backends: as a BackendTLSPolicy says, and never plaintext instead.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;

use lab::ServiceSpec;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::control_plane::controller;
use crate::mesh::{SOON, curl};
use crate::waypoint::Guarded;

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// What the server's certificate names.
const NAME: &str = "backend.example.com";

/// The first byte of a handshake of TLS.
const HANDSHAKE: u8 = 0x16;

fn ca() -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA")
}

fn config(ca: &Issuer) -> Arc<ServerConfig> {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec![NAME.to_owned()]).expect("a name");
    let certificate = params.signed_by(&key, ca).expect("a certificate");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.into()], key)
        .expect("a configuration");
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// What came to a server that takes TLS and plaintext alike.
#[derive(Clone, Default)]
struct Seen {
    plain: Arc<AtomicUsize>,
    /// The names that it was asked for.
    names: Arc<Mutex<Vec<String>>>,
}

impl Seen {
    /// Answers every request of a listener, saying over what it came.
    fn serve(self, listener: TcpListener, config: Arc<ServerConfig>) {
        thread::spawn(move || {
            for tcp in listener.incoming().map_while(Result::ok) {
                let (seen, config) = (self.clone(), Arc::clone(&config));
                thread::spawn(move || seen.answer(tcp, config));
            }
        });
    }

    fn answer(&self, mut tcp: TcpStream, config: Arc<ServerConfig>) -> io::Result<()> {
        let mut first = [0];
        if tcp.peek(&mut first)? == 0 {
            return Ok(());
        }
        if first != [HANDSHAKE] {
            self.plain.fetch_add(1, Relaxed);
            return reply(&mut tcp, "plain");
        }
        let session = ServerConnection::new(config).map_err(io::Error::other)?;
        let mut tls = StreamOwned::new(session, tcp);
        tls.conn.complete_io(&mut tls.sock)?;
        let name = tls.conn.server_name().unwrap_or_default().to_owned();
        self.names.lock().expect("not poisoned").push(name);
        reply(&mut tls, "secured")
    }
}

/// Answers requests one after the other.
fn reply(io: &mut (impl Read + Write), what: &str) -> io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while io.read(&mut byte)? > 0 {
        head.extend(byte);
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            write!(io, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{what}", what.len())?;
            io.flush()?;
        }
    }
    Ok(())
}

/// A ConfigMap with a CA, and the policy that names it.
fn policy(ca: &Issuer) -> String {
    let pem = ca.pem().trim_end().replace('\n', "\n    ");
    format!(
        "\
apiVersion: v1
kind: ConfigMap
metadata: {{name: backend-ca, namespace: shop}}
data:
  ca.crt: |
    {pem}
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {{name: backend, namespace: shop}}
spec:
  targetRefs: [{{group: \"\", kind: Service, name: backend, sectionName: http}}]
  validation:
    hostname: {NAME}
    caCertificateRefs: [{{group: \"\", kind: ConfigMap, name: backend-ca}}]
"
    )
}

#[test]
fn backends_are_spoken_to_in_tls_as_long_as_a_policy_wants_it() {
    let guarded = Guarded::start();
    let Guarded { mesh, client, servers, .. } = &guarded;
    let (ca, other) = (ca(), ca());
    let listener = servers[0].netns().run(|| TcpListener::bind("[::]:8444"));
    let seen = Seen::default();
    seen.clone().serve(listener.expect("a namespace").expect("a listener"), config(&ca));
    let spec = ServiceSpec::new("shop", "backend").selector("version", "one").port("http", 81, 8444);
    mesh.lab.add_service(spec.label("istio.io/use-waypoint", "waypoint")).expect("a service");

    let told = || {
        let output = curl(client, &["-w", " %{http_code}", "http://backend.shop:81/"]);
        format!("{}{}", output.stdout, if output.success() { "" } else { " failed" })
    };
    let until = |wanted: &str| {
        lab::wait_until(&format!("the answer {wanted:?}"), SOON, || {
            let told = told();
            if told == wanted { Ok(()) } else { Err(told) }
        })
        .expect("an answer");
    };
    until("plain 200");
    let canary = "canary-of-the-backend";
    let crossed = mesh.lab.wire().watch(canary);

    mesh.lab.apply_yaml("tls.yaml", &policy(&ca)).expect("a policy");
    until("secured 200");
    let plain = seen.plain.load(Relaxed);
    let output = curl(client, &[&format!("http://backend.shop:81/{canary}")]);
    assert_eq!(output.stdout, "secured", "{output:?}");
    assert!(seen.names.lock().expect("not poisoned").iter().all(|name| name == NAME));

    // A CA that has not certified the server.
    mesh.lab.apply_yaml("tls.yaml", &policy(&other)).expect("a policy");
    until(" 503");
    guarded.logged(&[("dst.service", "backend.shop.svc.cluster.local"), ("code", "backend-tls-failed")]);
    // And none at all.
    let without = policy(&ca).replace("name: backend-ca, namespace", "name: elsewhere, namespace");
    mesh.lab.apply_yaml("tls.yaml", &without).expect("a policy");
    lab::wait_until("it is said that it can't be carried out", SOON, || {
        let findings = controller(&mesh.lab, "GET", "/findings")["objects"].to_string();
        let is_said = findings.contains("there is no ConfigMap shop/backend-ca with ca.crt");
        if is_said { Ok(()) } else { Err(findings) }
    })
    .expect("a finding");
    lab::wait_until("a refusal for it", SOON, || {
        assert_eq!(told(), " 503", "nothing is answered under a CA that is unknown");
        guarded.has_logged(&[("code", "backend-tls-invalid")])
    })
    .expect("a refusal");
    assert_eq!(seen.plain.load(Relaxed), plain, "no connection in plaintext since the policy holds");

    mesh.lab.delete_yaml("tls.yaml").expect("no policy");
    until("plain 200");
    assert_eq!(crossed.count().expect("a whole capture"), 0, "no byte of the canary crosses the wire");
}
