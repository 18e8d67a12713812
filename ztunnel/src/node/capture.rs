//! The manager's acts: capturing pods, serving them, and letting them go.
//!
//! Each act is whole or is done again by the next look. When they are due is `manager`'s.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use api::Enrolment;
use ebpf::{EnrolError, Kind, LinkState, Netns, Observed, socket};
use model::Str;
use model::workload::WorkloadUid;

use super::goal::{Goal, goal};
use super::manager::{Enrolled, LOOK_AGAIN, Manager, Stage, Step, wait};
use super::sandbox::Sandbox;
use super::status::proof;
use super::succession::Charge;
use crate::data::thread::Sockets;
use crate::pod::Pod;

/// How long a pod that leaves the mesh still takes tunnels. Peers hear of it in the same moment as we do, so this only
/// has to cover the slowest of them.
const LINGER: Duration = Duration::from_secs(3);

/// Between two looks at the connections of a pod that leaves. Nothing waits for it but the removal of what is ours.
const LOOK_FOR_CONNECTIONS: Duration = Duration::from_millis(250);

/// How long closing a pod's listeners may take: one turn of each data thread. One that is stuck must not keep other pods
/// from being enrolled.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// How long the connections of a pod that is gone have for a last word to their peers.
const FAREWELL: Duration = Duration::from_secs(1);

