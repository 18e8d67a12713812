//! The reference pages in docs/ against the source: settings, refusal codes, metrics, routes, access-log fields and limits.
//!
//! What a page lists is in the first column of its tables, in backquotes. Each rule compares that with what the source says,
//! in both directions; prose is not read. Owns no opinion on what a page says about a name, except a limit's value.

use std::collections::{BTreeMap, BTreeSet};

use super::Violation;
use super::source::Source;

/// Lines of ARCHITECTURE.md: what one reads before starting, and no more.
const MAP_LINES_MAX: usize = 250;

/// Names in a source and names on a page, with how to tell a reader which is missing where.
pub(crate) fn agree(
    what: &str,
    (source, in_source): (&str, &BTreeSet<String>),
    (page, on_page): (&str, &BTreeSet<String>),
) -> Vec<Violation> {
    if in_source.is_empty() {
        return vec![Violation::new(
            source,
            format!("no {what} found here: if it moved, tell tests/tidy.rs"),
        )];
    }
    let missing = in_source.difference(on_page);
    let stale = on_page.difference(in_source);
    missing
        .map(|name| Violation::new(page, format!("does not list the {what} {name} of {source}")))
        .chain(
            stale.map(|name| Violation::new(page, format!("lists the {what} {name}, which {source} lacks"))),
        )
        .collect()
}

/// The map stays a map.
pub(crate) fn map_is_short(text: &str) -> Vec<Violation> {
    let lines = text.lines().count();
    let message = format!("{lines} lines, at most {MAP_LINES_MAX}: names rather than explanations");
    if lines > MAP_LINES_MAX { vec![Violation::new("ARCHITECTURE.md", message)] } else { Vec::new() }
}

/// The names in the first column of a page's tables below the heading `section` (or anywhere, if it is empty).
pub(crate) fn listed(page: &str, section: &str) -> BTreeSet<String> {
    rows(page, section).into_iter().flat_map(|row| quoted(&row[0])).collect()
}

/// The HTTP routes in the first columns, without their methods.
pub(crate) fn listed_routes(page: &str) -> BTreeSet<String> {
    let routes = listed(page, "Admin socket").into_iter().chain(second_routes(page));
    routes.filter_map(|route| Some(route.split_once(' ')?.1.split('?').next()?.to_owned())).collect()
}

/// A route that shares a row with another one: `... is the same`.
fn second_routes(page: &str) -> Vec<String> {
    let cells = rows(page, "Admin socket").into_iter().flat_map(|row| row.into_iter().skip(1));
    cells.flat_map(|cell| quoted(&cell)).filter(|text| text.starts_with("GET /")).collect()
}

/// Settings that a program reads: names in literals that begin with `AIRGLOW_`, outside of tests.
pub(crate) fn settings(source: &Source) -> BTreeSet<String> {
    literals(source).into_iter().filter(|text| is_setting(text)).collect()
}

/// Settings that any text mentions, and that no program has.
pub(crate) fn unknown_settings(path: &str, text: &str, known: &BTreeSet<String>) -> Vec<Violation> {
    let word = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let mentioned: BTreeSet<_> = text.split(|c| !word(c)).filter(|text| is_setting(text)).collect();
    mentioned
        .into_iter()
        .filter(|name| !known.contains(*name))
        .map(|name| Violation::new(path, format!("mentions {name}, which no program reads")))
        .collect()
}

fn is_setting(text: &str) -> bool {
    let rest = text.strip_prefix("AIRGLOW_").unwrap_or_default();
    !rest.is_empty() && rest.chars().all(|c| c.is_ascii_uppercase() || c == '_')
}

/// Every literal of the function `name`: the refusal codes are those of `code`.
pub(crate) fn literals_of(source: &Source, name: &str) -> BTreeSet<String> {
    let start = format!("fn {name}(");
    let mut depth = 0_usize;
    let mut inside = false;
    let mut found = BTreeSet::new();
    for ((_, code, _), text) in source.lines().zip(source.text.lines()) {
        if !inside && !code.contains(&start) {
            continue;
        }
        inside = true;
        found.extend(line_literals(text));
        depth += code.matches('{').count();
        depth -= code.matches('}').count();
        if depth == 0 && code.contains('}') {
            break;
        }
    }
    found
}

