//! The one writer: source events and node reports in, published snapshots out, in that order and one at a time.
//!
//! A proof of enrolment is on disk before any peer hears of it. Owns no rule (`index`) and no wire form (`serve`).

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::index::{Index, PodState};
use crate::proofs::Proofs;
use crate::serve::published::Publisher;
use crate::source::files::FileProblem;
use crate::source::{Batch, Misunderstood};

/// Commands that wait. Nodes report rarely, and a sender that waits for us loses nothing.
const QUEUE: usize = 256;

/// How often keeping proofs is tried again after it failed.
const SAVE_AGAIN: Duration = Duration::from_secs(5);

enum Command {
    Batch(Batch),
    Inspect(Box<dyn FnOnce(&View) + Send>),
    Report { node: String, pods: Vec<PodState>, taken: oneshot::Sender<Vec<String>> },
}

/// What can be looked at.
pub struct View<'a> {
    /// The mesh as derived.
    pub index: &'a Index,
    /// What is wrong with the manifests.
    pub problems: &'a [FileProblem],
    /// Objects of an API server that can't be understood.
    pub misunderstood: &'a [Misunderstood],
    /// Why proofs are not kept on disk, if they are not.
    pub unsaved: Option<&'a str>,
}

/// The writer has ended: the process is about to.
#[derive(Debug, thiserror::Error)]
#[error("the controller is stopping")]
pub struct Stopped;

/// How others reach the writer. Clones reach the same.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    changes: watch::Receiver<u64>,
}

impl Handle {
    /// Hands a source's differences over; the first batch is everything there is.
    ///
    /// # Errors
    /// When the writer has ended.
    pub async fn batch(&self, batch: Batch) -> Result<(), Stopped> {
        self.commands.send(Command::Batch(batch)).await.map_err(|_| Stopped)
    }

    /// Hands a node's complete report over and waits until it is in force. Returns the pods that are not the node's.
    ///
    /// # Errors
    /// When the writer has ended.
    pub async fn report(&self, node: &str, pods: Vec<PodState>) -> Result<Vec<String>, Stopped> {
        let (taken, answer) = oneshot::channel();
        let command = Command::Report { node: node.to_owned(), pods, taken };
        self.commands.send(command).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// Changes whenever something was taken in.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Runs `look` beside the writer and hands its answer back. It should be quick: nothing else happens meanwhile.
    ///
    /// # Errors
    /// When the writer has ended.
    pub async fn inspect<T: Send + 'static>(
        &self,
        look: impl FnOnce(&View) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (send, answer) = oneshot::channel();
        // Whoever asked may have left meanwhile; then nobody wants the answer.
        let command = Command::Inspect(Box::new(move |view| drop(send.send(look(view)))));
        self.commands.send(command).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }
}

/// The writer.
pub struct Hub {
    index: Index,
    problems: Vec<FileProblem>,
    misunderstood: Vec<Misunderstood>,
    /// `None`: whoever marks the pods keeps them.
    proofs: Option<Proofs>,
    publisher: Publisher,
    /// Counts what was taken in.
    taken: watch::Sender<u64>,
    commands: mpsc::Receiver<Command>,
    epoch: Instant,
    /// Why the last attempt to keep proofs failed, and when to try again.
    unsaved: Option<(String, Instant)>,
    /// Dropped when the first batch is in force.
    first: Option<oneshot::Sender<()>>,
}

impl Hub {
    /// A writer over `index`. The receiver hears when the source's first batch is in force: only then may nodes be
    /// served, or they would take "not read yet" for "gone".
    #[must_use]
    pub fn new(
        index: Index,
        proofs: Option<Proofs>,
        publisher: Publisher,
    ) -> (Self, Handle, oneshot::Receiver<()>) {
        let (sender, commands) = mpsc::channel(QUEUE);
        let (taken, changes) = watch::channel(0);
        let (first, ready) = oneshot::channel();
        let hub = Self {
            index,
            problems: Vec::new(),
            misunderstood: Vec::new(),
            proofs,
            publisher,
            taken,
            commands,
            epoch: Instant::now(),
            unsaved: None,
            first: Some(first),
        };
        (hub, Handle { commands: sender, changes }, ready)
    }

    /// Works until nobody can reach it any more.
    pub async fn run(mut self) {
        loop {
            let due = self.publisher.next_retirement().map(|at| self.epoch + at);
            let again = self.unsaved.as_ref().map(|(_, again)| *again);
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command).await,
                    None => return,
                },
                () = at(due) => self.publisher.retire(self.epoch.elapsed()),
                () = at(again) => self.save().await,
            }
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Batch(batch) => self.batch(batch).await,
            Command::Inspect(look) => look(&View {
                index: &self.index,
                problems: &self.problems,
                misunderstood: &self.misunderstood,
                unsaved: self.unsaved.as_ref().map(|(why, _)| why.as_str()),
            }),
            Command::Report { node, pods, taken } => {
                let reported = self.index.report(&node, pods);
                if reported.proven {
                    self.save().await;
                }
                self.publisher.publish(reported.changes, self.epoch.elapsed());
                self.taken.send_modify(|count| *count += 1);
                // A node that has left reports again.
                let _ = taken.send(reported.unknown);
            }
        }
    }

    async fn batch(&mut self, Batch { events, problems, misunderstood }: Batch) {
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            tracing::warn!(%problem, "a manifest needs attention");
        }
        self.problems = problems;
        for Misunderstood { key, message } in
            misunderstood.iter().filter(|object| !self.misunderstood.contains(object))
        {
            tracing::warn!(object = %key, message, "an object can't be understood");
        }
        self.misunderstood = misunderstood;
        let before = self.index.proven().clone();
        let mut changes = self.index.apply(events);
        let first = self.first.take();
        if first.is_some() {
            changes.extend(self.index.constants());
            self.index.prune();
        }
        // Peers first: that a proof has ended matters to them, and on disk it is only a reminder to drop.
        self.publisher.publish(changes, self.epoch.elapsed());
        if *self.index.proven() != before {
            self.save().await;
        }
        self.taken.send_modify(|count| *count += 1);
        if let Some(first) = first {
            let _ = first.send(());
        }
    }

    /// Keeps the proofs. When that fails they still count: the nodes proved them, and only a restart would forget.
    async fn save(&mut self) {
        let Some(proofs) = self.proofs.clone() else { return };
        let proven = self.index.proven().clone();
        let saved = tokio::task::spawn_blocking(move || proofs.save(&proven)).await;
        self.unsaved =
            match saved.map_err(|error| error.to_string()).and_then(|saved| saved.map_err(|e| e.to_string()))
            {
                Ok(()) => None,
                Err(error) => {
                    tracing::error!(
                        error,
                        "proofs of enrolment are not kept; a restart would downgrade peers to plaintext"
                    );
                    Some((error, Instant::now() + SAVE_AGAIN))
                }
            };
    }
}

/// Waits until then, or for ever.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
