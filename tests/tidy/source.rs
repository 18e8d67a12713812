//! Source files as the rules see them: text, code without comments and literals, and which lines are test code.
//!
//! A lexer, not a parser: it knows Rust's comments, strings, character literals and braces, and nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Directories that hold nothing of ours.
const SKIPPED: &[&str] = &["target", ".git"];

/// One Rust file.
#[derive(Debug)]
pub(crate) struct Source {
    /// Relative to the workspace, with slashes.
    pub(crate) path: String,
    /// As it is in the tree.
    pub(crate) text: String,
    /// The same number of lines; comments and the contents of literals are spaces.
    pub(crate) code: String,
    /// For each line of `code`: it is compiled for tests only.
    pub(crate) is_test: Vec<bool>,
}

impl Source {
    /// A file that is test code as a whole when its path says so.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let code = blank(text);
        let whole = path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("tests.rs");
        let is_test = if whole { vec![true; code.lines().count()] } else { test_lines(&code) };
        Self { path: path.to_owned(), text: text.to_owned(), code, is_test }
    }

    /// Lines of code with their numbers (from 1) and whether they are test code.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str, bool)> {
        self.code.lines().zip(&self.is_test).enumerate().map(|(i, (line, test))| (i + 1, line, *test))
    }

    /// Files or directories of modules that this file declares for tests only.
    fn test_modules(&self) -> Vec<String> {
        let file = self.path.trim_end_matches(".rs");
        let (dir, name) = file.rsplit_once('/').unwrap_or(("", file));
        let children = if ["lib", "main", "mod"].contains(&name) { dir } else { file };
        let declared = self.lines().filter(|(_, _, test)| *test).filter_map(|(_, line, _)| {
            line.trim().trim_start_matches("#[cfg(test)]").trim().strip_prefix("mod ")?.strip_suffix(';')
        });
        declared.map(|module| format!("{children}/{}", module.trim())).collect()
    }
}

/// Every Rust file of the workspace.
pub(crate) fn read(root: &Path) -> Vec<Source> {
    let mut sources: Vec<_> = walk(root, "rs").iter().map(|(path, text)| Source::new(path, text)).collect();
    let test_modules: BTreeSet<_> = sources.iter().flat_map(Source::test_modules).collect();
    for source in &mut sources {
        let file = source.path.trim_end_matches(".rs");
        if test_modules.iter().any(|module| file == module || file.starts_with(&format!("{module}/"))) {
            source.is_test.fill(true);
        }
    }
    sources
}

/// Every file with this extension: relative path and text, sorted.
pub(crate) fn walk(root: &Path, extension: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|error| panic!("{dir:?}: {error}")) {
            let path = entry.unwrap_or_else(|error| panic!("{dir:?}: {error}")).path();
            let skipped = path.file_name().is_some_and(|name| SKIPPED.iter().any(|skipped| name == *skipped));
            if path.is_dir() && !skipped {
                dirs.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
                let relative = path.strip_prefix(root).expect("walked from root").to_string_lossy();
                found.push((relative.into_owned(), text));
            }
        }
    }
    found.sort();
    found
}

/// Comments and the contents of literals become spaces, so that words in them are not taken for code.
fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (kept, hidden) = token(rest, first, out.chars().next_back());
        out.push_str(&rest[..kept]);
        out.extend(rest[kept..kept + hidden].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[kept + hidden..];
    }
    out
}

/// How many bytes of `rest` to keep and how many after them to hide.
fn token(rest: &str, first: char, before: Option<char>) -> (usize, usize) {
    let continues_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if rest.starts_with("//") {
        return (0, rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return (0, block_comment(rest));
    }
    if !continues_word && let Some(quoted) = raw_string(rest) {
        return quoted;
    }
    match first {
        '"' => (1, until_quote(&rest[1..], '"')),
        '\'' => match char_literal(rest) {
            Some(length) => (1, length),
            None => (1, 0),
        },
        _ => (first.len_utf8(), 0),
    }
}

/// The length of a block comment; they nest.
fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// `r"…"`, `r#"…"#`, `br"…"`: what to keep (up to the quote) and to hide (with the closing quote and hashes).
fn raw_string(rest: &str) -> Option<(usize, usize)> {
    let prefix = ["br", "cr", "r"].iter().find(|prefix| rest.starts_with(**prefix))?;
    let hashes = rest[prefix.len()..].bytes().take_while(|byte| *byte == b'#').count();
    let start = prefix.len() + hashes + 1;
    if rest.as_bytes().get(start - 1) != Some(&b'"') {
        return None;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let length = rest[start..].find(&end).map_or(rest.len() - start, |at| at + end.len());
    Some((start, length))
}

/// Bytes up to and including the closing quote.
fn until_quote(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The length of a character literal after its opening quote; `None` for a lifetime.
fn char_literal(rest: &str) -> Option<usize> {
    let inner = &rest[1..];
    let mut chars = inner.chars();
    match (chars.next()?, chars.next()?) {
        ('\\', _) => Some(until_quote(inner, '\'')),
        (c, '\'') => Some(c.len_utf8() + 1),
        _ => None,
    }
}

/// Marks the items behind `#[cfg(test)]`.
fn test_lines(code: &str) -> Vec<bool> {
    let mut marked = vec![false; code.lines().count()];
    for (start, _) in code.match_indices("#[cfg(test)]") {
        let end = start + item_length(&code[start..]);
        let line_of = |at: usize| code[..at].matches('\n').count();
        marked[line_of(start)..=line_of(end).min(code.lines().count() - 1)].fill(true);
    }
    marked
}

/// The length of an item: up to its first semicolon outside of braces, or to the brace that closes its first one.
fn item_length(code: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at;
                }
            }
            ';' if depth == 0 => return at,
            _ => {}
        }
    }
    code.len()
}

#[test]
fn words_in_comments_and_literals_are_not_code() {
    let text = r###"let a = "async"; // async
/* tokio /* nested */ tokio */ let b = 'x'; let c: &'static str = r#"await " await"#; let d = '\''; let e = b"x\"async";
let done = 1;"###;
    let code = Source::new("a.rs", text).code;
    for word in ["async", "tokio", "nested", "await"] {
        assert!(!code.contains(word), "{word} in {code}");
    }
    for word in ["let a = \"", "let b = '", "&'static str", "let d", "let e", "let done = 1;"] {
        assert!(code.contains(word), "{word} not in {code}");
    }
    assert_eq!(code.lines().count(), text.lines().count());
}

#[test]
fn test_code_is_recognised() {
    let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() { if x {} }\n}\nfn c() {}\n#[cfg(test)]\nmod oracle;\nfn d() {}\n";
    let source = Source::new("crates/x/src/lib.rs", text);
    let expected = [false, true, true, true, true, false, true, true, false];
    assert_eq!(source.is_test, expected);
    assert_eq!(source.test_modules(), ["crates/x/src/oracle"]);
    assert_eq!(Source::new("crates/x/src/y.rs", text).test_modules(), ["crates/x/src/y/oracle"]);
    assert!(Source::new("tests/netns.rs", "fn a() {}\n").is_test[0]);
    assert!(Source::new("crates/x/src/y/tests.rs", "fn a() {}\n").is_test[0]);
    assert!(!Source::new("crates/x/src/y.rs", "fn a() {}\n").is_test[0]);
}
