//! The rules of this repository, as tests: what ARCHITECTURE.md and CONTRIBUTING.md promise is checked here or by a lint.
//!
//! Each rule is a function from text to violations, with tests of its own on small bad examples, so that a rule which no longer
//! finds anything is noticed. Reads the working tree and asks cargo for the dependency graph; needs neither network nor root.

#[path = "tidy/deny.rs"]
mod deny;
#[path = "tidy/docs.rs"]
mod docs;
#[path = "tidy/graph.rs"]
mod graph;
#[path = "tidy/manifest.rs"]
mod manifest;
#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/source.rs"]
mod source;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

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
fn only_benches_ask_a_waypoint_without_a_tunnel() {
    each_source(rules::plain_door);
}

#[test]
fn files_fit_on_a_few_screens() {
    none(rules::length(sources(), LARGE_FILES));
}

#[test]
fn cores_are_pure() {
    none(rules::purity(sources(), rules::CORES));
}

#[test]
fn folders_use_those_below_them() {
    none(rules::folders(sources(), rules::FOLDERS));
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

/// Where limits are: the crates of the programs that run on a node or beside it, not what tests and people use.
const LIMITED: &[&str] = &[
    "controller/src/",
    "crates/apiserver/src/",
    "crates/daemon/src/",
    "crates/hbone/src/",
    "crates/identity/src/",
    "crates/model/src/",
    "crates/proxy/src/",
    "crates/xds/src/",
    "ebpf/src/",
    "waypoint/src/",
    "ztunnel/src/",
];

#[test]
fn every_setting_is_in_the_reference() {
    let mut violations = Vec::new();
    let mut known = BTreeSet::new();
    for (program, page) in REFERENCES {
        let config = format!("{program}/src/config.rs");
        let shared = sources().iter().filter(|source| is_shared(program, &source.path));
        let settings = shared.chain([file(&config)]).flat_map(docs::settings).collect();
        let listed = docs::listed(&document(page), "Settings");
        violations.extend(docs::agree("setting", (&config, &settings), (page, &listed)));
        known.extend(settings);
    }
    known.extend(docs::settings(file("ebpf/build.rs")));
    let mentions = |(path, text): &(String, String)| docs::unknown_settings(path, text, &known);
    violations.extend(source::walk(&root(), "md").iter().flat_map(mentions));
    none(violations);
}

#[test]
fn every_refusal_code_is_in_the_reference() {
    let mut violations = Vec::new();
    for (path, page) in [
        ("waypoint/src/refusal.rs", "docs/reference/waypoint.md"),
        ("ztunnel/src/refusal.rs", "docs/reference/ztunnel.md"),
    ] {
        let codes = docs::literals_of(file(path), "code");
        let listed = docs::listed(&document(page), "Refusal codes");
        violations.extend(docs::agree("code", (path, &codes), (page, &listed)));
    }
    // A request that no endpoint was reached for ends with a code of connections.
    let ends =
        ["waypoint/src/telemetry/cause.rs", "waypoint/src/http1/refusal.rs", "waypoint/src/http2/refusal.rs"];
    let codes = |path: &&str| {
        let of = |name| docs::literals_of(file(path), name);
        let named = ["code", "failed", "of_outcome"].into_iter().flat_map(of);
        named.filter(|text| !text.contains(' ')).collect::<Vec<_>>()
    };
    let page = "docs/reference/waypoint.md";
    let listed = docs::listed(&document(page), "Ends of requests");
    let codes = ends.iter().flat_map(codes).collect();
    violations.extend(docs::agree("code", (ends[0], &codes), (page, &listed)));
    none(violations);
}

#[test]
fn every_metric_is_in_the_reference() {
    let mut violations = Vec::new();
    for (program, page) in REFERENCES {
        let counts = |source: &&source::Source| {
            let own = [format!("{program}/src/"), "crates/daemon/src/".to_owned()];
            own.iter().any(|folder| source.path.starts_with(folder)) || is_shared(program, &source.path)
        };
        let metrics = sources().iter().filter(counts).flat_map(docs::metrics).collect();
        let listed = docs::listed_metrics(&document(page));
        violations.extend(docs::agree("metric", (program, &metrics), (page, &listed)));
    }
    none(violations);
}

#[test]
fn every_admin_route_is_in_the_reference() {
    let daemon = file("crates/daemon/src/admin.rs");
    let mut violations = Vec::new();
    let admins = ["controller/src/admin.rs", "waypoint/src/admin.rs", "ztunnel/src/admin/mod.rs"];
    for ((program, page), admin) in REFERENCES.iter().zip(admins) {
        let shared = file("crates/proxy/src/admin.rs");
        let shared = is_shared(program, &shared.path).then_some(shared);
        let parts: Vec<_> = [file(admin), daemon].into_iter().chain(shared).collect();
        let routes = docs::routes(&parts);
        let listed = docs::listed_routes(&document(page));
        violations.extend(docs::agree("route", (admin, &routes), (page, &listed)));
    }
    none(violations);
}

#[test]
fn every_field_of_the_access_log_is_in_the_reference() {
    let access = "crates/daemon/src/access";
    let mut violations = Vec::new();
    for (paths, page) in [
        (&[".rs"][..], "docs/reference/ztunnel.md"),
        (&["/request.rs", "/words.rs"], "docs/reference/waypoint.md"),
    ] {
        let fields = paths.iter().flat_map(|path| docs::fields(file(&format!("{access}{path}")))).collect();
        let listed = docs::listed(&document(page), "Access log");
        violations.extend(docs::agree("field", (access, &fields), (page, &listed)));
    }
    none(violations);
}

#[test]
fn every_limit_is_in_the_reference_with_its_value() {
    let limited = |source: &&source::Source| LIMITED.iter().any(|folder| source.path.starts_with(folder));
    let limited: Vec<_> = sources().iter().filter(limited).collect();
    let page = "docs/reference/limits.md";
    none(docs::limits(page, &document(page), &limited));
}

#[test]
fn the_map_of_the_source_is_short() {
    none(docs::map_is_short(&document("ARCHITECTURE.md")));
}

/// Whether this source is part of both proxies, and `program` is one of them.
fn is_shared(program: &str, path: &str) -> bool {
    ["waypoint", "ztunnel"].contains(&program) && path.starts_with("crates/proxy/src/")
}

/// Programs and the pages that say how to run them.
const REFERENCES: &[(&str, &str)] = &[
    ("controller", "docs/reference/controller.md"),
    ("waypoint", "docs/reference/waypoint.md"),
    ("ztunnel", "docs/reference/ztunnel.md"),
];

fn document(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn file(path: &str) -> &'static source::Source {
    let found = sources().iter().find(|source| source.path == path);
    found.unwrap_or_else(|| panic!("{path} is gone; where is it now?"))
}

fn each_source(rule: impl Fn(&source::Source) -> Vec<Violation>) {
    none(sources().iter().flat_map(rule).collect());
}

/// Read once: to tell code from comments and literals takes longer than all rules together.
fn sources() -> &'static [source::Source] {
    static SOURCES: OnceLock<Vec<source::Source>> = OnceLock::new();
    SOURCES.get_or_init(|| source::read(&root()))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace").to_owned()
}

#[track_caller]
fn none(violations: Vec<Violation>) {
    let list: String = violations.iter().map(|violation| format!("\n  {violation}")).collect();
    assert!(violations.is_empty(), "{} violation(s):{list}", violations.len());
}
