//! The rules of this repository, as tests: what ARCHITECTURE.md and CONTRIBUTING.md promise is checked here or by a lint.
//!
//! Each rule is a function from text to violations, with tests of its own on small bad examples, so that a rule which no longer
//! finds anything is noticed. Reads the working tree and asks cargo for the dependency graph; needs neither network nor root.

#[path = "tidy/deny.rs"]
mod deny;
#[path = "tidy/graph.rs"]
mod graph;
#[path = "tidy/manifest.rs"]
mod manifest;
#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/source.rs"]
mod source;

use std::fmt;
use std::path::{Path, PathBuf};

/// Files that are larger than they should be, with their lines without tests. Entries only shrink and go away; a new
/// one needs a better reason than lack of time.
const LARGE_FILES: &[(&str, usize)] = &[];

/// What is wrong, and where.
#[derive(Debug, PartialEq, Eq)]
struct Violation {
    place: String,
    message: String,
}

impl Violation {
    fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place: place.into(), message: message.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

#[test]
fn every_file_says_what_it_owns() {
    each_source(rules::header);
}

#[test]
fn every_exception_to_a_lint_has_a_reason() {
    each_source(rules::reasons);
}

#[test]
fn no_test_is_ignored() {
    each_source(rules::ignored);
}

#[test]
fn no_test_sleeps_on_a_thread() {
    each_source(rules::sleeping_tests);
}

#[test]
fn nothing_is_left_for_later() {
    each_source(rules::unfinished);
}

#[test]
fn only_the_daemon_reads_the_environment() {
    each_source(rules::environment);
}

#[test]
fn files_fit_on_a_few_screens() {
    none(rules::length(&sources(), LARGE_FILES));
}

#[test]
fn cores_are_pure() {
    none(rules::purity(&sources(), rules::CORES));
}

#[test]
fn dependencies_point_down() {
    none(graph::direction(&graph::read(&root())));
}

#[test]
fn model_and_the_blind_see_only_what_they_may() {
    none(graph::sight(&graph::read(&root())));
}

#[test]
fn deny_toml_and_the_graph_agree() {
    let (deny, graph) = (deny::read(&root()), graph::read(&root()));
    none(deny::wrappers(&deny, &graph).into_iter().chain(deny::versions(&deny, &graph)).collect());
}

#[test]
fn manifests_share_versions_and_lints() {
    let text = |path: PathBuf| std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let workspace = text(root().join("Cargo.toml"));
    let mut violations = manifest::members_are_explained(&workspace);
    for member in manifest::members(&workspace) {
        let path = format!("{member}/Cargo.toml");
        violations.extend(manifest::member(&path, &text(root().join(&path))));
    }
    none(violations);
}

#[test]
fn links_between_documents_lead_somewhere() {
    none(
        source::walk(&root(), "md")
            .iter()
            .flat_map(|(path, text)| rules::links(&root(), path, text))
            .collect(),
    );
}

#[test]
fn the_index_of_the_documentation_is_complete() {
    let documents = source::walk(&root(), "md");
    let index = documents.iter().find(|(path, _)| path == "docs/README.md").expect("docs has an index");
    let paths: Vec<_> = documents.iter().map(|(path, _)| path.as_str()).collect();
    none(rules::indexed(&index.1, &paths));
}

fn each_source(rule: impl Fn(&source::Source) -> Vec<Violation>) {
    none(sources().iter().flat_map(rule).collect());
}

fn sources() -> Vec<source::Source> {
    source::read(&root())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace").to_owned()
}

#[track_caller]
fn none(violations: Vec<Violation>) {
    let list: String = violations.iter().map(|violation| format!("\n  {violation}")).collect();
    assert!(violations.is_empty(), "{} violation(s):{list}", violations.len());
}
