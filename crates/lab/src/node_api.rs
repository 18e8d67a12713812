//! The container side of a node's ztunnel: telling it over its unix socket which sandboxes exist.
//!
//! One JSON object per line each way. Without a ztunnel on the node nothing is sent; it is told all when it starts.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use serde_json::{Value, json};

use crate::error::{LabError, cannot};
use crate::inner::{Inner, Site};
use crate::state::PodRecord;

/// How long one answer may take. A ztunnel answers within 30 s, with an error if need be.
const ANSWER_WITHIN: Duration = Duration::from_secs(40);

/// Tells the ztunnel of the pod's node that the pod exists; answered when the pod is enrolled or known not to be wanted.
pub(crate) fn announce(inner: &Inner, pod: &PodRecord) -> Result<(), LabError> {
    let site = &inner.nodes[pod.node];
    if pod.spec.host_network || !has_ztunnel(site) {
        return Ok(());
    }
    let netns = inner.run.netns(&format!("pod-{}", pod.uid));
    let request = json!({"add": {
        "uid": pod.uid,
        "namespace": pod.spec.namespace,
        "name": pod.spec.name,
        "service_account": pod.spec.service_account,
        "netns": netns,
        "addresses": pod.ips,
    }});
    ask(site, &request).map(drop)
}

/// Tells the ztunnel of a node that a pod is gone.
pub(crate) fn retract(inner: &Inner, node: usize, uid: &str) -> Result<(), LabError> {
    let site = &inner.nodes[node];
    if has_ztunnel(site) { ask(site, &json!({"delete": {"uid": uid}})).map(drop) } else { Ok(()) }
}

/// Sends one request to the node's current ztunnel and returns its answer.
pub(crate) fn ask(site: &Site, request: &Value) -> Result<Value, LabError> {
    let reply = exchange(&site.dir.join("node.sock"), request)
        .map_err(cannot(format!("ask the ztunnel of {}", site.name)))?;
    match reply.get("error").and_then(Value::as_str) {
        Some(reason) => Err(LabError::NodeApi { node: site.name.clone(), reason: reason.to_owned() }),
        None => Ok(reply),
    }
}

/// The process that listens on a unix socket; absent when nobody does.
pub(crate) fn listener(socket: &Path) -> Option<u32> {
    let stream = UnixStream::connect(socket).ok()?;
    let credentials = getsockopt(&stream, sockopt::PeerCredentials).ok()?;
    u32::try_from(credentials.pid()).ok()
}

fn has_ztunnel(site: &Site) -> bool {
    site.ztunnel.lock().as_ref().is_some_and(|process| process.is_running())
}

fn exchange(socket: &Path, request: &Value) -> io::Result<Value> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    serde_json::from_str(&line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::thread;

    use super::*;

    /// Asks a listener that answers with `reply`, and returns what it was sent and what `exchange` made of it.
    fn converse(reply: &'static str) -> (String, io::Result<Value>) {
        let dir = PathBuf::from(format!("/tmp/lab-node-api-{:016x}", fastrand::u64(..)));
        std::fs::create_dir(&dir).expect("a directory of our own");
        let path = dir.join("node.sock");
        let server = UnixListener::bind(&path).expect("a new socket");
        assert_eq!(listener(&path), Some(std::process::id()));
        let thread = thread::spawn(move || {
            let (_probe, _) = server.accept().expect("the look at the listener");
            let (mut stream, _) = server.accept().expect("a client");
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).expect("a line");
            stream.write_all(reply.as_bytes()).expect("a reader");
            line
        });
        let result = exchange(&path, &json!({"delete": {"uid": "u"}}));
        let line = thread.join().expect("the server does not panic");
        std::fs::remove_dir_all(&dir).expect("our own directory");
        (line, result)
    }

    #[test]
    fn a_request_is_one_line_and_so_is_the_answer() {
        let (sent, reply) = converse("{\"ok\":true}\n");
        assert_eq!(sent, "{\"delete\":{\"uid\":\"u\"}}\n");
        assert_eq!(reply.expect("an answer")["ok"], true);
    }

    #[test]
    fn an_answer_that_is_cut_off_is_an_error() {
        assert!(converse("").1.is_err());
        assert!(converse("{\"ok\":").1.is_err());
    }
}
