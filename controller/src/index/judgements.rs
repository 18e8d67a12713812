//! What there is to say about each policy, entry and service, for its status: taken or not, guarded or not, and why.
//!
//! Owns no writing, and nothing that is enforced depends on what was said.

use std::collections::BTreeMap;

use super::cluster::{key_of, name_of};
use super::{Finding, Index, Outcome};
use crate::source::Misunderstood;
use crate::source::objects::{Generation, Key, Kind, Metadata, PolicyStatus};

/// The type of a condition, as Istio has it: what became of a policy in node proxies.
pub const CONDITION: &str = "ZtunnelAccepted";

/// The type of a condition, as Istio has it: what became of the wish to be guarded by a waypoint.
pub const WAYPOINT_BOUND: &str = "istio.io/WaypointBound";

/// What is to be said about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Which object.
    pub key: Key,
    /// The type of the condition.
    pub condition: &'static str,
    /// Which change of its spec.
    pub generation: Option<i64>,
    /// What was found; `None` when what was said before does not matter any more.
    pub verdict: Option<Ruling>,
}

/// What was found about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// Whether it is as its author wants it, at least in part.
    pub accepted: bool,
    /// Why, in a word.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// Since when it has been so, if that is no news.
    pub since: Option<String>,
}

impl Index {
    /// What is to be said about objects and was not said yet.
    #[must_use]
    pub fn judgements(&self, misunderstood: &[Misunderstood]) -> Vec<Judgement> {
        let mut findings: BTreeMap<&Key, Vec<&Finding>> = BTreeMap::new();
        for (key, finding) in self.findings() {
            findings.entry(key).or_default().push(finding);
        }
        let judged = self.policies().filter_map(|(kind, metadata, status)| {
            let key = key_of(kind, &name_of(metadata));
            let found = match misunderstood.iter().find(|object| object.key == key) {
                Some(object) => (false, "Invalid".to_owned(), object.message.clone()),
                None => worst(findings.get(&key)?)?,
            };
            said((key, CONDITION), metadata, status, Some(found))
        });
        judged.chain(self.bound()).collect()
    }

    /// What is to be said about wishes to be guarded by a waypoint.
    fn bound(&self) -> impl Iterator<Item = Judgement> {
        self.guarded().filter_map(|(kind, metadata, status)| {
            let key = key_of(kind, &name_of(metadata));
            let bound = self.products.get(&key).and_then(|products| products.bound.as_ref());
            let found = bound.map(|bound| (bound.is_met, bound.reason.to_owned(), bound.message.clone()));
            said((key, WAYPOINT_BOUND), metadata, status, found)
        })
    }

    /// Everything that can be guarded and has a status of its own to say so.
    fn guarded(&self) -> impl Iterator<Item = (Kind, &Metadata, &PolicyStatus)> {
        let services = self.cluster.services.values();
        let services = services.map(|service| (Kind::Service, &service.metadata, &service.status));
        services.chain(self.entries())
    }

    fn policies(&self) -> impl Iterator<Item = (Kind, &Metadata, &PolicyStatus)> {
        let authorizations = (self.cluster.authorizations.values())
            .map(|policy| (Kind::AuthorizationPolicy, &policy.metadata, &policy.status));
        let peers = self
            .cluster
            .peers
            .values()
            .map(|policy| (Kind::PeerAuthentication, &policy.metadata, &policy.status));
        authorizations.chain(peers).chain(self.entries())
    }

    fn entries(&self) -> impl Iterator<Item = (Kind, &Metadata, &PolicyStatus)> {
        let entries =
            (self.cluster.entries.values()).map(|entry| (Kind::ServiceEntry, &entry.metadata, &entry.status));
        let machines = (self.cluster.machines.values())
            .map(|entry| (Kind::WorkloadEntry, &entry.metadata, &entry.status));
        entries.chain(machines)
    }
}

/// The word of the worst finding, with what all of that kind say.
fn worst(findings: &[&Finding]) -> Option<(bool, String, String)> {
    let worst = findings.iter().max_by_key(|finding| finding.outcome)?;
    let same = findings.iter().filter(|finding| finding.outcome == worst.outcome);
    let message = same.map(|finding| finding.message.as_str()).collect::<Vec<_>>().join("; ");
    Some((worst.outcome != Outcome::Refused, worst.reason.to_string(), message))
}

/// `None` when that was said already.
fn said(
    (key, condition): (Key, &'static str),
    metadata: &Metadata,
    status: &PolicyStatus,
    found: Option<(bool, String, String)>,
) -> Option<Judgement> {
    let generation = metadata.generation;
    let before = status.conditions.iter().find(|before| before.kind == condition);
    let Some((accepted, reason, message)) = found else {
        return before.map(|_| Judgement { key, condition, generation, verdict: None });
    };
    let word = if accepted { "True" } else { "False" };
    let same = before.filter(|before| before.status == word);
    let is_said = same.is_some_and(|before| {
        let observed = before.observed_generation.as_ref().and_then(Generation::number);
        // A definition of the policies may be older than that field.
        before.reason == reason && before.message == message && (observed.is_none() || observed == generation)
    });
    let since = same.and_then(|before| before.last_transition_time.clone());
    let verdict = Some(Ruling { accepted, reason, message, since });
    (!is_said).then_some(Judgement { key, condition, generation, verdict })
}
