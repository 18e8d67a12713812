//! What there is to say about each attachment of a route or policy, in the Gateway API's conditions.
//!
//! Others say things about the same objects: only entries under our name are ours. Owns no writing, and nothing that is
//! enforced depends on what was said.

use super::routes::Described;
use super::{Finding, Index, Reason, key_of};
use crate::source::Misunderstood;
use crate::source::objects::{AncestorsStatus, Generation, Key, Kind, Metadata, ParentRef, PolicyCondition};

/// Our name where several controllers have a say.
pub const SPEAKER: &str = "airglow.dev/controller";

/// The types of the conditions that are ours in an entry of ours.
pub const CONDITIONS: [&str; 3] = ["Accepted", "ResolvedRefs", "PartiallyInvalid"];

/// What there is to say about one attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// To what.
    pub to: ParentRef,
    /// At most one of each type.
    pub conditions: Vec<Condition>,
}

/// One thing that is so, or is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// What is judged.
    pub kind: &'static str,
    /// Whether it is so.
    pub holds: bool,
    /// Why, in a word.
    pub reason: &'static str,
    /// Why, for people.
    pub message: String,
}

impl Condition {
    pub(super) fn is(kind: &'static str, reason: &'static str, message: String) -> Self {
        Self { kind, holds: true, reason, message }
    }

    pub(super) fn not(kind: &'static str, reason: &'static str, message: String) -> Self {
        Self { kind, holds: false, reason, message }
    }

    /// Whether it says that something is wrong.
    fn is_bad(&self) -> bool {
        self.holds == (self.kind == "PartiallyInvalid")
    }
}

/// Everything that is to be said about one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Which object.
    pub key: Key,
    /// Which change of its spec.
    pub generation: Option<i64>,
    /// Each attachment that is ours; entries of ours about others are to go.
    pub attachments: Vec<Attachment>,
}

/// What was said about one attachment, by whomever.
struct Entry<'a> {
    to: &'a ParentRef,
    by: &'a str,
    conditions: &'a [PolicyCondition],
}

impl Index {
    /// What is to be said about routes and policies and was not said yet.
    #[must_use]
    pub fn statements(&self, misunderstood: &[Misunderstood]) -> Vec<Statement> {
        let statements = self.attached().filter_map(|(key, metadata, entries)| {
            let mut attachments =
                self.products.get(&key).map(|it| it.attachments.clone()).unwrap_or_default();
            if let Some(object) = misunderstood.iter().find(|object| object.key == key) {
                // What is judged is what stands in for it.
                attachments.iter_mut().for_each(|attachment| explain(attachment, &object.message));
            }
            let generation = metadata.generation;
            let is_said = is_said(&attachments, generation, &entries);
            (!is_said).then_some(Statement { key, generation, attachments })
        });
        statements.collect()
    }

    /// Every object that may be attached to something, with what was said about it.
    fn attached(&self) -> impl Iterator<Item = (Key, &Metadata, Vec<Entry<'_>>)> {
        let routes = self.cluster.routes.iter().filter_map(|(key, object)| {
            let route = Described::of(object)?;
            let said = route.said.iter().map(|it| Entry {
                to: &it.parent_ref,
                by: &it.controller_name,
                conditions: &it.conditions,
            });
            Some((key.clone(), route.metadata, said.collect::<Vec<_>>()))
        });
        let traffic = self.cluster.traffic.iter().map(|(name, policy)| {
            (key_of(Kind::TrafficPolicy, name), &policy.metadata, said_of(&policy.status))
        });
        let backend_tls = self.cluster.backend_tls.iter().map(|(name, policy)| {
            (key_of(Kind::BackendTLSPolicy, name), &policy.metadata, said_of(&policy.status))
        });
        routes.chain(traffic).chain(backend_tls)
    }
}

fn said_of(status: &AncestorsStatus) -> Vec<Entry<'_>> {
    let said = status.ancestors.iter();
    said.map(|it| Entry { to: &it.ancestor_ref, by: &it.controller_name, conditions: &it.conditions })
        .collect()
}

/// Says what it is that can't be understood, instead of what became of the stand-in.
fn explain(attachment: &mut Attachment, problem: &str) {
    let conditions = &mut attachment.conditions;
    conditions.retain(|condition| condition.kind != "ResolvedRefs");
    match conditions.iter_mut().find(|condition| condition.is_bad()) {
        Some(bad) if bad.kind == "Accepted" => bad.message = problem.to_owned(),
        Some(bad) => bad.message = format!("Dropped Rule: {problem}"),
        None => {
            let message = format!("Dropped Rule: {problem}");
            conditions.push(Condition::is("PartiallyInvalid", "UnsupportedValue", message));
        }
    }
}

/// Whether the entries under our name say just that.
fn is_said(attachments: &[Attachment], generation: Option<i64>, entries: &[Entry<'_>]) -> bool {
    let ours: Vec<_> = entries.iter().filter(|entry| entry.by == SPEAKER).collect();
    let says = |attachment: &Attachment| {
        let entry = ours.iter().find(|entry| *entry.to == attachment.to);
        entry.is_some_and(|entry| {
            let of_ours = entry.conditions.iter().filter(|it| CONDITIONS.contains(&it.kind.as_str()));
            of_ours.count() == attachment.conditions.len()
                && attachment
                    .conditions
                    .iter()
                    .all(|condition| is_in(condition, generation, entry.conditions))
        })
    };
    ours.len() == attachments.len() && attachments.iter().all(says)
}

fn is_in(condition: &Condition, generation: Option<i64>, said: &[PolicyCondition]) -> bool {
    let word = if condition.holds { "True" } else { "False" };
    said.iter().any(|said| {
        let observed = said.observed_generation.as_ref().and_then(Generation::number);
        said.kind == condition.kind
            && said.status == word
            && said.reason == condition.reason
            && said.message == condition.message
            && observed == generation
    })
}

/// The same for those who read findings.
pub(super) fn findings(attachments: &[Attachment]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for condition in attachments.iter().flat_map(|attachment| &attachment.conditions) {
        let reason = match condition.reason {
            "BackendNotFound"
            | "InvalidCACertificateRef"
            | "NoMatchingParent"
            | "NoValidCACertificate"
            | "RefNotPermitted"
            | "TargetNotFound" => Reason::Incomplete,
            _ => Reason::UnsupportedValue,
        };
        let message = condition.message.clone();
        let finding = match condition {
            it if !it.is_bad() && it.kind == "Accepted" => Finding::accepted(message),
            it if !it.is_bad() => continue,
            it if it.kind == "Accepted" => Finding::refused(reason, message),
            _ => Finding::partial(reason, message),
        };
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    }
    findings
}

/// A target as a policy's author wrote it.
pub(super) fn reference(group: &str, kind: &str, name: &str, section: Option<&str>) -> ParentRef {
    ParentRef {
        group: Some(group.to_owned()),
        kind: Some(kind.to_owned()),
        namespace: None,
        name: name.to_owned(),
        section_name: section.map(str::to_owned),
        port: None,
    }
}

/// Whether objects of a kind carry what is said in entries under `parents`; the others have `ancestors`.
#[must_use]
pub fn has_parents(kind: Kind) -> bool {
    !matches!(kind, Kind::BackendTLSPolicy | Kind::TrafficPolicy)
}
