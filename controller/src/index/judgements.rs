//! What there is to say about each policy, entry and service, for its status: taken or not, and why, and which nodes refuse it;
//! guarded or not.
//!
//! A node that refuses has a condition of its own, `<node>/ZtunnelAccepted`, from its answer until it answers otherwise; the
//! replica that serves the node says it, and the one that leads sums up. Owns no writing, and nothing that is enforced depends
//! on what was said, but that a service which an automatic waypoint has guarded is not reached without one.

use std::collections::BTreeMap;

use model::policy::PolicyName;

use super::automatic::{ATTACHED, remembered};
use super::cluster::{key_of, name_of};
use super::{Bound, Finding, Index, Outcome};
use crate::source::Misunderstood;
use crate::source::objects::{Generation, Key, Kind, Metadata, PolicyCondition, PolicyStatus};

/// The type of a condition, as Istio has it: what became of a policy in node proxies.
pub const CONDITION: &str = "ZtunnelAccepted";

/// The type of a condition, as Istio has it: what became of the wish to be guarded by a waypoint.
pub const WAYPOINT_BOUND: &str = "istio.io/WaypointBound";

/// Why, in a word, when node proxies can't use what the mesh has taken.
const REFUSED_BY_NODES: &str = "RefusedByNodes";

/// Nodes that are named in a status. What all of thousands refuse has one cause, and an object has a largest size.
const MAX_NODES: usize = 16;

/// What nodes have answered, of the policies that they were told last. Of other nodes than those that are served here, nothing.
pub trait Answers {
    /// Which nodes refuse a policy, and why.
    fn refusals(&self, policy: &PolicyName) -> BTreeMap<String, String>;
    /// Whether a node has taken it.
    fn has_taken(&self, node: &str, policy: &PolicyName) -> bool;
}

/// What is to be said about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Which object.
    pub key: Key,
    /// Of what it is said: [`CONDITION`], which nodes' own go with, or [`WAYPOINT_BOUND`], and with it what is remembered of that.
    pub about: &'static str,
    /// All conditions of that; without the time where it is news.
    pub conditions: Vec<PolicyCondition>,
    /// What was said before.
    pub before: Vec<PolicyCondition>,
}

/// The node that a condition is about; `None` when it is about the mesh, or nothing of ours.
pub(super) fn node_of(condition: &PolicyCondition) -> Option<&str> {
    condition.kind.strip_suffix(CONDITION)?.strip_suffix('/')
}

impl Index {
    /// What is to be said about objects and was not said yet: of nodes by whom they have told, and the rest only by who `leads`.
    #[must_use]
    pub fn judgements(
        &self,
        misunderstood: &[Misunderstood],
        answers: &dyn Answers,
        leads: bool,
    ) -> Vec<Judgement> {
        let mut findings: BTreeMap<&Key, Vec<&Finding>> = BTreeMap::new();
        for (key, finding) in self.findings() {
            findings.entry(key).or_default().push(finding);
        }
        let judged = self.policies().filter_map(|(kind, metadata, status)| {
            let key = key_of(kind, &name_of(metadata));
            let is_ours =
                |condition: &&PolicyCondition| condition.kind == CONDITION || node_of(condition).is_some();
            let before: Vec<_> = status.conditions.iter().filter(is_ours).cloned().collect();
            let policy = self.products.get(&key).and_then(|products| Some(&products.policy.as_ref()?.id));
            let nodes = self.words_of_nodes((policy, metadata), &before, answers, leads);
            let found = match misunderstood.iter().find(|object| object.key == key) {
                _ if !leads => None,
                Some(object) => Some((false, "Invalid".to_owned(), object.message.clone())),
                None => findings.get(&key).and_then(|findings| worst(findings)),
            };
            let own = match found {
                Some(found) => Some(said(CONDITION, metadata, &before, summed_up(found, &nodes))),
                None => before.iter().find(|condition| condition.kind == CONDITION).cloned(),
            };
            judgement((key, CONDITION), own.into_iter().chain(nodes).collect(), before)
        });
        judged.chain(leads.then(|| self.bound()).into_iter().flatten()).collect()
    }

    /// What is to be said about wishes to be guarded by a waypoint.
    fn bound(&self) -> impl Iterator<Item = Judgement> {
        self.guarded().filter_map(|(kind, metadata, status)| {
            let key = key_of(kind, &name_of(metadata));
            let bound = self.products.get(&key).and_then(|products| products.bound.as_ref());
            let is_ours =
                |condition: &&PolicyCondition| [WAYPOINT_BOUND, ATTACHED].contains(&&*condition.kind);
            let before: Vec<_> = status.conditions.iter().filter(is_ours).cloned().collect();
            let word = |bound: &Bound| (bound.is_met, bound.reason.to_owned(), bound.message.clone());
            let found = bound.map(|bound| said(WAYPOINT_BOUND, metadata, &before, word(bound)));
            let lasting = bound.filter(|bound| bound.lasts);
            let lasting = lasting.map(|_| said(ATTACHED, metadata, &before, remembered(&metadata.namespace)));
            judgement((key, WAYPOINT_BOUND), found.into_iter().chain(lasting).collect(), before)
        })
    }