/// Metrics that are registered with a name in a literal.
pub(crate) fn metrics(source: &Source) -> BTreeSet<String> {
    let text = outside_tests(source);
    let calls = [".register(", ".register_column(", ".register_counter_fn(", ".register_gauge_fn("];
    let starts = calls.iter().flat_map(|call| text.match_indices(call).map(|(at, _)| at + call.len()));
    starts
        .filter_map(|start| {
            let arguments = text[start..].trim_start();
            // A column names its table first.
            let first = match arguments.strip_prefix('&') {
                Some(rest) => rest.split_once(',')?.1.trim_start(),
                None => arguments,
            };
            Some(first.strip_prefix('"')?.split_once('"')?.0.to_owned())
        })
        .collect()
}

/// Metrics that a page lists, without the suffix that counters get when they are written.
pub(crate) fn listed_metrics(page: &str) -> BTreeSet<String> {
    listed(page, "Metrics").iter().map(|name| name.trim_end_matches("_total").to_owned()).collect()
}

/// HTTP routes: literals that are paths.
pub(crate) fn routes(sources: &[&Source]) -> BTreeSet<String> {
    let paths = sources.iter().flat_map(|source| literals(source));
    paths.filter(|text| text.starts_with('/') && !text.contains(' ')).chain(["/".to_owned()]).collect()
}

/// Fields of the access log: the names that `fields` gives.
pub(crate) fn fields(source: &Source) -> BTreeSet<String> {
    let text = outside_tests(source);
    let body = text.split_once("fn fields(").map_or("", |(_, rest)| rest);
    let body = body.split_once("\n    }\n").map_or(body, |(body, _)| body);
    let named = body.split("name!(\"").skip(1).filter_map(|rest| rest.split_once('"'));
    let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_lowercase() || b"._".contains(&byte));
    named.filter(|(name, _)| is_name(name)).map(|(name, _)| name.to_owned()).collect()
}

/// A limit: a duration in seconds, or a number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value {
    Number(f64),
    Seconds(f64),
}

/// Limits on the page, by file and name, with their values as they are written.
pub(crate) fn listed_limits(page: &str) -> BTreeMap<(String, String), String> {
    let mut file = String::new();
    let mut limits = BTreeMap::new();
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("### ") {
            file = quoted(heading).into_iter().next().unwrap_or_default();
        } else if let [name, value, ..] = cells(line).as_slice()
            && let [name] = quoted(name).as_slice()
        {
            limits.insert((file.clone(), name.clone()), value.clone());
        }
    }
    limits
}

/// The page against the source: what it lists is there with that value, and nothing that must be on it is missing.
pub(crate) fn limits(path: &str, page: &str, sources: &[&Source]) -> Vec<Violation> {
    let listed = listed_limits(page);
    let constants: BTreeMap<(String, String), Constant> = sources
        .iter()
        .flat_map(|source| {
            let of = |constant: Constant| ((source.path.clone(), constant.name.clone()), constant);
            constants(source).into_iter().map(of)
        })
        .collect();
    let mut violations = Vec::new();
    for ((file, name), written) in &listed {
        let Some(constant) = constants.get(&(file.clone(), name.clone())) else {
            violations.push(Violation::new(path, format!("lists {name} of {file}, which is not there")));
            continue;
        };
        let in_file = |name: &str| constants.get(&(file.clone(), name.to_owned())).map(|c| c.value.as_str());
        let value = evaluate(&constant.value, &in_file);
        if value.is_none() || value != written_value(written) {
            let message = format!("says that {name} of {file} is {written}; it is {}", constant.value);
            violations.push(Violation::new(path, message));
        }
    }
    let missing =
        constants.iter().filter(|(key, constant)| constant.must_be_listed() && !listed.contains_key(key));
    violations.extend(missing.map(|((file, name), constant)| {
        Violation::new(path, format!("does not list {name} of {file}, which is {}", constant.value))
    }));
    violations
}

/// A constant of a number or a duration.
#[derive(Debug)]
struct Constant {
    name: String,
    kind: String,
    value: String,
    /// It is in a file that holds nothing but limits.
    among_limits: bool,
}

impl Constant {
    fn must_be_listed(&self) -> bool {
        self.among_limits || self.kind == "Duration" || self.name.split('_').any(|word| word == "MAX")
    }
}

/// Constants of a file outside of tests and functions: `const NAME: kind = value;` on one line.
fn constants(source: &Source) -> Vec<Constant> {
    let kinds = ["Duration", "f64", "i32", "u8", "u16", "u32", "u64", "usize"];
    let parse = |line: &str| {
        let indented = line.len() - line.trim_start().len();
        let (_, declared) = line.split_once("const ").filter(|(before, _)| {
            let before = before.trim();
            indented <= 4 && (before.is_empty() || before == "pub" || before.starts_with("pub("))
        })?;
        let (name, rest) = declared.split_once(": ")?;
        let (kind, value) = rest.split_once(" = ")?;
        let value = value.strip_suffix(';')?;
        let is_name = name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
        (is_name && kinds.contains(&kind)).then(|| Constant {
            name: name.to_owned(),
            kind: kind.to_owned(),
            value: value.to_owned(),
            among_limits: source.path.ends_with("/limits.rs"),
        })
    };
    source.lines().filter(|(.., test)| !test).filter_map(|(_, line, _)| parse(line)).collect()
}

