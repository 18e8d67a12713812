//! Makes pods what they should be: captured and served, captured and refused, or left alone.
//!
//! Level-triggered: every change and every few seconds it compares goals with what the kernel shows and repairs. The only
//! one who enrols. What a pod's goal is, is `goal`'s.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use api::{Enrolment, PodReport, PodState};
use daemon::drain::Drain;
use daemon::metrics::Metrics;
use daemon::readiness::Latch;
use ebpf::{Kind, LinkState, Netns, Node, NodeConfig, Observed, socket};
use model::Str;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::api::{Command, PodStatus, Reply, Request};
use super::goal::{Goal, goal};
use super::report::Reports;
use super::sandbox::{Sandbox, Sandboxes};
use crate::config::CaptureConfig;
use crate::data::Shared;
use crate::data::thread::{Sockets, Thread};
use crate::discovery::Wanted;
use crate::pod::Pod;

/// How often goals are compared with kernel facts though nothing was heard: bounds how long something that removed our
/// state from a pod goes unnoticed.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// How long a pod that leaves the mesh still takes tunnels. Peers hear of it in the same moment as we do, so this only
/// has to cover the slowest of them.
const LINGER: Duration = Duration::from_secs(3);

/// How long the connections of a pod that is gone have for a last word to their peers.
const FAREWELL: Duration = Duration::from_secs(1);

/// What the manager works with.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) threads: Vec<Thread>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) sandboxes: Sandboxes,
    pub(crate) wanted: watch::Receiver<Wanted>,
    pub(crate) pods: watch::Sender<Arc<Vec<PodStatus>>>,
    pub(crate) reports: watch::Sender<Reports>,
    /// Released when every pod known at the start is what it should be.
    pub(crate) latch: Latch,
}

/// One pod that is captured, or was until its last connections end.
#[derive(Debug)]
struct Enrolled {
    pod: Arc<Pod>,
    sandbox: Sandbox,
    captured: ebpf::Sandbox,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Captured.
    In,
    /// On its way out: still captured, until peers have heard.
    Lingering,
    /// Not captured any more; its captured connections are ending.
    Ending,
}

/// The end of a step that takes time, with the generation of the pod that it was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Peers have had their time.
    Lingered(u64),
    /// The last captured connection has ended.
    Ended(u64),
}

/// Enrols and releases pods.
#[derive(Debug)]
pub(crate) struct Manager {
    node: Node,
    threads: Vec<Thread>,
    shared: Arc<Shared>,
    sandboxes: Sandboxes,
    wanted: watch::Receiver<Wanted>,
    pods: watch::Sender<Arc<Vec<PodStatus>>>,
    reports: watch::Sender<Reports>,
    latch: Option<Latch>,
    enrolled: BTreeMap<String, Enrolled>,
    failures: BTreeMap<String, String>,
    steps: JoinSet<Step>,
    generations: u64,
    repairs: Counter,
}

impl Manager {
    /// Attaches to the node. Nothing is enrolled yet; what an earlier process enrolled stays captured.
    pub(crate) fn start(config: &CaptureConfig, parts: Parts) -> anyhow::Result<Self> {
        let node = attach(config)?;
        let Parts { threads, shared, sandboxes, wanted, pods, reports, latch } = parts;
        Ok(Self {
            node,
            threads,
            shared,
            sandboxes,
            wanted,
            pods,
            reports,
            latch: Some(latch),
            enrolled: BTreeMap::new(),
            failures: BTreeMap::new(),
            steps: JoinSet::new(),
            generations: 0,
            repairs: Counter::default(),
        })
    }

