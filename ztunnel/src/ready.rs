//! `ztunnel ready`: whether the ztunnel of this container is in charge of its node and ready, for a kubelet's probe.
//!
//! Two ztunnels share a node's network while one succeeds the other, so an answer on a port says nothing of either. The admin
//! socket is that of whoever is in charge, and the kernel says which process that is, by numbers that mean something within one
//! container only. Looks and changes nothing.

use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::node::ADMIN;

/// How long an answer may take; as long as the chart lets the probe take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Longer than any list of what is pending.
const MAX_ANSWER: u64 = 4096;

/// Succeeds when it is.
pub(crate) fn ready(run_dir: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let socket = run_dir.join(ADMIN);
    let asked = runtime.block_on(async { tokio::time::timeout(ANSWER_WITHIN, ask(&socket)).await });
    let answer = asked.unwrap_or_else(|late| Err(io::Error::from(late)));
    let (answer, is_ours) = answer.with_context(|| format!("no ztunnel answers at {}", socket.display()))?;
    judge(&answer, is_ours)
}

/// What whoever is in charge says of itself, and whether it is a process of this container.
async fn ask(socket: &Path) -> io::Result<(String, bool)> {
    let mut stream = UnixStream::connect(socket).await?;
    // Processes of other containers have no number here.
    let is_ours = stream.peer_cred()?.pid().is_some_and(|pid| pid > 0);
    stream.write_all(b"GET /healthz/ready HTTP/1.1\r\nHost: ztunnel\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer).await?;
    Ok((answer, is_ours))
}

fn judge(answer: &str, is_ours: bool) -> anyhow::Result<()> {
    if !is_ours {
        bail!("another ztunnel is in charge of this node");
    }
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    match head.split(' ').nth(1) {
        Some("200") => Ok(()),
        _ => bail!("{}", body.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use daemon::admin::readiness_routes;
    use daemon::http::{bind_unix, serve_unix};
    use daemon::readiness::Readiness;

    use super::*;

    #[tokio::test]
    async fn who_is_ready_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let readiness = Readiness::new();
        let latch = readiness.latch("discovery");
        let socket = folder.path().join(ADMIN);
        let serving = serve_unix(bind_unix(&socket).unwrap(), readiness_routes(&readiness));
        let serving = tokio::spawn(serving);
        let (answer, is_ours) = ask(&socket).await.unwrap();
        assert!(is_ours, "it is this very process");
        assert_eq!(judge(&answer, is_ours).unwrap_err().to_string(), "not ready, pending: discovery");
        drop(latch);
        let (answer, is_ours) = ask(&socket).await.unwrap();
        judge(&answer, is_ours).unwrap();
        assert!(judge(&answer, false).unwrap_err().to_string().contains("another ztunnel"));
        serving.abort();
    }

    #[test]
    fn nobody_is_not_ready() {
        let folder = tempfile::tempdir().unwrap();
        let error = ready(folder.path()).unwrap_err().to_string();
        assert!(error.contains("no ztunnel answers at") && error.contains("admin.sock"), "{error}");
    }
}
