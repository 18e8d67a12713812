//! Rules about source text: one function each, from a file (or all files) to violations.

use std::path::Path;

use super::Violation;
use super::source::Source;

/// Lines of a file without its tests: about as much as one person holds in mind.
const LINES_MAX: usize = 400;

/// Lines of the comment at the head of a file.
const HEADER_LINES_MAX: usize = 10;

/// A sleep belongs to a polling loop when the word `deadline` stands in one of so many lines before it: such loops are short.
const DEADLINE_LINES: usize = 10;

/// Where the environment may be read: one place in the programs; build scripts have no other way to be configured.
const ENVIRONMENT_READERS: &[&str] = &["crates/daemon/src/config.rs", "build.rs"];

/// What makes a waypoint that is asked without a tunnel, and proves nobody: where it is, and who may call it.
const PLAIN_DOOR: (&str, &[&str]) = ("run_plain", &["benches/", "tests/tidy/", "waypoint/src/app.rs"]);

/// Which files decide without acting.
pub(crate) enum Core {
    /// Everything below this directory.
    Dir(&'static str),
    /// This file.
    File(&'static str),
    /// The files of this directory whose name ends so.
    Suffix(&'static str, &'static str),
}

/// The pure files. A pattern that matches nothing is a violation: a core that moved must not lose its guard.
pub(crate) const CORES: &[Core] = &[
    Core::File("cli/src/check/facts.rs"),
    Core::File("cli/src/check/ground.rs"),
    Core::File("cli/src/check/mesh.rs"),
    Core::File("cli/src/cluster/objects.rs"),
    Core::File("cli/src/uninstall/cleaner.rs"),
    Core::Dir("crates/model/src/"),
    Core::Dir("controller/src/index/"),
    Core::File("controller/src/source/kube/held.rs"),
    Core::File("controller/src/source/kube/stand_in.rs"),
    Core::Suffix("crates/xds/src/", "_core.rs"),
    Core::File("crates/xds/src/backoff.rs"),
    Core::File("crates/identity/src/authority/state.rs"),
    Core::File("crates/identity/src/rotation.rs"),
    Core::File("crates/hbone/src/pool_core.rs"),
    Core::File("ebpf/src/plan.rs"),
    Core::Dir("waypoint/src/balance/"),
    Core::File("waypoint/src/http1/body.rs"),
    Core::File("waypoint/src/decide/answer.rs"),
    Core::File("waypoint/src/decide/edits.rs"),
    Core::File("waypoint/src/decide/parts.rs"),
    Core::File("waypoint/src/http1/framing.rs"),
    Core::File("waypoint/src/http1/head.rs"),
    Core::File("waypoint/src/http1/refusal.rs"),
    Core::File("waypoint/src/http1/request.rs"),
    Core::File("waypoint/src/http1/response.rs"),
    Core::File("waypoint/src/http1/target.rs"),
    Core::File("waypoint/src/http1/write.rs"),
    Core::File("waypoint/src/http2/head.rs"),
    Core::File("waypoint/src/http2/refusal.rs"),
    Core::Dir("waypoint/src/rules/"),
    Core::File("ztunnel/src/bin/ztunnel-cni/call.rs"),
    Core::File("ztunnel/src/bin/ztunnel-cni/decide.rs"),
    Core::File("ztunnel/src/node/cni/conflist.rs"),
    Core::File("ztunnel/src/node/goal.rs"),
    Core::File("ztunnel/src/node/runtime/found.rs"),
];

/// Folders in rows: each names those of rows below its own alone. What is beside the folders is below them all, apart from the
/// `mod.rs` that joins them.
pub(crate) struct Rows {
    dir: &'static str,
    /// From the top.
    rows: &'static [&'static [&'static str]],
}

/// Where a crate is so large that its folders have a direction. A folder that is gone is a violation.
pub(crate) const FOLDERS: &[Rows] =
    &[Rows { dir: "waypoint/src/data/", rows: &[&["downstream"], &["opaque", "requests"], &["upstream"]] }];

/// What a core must not name: waiting, clocks, sockets, files, wire types.
const IMPURE_WORDS: &[&str] = &[
    "async",
    "await",
    "libc",
    "nix",
    "prost",
    "prost_types",
    "rand",
    "socket2",
    "tokio",
    "tonic",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "UnixDatagram",
    "UnixListener",
    "UnixStream",
];
const IMPURE_PATHS: &[&str] = &[
    "Instant::now",
    "SystemTime::now",
    ".elapsed()",
    "std::env",
    "std::fs",
    "std::process",
    "std::thread",
    "fastrand::Rng::new()",
];

/// The file begins with `//!`, and briefly.
pub(crate) fn header(source: &Source) -> Vec<Violation> {
    let lines = source.text.lines().take_while(|line| line.starts_with("//!")).count();
    let first = source.text.lines().next().unwrap_or_default().to_lowercase();
    match lines {
        _ if ["placeholder", "being written"].iter().any(|word| first.contains(word)) => {
            vec![Violation::new(&source.path, "is not written yet: leave it out until it is")]
        }
        0 => vec![Violation::new(
            &source.path,
            "begins without `//!`: say what it owns and what it refuses to do",
        )],
        1..=HEADER_LINES_MAX => Vec::new(),
        _ => {
            vec![Violation::new(&source.path, format!("{lines} lines of `//!`, at most {HEADER_LINES_MAX}"))]
        }
    }
}

/// `allow` and `expect` attributes carry a reason.
pub(crate) fn reasons(source: &Source) -> Vec<Violation> {
    let starts = ["#[allow(", "#![allow(", "#[expect(", "#![expect("];
    let found = starts.iter().flat_map(|start| source.code.match_indices(start));
    found
        .filter(|(at, _)| {
            let attribute = &source.code[*at..];
            !attribute[..attribute.find(']').unwrap_or(attribute.len())].contains("reason =")
        })
        .map(|(at, start)| {
            at_line(source, line_of(source, at), &format!("`{start}…` without `reason = \"…\"`"))
        })
        .collect()
}

/// No test is switched off.
pub(crate) fn ignored(source: &Source) -> Vec<Violation> {
    matching(source, |line, _| {
        line.contains("#[ignore").then_some("an ignored test proves nothing; fix or remove it")
    })
}

/// No test waits by sleeping on a thread, except between two looks of a loop that has a deadline.
pub(crate) fn sleeping_tests(source: &Source) -> Vec<Violation> {
    let lines: Vec<_> = source.lines().collect();
    let sleeps = lines.iter().filter(|(_, line, test)| *test && line.contains("thread::sleep"));
    sleeps
        .filter(|(number, ..)| {
            let before = number.saturating_sub(DEADLINE_LINES)..*number;
            !lines[before].iter().any(|(_, line, _)| line.contains("deadline"))
        })
        .map(|(number, ..)| {
            at_line(source, *number, "wait for a condition with a deadline instead of sleeping")
        })
        .collect()
}

/// No promises in comments, no holes in code.
pub(crate) fn unfinished(source: &Source) -> Vec<Violation> {
    // Spelled in two parts, or this file would break its own rule.
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];
    let macros = [concat!("to", "do!("), concat!("unimple", "mented!(")];
    let promises = source.text.lines().zip(1..).filter_map(|(line, number)| {
        let word = words.iter().find(|word| has_word(line, word))?;
        Some(at_line(source, number, &format!("`{word}`: do it, or open an issue")))
    });
    let holes = source.code.lines().zip(1..).filter_map(|(line, number)| {
        let hole = macros.iter().find(|hole| line.contains(**hole))?;
        Some(at_line(source, number, &format!("`{hole})`: leave the feature out instead")))
    });
    promises.chain(holes).collect()
}

/// The environment is read in one place.
pub(crate) fn environment(source: &Source) -> Vec<Violation> {
    let reader = |allowed: &&str| source.path == **allowed || source.path.ends_with(&format!("/{allowed}"));
    if ENVIRONMENT_READERS.iter().any(reader) {
        return Vec::new();
    }
    let calls =
        ["env::var(", "env::vars(", "env::var_os(", "env::vars_os(", "env::set_var(", "env::remove_var("];
    matching(source, |line, _| {
        calls.iter().any(|call| line.contains(call)).then_some("settings come through daemon::config")
    })
}

/// Only the bench has a waypoint that takes connections without tunnels.
pub(crate) fn plain_door(source: &Source) -> Vec<Violation> {
    let (word, places) = PLAIN_DOOR;
    if places.iter().any(|place| source.path.starts_with(place)) {
        return Vec::new();
    }
    matching(source, |line, _| {
        has_word(line, word).then_some("a product takes tunnels alone: plain connections are for benches")
    })
}

/// No file grows too long, and files on the list only shrink.
pub(crate) fn length(sources: &[Source], large: &[(&str, usize)]) -> Vec<Violation> {
    let lines = |source: &Source| source.is_test.iter().filter(|test| !**test).count();
    let limit = |path: &str| large.iter().find(|(listed, _)| *listed == path).map(|(_, lines)| *lines);
    let per_file = sources.iter().filter_map(|source| {
        let message = match (lines(source), limit(&source.path)) {
            (found, None) if found > LINES_MAX => {
                format!("{found} lines without tests, at most {LINES_MAX}: split it by idea")
            }
            (found, Some(limit)) if found > limit => {
                format!("{found} lines, had {limit}: it may only shrink")
            }
            (found, Some(_)) if found <= LINES_MAX => {
                "is short enough now: take it off LARGE_FILES".to_owned()
            }
            (found, Some(limit)) if found < limit => {
                format!("shrank from {limit} lines: write {found} in LARGE_FILES")
            }
            _ => return None,
        };
        Some(Violation::new(&source.path, message))
    });
    let gone = large.iter().filter(|(path, _)| sources.iter().all(|source| source.path != *path));
    per_file.chain(gone.map(|(path, _)| Violation::new(*path, "is gone: take it off LARGE_FILES"))).collect()
}

/// Cores name nothing that waits, tells the time, talks or is a wire type.
pub(crate) fn purity(sources: &[Source], cores: &[Core]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for core in cores {
        let files: Vec<_> = sources.iter().filter(|source| core.holds(&source.path)).collect();
        if files.is_empty() {
            violations
                .push(Violation::new(core.name(), "no such core: if it moved, list its new place in CORES"));
        }
        violations.extend(files.into_iter().flat_map(|source| {
            matching_with(source, |line, test| {
                let word = IMPURE_WORDS.iter().find(|word| has_word(line, word));
                let path = IMPURE_PATHS.iter().find(|path| line.contains(**path));
                let found = word.or(path).filter(|_| !test)?;
                Some(format!("`{found}` in a core: take it as an argument, or return what to do"))
            })
        }));
    }
    violations
}

/// Folders name only those below them.
pub(crate) fn folders(sources: &[Source], all: &[Rows]) -> Vec<Violation> {
    all.iter().flat_map(|rows| rows.violations(sources)).collect()
}

/// Relative links of a Markdown file point at files that exist.
pub(crate) fn links(root: &Path, path: &str, text: &str) -> Vec<Violation> {
    let dir = root.join(path).parent().expect("a file has a directory").to_owned();
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    targets
        .filter(|target| !target.contains("://") && !target.starts_with('#'))
        .filter(|target| !dir.join(target.split('#').next().unwrap_or_default()).exists())
        .map(|target| Violation::new(path, format!("links to {target}, which does not exist")))
        .collect()
}

/// The index in docs/ links to every document there.
pub(crate) fn indexed(index: &str, paths: &[&str]) -> Vec<Violation> {
    let documents =
        paths.iter().filter_map(|path| path.strip_prefix("docs/")).filter(|path| *path != "README.md");
    documents
        .filter(|document| !index.contains(&format!("]({document})")))
        .map(|document| Violation::new("docs/README.md", format!("does not link to {document}")))
        .collect()
}

impl Core {
    fn holds(&self, path: &str) -> bool {
        match self {
            Self::Dir(dir) => path.starts_with(dir),
            Self::File(file) => path == *file,
            Self::Suffix(dir, suffix) => path.starts_with(dir) && path.ends_with(suffix),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Dir(name) | Self::File(name) => (*name).to_owned(),
            Self::Suffix(dir, suffix) => format!("{dir}*{suffix}"),
        }
    }
}

impl Rows {
    fn violations(&self, sources: &[Source]) -> Vec<Violation> {
        let names: Vec<_> = self.rows.iter().copied().flatten().copied().collect();
        let gone = names
            .iter()
            .map(|name| format!("{}{name}/", self.dir))
            .filter(|dir| sources.iter().all(|source| !source.path.starts_with(dir)));
        let gone =
            gone.map(|dir| Violation::new(dir, "no such folder: if it moved, list its new place in FOLDERS"));
        let wrong = sources.iter().flat_map(|source| {
            let unseen = self.unseen(&source.path);
            matching_with(source, |line, test| {
                let name = unseen.iter().find(|name| has_word(line, name)).filter(|_| !test)?;
                Some(format!("names `{name}`, which is not below it: see FOLDERS in tests/tidy/rules.rs"))
            })
        });
        gone.chain(wrong).collect()
    }

    /// The folders that this file must not name.
    fn unseen(&self, path: &str) -> Vec<&'static str> {
        let Some(place) = path.strip_prefix(self.dir).filter(|place| *place != "mod.rs") else {
            return Vec::new();
        };
        let own = place.split('/').next().expect("there is a first part");
        let row = self.rows.iter().position(|names| names.contains(&own)).unwrap_or(self.rows.len() - 1);
        self.rows[..=row].iter().copied().flatten().copied().filter(|name| *name != own).collect()
    }
}

fn matching(source: &Source, rule: impl Fn(&str, bool) -> Option<&'static str>) -> Vec<Violation> {
    matching_with(source, |line, test| rule(line, test).map(str::to_owned))
}

fn matching_with(source: &Source, rule: impl Fn(&str, bool) -> Option<String>) -> Vec<Violation> {
    source
        .lines()
        .filter_map(|(number, line, test)| Some(at_line(source, number, &rule(line, test)?)))
        .collect()
}

fn at_line(source: &Source, number: usize, message: &str) -> Violation {
    Violation::new(format!("{}:{number}", source.path), message)
}

fn line_of(source: &Source, at: usize) -> usize {
    source.code[..at].matches('\n').count() + 1
}

/// `word` stands alone in `line`.
fn has_word(line: &str, word: &str) -> bool {
    let part_of_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        !part_of_word(line[..at].chars().next_back()) && !part_of_word(line[at + word.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new("crates/x/src/lib.rs", text)
    }

    #[test]
    fn a_missing_or_long_header_is_found() {
        assert_eq!(header(&source("//! Fine.\n")).len(), 0);
        assert_eq!(header(&source("use x;\n//! Late.\n")).len(), 1);
        assert_eq!(header(&source("//! Being written.\n")).len(), 1);
        assert_eq!(header(&source(&"//! Long.\n".repeat(11))).len(), 1);
    }

    #[test]
    fn attributes_without_reason_are_found() {
        let found = reasons(&source(
            "#[expect(\n    a,\n    reason = \"b\"\n)]\nfn x() {}\n#[allow(c)]\nfn y() {}\n",
        ));
        assert_eq!(found, [Violation::new("crates/x/src/lib.rs:6", "`#[allow(…` without `reason = \"…\"`")]);
        assert_eq!(reasons(&source("#![allow(dead_code)]\n")).len(), 1);
        assert_eq!(reasons(&source("// #[allow(x)] in a comment\n")).len(), 0);
    }

    #[test]
    fn ignored_and_sleeping_tests_are_found() {
        assert_eq!(ignored(&source("#[test]\n#[ignore = \"slow\"]\nfn x() {}\n")).len(), 1);
        let sleeps = "fn poll() { thread::sleep(d) }\n#[cfg(test)]\nmod tests {\n    fn t() { std::thread::sleep(d) }\n}\n";
        let found = sleeping_tests(&source(sleeps));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].place, "crates/x/src/lib.rs:4");
        let polls = sleeps.replace("fn t() {", "fn t() { while now() < deadline {");
        assert_eq!(sleeping_tests(&source(&polls)).len(), 0);
    }