    /// Everything that can be guarded and has a status of its own to say so.
    fn guarded(&self) -> impl Iterator<Item = (Kind, &Metadata, &PolicyStatus)> {
        let services = self.cluster.services.values();
        let services = services.map(|service| (Kind::Service, &service.metadata, &service.status));
        services.chain(self.entries())
    }

    /// The policies that nodes refuse, as their statuses say: the node, and its reason.
    pub(super) fn refused_by_nodes(&self) -> impl Iterator<Item = (Key, &str, &str)> {
        self.policies().flat_map(|(kind, metadata, status)| {
            let key = key_of(kind, &name_of(metadata));
            let refused = status.conditions.iter().filter(|condition| condition.status == "False");
            refused.filter_map(move |condition| {
                Some((key.clone(), node_of(condition)?, condition.message.as_str()))
            })
        })
    }

    /// What was said of nodes, with what they answer now. Silence changes nothing: a node may be on its way to another replica.
    fn words_of_nodes(
        &self,
        (policy, metadata): (Option<&PolicyName>, &Metadata),
        before: &[PolicyCondition],
        answers: &dyn Answers,
        leads: bool,
    ) -> Vec<PolicyCondition> {
        let refusals = policy.map(|policy| answers.refusals(policy)).unwrap_or_default();
        let is_over = |node: &str| {
            // What is nobody's any more is for who leads to take back: nothing reaches nodes, or the node has gone.
            policy.map_or(leads, |policy| answers.has_taken(node, policy))
                || (leads && self.cluster.node_labels(node).is_none())
        };
        let stays = |node: &&str| refusals.contains_key(*node) || !is_over(node);
        let named = before.iter().filter_map(node_of).filter(stays);
        let new = refusals
            .keys()
            .map(String::as_str)
            .filter(|node| !before.iter().any(|c| node_of(c) == Some(node)));
        let nodes = named.chain(new).take(MAX_NODES);
        let word = |node: &str| {
            let kind = format!("{node}/{CONDITION}");
            match refusals.get(node) {
                Some(why) => said(&kind, metadata, before, (false, REFUSED_BY_NODES.to_owned(), why.clone())),
                None => before.iter().find(|condition| condition.kind == kind).cloned().unwrap_or_default(),
            }
        };
        nodes.map(word).collect()
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

/// Whether it is in force, why in a word, and why for people.
type Word = (bool, String, String);

/// The word of the worst finding, with what all of that kind say.
fn worst(findings: &[&Finding]) -> Option<Word> {
    let worst = findings.iter().max_by_key(|finding| finding.outcome)?;
    let same = findings.iter().filter(|finding| finding.outcome == worst.outcome);
    let message = same.map(|finding| finding.message.as_str()).collect::<Vec<_>>().join("; ");
    Some((worst.outcome != Outcome::Refused, worst.reason.to_string(), message))
}

/// The word about the whole mesh, in which some nodes refuse.
fn summed_up((accepted, reason, message): Word, nodes: &[PolicyCondition]) -> Word {
    let names: Vec<_> = nodes.iter().filter_map(node_of).collect();
    if names.is_empty() {
        return (accepted, reason, message);
    }
    let message =
        format!("refused by {}, whose own conditions say why; elsewhere: {message}", names.join(", "));
    (false, REFUSED_BY_NODES.to_owned(), message)
}

/// A condition, with the time of the one before if that said so too.
fn said(
    kind: &str,
    metadata: &Metadata,
    before: &[PolicyCondition],
    (accepted, reason, message): Word,
) -> PolicyCondition {
    let status = if accepted { "True" } else { "False" };
    let same = before.iter().find(|before| before.kind == kind && before.status == status);
    PolicyCondition {
        kind: kind.to_owned(),
        status: status.to_owned(),
        reason,
        message,
        observed_generation: metadata.generation.map(Generation::Number),
        last_transition_time: same.and_then(|before| before.last_transition_time.clone()),
    }
}

/// `None` when all of that was said already, and no more.
fn judgement(
    (key, about): (Key, &'static str),
    conditions: Vec<PolicyCondition>,
    before: Vec<PolicyCondition>,
) -> Option<Judgement> {
    let number =
        |condition: &PolicyCondition| condition.observed_generation.as_ref().and_then(Generation::number);
    let is_same = |a: &PolicyCondition, b: &PolicyCondition| {
        (&a.kind, &a.status, &a.reason, &a.message) == (&b.kind, &b.status, &b.reason, &b.message)
            // A definition of the policies may be older than that field.
            && (number(b).is_none() || number(a) == number(b))
    };
    let is_said = conditions.len() == before.len()
        && conditions.iter().all(|condition| before.iter().any(|before| is_same(condition, before)));
    (!is_said).then_some(Judgement { key, about, conditions, before })
}
