//! Where enrolment stands: for people, for metrics and for the controller.
//!
//! A pod is enrolled when the kernel shows that it is. Reads; changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use api::{Enrolment, PodReport, PodState};
use daemon::metrics::Metrics;
use ebpf::{Kind, LinkState, Observed};
use identity::CertificateState;
use model::Str;
use model::identity::Identity;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::api::PodStatus;
use super::goal::{Goal, goal};
use super::manager::{Manager, Stage};
use super::sandbox::Sandbox;

const ENROLLED: &str = "enrolled";
const FAILED: &str = "failed";
const LEAVING: &str = "leaving";
const NOT_WANTED: &str = "not wanted";
pub(super) const PENDING: &str = "pending";
const STATES: [&str; 5] = [ENROLLED, FAILED, LEAVING, NOT_WANTED, PENDING];

/// The label of `airglow_pod_enrolled`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

impl Manager {
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

    /// Tells the admin socket and the controller where things stand.
    pub(super) fn publish(
        &mut self,
        wanted: Option<&BTreeMap<Str, Enrolment>>,
        observed: &BTreeMap<String, Result<(), String>>,
    ) {
        let mut shown = Vec::new();
        let mut reports = Vec::new();
        let failures = self.certificate_failures();
        for sandbox in self.sandboxes.all() {
            let verdict = wanted.and_then(|wanted| wanted.get(sandbox.uid.as_str()));
            let (state, message) = self.status(sandbox, wanted.is_some(), verdict, observed);
            let pod = format!("{}/{}", sandbox.namespace, sandbox.name);
            if let Some(verdict) = verdict.filter(|verdict| verdict.enrol) {
                let state = match state {
                    ENROLLED => PodState::Enrolled,
                    FAILED => PodState::Failed,
                    _ => PodState::Pending,
                };
                reports.push(PodReport {
                    uid: sandbox.uid.as_str().into(),
                    state,
                    message: message.as_str().into(),
                    certificate_failure: failures.get(&verdict.identity).cloned().unwrap_or_default(),
                });
            }
            let (uid, netns) = (sandbox.uid.clone(), sandbox.netns.clone());
            shown.push(PodStatus { uid, pod, state, message, sandbox_id: sandbox.sandbox_id.clone(), netns });
        }
        self.pods.send_if_modified(|pods| replace_if_new(pods, shown));
        if wanted.is_some() {
            // Also when it says the same: the controller forgets what was proven for an earlier wish of its own, and may
            // have changed its mind and back before we looked.
            let news = std::mem::take(&mut self.news);
            self.reports.send_if_modified(|known| {
                let new = news || known.as_deref() != Some(&reports);
                if new {
                    *known = Some(Arc::new(reports));
                }
                new
            });
        }
    }

    /// Whose certificate expires soon and can't be renewed, and why.
    fn certificate_failures(&self) -> BTreeMap<Identity, Str> {
        let now = SystemTime::now();
        let states = self.shared.certificates.states();
        let failure = |state: &CertificateState| {
            Some((state.identity.clone(), state.expires_soon(now)?.to_string().into()))
        };
        states.iter().filter_map(failure).collect()
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
            (Goal::Leave(_), Some(Stage::Ending)) => {
                (LEAVING, "its last captured connections are ending".to_owned())
            }
            (Goal::Leave(_), Some(Stage::In | Stage::Lingering(_))) => {
                (LEAVING, "it is still captured, until peers have heard that it leaves".to_owned())
            }
            (Goal::Leave(reason), None) if verdict.is_none() => (PENDING, reason),
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

/// Whether the kernel shows a pod as wholly captured.
pub(super) fn proof(pod: &Observed) -> Result<(), String> {
    let Some(network) = &pod.network else {
        return Err("its network namespace can't be looked into".to_owned());
    };
    let missing: Vec<&str> = network.missing.iter().chain(&network.dns_missing).map(String::as_str).collect();
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
