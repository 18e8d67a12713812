//! The control channel over loopback: a CA service behind TLS, and the client that ztunnel uses.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::ca::istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer};
use api::ca::{IstioCertificateRequest, IstioCertificateResponse};
use futures_util::FutureExt;
use identity::authority::{Authority, AuthorityConfig};
use identity::control::{BadTarget, ControlPeer, Roots, ServerTls, Target, channel, incoming};
use identity::signer::{ServingName, SignError, Signer, Subject};
use identity::{BoxFuture, Ca, CaClient, CaError, Signed, TokenFile, peer_identity};
use prost_types::value::Kind;
use rustls_pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::{Code, Request, Response, Status};

use crate::support::{DAY, HOUR, ManualClock, shop};

/// Long enough for a busy machine; what hangs fails here.
const PATIENCE: Duration = Duration::from_secs(20);

/// A CA service that notes who asked for what.
#[derive(Clone)]
struct Service {
    authority: Arc<Authority>,
    seen: Arc<Mutex<Vec<(String, String)>>>,
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let peer = request.extensions().get::<ControlPeer>().expect("the peer's address is known");
        assert!(peer.address.ip().is_loopback());
        let header = |name: &str| request.metadata().get(name).unwrap().to_str().unwrap().to_owned();
        let (token, cluster) = (header("authorization"), header("clusterid"));
        let IstioCertificateRequest { csr, validity_duration, metadata } = request.into_inner();
        let kind = metadata.unwrap().fields["ImpersonatedIdentity"].kind.clone();
        let Some(Kind::StringValue(name)) = kind else { return Err(Status::invalid_argument("no identity")) };
        self.seen.lock().unwrap().push((token.clone(), cluster));
        if token == "Bearer stolen" {
            return Err(Status::unauthenticated("who are you?"));
        }
        let ttl = Duration::from_secs(validity_duration.unsigned_abs());
        let signed = self.authority.sign(&csr, &name.parse().unwrap(), Some(ttl)).unwrap();
        Ok(Response::new(IstioCertificateResponse { cert_chain: signed.to_reply() }))
    }
}

/// A control plane on loopback; dropping it stops it.
struct Plane {
    address: SocketAddr,
    service: Service,
    task: JoinHandle<()>,
    /// Dropped: the server says goodbye to its clients and ends.
    stop: oneshot::Sender<()>,
    dir: TempDir,
}

impl Plane {
    async fn start(address: &str, clock: &Arc<ManualClock>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(dir.path(), clock);
        let service = Service { authority: authority.clone(), seen: Arc::default() };
        let names =
            vec![ServingName::Dns("controller.mesh".into()), ServingName::Ip("127.0.0.1".parse().unwrap())];
        let tls = ServerTls::new(authority, names, clock.clone()).await.unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serve = tonic::transport::Server::builder()
            .add_service(IstioCertificateServiceServer::new(service.clone()))
            .serve_with_incoming_shutdown(incoming(listener, tls), stopped.map(drop));
        let task = tokio::spawn(async move { serve.await.expect("the server runs until it is stopped") });
        Self { address, service, task, stop, dir }
    }

    /// Ends the server and all its connections. Its directory stays.
    async fn stop(self) -> TempDir {
        drop(self.stop);
        tokio::time::timeout(PATIENCE, self.task).await.expect("the server stops in time").unwrap();
        self.dir
    }

    fn roots(&self) -> std::path::PathBuf {
        self.dir.path().join("roots.pem")
    }

    fn target(&self, roots: Roots) -> Target {
        let address = format!("https://{}", self.address).parse().unwrap();
        Target { address, roots, server_name: None }
    }

    fn client(&self, target: Target, clock: &Arc<ManualClock>) -> CaClient {
        let token = self.dir.path().join("token");
        if !token.exists() {
            std::fs::write(&token, "one\n").unwrap();
        }
        let channel = channel(target, clock.clone()).unwrap();
        CaClient::new(channel, Arc::new(TokenFile(token)), "Kubernetes").unwrap()
    }
}

fn authority(dir: &Path, clock: &Arc<ManualClock>) -> Arc<Authority> {
    Arc::new(Authority::open_or_create(dir, AuthorityConfig::new("cluster.local"), clock.clone()).unwrap())
}

async fn ask(client: &CaClient) -> Result<Signed, CaError> {
    let csr = identity::KeyRequest::for_workload(&shop("pay")).unwrap().csr_pem;
    tokio::time::timeout(PATIENCE, client.sign(&shop("pay"), csr, HOUR)).await.expect("an answer in time")
}

/// What a call that could not be made says, including what lies below.
async fn refused(client: &CaClient) -> String {
    let error = ask(client).await.unwrap_err();
    let CaError::Unreachable(text) = error else { panic!("expected no connection, got {error}") };
    text
}

#[tokio::test]
async fn a_node_gets_a_certificate_and_its_token_is_read_for_each_call() {
    let clock = ManualClock::new();
    let plane = Plane::start("127.0.0.1:0", &clock).await;
    let client = plane.client(plane.target(Roots::File(plane.roots())), &clock);
    let signed = ask(&client).await.unwrap();
    assert_eq!(peer_identity(&signed.chain), Ok(shop("pay")));
    std::fs::write(plane.dir.path().join("token"), "two").unwrap();
    ask(&client).await.unwrap();
    let seen = plane.service.seen.lock().unwrap().clone();
    let expected = [("Bearer one", "Kubernetes"), ("Bearer two", "Kubernetes")];
    assert_eq!(seen, expected.map(|(token, cluster)| (token.to_owned(), cluster.to_owned())));
}

