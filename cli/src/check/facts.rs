//! What was found out about a cluster: facts with their verdicts, as lines or as JSON.
//!
//! Text out; asks nobody.

use serde::Serialize;

use crate::cluster::objects::{Named, Node, Pod, Version, Workload};
use crate::cluster::{Answer, manifest::Right};
use crate::term::Style;

/// What a fact means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it has to be.
    Ok,
    /// Worth knowing, and not wrong.
    Note,
    /// To be mended.
    Wrong,
}

/// One thing that was found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Fact {
    /// What it is about: stable across releases.
    pub(crate) about: &'static str,
    /// What it means.
    pub(crate) verdict: Verdict,
    /// For people, with how to mend it.
    pub(crate) text: String,
}

impl Fact {
    pub(crate) fn ok(about: &'static str, text: impl Into<String>) -> Self {
        Self { about, verdict: Verdict::Ok, text: text.into() }
    }

    pub(crate) fn note(about: &'static str, text: impl Into<String>) -> Self {
        Self { about, verdict: Verdict::Note, text: text.into() }
    }

    pub(crate) fn wrong(about: &'static str, text: impl Into<String>) -> Self {
        Self { about, verdict: Verdict::Wrong, text: text.into() }
    }

    /// For what could not be looked at: nobody knows that it is well.
    pub(crate) fn unseen(about: &'static str, what: &str, why: &str) -> Self {
        Self::wrong(about, format!("{what} can't be looked at: {why}"))
    }
}

/// What a cluster answered.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The namespace that Airglow is looked for in.
    pub(crate) namespace: String,
    pub(crate) version: Answer<Version>,
    pub(crate) nodes: Answer<Vec<Node>>,
    /// Rights that it takes to install and that whoever asks has not.
    pub(crate) missing_rights: Answer<Vec<Right>>,
    /// Whether the API server knows policies.
    pub(crate) policies: Answer<bool>,
    /// Of all namespaces, as the next ones.
    pub(crate) deployments: Answer<Vec<Workload>>,
    pub(crate) daemon_sets: Answer<Vec<Workload>>,
    pub(crate) namespaces: Answer<Vec<Named>>,
    pub(crate) pods: Answer<Vec<Pod>>,
}

/// Whether nothing is wrong.
pub(crate) fn all_well(facts: &[Fact]) -> bool {
    facts.iter().all(|fact| fact.verdict != Verdict::Wrong)
}

/// A line for each fact. `signs`: as characters for a terminal.
pub(crate) fn lines(facts: &[Fact], signs: bool, style: Style) -> Vec<String> {
    let width = facts.iter().map(|fact| fact.about.chars().count()).max().unwrap_or_default();
    let line = |fact: &Fact| {
        let sign = match (fact.verdict, signs) {
            (Verdict::Ok, true) => style.green("✓"),
            (Verdict::Note, true) => style.yellow("-"),
            (Verdict::Wrong, true) => style.red("✗"),
            (Verdict::Ok, false) => "ok   ".to_owned(),
            (Verdict::Note, false) => "note ".to_owned(),
            (Verdict::Wrong, false) => "WRONG".to_owned(),
        };
        // What a cluster says (a name, a message) must not steer the terminal, nor end the line.
        let text = fact.text.replace(char::is_control, " ");
        let text = if fact.verdict == Verdict::Wrong { style.red(&text) } else { text };
        format!("{sign} {about:width$}  {text}", about = fact.about)
    };
    facts.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_is_a_line() {
        let facts = [
            Fact::ok("nodes", "fine"),
            Fact::note("pods", "a\nb\x1b[2J"),
            Fact::unseen("namespaces", "they", "status 403"),
        ];
        let plain = lines(&facts, false, Style::new(false, false, false));
        let expected = [
            "ok    nodes       fine",
            "note  pods        a b [2J",
            "WRONG namespaces  they can't be looked at: status 403",
        ];
        assert_eq!(plain, expected);
        let coloured = lines(&facts, true, Style::new(true, false, false));
        assert!(coloured[0].contains("✓") && coloured[2].contains("\x1b[31m✗"), "{coloured:?}");
        assert!(all_well(&facts[..2]) && !all_well(&facts));
    }
}