    #[test]
    fn promises_and_holes_are_found() {
        let promise = format!("// {}: later\n", concat!("TO", "DO"));
        assert_eq!(unfinished(&source(&promise)).len(), 1);
        let hole = format!("fn x() {{ {}) }}\n", concat!("to", "do!("));
        assert_eq!(unfinished(&source(&hole)).len(), 1);
        assert_eq!(unfinished(&source("// what is left to do is nothing\n")).len(), 0);
    }

    #[test]
    fn readers_of_the_environment_are_found() {
        let text = "let a = std::env::var(\"A\");\nlet b = std::env::temp_dir();\n";
        assert_eq!(environment(&source(text)).len(), 1);
        assert_eq!(environment(&Source::new("crates/daemon/src/config.rs", text)).len(), 0);
        assert_eq!(environment(&Source::new("ebpf/build.rs", text)).len(), 0);
    }

    #[test]
    fn plain_doors_are_found() {
        let text = "let done = app::run_plain(&config, &services, client);\n";
        assert_eq!(plain_door(&Source::new("waypoint/src/main.rs", text)).len(), 1);
        assert_eq!(plain_door(&Source::new("benches/src/waypoint/plain.rs", text)).len(), 0);
    }

    #[test]
    fn long_files_are_found_and_the_list_only_shrinks() {
        let check = |lines: usize, large: &[(&str, usize)]| {
            let tests = "#[cfg(test)]\nmod tests {\n    // long\n}\n".repeat(500);
            let found = length(&[source(&format!("{}{tests}", "fn x() {}\n".repeat(lines)))], large);
            found.into_iter().map(|violation| violation.message).collect::<Vec<_>>().join("; ")
        };
        let path = "crates/x/src/lib.rs";
        assert_eq!(check(400, &[]), "");
        assert!(check(401, &[]).contains("split it"));
        assert_eq!(check(500, &[(path, 500)]), "");
        assert!(check(501, &[(path, 500)]).contains("only shrink"));
        assert!(check(499, &[(path, 500)]).contains("write 499"));
        assert!(check(400, &[(path, 500)]).contains("take it off"));
        assert!(check(1, &[("crates/x/src/old.rs", 500)]).contains("is gone"));
    }

