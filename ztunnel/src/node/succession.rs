//! Which of two ztunnels of a node is in charge while one replaces the other: only that one acts on pods.
//!
//! A successor takes charge when it knows everything that it must. It says so to its predecessor over the node API, and
//! keeps that connection for as long as it lives: if it ends, the predecessor is in charge again. Knows nothing of pods.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::api::Reply;
use super::manager::{Manager, Stage};

/// How long a predecessor may take to finish what it does and to answer. One that hangs must not keep its pods from
/// being served.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Longer than any answer to a command that lists nothing.
const MAX_ANSWER: u64 = 4096;

/// Whether this process acts on the node's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Charge {
    /// Not yet: it does not know what it must, and somebody else may be in charge.
    Expected,
    /// Yes.
    Held,
    /// Not any more: a successor does.
    Passed,
}

/// What a successor has to take over before this process may stop to accept.
#[derive(Debug)]
pub(super) struct Handover {
    since: Instant,
    /// Of each pod, the listeners (`SO_COOKIE`) that the kernel hands connections to.
    listeners: Vec<(String, [Option<u64>; 4])>,
}

/// The ztunnel that was here before, while it runs.
#[derive(Debug)]
pub(super) struct Predecessor(BufReader<UnixStream>);

impl Predecessor {
    /// The process that serves the node API at `path` now, if there is one.
    pub(super) async fn find(path: &Path) -> Option<Self> {
        UnixStream::connect(path).await.ok().map(|stream| Self(BufReader::new(stream)))
    }

    /// Takes charge. When this returns the predecessor acts on no pod any more, and will not unless `self` is dropped.
    ///
    /// # Errors
    /// When it gave no answer, or says why it can't be succeeded now. It may have ended meanwhile.
    pub(super) async fn succeed(&mut self) -> io::Result<()> {
        tokio::time::timeout(ANSWER_WITHIN, self.ask()).await?
    }

    async fn ask(&mut self) -> io::Result<()> {
        self.0.get_mut().write_all(b"{\"succeed\":{}}\n").await?;
        let mut line = String::new();
        if (&mut self.0).take(MAX_ANSWER).read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let answer: serde_json::Value = serde_json::from_str(&line)?;
        match answer.get("error").and_then(serde_json::Value::as_str) {
            None => Ok(()),
            Some(error) => Err(io::Error::other(error.to_owned())),
        }
    }
}

impl Manager {
    /// Waits to be in charge. Pods are announced to whoever is; if nobody is, they are announced to us already.
    pub(super) async fn expect_charge(&mut self) -> anyhow::Result<()> {
        if !self.door.is_open() && Predecessor::find(self.door.path()).await.is_none() {
            self.door.open().context("can't open the sockets in the run directory")?;
        }
        Ok(())
    }

    /// Takes charge: everything is known now.
    pub(super) async fn take_charge(&mut self) -> anyhow::Result<()> {
        if !self.door.is_open() {
            let predecessor = Predecessor::find(self.door.path()).await;
            // Before the predecessor stops to listen, so that whoever announces a pod finds one of us.
            self.door.open().context("can't open the sockets in the run directory")?;
            if let Some(mut predecessor) = predecessor {
                match predecessor.succeed().await {
                    Ok(()) => tracing::info!("took charge of the node's pods from the ztunnel before"),
                    Err(error) => tracing::warn!(%error, "the ztunnel before does not hand over"),
                }
                self.predecessor = Some(predecessor);
            }
            // It may have heard of pods until now.
            self.sandboxes.read().context("can't read the known sandboxes")?;
        }
        self.charge = Charge::Held;
        Ok(())
    }

    /// Who is in charge can be reached: a successor takes the sockets' names first, and may end before it asks for more.
    pub(super) async fn keep_charge(&mut self) -> anyhow::Result<()> {
        if self.door.is_deserted().await {
            tracing::warn!("nobody listens on a socket in the run directory; listening again");
            self.door.open().context("can't open the sockets in the run directory")?;
        }
        Ok(())
    }

    /// A successor takes charge. What is captured and served here goes on until this process is told to end.
    pub(super) fn pass_charge(&mut self) -> Reply {
        if self.charge == Charge::Passed {
            return Reply::Error { error: "another ztunnel has taken charge already".to_owned() };
        }
        tracing::info!("a successor takes charge of the node's pods");
        self.charge = Charge::Passed;
        self.handover = self.listening().map(|listeners| Handover { since: Instant::now(), listeners });
        self.door.close();
        self.reports.send_replace(None);
        for waiting in self.waiting.drain(..) {
            waiting.refer();
        }
        Reply::Ok { ok: true, state: None, pods: None }
    }

    /// Whether the successor's listeners stand where ours stood. In between nobody would take a pod's new connections, if we
    /// were told to end before it was here. One that makes none has its reasons, and is not waited for.
    pub(super) fn is_succeeded(&self) -> bool {
        let Some(Handover { since, listeners: ours }) = &self.handover else { return true };
        let are_taken = |now: Vec<(String, [Option<u64>; 4])>| {
            let is_taken = |(uid, ours): &(String, [Option<u64>; 4])| {
                let now = now.iter().find(|(pod, _)| pod == uid).map(|(_, listeners)| listeners);
                now.is_none_or(|now| now.iter().zip(ours).all(|(now, ours)| ours.is_none() || now != ours))
            };
            ours.iter().all(is_taken)
        };
        since.elapsed() >= ANSWER_WITHIN || self.listening().is_some_and(are_taken)
    }

    /// The listeners in the places of the pods that are captured; `None` if the kernel doesn't say.
    fn listening(&self) -> Option<Vec<(String, [Option<u64>; 4])>> {
        let observed = self.node.observe([]).ok()?;
        let ours = observed.into_iter().filter(|pod| self.enrolled.contains_key(&pod.uid));
        Some(ours.map(|pod| (pod.uid, pod.listeners)).collect())
    }

    /// The successor has ended. Its listeners are gone; ours are offered again.
    pub(super) async fn resume_charge(&mut self) -> anyhow::Result<()> {
        if self.charge != Charge::Passed {
            return Ok(());
        }
        tracing::warn!("the successor has ended; taking charge of the node's pods again");
        self.charge = Charge::Held;
        self.handover = None;
        self.door.open().context("can't open the sockets in the run directory")?;
        self.sandboxes.read().context("can't read the known sandboxes")?;
        let mut ending = Vec::new();
        for (uid, enrolled) in &mut self.enrolled {
            enrolled.broken = true;
            match enrolled.stage {
                Stage::In => {}
                Stage::Lingering(_) => enrolled.stage = Stage::In,
                Stage::Ending => ending.push(uid.clone()),
            }
        }
        for uid in ending {
            self.end(&uid);
        }
        self.reconcile().await;
        Ok(())
    }
}