/// What a constant's expression comes to: numbers, `*`, `<<`, `+`, casts, other constants of its file, durations.
fn evaluate<'a>(text: &str, named: &impl Fn(&str) -> Option<&'a str>) -> Option<Value> {
    for (constructor, factor) in [("from_secs", 1.0), ("from_millis", 1e-3), ("from_micros", 1e-6)] {
        if let Some(rest) = text.strip_prefix(&format!("Duration::{constructor}(")) {
            return Some(Value::Seconds(number(rest.strip_suffix(')')?, named)? * factor));
        }
    }
    number(text, named).map(Value::Number)
}

fn number<'a>(text: &str, named: &impl Fn(&str) -> Option<&'a str>) -> Option<f64> {
    let text = text.trim();
    let (text, _) = text.split_once(" as ").unwrap_or((text, ""));
    if let Some((left, right)) = text.split_once(" << ") {
        return Some(number(left, named)? * number(right, named)?.exp2());
    }
    if let Some((left, right)) = text.split_once(" + ") {
        return Some(number(left, named)? + number(right, named)?);
    }
    if let Some((left, right)) = text.split_once(" * ") {
        return Some(number(left, named)? * number(right, named)?);
    }
    let digits = text.replace('_', "");
    if let Some(hexadecimal) = digits.strip_prefix("0x") {
        return u32::from_str_radix(hexadecimal, 16).ok().map(f64::from);
    }
    digits.parse().ok().or_else(|| number(named(text)?, named))
}

/// A value as a page writes it: `16,384`, `4 MiB`, `5 min`.
fn written_value(text: &str) -> Option<Value> {
    let (digits, unit) = text.split_once(' ').unwrap_or((text, ""));
    let number: f64 = digits.replace(',', "").parse().ok()?;
    Some(match unit {
        "" => Value::Number(number),
        "KiB" => Value::Number(number * 1024.0),
        "MiB" => Value::Number(number * 1024.0 * 1024.0),
        "µs" => Value::Seconds(number * 1e-6),
        "ms" => Value::Seconds(number * 1e-3),
        "s" => Value::Seconds(number),
        "min" => Value::Seconds(number * 60.0),
        "h" => Value::Seconds(number * 3600.0),
        "d" => Value::Seconds(number * 86_400.0),
        _ => return None,
    })
}

/// The cells of the rows of the tables below a heading, without the heads of tables.
fn rows(page: &str, section: &str) -> Vec<Vec<String>> {
    let mut inside = section.is_empty();
    let mut rows = Vec::new();
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            inside = section.is_empty() || heading == section;
        } else if inside {
            let cells = cells(line);
            if cells.first().is_some_and(|first| first.starts_with('`')) {
                rows.push(cells);
            }
        }
    }
    rows
}

fn cells(line: &str) -> Vec<String> {
    let row = line.strip_prefix("| ").and_then(|row| row.strip_suffix(" |"));
    row.map(|row| row.split(" | ").map(|cell| cell.trim().to_owned()).collect()).unwrap_or_default()
}

/// What stands between backquotes.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn literals(source: &Source) -> BTreeSet<String> {
    outside_tests(source).lines().flat_map(line_literals).collect()
}

fn outside_tests(source: &Source) -> String {
    let kept = source.text.lines().zip(&source.is_test).filter(|(_, test)| !**test);
    kept.flat_map(|(line, _)| [line, "\n"]).collect()
}