    #[test]
    fn impure_cores_are_found() {
        let check = |text: &str| purity(&[source(text)], &[Core::Dir("crates/x/")]).len();
        for impure in [
            "async fn x() {}",
            "let y = x.await;",
            "use tokio::sync::watch;",
            "let now = Instant::now();",
            "let now = std::time::SystemTime::now();",
            "use std::net::TcpStream;",
            "fn x(any: prost_types::Any) {}",
            "let text = std::fs::read(path);",
        ] {
            assert_eq!(check(impure), 1, "{impure}");
        }
        assert_eq!(check("// async in words\nlet asynchronous = \"await\";\nfn x(now: Instant) {}\n"), 0);
        assert_eq!(check("#[cfg(test)]\nmod tests {\n    async fn x() {}\n}\n"), 0);
        let moved = purity(
            &[source("")],
            &[Core::File("crates/y/src/core.rs"), Core::Suffix("crates/x/", "_core.rs")],
        );
        assert_eq!(moved.len(), 2, "{moved:?}");
    }

    #[test]
    fn folders_that_look_up_are_found() {
        let check = |path: &str, text: &str| {
            let rows: &[&[&str]] = &[&["door"], &["left", "right"], &["ground"]];
            let names = ["door", "left", "right", "ground"];
            let places = names.map(|name| Source::new(&format!("crates/x/src/{name}/mod.rs"), ""));
            let sources: Vec<_> = places.into_iter().chain([Source::new(path, text)]).collect();
            folders(&sources, &[Rows { dir: "crates/x/src/", rows }]).len()
        };
        let text = "use crate::left;\n";
        for fine in ["mod.rs", "door/a.rs", "left/a.rs", "tests.rs"] {
            assert_eq!(check(&format!("crates/x/src/{fine}"), text), 0, "{fine}");
        }
        for wrong in ["right/a.rs", "ground/deep/a.rs", "beside.rs"] {
            assert_eq!(check(&format!("crates/x/src/{wrong}"), text), 1, "{wrong}");
        }
        assert_eq!(check("crates/y/src/ground/a.rs", text), 0);
        assert_eq!(check("crates/x/src/ground/a.rs", "// right in words\n"), 0);
        let gone = Rows { dir: "crates/z/", rows: &[&["gone"]] };
        assert_eq!(folders(&[], &[gone]).len(), 1);
    }

    #[test]
    fn broken_links_are_found() {
        let root = super::super::root();
        let text =
            "[a](README.md) [b](https://example.org/x) [c](missing.md) [d](#here) [e](design/none.md#x)";
        let found = links(&root, "docs/README.md", text);
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn documents_that_nobody_finds_are_found() {
        let paths = ["README.md", "docs/README.md", "docs/a.md", "docs/design/b.md"];
        let found = indexed("[a](a.md)", &paths);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].message.contains("design/b.md"));
    }
}
