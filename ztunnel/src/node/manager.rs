//! Makes pods what they should be: captured and served, captured and refused, or left alone.
//!
//! Level-triggered: every change and every few seconds it compares goals with what the kernel shows and repairs. The only
//! one who enrols. What a pod's goal is, is `goal`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::drain::Drain;
use daemon::http::Routes;
use daemon::readiness::Latch;
use ebpf::Node;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::api::{Added, Command, Delete, PodStatus, Reply, Request};
use super::attach::attach;
use super::door::Door;
use super::goal::{Goal, goal};
use super::last_known::{self, LastKnown, LastKnownFile};
use super::report::Reports;
use super::sandbox::{Sandbox, Sandboxes};
use super::status::PENDING;
use super::succession::{Charge, Handover, Predecessor};
use crate::config::CaptureConfig;
use crate::data::Shared;
use crate::data::thread::Thread;
use crate::discovery::Wanted;
use crate::pod::Pod;

/// How often goals are compared with kernel facts though nothing was heard: bounds how long something that removed our
/// state from a pod goes unnoticed.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// How long whoever announces a pod waits for the controller's verdict on it. The controller hears of a pod when it is
/// scheduled, before its sandbox is made; its push takes milliseconds, and a restart of it a few seconds.
const VERDICT_WAIT: Duration = Duration::from_secs(5);

/// How often one that is to end looks whether its last connection has ended; beside it, the start of another takes long.
const LOOK_FOR_END: Duration = Duration::from_millis(100);

/// What the manager works with.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) threads: Vec<Thread>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) sandboxes: Sandboxes,
    /// Where the sockets are.
    pub(crate) run_dir: PathBuf,
    /// What the admin socket answers, and the port where root of this node can read the same.
    pub(crate) admin: (Routes, Option<u16>),
    pub(crate) wanted: watch::Receiver<Wanted>,
    pub(crate) pods: watch::Sender<Arc<Vec<PodStatus>>>,
    pub(crate) reports: watch::Sender<Reports>,
    /// Released when every pod known at the start is what it should be.
    pub(crate) latch: Latch,
}

/// One pod that is captured, or was until its last connections end.
#[derive(Debug)]
pub(super) struct Enrolled {
    pub(super) pod: Arc<Pod>,
    pub(super) sandbox: Sandbox,
    pub(super) captured: ebpf::Sandbox,
    pub(super) stage: Stage,
    /// The kernel does not show it as it should be: it is enrolled anew at the next look.
    pub(super) broken: bool,
    /// Waits until its captured connections have ended.
    pub(super) ending: Option<AbortHandle>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Captured.
    In,
    /// On its way out: still captured, until peers have heard. Numbered, because a pod may come back and leave again.
    Lingering(u64),
    /// Not captured any more; its captured connections are ending.
    Ending,
}

/// The end of a step that takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Peers have had their time, since the leave of this number.
    Lingered(u64),
    /// The last captured connection of this generation has ended.
    Ended(u64),
    /// Nobody waits longer for a verdict on pods that were announced before this.
    Waited,
}

/// Someone who announced a pod and waits to hear what becomes of it.
#[derive(Debug)]
pub(super) struct Waiting {
    uid: String,
    since: Instant,
    reply: oneshot::Sender<Reply>,
}

impl Waiting {
    fn new(uid: String, reply: oneshot::Sender<Reply>) -> Self {
        Self { uid, since: Instant::now(), reply }
    }

    /// Says that this process can't answer.
    pub(super) fn refer(self) {
        let error = "another ztunnel has taken charge of this node; connect again to reach it".to_owned();
        // A caller that is gone does not want the answer any more.
        let _ = self.reply.send(Reply::Error { error });
    }
}

/// Enrols and releases pods.
#[derive(Debug)]
pub(crate) struct Manager {
    pub(super) node: Node,
    pub(super) threads: Vec<Thread>,
    pub(super) shared: Arc<Shared>,
    pub(super) sandboxes: Sandboxes,
    last_known: LastKnownFile,
    pub(super) charge: Charge,
    /// What a successor was left, since it took charge.
    pub(super) handover: Option<Handover>,
    /// Kept for as long as this process lives.
    pub(super) predecessor: Option<Predecessor>,
    pub(super) door: Door,
    commands: mpsc::Receiver<Command>,
    pub(super) wanted: watch::Receiver<Wanted>,
    pub(super) pods: watch::Sender<Arc<Vec<PodStatus>>>,
    pub(super) reports: watch::Sender<Reports>,
    /// Something came from the controller since the last report.
    pub(super) news: bool,
    pub(super) latch: Option<Latch>,
    /// Since when pods that an earlier process captured are seen that nobody wants captured.
    pub(super) strays: BTreeMap<String, Instant>,
    pub(super) enrolled: BTreeMap<String, Enrolled>,
    pub(super) failures: BTreeMap<String, String>,
    pub(super) steps: JoinSet<Step>,
    pub(super) waiting: Vec<Waiting>,
    pub(super) generations: u64,
    pub(super) leaves: u64,
    pub(super) repairs: Counter,
}

