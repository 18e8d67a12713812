//! deny.toml's [bans] against the real graph, so that they hold where cargo-deny is not installed and nothing can be downloaded.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use super::Violation;
use super::graph::Graph;

/// The part of deny.toml that is checked here.
#[derive(Debug, Deserialize)]
pub(crate) struct Deny {
    bans: Bans,
}

#[derive(Debug, Deserialize)]
struct Bans {
    deny: Vec<Ban>,
    skip: Vec<Skip>,
}

#[derive(Debug, Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    #[serde(default)]
    wrappers: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
struct Skip {
    /// `name@version`
    #[serde(rename = "crate")]
    package: String,
    reason: String,
}

/// Reads deny.toml.
pub(crate) fn read(root: &Path) -> Deny {
    let path = root.join("deny.toml");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    toml::from_str(&text).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

/// Banned crates are used by their wrappers only, and every wrapper still needs its permission.
pub(crate) fn wrappers(deny: &Deny, graph: &Graph) -> Vec<Violation> {
    let mut violations = Vec::new();
    for Ban { name, wrappers } in &deny.bans.deny {
        let users: BTreeSet<_> =
            graph.edges.iter().filter(|edge| edge.to == *name).map(|edge| edge.from.clone()).collect();
        violations.extend(users.difference(wrappers).map(|user| {
            Violation::new(user, format!("uses {name}; deny.toml lets only {wrappers:?} do so"))
        }));
        violations.extend(wrappers.difference(&users).map(|wrapper| {
            Violation::new("deny.toml", format!("{wrapper} no longer uses {name}: take the permission away"))
        }));
    }
    violations
}

/// One version of each crate, except those on the dated list, which holds nothing else.
pub(crate) fn versions(deny: &Deny, graph: &Graph) -> Vec<Violation> {
    let skipped: BTreeSet<_> = deny.bans.skip.iter().map(|skip| skip.package.as_str()).collect();
    let mut violations = Vec::new();
    for (name, versions) in &graph.versions {
        let counted: Vec<_> = versions
            .iter()
            .filter(|version| !skipped.contains(format!("{name}@{version}").as_str()))
            .collect();
        if counted.len() > 1 {
            let message = format!("{counted:?}: agree on one version, or add one to deny.toml's skip list");
            violations.push(Violation::new(name, message));
        }
    }
    for Skip { package, reason } in &deny.bans.skip {
        let (name, version) = package.split_once('@').unwrap_or((package, ""));
        let versions = graph.versions.get(name);
        if versions.is_none_or(|versions| versions.len() < 2 || !versions.contains(version)) {
            violations.push(Violation::new("deny.toml", format!("{package} need not be skipped any more")));
        }
        if !is_dated(reason) {
            violations.push(Violation::new(
                "deny.toml",
                format!("{package}: begin the reason with its month, `2026-11: …`"),
            ));
        }
    }
    violations
}

fn is_dated(reason: &str) -> bool {
    let month = reason.split(':').next().unwrap_or_default().as_bytes();
    month.len() == 7 && month[4] == b'-' && month.iter().filter(|byte| byte.is_ascii_digit()).count() == 6
}

#[cfg(test)]
mod tests {
    use super::super::graph::drawn;
    use super::*;

    fn deny(deny: &str, skip: &str) -> Deny {
        toml::from_str(&format!("[bans]\ndeny = [{deny}]\nskip = [{skip}]")).unwrap()
    }

    #[test]
    fn strangers_and_stale_wrappers_are_found() {
        let rules = deny(r#"{ crate = "rustls", wrappers = ["identity"] }, { crate = "kube" }"#, "");
        assert_eq!(wrappers(&rules, &drawn(&["identity>rustls"])).len(), 0);
        assert_eq!(wrappers(&rules, &drawn(&["identity>rustls", "daemon>rustls"])).len(), 1);
        assert_eq!(wrappers(&rules, &drawn(&["identity>rustls", "lab~rustls"])).len(), 1, "tests count too");
        assert_eq!(wrappers(&rules, &drawn(&["identity>ring"])).len(), 1, "the permission is stale");
        assert_eq!(wrappers(&rules, &drawn(&["identity>rustls", "cli>kube"])).len(), 1);
    }

    #[test]
    fn second_versions_and_stale_skips_are_found() {
        let mut graph = drawn(&["a>syn"]);
        let skip = r#"{ crate = "syn@1.0.0", reason = "2026-11: build time" }"#;
        assert_eq!(versions(&deny("", ""), &graph).len(), 0);
        assert_eq!(versions(&deny("", skip), &graph).len(), 1, "one version needs no skip");
        graph.versions.entry("syn".into()).or_default().insert("2.0.0".into());
        assert_eq!(versions(&deny("", ""), &graph).len(), 1);
        assert_eq!(versions(&deny("", skip), &graph).len(), 0);
        let undated = r#"{ crate = "syn@1.0.0", reason = "build time" }"#;
        assert_eq!(versions(&deny("", undated), &graph).len(), 1);
    }
}