#[tokio::test]
async fn a_refusal_is_told_from_an_outage() {
    let clock = ManualClock::new();
    let plane = Plane::start("127.0.0.1:0", &clock).await;
    let client = plane.client(plane.target(Roots::File(plane.roots())), &clock);
    std::fs::write(plane.dir.path().join("token"), "stolen").unwrap();
    let error = ask(&client).await.unwrap_err();
    let CaError::Refused { code, message } = error else { panic!("expected a refusal, got {error}") };
    assert_eq!((code, &*message), (Code::Unauthenticated, "who are you?"));
    std::fs::write(plane.dir.path().join("token"), "").unwrap();
    assert!(matches!(ask(&client).await, Err(CaError::Token(_))));
}

#[tokio::test]
async fn only_the_right_server_is_talked_to() {
    let clock = ManualClock::new();
    let plane = Plane::start("127.0.0.1:0", &clock).await;
    let other = tempfile::tempdir().unwrap();
    let foreign = authority(other.path(), &clock).roots_pem();
    let good = || plane.target(Roots::File(plane.roots()));
    let named = |name: &str| Target { server_name: Some(name.into()), ..good() };

    ask(&plane.client(named("controller.mesh"), &clock)).await.unwrap();
    let cases = [
        (named("another.mesh"), "not valid for name"),
        (plane.target(Roots::Pem(foreign)), "UnknownIssuer"),
        (plane.target(Roots::Pem("none".into())), "no root certificate"),
        (plane.target(Roots::File("/nonexistent/roots.pem".into())), "/nonexistent/roots.pem"),
    ];
    for (target, reason) in cases {
        let text = refused(&plane.client(target, &clock)).await;
        assert!(text.contains(reason), "{reason}: {text}");
    }
    assert_eq!(
        plane.service.seen.lock().unwrap().len(),
        1,
        "no token was shown to a server that was not verified"
    );
}

#[test]
fn there_is_no_plaintext_control_channel() {
    let target = |address: &str| Target {
        address: address.parse().unwrap(),
        roots: Roots::Pem(String::new()),
        server_name: None,
    };
    let clock = ManualClock::new();
    assert!(matches!(channel(target("http://127.0.0.1:15012"), clock.clone()), Err(BadTarget::NotHttps(_))));
    assert!(matches!(channel(target("127.0.0.1:15012"), clock.clone()), Err(BadTarget::NotHttps(_))));
    assert!(matches!(channel(target("https://127.0.0.1"), clock.clone()), Err(BadTarget::NoPort(_))));
    let named = Target { server_name: Some("not a name".into()), ..target("https://127.0.0.1:15012") };
    assert!(matches!(channel(named, clock), Err(BadTarget::BadName(_))));
}

/// The controller comes back with another root, at the same address; the client's root file follows.
#[tokio::test]
async fn a_new_root_file_counts_from_the_next_connection_on() {
    let clock = ManualClock::new();
    let plane = Plane::start("127.0.0.1:0", &clock).await;
    let roots = plane.dir.path().join("client-roots.pem");
    std::fs::copy(plane.roots(), &roots).unwrap();
    let client = plane.client(plane.target(Roots::File(roots.clone())), &clock);
    ask(&client).await.unwrap();

    let address = plane.address.to_string();
    let _token_and_roots = plane.stop().await;
    let successor = Plane::start(&address, &clock).await;
    assert!(ask(&client).await.is_err(), "its root is not known yet");
    std::fs::copy(successor.roots(), &roots).unwrap();
    ask(&client).await.unwrap();
}

#[tokio::test]
async fn clients_that_stall_or_talk_nonsense_hold_up_nobody() {
    let clock = ManualClock::new();
    let plane = Plane::start("127.0.0.1:0", &clock).await;
    let mut idle = Vec::new();
    for n in 0..100 {
        let mut stream = TcpStream::connect(plane.address).await.unwrap();
        if n % 2 == 0 {
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        }
        idle.push(stream);
    }
    ask(&plane.client(plane.target(Roots::File(plane.roots())), &clock)).await.unwrap();
}

/// A signer that can be switched off.
struct Moody {
    authority: Arc<Authority>,
    works: std::sync::atomic::AtomicBool,
}

impl Signer for Moody {
    fn sign(
        &self,
        csr: String,
        subject: Subject,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<Signed, SignError>> {
        match self.works.load(std::sync::atomic::Ordering::SeqCst) {
            true => Signer::sign(&*self.authority, csr, subject, ttl),
            false => Box::pin(async { Err(SignError::External("switched off".into())) }),
        }
    }

    fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.authority.roots()
    }
}

#[tokio::test]
async fn the_serving_certificate_is_renewed_at_half_life_or_kept() {
    let (clock, dir) = (ManualClock::new(), tempfile::tempdir().unwrap());
    let signer = Arc::new(Moody { authority: authority(dir.path(), &clock), works: true.into() });
    let works = |yes: bool| signer.works.store(yes, std::sync::atomic::Ordering::SeqCst);
    let names = vec![ServingName::Dns("controller.mesh".into())];
    let tls = ServerTls::new(signer.clone(), names.clone(), clock.clone()).await.unwrap();
    let first = tls.config().await;
    clock.advance(DAY / 2 - HOUR);
    assert!(Arc::ptr_eq(&first, &tls.config().await));
    clock.advance(HOUR);
    works(false);
    assert!(Arc::ptr_eq(&first, &tls.config().await), "the last good one is kept");
    works(true);
    assert!(!Arc::ptr_eq(&first, &tls.config().await), "and replaced when the signer is back");
    works(false);
    assert!(ServerTls::new(signer.clone(), names, clock.clone()).await.is_err());
}