impl Manager {
    /// Attaches to the node. Nothing is enrolled yet; what an earlier process enrolled stays captured.
    pub(crate) fn start(config: &CaptureConfig, parts: Parts) -> anyhow::Result<Self> {
        let node = attach(config)?;
        let Parts { threads, shared, sandboxes, run_dir, admin, wanted, pods, reports, latch } = parts;
        let last_known = LastKnownFile::new(run_dir.join(last_known::FILE));
        let (door, commands) = Door::new(&run_dir, admin);
        Ok(Self {
            node,
            threads,
            shared,
            sandboxes,
            last_known,
            charge: Charge::Expected,
            handover: None,
            predecessor: None,
            door,
            commands,
            wanted,
            pods,
            reports,
            news: false,
            latch: Some(latch),
            strays: BTreeMap::new(),
            enrolled: BTreeMap::new(),
            failures: BTreeMap::new(),
            steps: JoinSet::new(),
            waiting: Vec::new(),
            generations: 0,
            leaves: 0,
            repairs: Counter::default(),
        })
    }

    /// By which others of this process announce pods.
    pub(crate) fn commands(&self) -> mpsc::Sender<Command> {
        self.door.commands()
    }

    /// Works until the drain begins and a successor is in charge, no connection is left, or the drain allows no more; then
    /// lets connections end, as long as the drain allows. Without a successor nobody else would take new ones.
    ///
    /// # Errors
    /// When this process can't be in charge and nobody else is.
    pub(crate) async fn run(mut self, drain: Drain) -> anyhow::Result<()> {
        let (mut watch, mut patience) = (drain.watch(), drain.watch());
        let mut ticks = tokio::time::interval(LOOK_AGAIN);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !(watch.has_begun() && self.is_dispensable()) {
            let is_to_end = watch.has_begun();
            tokio::select! {
                () = watch.begun(), if !is_to_end => {}
                () = tokio::time::sleep(LOOK_FOR_END), if is_to_end => {}
                () = patience.forced() => break,
                Some((request, reply)) = self.commands.recv() => self.command(request, reply).await?,
                Ok(()) = self.wanted.changed() => {
                    self.news = true;
                    self.look().await?;
                }
                _ = ticks.tick() => self.look().await?,
                Some(Ok(step)) = self.steps.join_next() => self.step(step).await,
            }
        }
        self.drain(watch).await;
        Ok(())
    }

    /// Whether nobody misses this process: another is in charge and listens, or nobody uses it now.
    fn is_dispensable(&self) -> bool {
        match self.charge {
            Charge::Expected => true,
            Charge::Held => self.shared.flows.all().is_empty(),
            Charge::Passed => self.is_succeeded(),
        }
    }

    /// Compares goals with what is, if that is this process's to do.
    async fn look(&mut self) -> anyhow::Result<()> {
        match self.charge {
            Charge::Expected if self.wanted.borrow().is_some() => self.take_charge().await?,
            Charge::Expected => self.expect_charge().await?,
            Charge::Held => self.keep_charge().await?,
            Charge::Passed => {}
        }
        self.reconcile().await;
        Ok(())
    }

    /// What is pinned stays: a successor takes over, and without one the kernel refuses.
    async fn drain(self, mut watch: daemon::drain::Watch) {
        // From here on others can know better.
        self.reports.send_replace(None);
        let mut ended = Vec::new();
        for thread in &self.threads {
            ended.push(thread.leave(None).await.ended);
        }
        tokio::select! {
            () = wait(ended) => tracing::info!("every connection has ended"),
            () = watch.forced() => {
                tracing::warn!(connections = self.shared.flows.all().len(), "the drain's time is over: connections are cut");
                for thread in &self.threads {
                    thread.cut(None).await;
                }
            }
        }
    }

