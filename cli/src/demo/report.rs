//! What the demo found out: promises with their verdicts, and what was measured. Printed as it comes, and kept for scripts.

use std::time::Instant;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::progress::Progress;
use crate::term::Table;

/// Everything, in the form of `--json`.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Whether every promise held and every step was run to its end.
    pub(crate) ok: bool,
    /// The lab's name.
    pub(crate) lab: String,
    /// From start to removal.
    pub(crate) took_ms: u64,
    /// In the order of their run.
    pub(crate) steps: Vec<Step>,
}

/// A step of the demo.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Step {
    /// Stable across releases.
    pub(crate) id: &'static str,
    /// For people.
    pub(crate) title: &'static str,
    /// How long it took.
    pub(crate) took_ms: u64,
    /// What was found out, by stable names; durations in milliseconds.
    pub(crate) measured: Map<String, Value>,
    /// What was promised, and whether it held.
    pub(crate) claims: Vec<Claim>,
    /// Why the step could not be run to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// A promise.
#[derive(Debug, Serialize)]
pub(crate) struct Claim {
    /// Whether it held.
    pub(crate) holds: bool,
    /// What was promised, with what was measured.
    pub(crate) text: String,
}

impl Step {
    /// Whether every promise held.
    pub(crate) fn ok(&self) -> bool {
        self.error.is_none() && self.claims.iter().all(|claim| claim.holds)
    }
}

/// A step that is being run.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    progress: &'a Progress,
    live: bool,
    step: Step,
    began: Instant,
}

impl<'a> Stage<'a> {
    /// Begins a step and says so.
    pub(crate) fn begin(progress: &'a Progress, live: bool, id: &'static str, title: &'static str) -> Self {
        progress.rest();
        progress.line("");
        progress.line(&progress.style.bold(title));
        Self { progress, live, step: Step { id, title, ..Step::default() }, began: Instant::now() }
    }

    /// Says what is being done now.
    pub(crate) fn doing(&self, what: &str) {
        self.progress.doing(what);
    }

    /// Keeps what was measured, for scripts.
    pub(crate) fn measured(&mut self, name: &str, value: impl Into<Value>) {
        self.step.measured.insert(name.to_owned(), value.into());
    }

    /// Keeps a promise's verdict, and shows it.
    pub(crate) fn claim(&mut self, holds: bool, text: impl Into<String>) {
        let (text, style) = (text.into(), self.progress.style);
        let verdict = match (holds, self.live) {
            (true, true) => style.green("✓"),
            (false, true) => style.red("✗"),
            (true, false) => "ok    ".to_owned(),
            (false, false) => "FAILED".to_owned(),
        };
        let shown = if holds { text.clone() } else { style.red(&text) };
        self.progress.line(&format!("  {verdict} {shown}"));
        self.step.claims.push(Claim { holds, text });
    }

    /// Says something that is worth knowing and no promise.
    pub(crate) fn say(&self, text: &str) {
        self.progress.line(&format!("    {}", self.progress.style.dim(text)));
    }

    /// Shows a table.
    pub(crate) fn table(&self, table: &Table) {
        for line in table.lines(self.progress.style) {
            self.progress.line(&format!("    {line}"));
        }
    }

    /// Ends the step. An error counts as a broken promise.
    pub(crate) fn end(mut self, error: Option<String>) -> Step {
        self.progress.rest();
        if let Some(error) = &error {
            let style = self.progress.style;
            self.progress.line(&format!(
                "  {} {}",
                style.red(if self.live { "✗" } else { "FAILED" }),
                style.red(error)
            ));
        }
        self.step.error = error;
        self.step.took_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_ok_only_if_all_of_it_was() {
        let claim = |holds| Claim { holds, text: "x".into() };
        let step =
            |claims, error: Option<&str>| Step { claims, error: error.map(Into::into), ..Step::default() };
        assert!(step(vec![claim(true)], None).ok());
        assert!(!step(vec![claim(true), claim(false)], None).ok());
        assert!(!step(vec![claim(true)], Some("the lab is gone")).ok());
    }
}
