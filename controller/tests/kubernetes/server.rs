//! An API server with its etcd, on loopback, in a directory of its own; both end with the value, or with the test's process.

use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kube::Client;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;

/// Much longer than anything takes here.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// On a machine with two busy processors an API server takes some seconds to start.
const READY: Duration = Duration::from_secs(120);

const ADMIN: &str = "the-token-of-the-administrator";

/// A running API server.
pub(crate) struct ApiServer {
    directory: TempDir,
    port: u16,
    etcd_port: u16,
    etcd: Child,
    server: Option<Child>,
    more: Vec<String>,
}

impl ApiServer {
    /// Starts both and waits until the API server is ready.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with more arguments for the API server.
    pub(crate) async fn start_with(more: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        certificates(directory.path()).expect("certificates");
        fs::write(directory.path().join("tokens.csv"), format!("{ADMIN},admin,admin,system:masters\n"))
            .expect("writable");
        let [port, etcd_port, peer_port] = free_ports();
        let etcd = etcd(directory.path(), etcd_port, peer_port);
        let more = more.iter().map(|argument| (*argument).to_owned()).collect();
        let mut api = Self { directory, port, etcd_port, etcd, server: None, more };
        api.up().await;
        api
    }

    /// Starts the API server, which is not running, and waits until it is ready.
    pub(crate) async fn up(&mut self) {
        assert!(self.server.is_none(), "it runs");
        self.server = Some(self.spawn());
        let client = self.client().await;
        let deadline = Instant::now() + READY;
        let ready = http("/readyz");
        while let Err(error) = client.request_text(ready.clone()).await {
            let ended = self.server.as_mut().expect("just started").try_wait().expect("waitable");
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "the API server is not ready: {error}; {ended:?}\n{}",
                fs::read_to_string(self.directory.path().join("kube-apiserver.log")).unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Kills the API server. What it was told stays in etcd.
    pub(crate) fn down(&mut self) {
        let mut server = self.server.take().expect("it runs");
        server.kill().and_then(|()| server.wait()).expect("ours to kill");
    }

    /// A kubeconfig of the administrator.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig_of("admin", ADMIN)
    }

    /// A kubeconfig of whoever has `token`.
    pub(crate) fn kubeconfig_of(&self, name: &str, token: &str) -> PathBuf {
        let path = self.directory.path().join(format!("{name}.kubeconfig"));
        let (port, ca) = (self.port, self.directory.path().join("ca.pem"));
        let text = format!(
            "apiVersion: v1
kind: Config
current-context: it
clusters: [{{name: it, cluster: {{server: 'https://127.0.0.1:{port}', certificate-authority: {ca}}}}}]
users: [{{name: it, user: {{token: {token}}}}}]
contexts: [{{name: it, context: {{cluster: it, user: it}}}}]
",
            ca = ca.display()
        );
        fs::write(&path, text).expect("writable");
        path
    }

    /// The administrator's client, by the way that the controller takes.
    pub(crate) async fn client(&self) -> Client {
        apiserver::connect(&[self.kubeconfig()], None).await.expect("a sound kubeconfig")
    }

    fn spawn(&self) -> Child {
        let at = |file: &str| self.directory.path().join(file).display().to_string();
        let arguments = [
            format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={}", self.port),
            format!("--tls-cert-file={}", at("server.pem")),
            format!("--tls-private-key-file={}", at("server.key")),
            format!("--token-auth-file={}", at("tokens.csv")),
            "--authorization-mode=RBAC".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", at("accounts.pub")),
            format!("--service-account-signing-key-file={}", at("accounts.key")),
            // Pods are made without the controllers that would make their accounts and node leases.
            "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition".to_owned(),
        ];
        let arguments: Vec<_> = arguments.into_iter().chain(self.more.iter().cloned()).collect();
        start(self.directory.path(), "kubernetes", "kube-apiserver", &arguments)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        for child in self.server.iter_mut().chain([&mut self.etcd]) {
            // Ended already, or about to.
            let _ = child.kill().and_then(|()| child.wait());
        }
    }
}

/// A GET of a path.
pub(crate) fn http(path: &str) -> http::Request<Vec<u8>> {
    http::Request::get(path).body(Vec::new()).expect("a request")
}

fn etcd(directory: &Path, port: u16, peer_port: u16) -> Child {
    let (url, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
    let arguments = [
        format!("--data-dir={}", directory.join("etcd").display()),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        "--unsafe-no-fsync".to_owned(),
    ];
    start(directory, "etcd", "etcd", &arguments)
}

fn start(directory: &Path, set: &str, program: &str, arguments: &[String]) -> Child {
    let log = File::create(directory.join(format!("{program}.log"))).expect("writable");
    let mut command = Command::new(binary(set, program));
    command.args(arguments).current_dir(directory).stdin(Stdio::null());
    command.stdout(log.try_clone().expect("a file")).stderr(log);
    #[expect(unsafe_code, reason = "nothing else runs between fork and exec")]
    // SAFETY: prctl is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(|| set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from));
    }
    command.spawn().unwrap_or_else(|error| panic!("cannot start {program}: {error}"))
}

/// Where a program of the test cluster is; builds it if it is not there.
fn binary(set: &str, program: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/cluster-binaries");
    let run = |arguments: &[&str]| {
        let output = Command::new(&script).args(arguments).output().expect("the script runs");
        assert!(
            output.status.success(),
            "scripts/cluster-binaries {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text")
    };
    run(&[set]);
    let listed = run(&["--where", set]);
    let path = listed.lines().find_map(|line| line.strip_prefix(program)?.strip_prefix('\t'));
    path.unwrap_or_else(|| panic!("no {program} in the set {set}")).into()
}

/// Ports that nobody listened on a moment ago.
fn free_ports() -> [u16; 3] {
    let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("bound").port())
}

fn certificates(directory: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let (ca_key, key, accounts) = (KeyPair::generate()?, KeyPair::generate()?, KeyPair::generate()?);
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    fs::write(directory.join("ca.pem"), ca.self_signed(&ca_key)?.pem())?;
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned(), "kubernetes.default.svc".to_owned()];
    let server = CertificateParams::new(names)?.signed_by(&key, &Issuer::new(ca, ca_key))?;
    fs::write(directory.join("server.pem"), server.pem())?;
    fs::write(directory.join("server.key"), key.serialize_pem())?;
    fs::write(directory.join("accounts.key"), accounts.serialize_pem())?;
    fs::write(directory.join("accounts.pub"), accounts.public_key_pem())?;
    Ok(())
}