impl Manager {
    /// Makes sure that a pod is captured and served as it should be.
    pub(super) async fn ensure(
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
            Stage::In | Stage::Lingering(_) if same && !enrolled.broken => {
                enrolled.stage = Stage::In;
                Ok(())
            }
            Stage::In | Stage::Lingering(_) | Stage::Ending => {
                // Its new listeners take new connections; those of before go on under the identity they began with.
                let (before, ending) = (enrolled.pod.generation, enrolled.ending.clone());
                self.enrol(sandbox, verdict, refused).await?;
                if let Some(ending) = ending {
                    ending.abort();
                }
                self.close_listeners(before).await;
                Ok(())
            }
        }
    }

    /// Takes no new connections to the listeners of a generation that another has succeeded: until they are closed, they
    /// share what comes with the new ones.
    async fn close_listeners(&self, generation: u64) {
        let mut closed = Vec::new();
        for thread in &self.threads {
            closed.push(thread.leave(Some(generation)).await.closed);
        }
        if tokio::time::timeout(CLOSE_WITHIN, wait(closed)).await.is_err() {
            tracing::warn!(
                generation,
                "the listeners that a pod had before are slow to close; they may still accept"
            );
        }
    }

    async fn enrol(
        &mut self,
        sandbox: &Sandbox,
        verdict: &Enrolment,
        refused: Option<String>,
    ) -> anyhow::Result<()> {
        let netns = Arc::new(Netns::open(&sandbox.netns)?);
        let captured = self.prepare(sandbox, verdict, &netns)?;
        self.shared.certificates.want(verdict.identity.clone());
        self.ask_for(&verdict.workload);
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
            budget: hbone::Budget::default(),
            refused,
        });
        for (thread, sockets) in self.threads.iter().zip(sockets) {
            thread.serve(Arc::clone(&pod), sockets).await;
        }
        tracing::info!(pod = %pod.workload, identity = %pod.identity, refused = ?pod.refused, "pod enrolled");
        let (stage, broken, ending) = (Stage::In, false, None);
        let enrolled = Enrolled { pod, sandbox: sandbox.clone(), captured, stage, broken, ending };
        self.enrolled.insert(sandbox.uid.clone(), enrolled);
        self.publish_pods();
        Ok(())
    }

    /// In on-demand mode discovery sends only what was asked for, a node's own pods included; what was asked for once is
    /// kept current.
    fn ask_for(&self, workload: &WorkloadUid) {
        let Some(demand) = self.shared.demand.clone() else { return };
        let uid = workload.to_string();
        tokio::spawn(async move {
            while let Err(error) = demand.lookup(api::type_url::ADDRESS, &uid).await {
                tracing::warn!(%uid, %error, "discovery does not answer for a pod of this node; asking again");
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        });
    }

    /// Makes a pod ready for its capture. A pod that is refused is captured with the addresses that it has, whichever of
    /// the two stories names them; what was captured with others gives way.
    fn prepare(
        &self,
        sandbox: &Sandbox,
        verdict: &Enrolment,
        netns: &Arc<Netns>,
    ) -> anyhow::Result<ebpf::Sandbox> {
        let told = |addresses: &[IpAddr]| ebpf::Sandbox {
            uid: sandbox.uid.clone(),
            netns: Arc::clone(netns),
            addresses: addresses.iter().map(IpAddr::to_canonical).collect(),
        };
        let (ours, theirs) = (told(&sandbox.addresses), told(&verdict.addresses));
        let more = theirs.addresses.len() > ours.addresses.len();
        if more && self.node.prepare(&theirs).is_ok() {
            return Ok(theirs);
        }
        match self.node.prepare(&ours) {
            Err(EnrolError::Conflict { .. }) => {}
            prepared => return Ok(prepared.map(|()| ours)?),
        }
        let all = self.node.observe([&ours])?;
        let before = all.into_iter().find(|pod| pod.uid == ours.uid && pod.netns_cookie == netns.cookie());
        if let Some(before) = before {
            tracing::warn!(uid = ours.uid, before = ?before.addresses, now = ?ours.addresses, "the pod's addresses have changed; its connections are cut");
            self.node.remove(&told(&before.addresses))?;
        }
        self.node.prepare(&ours)?;
        Ok(ours)
    }

    /// Begins to let a pod go: peers hear of it now, so tunnels to it are taken for a little longer.
    pub(super) fn release(&mut self, uid: &str) {
        let Some(enrolled) = self.enrolled.get_mut(uid).filter(|enrolled| enrolled.stage == Stage::In) else {
            return;
        };
        self.leaves += 1;
        let number = self.leaves;
        enrolled.stage = Stage::Lingering(number);
        tracing::info!(pod = %enrolled.pod.workload, "pod leaves the mesh");
        self.steps.spawn(async move {
            tokio::time::sleep(LINGER).await;
            Step::Lingered(number)
        });
    }

    pub(super) async fn step(&mut self, step: Step) {
        if self.charge == Charge::Passed {
            return;
        }
        match step {
            Step::Waited => self.answer(),
            Step::Lingered(number) => {
                self.stop_new(number);
                self.reconcile().await;
            }
            Step::Ended(generation) => {
                let ended = |enrolled: &Enrolled| {
                    enrolled.stage == Stage::Ending && enrolled.pod.generation == generation
                };
                // If there is none, the pod came back meanwhile.
                let Some(uid) = self.find(ended) else { return };
                let Some(gone) = self.enrolled.remove(&uid) else { return };
                if let Err(error) = self.node.remove(&gone.captured) {
                    tracing::warn!(pod = %gone.pod.workload, %error, "something of ours may be left in a pod");
                }
                self.forget_identity(Some(gone));
                self.reconcile().await;
            }
        }
    }

    /// Peers have had their time to hear that a pod leaves.
    fn stop_new(&mut self, number: u64) {
        // If there is none, the pod came back meanwhile.
        let Some(uid) = self.find(|enrolled| enrolled.stage == Stage::Lingering(number)) else { return };
        let Some(enrolled) = self.enrolled.get_mut(&uid) else { return };
        if let Err(error) = self.node.stop_new(&enrolled.captured) {
            tracing::error!(pod = %enrolled.pod.workload, %error, "can't stop the capture of a pod; trying again");
            enrolled.stage = Stage::In;
            return;
        }
        enrolled.stage = Stage::Ending;
        self.publish_pods();
        self.end(&uid);
    }

    /// Lets the connections of a pod that is not captured any more end. Its listeners stay until the kernel shows none:
    /// some may be on their way to us or wait to be accepted, and what an application has not read yet must reach it.
    pub(super) fn end(&mut self, uid: &str) {
        let Some(enrolled) = self.enrolled.get_mut(uid) else { return };
        let (threads, netns) = (self.threads.clone(), Arc::clone(&enrolled.captured.netns));
        let generation = enrolled.pod.generation;
        let ending = self.steps.spawn(async move {
            loop {
                for thread in &threads {
                    thread.finish(generation).await;
                }
                match has_captured(&netns) {
                    Ok(false) => break,
                    Ok(true) => {}
                    Err(error) => tracing::warn!(%error, "a pod's connections can't be listed; asking again"),
                }
                tokio::time::sleep(LOOK_FOR_CONNECTIONS).await;
            }
            let mut ends = Vec::new();
            for thread in &threads {
                ends.push(thread.leave(Some(generation)).await.ended);
            }
            wait(ends).await;
            Step::Ended(generation)
        });
        enrolled.ending = Some(ending);
    }

    /// Pods whose sandbox is gone: nothing can reach them any more, so nothing is waited for.
    pub(super) async fn forget_gone(&mut self) {
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

    fn find(&self, is_it: impl Fn(&Enrolled) -> bool) -> Option<String> {
        self.enrolled.iter().find(|(_, enrolled)| is_it(enrolled)).map(|(uid, _)| uid.clone())
    }

    fn publish_pods(&self) {
        let served = self.enrolled.values().filter(|enrolled| enrolled.stage != Stage::Ending);
        self.shared.pods.publish(served.map(|enrolled| Arc::clone(&enrolled.pod)));
    }

    /// What the kernel shows of the pods that are enrolled; what is amiss is mended at once.
    pub(super) fn observe(
        &mut self,
        wanted: &BTreeMap<Str, Enrolment>,
    ) -> BTreeMap<String, Result<(), String>> {
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
        self.strays.retain(|uid, _| observed.iter().any(|pod| pod.uid == *uid));
        for pod in &observed {
            match self.enrolled.get_mut(&pod.uid) {
                Some(enrolled) if enrolled.stage == Stage::Ending => {}
                Some(enrolled) => {
                    let proof = proof(pod);
                    if let Err(problem) = &proof {
                        // Its listeners are made again; connections that are open go on.
                        tracing::warn!(pod = %enrolled.pod.workload, problem, "the capture of a pod is not whole; it is made again");
                        enrolled.broken = true;
                        self.repairs.inc();
                    }
                    facts.insert(pod.uid.clone(), proof);
                }
                None => self.release_stray(pod, wanted),
            }
        }
        facts
    }

    /// Something that an earlier process captured. It stays captured, and so refused, unless nobody wants it captured.
    fn release_stray(&mut self, pod: &Observed, wanted: &BTreeMap<Str, Enrolment>) {
        let uid = pod.uid.as_str();
        let lives = matches!(pod.link, LinkState::Attached | LinkState::Outdated);
        let released = match self.sandboxes.get(uid) {
            // Where it is was forgotten, not that it belongs into the mesh.
            None if lives && wanted.get(uid).is_some_and(|verdict| verdict.enrol) => {
                if self.strays.insert(uid.to_owned(), Instant::now()).is_none() {
                    tracing::warn!(%uid, "a pod that an earlier process captured is not known here; it is refused until it is announced or found");
                }
                return;
            }
            None => self.node.forget(uid).map(|()| true).map_err(anyhow::Error::from),
            Some(sandbox) if matches!(goal(sandbox, wanted.get(uid)), Goal::Leave(_)) => {
                let since = *self.strays.entry(uid.to_owned()).or_insert_with(Instant::now);
                let lingered = since.elapsed() >= LINGER;
                if pod.entered && !lingered { Ok(false) } else { self.let_go(pod, sandbox) }
            }
            Some(_) => return,
        };
        match released {
            Ok(true) => tracing::info!(%uid, "removed what an earlier process had left in a pod"),
            // Peers are yet to hear, or connections that the earlier process holds are still to end.
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%uid, error = format!("{error:#}"), "can't remove what an earlier process left in a pod")
            }
        }
    }

    /// Says whether nothing is left.
    fn let_go(&self, pod: &Observed, sandbox: &Sandbox) -> anyhow::Result<bool> {
        let netns = Arc::new(Netns::open(&sandbox.netns)?);
        // As it was enrolled: what is known of the pod may have changed since.
        let captured = ebpf::Sandbox { uid: pod.uid.clone(), netns, addresses: pod.addresses.clone() };
        self.node.stop_new(&captured)?;
        if has_captured(&captured.netns)? {
            return Ok(false);
        }
        self.node.remove(&captured)?;
        Ok(true)
    }
}

/// Whether any connection of a pod is captured, or goes to or comes from its proxy.
fn has_captured(netns: &Netns) -> io::Result<bool> {
    Ok(socket::connections(netns)?.iter().any(socket::Connection::is_ours))
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
