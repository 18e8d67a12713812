//! Two servers that are asked over HTTP without a process for each question, which would take longer than what is measured: the
//! API server, behind `kubectl proxy`, and a node's ztunnel.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lab::{Cluster, ClusterNode};
use serde_json::{Value, json};

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(10);

/// The API server, as its administrator.
pub(super) struct ApiServer {
    proxy: Child,
    port: u16,
}

impl ApiServer {
    pub(super) fn reach(cluster: &Cluster) -> anyhow::Result<Self> {
        let mut command = Command::new(cluster.kubectl_program());
        command.arg("--kubeconfig").arg(cluster.kubeconfig()).args(["proxy", "--port=0"]);
        let mut proxy = command.stdout(Stdio::piped()).spawn().context("start kubectl proxy")?;
        let mut line = String::new();
        let output = proxy.stdout.take().context("its output is a pipe")?;
        BufReader::new(output).read_line(&mut line).context("read what kubectl proxy says")?;
        // Starting to serve on 127.0.0.1:41234
        let port = line.trim_end().rsplit(':').next().and_then(|port| port.parse().ok());
        let port = port.with_context(|| format!("no port in what kubectl proxy says: {line:?}"))?;
        Ok(Self { proxy, port })
    }

    /// Writes the label that puts a namespace into the mesh, or takes it away.
    pub(super) fn label(&self, namespace: &str, mode: Option<&str>) -> anyhow::Result<()> {
        let body = json!({"metadata": {"labels": {"istio.io/dataplane-mode": mode}}}).to_string();
        let stream = TcpStream::connect(("127.0.0.1", self.port)).context("connect to kubectl proxy")?;
        stream.set_read_timeout(Some(WITHIN))?;
        let head = format!(
            "PATCH /api/v1/namespaces/{namespace} HTTP/1.0\r\nHost: 127.0.0.1\r\n\
             Content-Type: application/merge-patch+json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        exchange(stream, &(head + &body)).map(drop).context("write the namespace's label")
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // Ended already, or about to.
        drop(self.proxy.kill().and_then(|()| self.proxy.wait()));
    }
}

/// What a node's ztunnel knows of its pods.
pub(super) struct Pods {
    socket: PathBuf,
}

impl Pods {
    pub(super) fn of(node: &ClusterNode) -> anyhow::Result<Self> {
        Ok(Self { socket: node.path("/run/airglow/admin.sock")? })
    }

    /// How many pods of a namespace are in a state.
    pub(super) fn count(&self, namespace: &str, state: &str) -> anyhow::Result<usize> {
        let stream = UnixStream::connect(&self.socket)
            .with_context(|| format!("connect to {}", self.socket.display()))?;
        stream.set_read_timeout(Some(WITHIN))?;
        let body = exchange(stream, "GET /pods HTTP/1.0\r\nHost: ztunnel\r\n\r\n")?;
        let pods: Vec<Value> = serde_json::from_str(&body).context("read what ztunnel says of its pods")?;
        let is_so = |pod: &&Value| {
            let name = pod["pod"].as_str().and_then(|name| name.strip_prefix(namespace));
            pod["state"] == state && name.is_some_and(|name| name.starts_with('/'))
        };
        Ok(pods.iter().filter(is_so).count())
    }
}

/// One request of HTTP/1.0, whose answer ends with the connection; its body.
fn exchange(mut stream: impl Read + Write, request: &str) -> anyhow::Result<String> {
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a head")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200 "), "answered with {status:?}: {body}");
    Ok(body.to_owned())
}
