//! What there is to say about each policy and entry, for its status: taken or not, and why.
//!
//! Owns no writing, and nothing that is enforced depends on what was said.

use std::collections::BTreeMap;

use super::{Finding, Index, Outcome};
use crate::source::Misunderstood;
use crate::source::objects::{Generation, Key, Kind, Metadata, PolicyStatus};

/// The type of the condition, as Istio has it: what became of a policy in node proxies.
pub const CONDITION: &str = "ZtunnelAccepted";

/// What is to be said about a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Which policy.
    pub key: Key,
    /// Which change of its spec.
    pub generation: Option<i64>,
    /// Whether it is in force, at least in part.
    pub accepted: bool,
    /// Why, in a word.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// Since when it has been accepted, or not, if that is no news.
    pub since: Option<String>,
}

impl Index {
    /// What is to be said about policies and was not said yet.
    #[must_use]
    pub fn judgements(&self, misunderstood: &[Misunderstood]) -> Vec<Judgement> {
        let mut findings: BTreeMap<&Key, Vec<&Finding>> = BTreeMap::new();
        for (key, finding) in self.findings() {
            findings.entry(key).or_default().push(finding);
        }
        let judged = self.policies().filter_map(|(kind, metadata, status)| {
            let key = Key { kind, namespace: metadata.namespace.clone(), name: metadata.name.clone() };
            let (accepted, reason, message) = match misunderstood.iter().find(|object| object.key == key) {
                Some(object) => (false, "Invalid".to_owned(), object.message.clone()),
                None => worst(findings.get(&key)?)?,
            };
            said(key, metadata, status, (accepted, reason, message))
        });
        judged.collect()
    }

    fn policies(&self) -> impl Iterator<Item = (Kind, &Metadata, &PolicyStatus)> {
        let authorizations = (self.cluster.authorizations.values())
            .map(|policy| (Kind::AuthorizationPolicy, &policy.metadata, &policy.status));
        let peers = self
            .cluster
            .peers
            .values()
            .map(|policy| (Kind::PeerAuthentication, &policy.metadata, &policy.status));
        let entries =
            (self.cluster.entries.values()).map(|entry| (Kind::ServiceEntry, &entry.metadata, &entry.status));
        let machines = (self.cluster.machines.values())
            .map(|entry| (Kind::WorkloadEntry, &entry.metadata, &entry.status));
        authorizations.chain(peers).chain(entries).chain(machines)
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
    key: Key,
    metadata: &Metadata,
    status: &PolicyStatus,
    (accepted, reason, message): (bool, String, String),
) -> Option<Judgement> {
    let word = if accepted { "True" } else { "False" };
    let before = status.conditions.iter().find(|condition| condition.kind == CONDITION);
    let same = before.filter(|before| before.status == word);
    let is_said = same.is_some_and(|before| {
        let observed = before.observed_generation.as_ref().and_then(Generation::number);
        // A definition of the policies may be older than that field.
        before.reason == reason
            && before.message == message
            && (observed.is_none() || observed == metadata.generation)
    });
    let since = same.and_then(|before| before.last_transition_time.clone());
    (!is_said).then_some(Judgement { key, generation: metadata.generation, accepted, reason, message, since })
}
