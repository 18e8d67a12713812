//! A mesh whose CA is plugged in, and a way to its controller's port for whoever has a token.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use identity::control::{Roots, Target, channel};
use identity::{Ca as _, CaClient, CaError, KeyRequest, Signed, SystemClock, TokenError, TokenSource};
use lab::Cluster;
use model::identity::Identity;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::pki_types::CertificateDer;

use crate::install::{SYSTEM, chart_and_values, is_rolled_out, start};
use crate::{PATIENCE, eventually};

static MESH: LazyLock<Cluster> = LazyLock::new(|| {
    let cluster = start();
    cluster.kubectl(&["create", "namespace", SYSTEM]).expect("a namespace");
    let dir = cluster.dir().join("cacerts");
    std::fs::create_dir_all(&dir).expect("a directory");
    for (name, pem) in &plugged().files {
        std::fs::write(dir.join(name), pem).expect("a file");
    }
    let from = format!("--from-file={}", dir.display());
    cluster.kubectl(&["-n", SYSTEM, "create", "secret", "generic", "cacerts", &from]).expect("a Secret");
    let (chart, mut set) = chart_and_values(&cluster);
    // One has all of the log.
    set.push_str(",controller.replicas=1");
    cluster.helm(&["install", "airglow", &chart, "--namespace", SYSTEM, "--set", &set]).expect("installed");
    is_rolled_out(&cluster);
    cluster
});

static PLUGGED: LazyLock<Plugged> = LazyLock::new(Plugged::new);

/// A cluster with a mesh whose CA is plugged in.
pub(super) fn mesh() -> &'static Cluster {
    &MESH
}

/// The CA that is plugged in.
pub(super) fn plugged() -> &'static Plugged {
    &PLUGGED
}

/// An intermediate CA as Istio's users have it.
pub(super) struct Plugged {
    pub(super) root: CertificateDer<'static>,
    pub(super) signing: CertificateDer<'static>,
    /// `ca-cert.pem`, `ca-key.pem`, `root-cert.pem`, `cert-chain.pem`.
    pub(super) files: [(&'static str, String); 4],
}

impl Plugged {
    fn new() -> Self {
        let params = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let now = SystemTime::now();
            params.not_before = (now - Duration::from_secs(3600)).into();
            params.not_after = (now + Duration::from_secs(100 * 24 * 3600)).into();
            params
        };
        let key = || KeyPair::generate().expect("a key");
        let root = CertifiedIssuer::self_signed(params("somebody's root"), key()).expect("a root");
        let signing =
            CertifiedIssuer::signed_by(params("somebody's CA"), key(), &root).expect("an intermediate");
        let chain = signing.pem() + &root.pem();
        Self {
            root: root.der().clone(),
            signing: signing.der().clone(),
            files: [
                ("ca-cert.pem", signing.pem()),
                ("ca-key.pem", signing.key().serialize_pem()),
                ("root-cert.pem", root.pem()),
                ("cert-chain.pem", chain),
            ],
        }
    }
}

/// A way to the controller.
pub(super) struct Node<'a> {
    pub(super) cluster: &'a Cluster,
    port: u16,
    runtime: tokio::runtime::Runtime,
    forward: Child,
}

impl<'a> Node<'a> {
    /// Forwards a port of this machine.
    pub(super) fn reach(cluster: &'a Cluster) -> Self {
        let mut forward = Command::new(cluster.kubectl_program())
            .arg("--kubeconfig")
            .arg(cluster.kubeconfig())
            .args(["-n", SYSTEM, "port-forward", "deployment/airglow-controller", ":15012"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl");
        let mut lines = BufReader::new(forward.stdout.take().expect("stdout is piped")).lines();
        let line = lines.next().expect("a line").expect("text");
        // Forwarding from 127.0.0.1:41234 -> 15012
        let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next());
        let port = port.and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("no port in {line:?}"));
        // It goes on printing, and ends if nobody reads.
        std::thread::spawn(move || lines.for_each(drop));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { cluster, port, runtime, forward }
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        // Ended already, or about to.
        drop(self.forward.kill().and_then(|()| self.forward.wait()));
    }
}

#[derive(Clone, Debug)]
struct Bearer(String);

impl TokenSource for Bearer {
    fn token(&self) -> Result<String, TokenError> {
        Ok(self.0.clone())
    }
}

/// Asks for the certificate of a workload as a node does.
pub(super) fn ask(node: &Node<'_>, token: &str, identity: &str) -> Result<Signed, CaError> {
    let identity: Identity = identity.parse().expect("the test's own identity");
    let roots =
        ["-n", SYSTEM, "get", "configmap", "istio-ca-root-cert", "-o", "jsonpath={.data.root-cert\\.pem}"];
    let roots = node.cluster.kubectl(&roots).expect("the published roots");
    let target = Target {
        address: format!("https://127.0.0.1:{}", node.port).parse().expect("an address"),
        roots: Roots::Pem(roots),
        server_name: Some(format!("airglow-controller.{SYSTEM}.svc")),
    };
    let request = KeyRequest::for_workload(&identity).expect("a key");
    node.runtime.block_on(async {
        let channel = channel(target, Arc::new(SystemClock)).expect("a good target");
        let client =
            CaClient::new(channel, Arc::new(Bearer(token.to_owned())), "Kubernetes").expect("printable");
        let signed = client.sign(&identity, request.csr_pem, Duration::from_secs(3600));
        tokio::time::timeout(PATIENCE, signed).await.expect("an answer in time")
    })
}

/// Waits until the controller has said in its log why it refused a caller.
pub(super) fn controller_says(cluster: &Cluster, why: &str) {
    let logs = ["-n", SYSTEM, "logs", "deployment/airglow-controller", "--tail=200"];
    eventually(&format!("the controller logs {why:?}"), || {
        let log = cluster.kubectl(&logs).map_err(|error| error.to_string())?;
        let said = log.lines().any(|line| line.contains("a caller was refused") && line.contains(why));
        if said { Ok(()) } else { Err(log) }
    });
}
