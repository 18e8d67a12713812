//! Cargo.toml files: versions and lints are the workspace's, and every member says what it is.

use super::Violation;

/// The paths of the workspace's members.
pub(crate) fn members(workspace: &str) -> Vec<String> {
    member_lines(workspace).filter_map(|line| Some(line.split('"').nth(1)?.to_owned())).collect()
}

/// Each member of the workspace has a comment beside it.
pub(crate) fn members_are_explained(workspace: &str) -> Vec<Violation> {
    member_lines(workspace)
        .filter(|line| !line.contains("# "))
        .map(|line| Violation::new("Cargo.toml", format!("{}: say in a comment what it is", line.trim())))
        .collect()
}

/// A member inherits lints, and takes every dependency from the workspace's list.
pub(crate) fn member(path: &str, text: &str) -> Vec<Violation> {
    let manifest: toml::Table = toml::from_str(text).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut violations = Vec::new();
    let inherits = |table: Option<&toml::Value>| {
        table.and_then(|table| table.get("workspace")).and_then(toml::Value::as_bool) == Some(true)
    };
    if !inherits(manifest.get("lints")) {
        violations.push(Violation::new(path, "has no `[lints] workspace = true`"));
    }
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let listed = manifest.get(section).and_then(toml::Value::as_table).into_iter().flatten();
        violations.extend(listed.filter(|(_, dependency)| !inherits(Some(dependency))).map(|(name, _)| {
            Violation::new(
                path,
                format!("{name}: versions are in the workspace's Cargo.toml; `workspace = true` here"),
            )
        }));
    }
    violations
}

fn member_lines(workspace: &str) -> impl Iterator<Item = &str> {
    let lines = workspace.lines().skip_while(|line| !line.starts_with("members = ["));
    lines.skip(1).take_while(|line| !line.starts_with(']')).filter(|line| line.contains('"'))
}

#[test]
fn unexplained_members_are_found() {
    let workspace = "[workspace]\nmembers = [\n    \"a\", # explained\n    \"b\",\n]\nx = [\"c\"]\n";
    assert_eq!(members(workspace), ["a", "b"]);
    let found = members_are_explained(workspace);
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn own_versions_and_own_lints_are_found() {
    let good = "[lints]\nworkspace = true\n[dependencies]\na = { workspace = true }\nb.workspace = true\n";
    assert_eq!(member("x/Cargo.toml", good), []);
    let bad = "[dependencies]\na = \"1\"\n[dev-dependencies]\nb = { path = \"../b\" }\n";
    assert_eq!(member("x/Cargo.toml", bad).len(), 3);
}