    /// `airglow_pod_enrolled{state}` and how often something had to be repaired.
    pub(crate) fn register_metrics(&self, metrics: &Metrics) {
        metrics.register(
            "airglow_enrolment_repairs",
            "Pods whose capture had to be repaired",
            self.repairs.clone(),
        );
        let states: Family<StateLabel, Gauge> = Family::default();
        metrics.register("airglow_pod_enrolled", "Pods of this node by enrolment state", states.clone());
        let mut shown = self.pods.subscribe();
        tokio::spawn(async move {
            while shown.changed().await.is_ok() {
                let pods = shown.borrow_and_update().clone();
                for state in STATES {
                    let count = pods.iter().filter(|pod| pod.state == state).count();
                    states.get_or_create(&StateLabel { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
                }
            }
        });
    }

    /// Works until the drain begins; then lets connections end, as long as the drain allows.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>, drain: Drain) {
        let mut watch = drain.watch();
        let mut ticks = tokio::time::interval(LOOK_AGAIN);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = watch.begun() => break,
                Some((request, reply)) = commands.recv() => {
                    let answer = self.command(request).await;
                    // A caller that is gone does not want the answer any more.
                    let _ = reply.send(answer);
                }
                Ok(()) = self.wanted.changed() => self.reconcile().await,
                _ = ticks.tick() => self.reconcile().await,
                Some(Ok(step)) = self.steps.join_next() => self.step(step).await,
            }
        }
        self.drain(watch).await;
    }

    /// What is pinned stays: a successor takes over, and without one the kernel refuses.
    async fn drain(self, mut watch: daemon::drain::Watch) {
        let mut ended = Vec::new();
        for thread in &self.threads {
            ended.push(thread.leave(None).await);
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

    async fn command(&mut self, request: Request) -> Reply {
        let done = |state: Option<String>, pods| Reply::Ok { ok: true, state, pods };
        match request {
            Request::Add(sandbox) => {
                let uid = sandbox.uid.clone();
                if let Err(error) = self.sandboxes.add(sandbox) {
                    return Reply::Error { error: error.to_string() };
                }
                self.reconcile().await;
                let pods = self.pods.borrow();
                done(pods.iter().find(|pod| pod.uid == uid).map(|pod| pod.state.to_owned()), None)
            }
            Request::Delete(delete) => {
                if let Err(error) = self.sandboxes.delete(&delete.uid) {
                    return Reply::Error { error: error.to_string() };
                }
                self.reconcile().await;
                done(None, None)
            }
            Request::List(_) => done(None, Some(self.pods.borrow().to_vec())),
        }
    }

    /// Compares every pod's goal with what is, acts, and says where things stand.
    async fn reconcile(&mut self) {
        let Some(wanted) = self.wanted.borrow_and_update().clone() else {
            // Nothing is touched before the controller has spoken: what an earlier process captured stays captured.
            self.publish(None, &BTreeMap::new());
            return;
        };
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
        let observed = self.look(&sandboxes);
        self.publish(Some(&wanted), &observed);
        self.latch = None;
    }

    /// Makes sure that a pod is captured and served as it should be.
    async fn ensure(
        &mut self,
        sandbox: &Sandbox,
        verdict: &Enrolment,
        refused: Option<String>,
    ) -> anyhow::Result<()> {
        let Some(enrolled) = self.enrolled.get_mut(&sandbox.uid) else {
            return self.enrol(sandbox, verdict, refused).await;
        };
        let pod = &enrolled.pod;
        let same = enrolled.sandbox == *sandbox
            && pod.identity == verdict.identity
            && pod.workload == verdict.workload
            && pod.refused == refused;
        match enrolled.stage {
            Stage::In | Stage::Lingering if same => {
                enrolled.stage = Stage::In;
                Ok(())
            }
            Stage::In | Stage::Lingering | Stage::Ending => {
                // Its new listeners take new connections; those of before go on under the identity they began with.
                let before = enrolled.pod.generation;
                self.enrol(sandbox, verdict, refused).await?;
                for thread in &self.threads {
                    drop(thread.leave(Some(before)).await);
                }
                Ok(())
            }
        }
    }

    async fn enrol(
        &mut self,
        sandbox: &Sandbox,
        verdict: &Enrolment,
        refused: Option<String>,
    ) -> anyhow::Result<()> {
        let netns = Arc::new(Netns::open(&sandbox.netns)?);
        let captured = ebpf::Sandbox {
            uid: sandbox.uid.clone(),
            netns: Arc::clone(&netns),
            addresses: sandbox.addresses.iter().map(|ip| ip.to_canonical()).collect(),
        };
        self.node.prepare(&captured)?;
        self.shared.certificates.want(verdict.identity.clone());
        let sockets = (0..self.threads.len()).map(|index| open(&netns, index == 0));
        let sockets =
            sockets.collect::<io::Result<Vec<_>>>().context("can't listen in the pod's namespace")?;
        self.node.capture(&captured, first_of_each(&sockets)?)?;
        self.generations += 1;
        let pod = Arc::new(Pod {
            generation: self.generations,
            uid: sandbox.uid.as_str().into(),
            workload: verdict.workload.clone(),
            identity: verdict.identity.clone(),
            addresses: captured.addresses.clone(),
            netns,
            refused,
        });
        for (thread, sockets) in self.threads.iter().zip(sockets) {
            thread.serve(Arc::clone(&pod), sockets).await;
        }
        tracing::info!(pod = %pod.workload, identity = %pod.identity, refused = ?pod.refused, "pod enrolled");
        let enrolled = Enrolled { pod, sandbox: sandbox.clone(), captured, stage: Stage::In };
        self.enrolled.insert(sandbox.uid.clone(), enrolled);
        self.publish_pods();
        Ok(())
    }

    /// Begins to let a pod go: peers hear of it now, so tunnels to it are taken for a little longer.
    fn release(&mut self, uid: &str) {
        let Some(enrolled) = self.enrolled.get_mut(uid).filter(|enrolled| enrolled.stage == Stage::In) else {
            return;
        };
        enrolled.stage = Stage::Lingering;
        let generation = enrolled.pod.generation;
        tracing::info!(pod = %enrolled.pod.workload, "pod leaves the mesh");
        self.steps.spawn(async move {
            tokio::time::sleep(LINGER).await;
            Step::Lingered(generation)
        });
    }

    async fn step(&mut self, step: Step) {
        let (Step::Lingered(generation) | Step::Ended(generation)) = step;
        let Some(uid) = self.uid_of(generation) else { return };
        let Some(enrolled) = self.enrolled.get_mut(&uid) else { return };
        match (step, enrolled.stage) {
            (Step::Lingered(_), Stage::Lingering) => {
                if let Err(error) = self.node.stop_new(&uid) {
                    tracing::error!(pod = %enrolled.pod.workload, %error, "can't stop the capture of a pod; trying again");
                    enrolled.stage = Stage::In;
                    return;
                }
                enrolled.stage = Stage::Ending;
                self.publish_pods();
                self.end(generation).await;
            }
            (Step::Ended(_), Stage::Ending) => {
                if let Err(error) = self.node.remove(&enrolled.captured) {
                    tracing::warn!(pod = %enrolled.pod.workload, %error, "something of ours may be left in a pod");
                }
                let gone = self.enrolled.remove(&uid);
                self.forget_identity(gone);
                self.reconcile().await;
            }
            // The pod came back meanwhile.
            (Step::Lingered(_) | Step::Ended(_), _) => {}
        }
    }

    /// Lets the connections of a pod that is not captured any more end.
    async fn end(&mut self, generation: u64) {
        let mut ends = Vec::new();
        for thread in &self.threads {
            ends.push(thread.leave(Some(generation)).await);
        }
        self.steps.spawn(async move {
            wait(ends).await;
            Step::Ended(generation)
        });
    }

    /// Pods whose sandbox is gone: nothing can reach them any more, so nothing is waited for.
    async fn forget_gone(&mut self) {
        let gone =
            self.enrolled.keys().filter(|uid| self.sandboxes.get(uid).is_none()).cloned().collect::<Vec<_>>();
        for uid in gone {
            let Some(enrolled) = self.enrolled.remove(&uid) else { continue };
            let generation = enrolled.pod.generation;
            for thread in &self.threads {
                drop(thread.leave(Some(generation)).await);
            }
            let threads = self.threads.clone();
            tokio::spawn(async move {
                // Tunnels are told to go away before they are cut, so that peers do not wait for an answer in vain.
                tokio::time::sleep(FAREWELL).await;
                for thread in threads {
                    thread.cut(Some(generation)).await;
                }
            });
            if let Err(error) = self.node.forget(&uid) {
                tracing::warn!(pod = %enrolled.pod.workload, %error, "can't remove what is pinned for a pod that is gone");
            }
            tracing::info!(pod = %enrolled.pod.workload, "pod is gone");
            self.forget_identity(Some(enrolled));
            self.publish_pods();
        }
    }

    /// A certificate is kept while a pod of this node has its identity.
    fn forget_identity(&self, gone: Option<Enrolled>) {
        let Some(gone) = gone else { return };
        if !self.enrolled.values().any(|enrolled| enrolled.pod.identity == gone.pod.identity) {
            self.shared.certificates.forget(&gone.pod.identity);
        }
    }

    fn uid_of(&self, generation: u64) -> Option<String> {
        let found = self.enrolled.iter().find(|(_, enrolled)| enrolled.pod.generation == generation);
        found.map(|(uid, _)| uid.clone())
    }

    fn publish_pods(&self) {
        let served = self.enrolled.values().filter(|enrolled| enrolled.stage != Stage::Ending);
        self.shared.pods.publish(served.map(|enrolled| Arc::clone(&enrolled.pod)));
    }

    /// What the kernel shows of the pods that are enrolled; what is amiss is mended at once.
    fn look(&mut self, sandboxes: &[Sandbox]) -> BTreeMap<String, Result<(), String>> {
        let captured: Vec<&ebpf::Sandbox> =
            self.enrolled.values().map(|enrolled| &enrolled.captured).collect();
        let observed = match self.node.observe(captured) {
            Ok(observed) => observed,
            Err(error) => {
                tracing::error!(%error, "the kernel can't be asked what is captured");
                return BTreeMap::new();
            }
        };
        let mut facts = BTreeMap::new();
        let mut amiss = Vec::new();
        for pod in &observed {
            match self.enrolled.get(&pod.uid) {
                Some(enrolled) if enrolled.stage == Stage::Ending => {}
                Some(_) => {
                    let proof = proof(pod);
                    if proof.is_err() {
                        amiss.push(pod.uid.clone());
                    }
                    facts.insert(pod.uid.clone(), proof);
                }
                None => self.release_stray(&pod.uid, sandboxes),
            }
        }
        for uid in amiss {
            tracing::warn!(%uid, problem = ?facts.get(&uid), "the capture of a pod is not whole; enrolling it again");
            self.repairs.inc();
            // The next look enrols it anew; its listeners are made again, connections go on.
            if let Some(enrolled) = self.enrolled.get_mut(&uid) {
                enrolled.stage = Stage::Ending;
            }
        }
        facts
    }

    /// Something that an earlier process captured and nobody wants captured now.
    fn release_stray(&self, uid: &str, sandboxes: &[Sandbox]) {
        let released = match sandboxes.iter().find(|sandbox| sandbox.uid == uid) {
            None => self.node.forget(uid).map_err(anyhow::Error::from),
            Some(sandbox) => Netns::open(&sandbox.netns).map_err(anyhow::Error::from).and_then(|netns| {
                let netns = Arc::new(netns);
                let addresses = sandbox.addresses.iter().map(|ip| ip.to_canonical()).collect();
                Ok(self.node.remove(&ebpf::Sandbox { uid: uid.to_owned(), netns, addresses })?)
            }),
        };
        match released {
            Ok(()) => tracing::info!(%uid, "removed what an earlier process had left in a pod"),
            Err(error) => {
                tracing::warn!(%uid, error = format!("{error:#}"), "can't remove what an earlier process left in a pod")
            }
        }
    }

    /// Tells the admin socket and the controller where things stand.
    fn publish(
        &self,
        wanted: Option<&BTreeMap<Str, Enrolment>>,
        observed: &BTreeMap<String, Result<(), String>>,
    ) {
        let mut shown = Vec::new();
        let mut reports = Vec::new();
        for sandbox in self.sandboxes.all() {
            let verdict = wanted.and_then(|wanted| wanted.get(sandbox.uid.as_str()));
            let (state, message) = self.status(sandbox, wanted.is_some(), verdict, observed);
            let pod = format!("{}/{}", sandbox.namespace, sandbox.name);
            if verdict.is_some_and(|verdict| verdict.enrol) {
                let state = match state {
                    ENROLLED => PodState::Enrolled,
                    FAILED => PodState::Failed,
                    _ => PodState::Pending,
                };
                reports.push(PodReport {
                    uid: sandbox.uid.as_str().into(),
                    state,
                    message: message.as_str().into(),
                });
            }
            shown.push(PodStatus { uid: sandbox.uid.clone(), pod, state, message });
        }
        self.pods.send_if_modified(|pods| replace_if_new(pods, shown));
        if wanted.is_some() {
            self.reports.send_if_modified(|known| {
                let new = known.as_deref() != Some(&reports);
                if new {
                    *known = Some(Arc::new(reports));
                }
                new
            });
        }
    }

    fn status(
        &self,
        sandbox: &Sandbox,
        spoken: bool,
        verdict: Option<&Enrolment>,
        observed: &BTreeMap<String, Result<(), String>>,
    ) -> (&'static str, String) {
        if !spoken {
            return (PENDING, "the controller has not said yet which pods should be enrolled".to_owned());
        }
        if let Some(failure) = self.failures.get(&sandbox.uid) {
            return (FAILED, failure.clone());
        }
        let enrolled = self.enrolled.get(&sandbox.uid);
        match (goal(sandbox, verdict), enrolled.map(|enrolled| enrolled.stage)) {
            (Goal::Leave(_), Some(_)) => (LEAVING, "its last captured connections are ending".to_owned()),
            (Goal::Leave(reason), None) => (NOT_WANTED, reason),
            (Goal::Refuse(reason), _) => (FAILED, format!("captured and refused: {reason}")),
            (Goal::Serve, _) => match observed.get(&sandbox.uid) {
                Some(Ok(())) => (ENROLLED, String::new()),
                Some(Err(problem)) => (FAILED, problem.clone()),
                None => (PENDING, "its capture is being made".to_owned()),
            },
        }
    }
}

const ENROLLED: &str = "enrolled";
const FAILED: &str = "failed";
const LEAVING: &str = "leaving";
const NOT_WANTED: &str = "not wanted";
const PENDING: &str = "pending";
const STATES: [&str; 5] = [ENROLLED, FAILED, LEAVING, NOT_WANTED, PENDING];

/// The label of `airglow_pod_enrolled`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

/// Whether the kernel shows a pod as wholly captured.
fn proof(pod: &Observed) -> Result<(), String> {
    let missing = match &pod.network {
        None => return Err("its network namespace can't be looked into".to_owned()),
        Some(network) => &network.missing,
    };
    if !missing.is_empty() {
        return Err(format!("missing in its network namespace: {}", missing.join(", ")));
    }
    if let Some(kind) = Kind::ALL.into_iter().zip(&pod.listeners).find(|(_, listener)| listener.is_none()) {
        return Err(format!("no listener for {:?} connections", kind.0));
    }
    match pod.link {
        LinkState::Attached if pod.mapped && pod.entered => Ok(()),
        LinkState::Attached => Err("its addresses or its namespace are not in the kernel's maps".to_owned()),
        LinkState::Absent | LinkState::Orphaned => Err("its sk_lookup program is not attached".to_owned()),
        LinkState::Outdated => Err("its sk_lookup program is another version's".to_owned()),
    }
}

fn replace_if_new(pods: &mut Arc<Vec<PodStatus>>, shown: Vec<PodStatus>) -> bool {
    let new = **pods != shown;
    if new {
        *pods = Arc::new(shown);
    }
    new
}

async fn wait(ends: Vec<oneshot::Receiver<()>>) {
    for end in ends {
        // A thread that is gone has no connections left.
        let _ = end.await;
    }
}

fn attach(config: &CaptureConfig) -> anyhow::Result<Node> {
    let cgroup = match &config.cgroup {
        Some(cgroup) => cgroup.clone(),
        None => ebpf::cgroup::mount()?,
    };
    let config = NodeConfig {
        cgroup,
        kubepods: config.kubepods.clone(),
        kubelet: None,
        pins: config.pins.clone(),
        own_cgroup: ebpf::cgroup::own()?,
        host: Arc::new(Netns::current()?),
    };
    Node::attach(&config).context("can't capture traffic on this node")
}

/// One thread's sockets in a pod.
fn open(netns: &Netns, with_dns: bool) -> io::Result<Sockets> {
    let listen = |kind| socket::listen(netns, kind);
    let dns: Option<OwnedFd> = with_dns.then(|| listen(Kind::Dns)).transpose()?;
    Ok(Sockets {
        outbound: listen(Kind::Outbound)?.into(),
        plaintext: listen(Kind::Plaintext)?.into(),
        hbone: listen(Kind::Hbone)?.into(),
        dns: dns.map(Into::into),
    })
}

/// The listeners for the kernel's map: it chooses within their SO_REUSEPORT groups.
fn first_of_each(sockets: &[Sockets]) -> anyhow::Result<[BorrowedFd<'_>; 4]> {
    let first = sockets.first().context("no data thread to serve the pod")?;
    let dns = first.dns.as_ref().context("no DNS socket for the pod")?;
    Ok([first.outbound.as_fd(), first.plaintext.as_fd(), first.hbone.as_fd(), dns.as_fd()])
}
