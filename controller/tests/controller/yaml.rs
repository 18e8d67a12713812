//! Texts with mistakes: what is found, and where.

use controller::source::yaml::parse;

fn check(text: &str, objects: &[&str], problems: &[&str]) {
    let parsed = parse(text);
    let found: Vec<_> =
        parsed.objects.iter().map(|(object, line)| format!("{line}: {}", object.key())).collect();
    assert_eq!(found, objects, "objects of:\n{text}");
    let said: Vec<_> = parsed.problems.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), problems.len(), "{said:#?}\nof:\n{text}");
    for (said, expected) in said.iter().zip(problems) {
        assert!(
            said.starts_with(expected) || said.contains(expected),
            "{said:?}\nis not {expected:?}\nof:\n{text}"
        );
    }
}

const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n";

#[test]
fn several_documents() {
    check(&format!("{NODE}---\n# a remark\n---\n\n{NODE}...\n---\n"), &["1: Node n1", "8: Node n1"], &[]);
    check(&format!("%YAML 1.2\n---\n{NODE}"), &["3: Node n1"], &[]);
    check("--- {apiVersion: v1, kind: Node, metadata: {name: n2}}\n", &["1: Node n2"], &[]);
    check("", &[], &[]);
    check("# only a remark\n", &[], &[]);
}

#[test]
fn a_list_is_its_items() {
    let text = "apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Node
  metadata: {name: n1}
- apiVersion: v1
  kind: Pod
  metadata: {name: p, namespace: shop}
  spec: {containers: [{ports: [{containerPort: 70000}]}]}
- apiVersion: v1
  kind: Node
  metadata: {name: n2}
";
    check(text, &["4: Node n1", "11: Node n2"], &["7:3: in this list item: invalid value: integer `70000`"]);
}

#[test]
fn a_mistake_costs_one_document() {
    check(&format!("{NODE}---\nkind: [\n---\n{NODE}"), &["1: Node n1", "7: Node n1"], &["5:"]);
    check(&format!("a: b: c\n---\n{NODE}"), &["3: Node n1"], &["1:"]);
    check("just words\n", &[], &["1:1:"]);
    check(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports:\n  - port: many\n",
        &[],
        &["6:11: "],
    );
}

#[test]
fn null_means_absent() {
    let text = "apiVersion: v1
kind: Pod
metadata: {name: p, labels: null, creationTimestamp: null, annotations:}
spec: {nodeName: null, containers: null}
status: null
";
    check(text, &["1: Pod default/p"], &[]);
}

#[test]
fn names_are_checked_as_the_api_server_does() {
    for bad in ["Upper", "under_score", "-dash", "dot.", "a/b", "sp ace"] {
        let text = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: \"{bad}\"}}\n");
        check(&text, &[], &["1:1: metadata.name"]);
    }
    check("apiVersion: v1\nkind: Node\nmetadata: {}\n", &[], &["1:1: Node has no metadata.name"]);
    check("apiVersion: v1\nkind: Node\nmetadata: {name: n, namespace: x}\n", &["1: Node n"], &[]);
}

#[test]
fn kinds_and_versions() {
    check("metadata: {name: x}\n", &[], &["1:1: no `kind`"]);
    check("apiVersion: v2\nkind: Pod\nmetadata: {name: x}\n", &[], &["Pod has apiVersion \"v2\"; use v1"]);
    check(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n",
        &[],
        &["does not read kind Deployment"],
    );
    for version in ["v1", "v1beta1"] {
        let text = format!(
            "apiVersion: security.istio.io/{version}\nkind: PeerAuthentication\nmetadata: {{name: x}}\n"
        );
        check(&text, &["1: PeerAuthentication default/x"], &[]);
    }
}

#[test]
fn unknown_fields_are_fine_in_pods_and_not_in_policies() {
    check(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, new: 1}\nspec: {new: {a: 1}}\nnew: 1\n",
        &["1: Pod default/p"],
        &[],
    );
    let policy = |spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec:\n{spec}"
        )
    };
    let good = policy("  rules:\n  - from:\n    - source:\n        principals: [a]\n");
    check(&good, &["1: AuthorizationPolicy default/p"], &[]);
    // Ignoring the misspelt condition would let everyone in.
    check(&policy("  rules:\n  - from:\n    - source:\n        principal: [a]\n"), &[], &["8:9: "]);
    check(&policy("  selecter: {}\n"), &[], &["5:3: "]);
    check(&policy("  action: BLOCK\n"), &[], &["5:11: "]);
}