/// Literals that begin and end on a line; comments are not looked at.
fn line_literals(line: &str) -> Vec<String> {
    let code = if line.trim_start().starts_with("//") { "" } else { line };
    code.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new("crates/x/src/limits.rs", text)
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    const PAGE: &str = "\
# Page
## Settings
| variable | default | meaning |
|---|---|---|
| `AIRGLOW_NODE` | required | see `AIRGLOW_OTHER` |
## Metrics
| metric | what |
|---|---|
| `x_total` | a counter |
| `y` | a gauge |
## Admin socket
| route | what |
|---|---|
| `GET /pods` | pods; `GET /same` is the same |
| `POST /logging?level=<filter>` | sets |
";

    #[test]
    fn tables_are_read_by_section_and_first_column() {
        assert_eq!(listed(PAGE, "Settings"), set(&["AIRGLOW_NODE"]));
        assert_eq!(listed_metrics(PAGE), set(&["x", "y"]));
        assert_eq!(listed_routes(PAGE), set(&["/pods", "/same", "/logging"]));
        assert!(listed(PAGE, "Ports").is_empty());
    }

    #[test]
    fn what_one_side_lacks_is_found() {
        let check = |source: &[&str], page: &[&str]| {
            agree("thing", ("a.rs", &set(source)), ("a.md", &set(page))).len()
        };
        assert_eq!(check(&["a", "b"], &["a", "b"]), 0);
        assert_eq!(check(&["a", "b"], &["a"]), 1, "not on the page");
        assert_eq!(check(&["a"], &["a", "b"]), 1, "not in the source");
        assert_eq!(check(&[], &[]), 1, "nothing to compare is a mistake of the rule");
    }

    #[test]
    fn settings_are_found_outside_of_tests_only() {
        let text = "p.or(\"AIRGLOW_A\", x);\n// \"AIRGLOW_NO\"\n#[cfg(test)]\nmod tests {\n    f(\"AIRGLOW_T\");\n}\n";
        assert_eq!(settings(&source(text)), set(&["AIRGLOW_A"]));
        let known = set(&["AIRGLOW_A"]);
        assert_eq!(
            unknown_settings("a.md", "set `AIRGLOW_A` or AIRGLOW_B=1; AIRGLOW_* is ours", &known).len(),
            1
        );
    }

    #[test]
    fn codes_metrics_routes_and_fields_are_found() {
        let text = "fn code(&self) -> &str {\n    match self {\n        A { .. } => \"a-b\",\n        B => \"c\",\n    }\n}\n\
                    fn flag() { \"NO\" }\n";
        assert_eq!(literals_of(&source(text), "code"), set(&["a-b", "c"]));
        let text = "m.register(\n    \"one\", x);\nm.register_column(&t, \"two\", y);\nself.register(name, z);\n\
                    m.register_gauge_fn(\"three\", z);\n";
        assert_eq!(metrics(&source(text)), set(&["one", "two", "three"]));
        let text = "routes.get(\"/a\", \"about it\", f).post(\"/b\", \"see /c\", g)\n";
        assert_eq!(routes(&[&source(text)]), set(&["/", "/a", "/b"]));
        let text = "    fn fields(&self) {\n        party(name!(\"src.addr\"), x.ends_with(\"addr\"));\n        to.add(name!(\"code\"), f!(\"{}ms\", c));\n    }\n\
                    fn other() { add(\"no\", 1) }\n";
        assert_eq!(fields(&source(text)), set(&["src.addr", "code"]));
    }

    #[test]
    fn wrong_limits_are_found() {
        let text = "pub const A: usize = 2 * 1024;\nconst B: Duration = Duration::from_secs(5 * 60);\nconst C: u32 = A as u32;\n";
        let check = |rows: &str| {
            let page =
                format!("### `crates/x/src/limits.rs`\n| constant | value | why |\n|---|---|---|\n{rows}");
            limits("limits.md", &page, &[&source(text)]).len()
        };
        let good = "| `A` | 2 KiB | x |\n| `B` | 5 min | x |\n| `C` | 2,048 | x |\n";
        assert_eq!(check(good), 0);
        assert_eq!(check(&good.replace("2 KiB", "3 KiB")), 1);
        assert_eq!(check(&good.replace("5 min", "5 s")), 1);
        assert_eq!(check(&good.replace("5 min", "300")), 1, "a number is no duration");
        assert_eq!(check(&good.replace("`C`", "`D`")), 2, "one is missing and one is nowhere");
        assert_eq!(check(""), 3);
    }

    #[test]
    fn only_limits_have_to_be_listed() {
        let text = "const PORT: u16 = 80;\nconst MAX_PODS: u32 = 1;\nconst WAIT: Duration = Duration::from_millis(1);\n\
                    fn f() {\n        const LOCAL_MAX: u32 = 1;\n}\n#[cfg(test)]\nmod tests {\n    const MAX: u8 = 1;\n}\n";
        let found = limits("limits.md", "", &[&Source::new("crates/x/src/lib.rs", text)]);
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn a_map_that_explains_too_much_is_found() {
        assert_eq!(map_is_short(&"x\n".repeat(MAP_LINES_MAX)).len(), 0);
        assert_eq!(map_is_short(&"x\n".repeat(MAP_LINES_MAX + 1)).len(), 1);
    }
}