    async fn command(&mut self, request: Request, reply: oneshot::Sender<Reply>) -> anyhow::Result<()> {
        let done = |pods| Reply::Ok { ok: true, state: None, pods };
        let answer = match request {
            Request::Orphaned => {
                self.resume_charge().await?;
                done(None)
            }
            Request::Succeed(_) => self.pass_charge(),
            _ if self.charge == Charge::Passed => {
                Waiting::new(String::new(), reply).refer();
                return Ok(());
            }
            Request::Add(sandbox) => {
                let uid = sandbox.uid.clone();
                if self.sandboxes.is_another(&sandbox) {
                    // The pod's sandbox was made anew: what was captured in the old one is of no use to it.
                    if let Err(error) = self.sandboxes.delete(&uid, None) {
                        tracing::warn!(%error, "the sandbox that a pod had before can't be forgotten");
                    }
                    self.reconcile().await;
                }
                match self.sandboxes.add(sandbox) {
                    Err(error) => Reply::Error { error: error.to_string() },
                    Ok(()) => {
                        // Answered by `answer`: at once if the verdict is known.
                        self.waiting.push(Waiting::new(uid, reply));
                        self.steps.spawn(async {
                            tokio::time::sleep(VERDICT_WAIT).await;
                            Step::Waited
                        });
                        self.reconcile().await;
                        return Ok(());
                    }
                }
            }
            Request::Delete(Delete { uid, sandbox_id }) => {
                match self.sandboxes.delete(&uid, sandbox_id.as_deref()) {
                    Err(error) => Reply::Error { error: error.to_string() },
                    Ok(()) => {
                        self.reconcile().await;
                        done(None)
                    }
                }
            }
            Request::List(_) => done(Some(self.pods.borrow().to_vec())),
        };
        // A caller that is gone does not want the answer any more.
        let _ = reply.send(answer);
        Ok(())
    }

    /// Answers those who announced pods that are what they should be, or who have waited long enough for that. Until then
    /// their pod's first process is not to be started: what it sent would not be captured.
    pub(super) fn answer(&mut self) {
        let wanted = self.wanted.borrow().clone();
        let pods = self.pods.borrow().clone();
        let inside = self.enrolled.iter().filter(|(_, enrolled)| enrolled.stage == Stage::In);
        let captured: BTreeSet<String> = inside.map(|(uid, _)| uid.clone()).collect();
        let (answered, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiting: &Waiting| {
                let settled = wanted.as_ref().is_none_or(|wanted| {
                    let verdict = wanted.get(waiting.uid.as_str());
                    verdict.is_some_and(|verdict| !verdict.enrol || captured.contains(&waiting.uid))
                });
                settled || waiting.since.elapsed() >= VERDICT_WAIT
            });
        self.waiting = waiting;
        let answered: Vec<Waiting> = answered;
        for Waiting { uid, reply, .. } in answered {
            let pod = pods.iter().find(|pod| pod.uid == uid);
            let added = Added {
                state: pod.map_or(PENDING, |pod| pod.state).to_owned(),
                captured: captured.contains(&uid),
                message: pod.map_or_else(String::new, |pod| pod.message.clone()),
            };
            // A caller that is gone does not want the answer any more.
            let _ = reply.send(Reply::Ok { ok: true, state: Some(added), pods: None });
        }
    }

    /// Compares every pod's goal with what is, acts, and says where things stand.
    pub(super) async fn reconcile(&mut self) {
        if self.charge == Charge::Passed {
            return;
        }
        let known = self.wanted.borrow_and_update().clone();
        let Some(wanted) = known.filter(|_| self.charge == Charge::Held) else {
            // Nothing is touched before the controller has spoken: what an earlier process captured stays captured.
            self.publish(None, &BTreeMap::new());
            return self.answer();
        };
        self.last_known.write(LastKnown::of(&wanted));
        let sandboxes: Vec<Sandbox> = self.sandboxes.all().cloned().collect();
        for sandbox in &sandboxes {
            let verdict = wanted.get(sandbox.uid.as_str());
            let outcome = match (goal(sandbox, verdict), verdict) {
                (Goal::Serve, Some(verdict)) => self.ensure(sandbox, verdict, None).await,
                (Goal::Refuse(reason), Some(verdict)) => self.ensure(sandbox, verdict, Some(reason)).await,
                (Goal::Serve | Goal::Refuse(_), None) | (Goal::Leave(_), _) => {
                    self.release(&sandbox.uid);
                    Ok(())
                }
            };
            match outcome {
                Ok(()) => drop(self.failures.remove(&sandbox.uid)),
                Err(error) => {
                    let error = format!("{error:#}");
                    if self.failures.get(&sandbox.uid) != Some(&error) {
                        tracing::error!(pod = %format!("{}/{}", sandbox.namespace, sandbox.name), %error, "the pod can't be enrolled");
                    }
                    self.failures.insert(sandbox.uid.clone(), error);
                }
            }
        }
        self.forget_gone().await;
        let observed = self.observe(&wanted);
        self.publish(Some(&wanted), &observed);
        self.answer();
        self.latch = None;
    }
}

/// Resolves when every thread has answered.
pub(super) async fn wait(ends: Vec<oneshot::Receiver<()>>) {
    for end in ends {
        // A thread that is gone has no connections left.
        let _ = end.await;
    }
}
