//! AuthorizationPolicy: conditions, actions, scopes.

use super::{Court, authorization, policy};

/// Everybody whose connections node proxies can judge.
const ALL: [&str; 4] = ["alice", "bob", "carol", "mallory"];

/// Conditions, and who meets them.
const CONDITIONS: [(&str, &str); 26] = [
    ("from: [{source: {principals: [cluster.local/ns/shop/sa/alice]}}]", "alice"),
    ("from: [{source: {principals: ['cluster.local/ns/shop/*']}}]", "alice bob"),
    ("from: [{source: {principals: ['*/sa/carol']}}]", "carol"),
    ("from: [{source: {principals: ['*']}}]", "alice bob carol"),
    ("from: [{source: {principals: [cluster.local/ns/shop/sa/alic]}}]", ""),
    // Who proves nothing is not alice either.
    ("from: [{source: {notPrincipals: [cluster.local/ns/shop/sa/alice]}}]", "bob carol mallory"),
    ("from: [{source: {notPrincipals: ['*']}}]", "mallory"),
    ("from: [{source: {namespaces: [shop]}}]", "alice bob"),
    ("from: [{source: {namespaces: ['*']}}]", "alice bob carol"),
    ("from: [{source: {notNamespaces: [bank]}}]", "alice bob mallory"),
    ("from: [{source: {serviceAccounts: [alice, bank/carol]}}]", "alice carol"),
    ("from: [{source: {notServiceAccounts: [shop/bob]}}]", "alice carol mallory"),
    ("from: [{source: {ipBlocks: [$alice, $mallory]}}]", "alice mallory"),
    ("from: [{source: {ipBlocks: [10.244.0.0/16]}}]", "alice:8080 bob:8080 carol:8080 mallory:8080"),
    ("from: [{source: {notIpBlocks: [$alice]}}]", "bob carol mallory"),
    ("to: [{operation: {ports: ['8080']}}]", "alice:8080 bob:8080 carol:8080 mallory:8080"),
    // The port of the pod, not the service's.
    ("to: [{operation: {ports: ['81']}}]", ""),
    ("to: [{operation: {notPorts: ['8080']}}]", "alice:8081 bob:8081 carol:8081 mallory:8081"),
    ("when: [{key: source.ip, values: [$bob]}]", "bob"),
    ("when: [{key: destination.ip, values: [$near, $far]}]", "alice bob carol mallory"),
    ("when: [{key: destination.port, notValues: ['8081']}]", "alice:8080 bob:8080 carol:8080 mallory:8080"),
    ("when: [{key: source.principal, notValues: ['*/sa/bob']}]", "alice carol mallory"),
    ("when: [{key: source.namespace, values: [bank]}]", "carol"),
    // All kinds of a source, a source and an operation, and every condition must hold; of several sources one.
    (
        "from: [{source: {namespaces: [shop], notPrincipals: ['*bob']}}], to: [{operation: {ports: ['8081']}}]",
        "alice:8081",
    ),
    ("from: [{source: {ipBlocks: [$bob]}}, {source: {namespaces: [bank]}}]", "bob carol"),
    ("from: [{source: {namespaces: [shop]}}], when: [{key: source.ip, values: [$alice, $carol]}]", "alice"),
];

#[test]
fn an_allow_policy_lets_in_those_who_meet_its_conditions() {
    let court = Court::start();
    court.check("no policy", &ALL.join(" "));
    for (at, (condition, met)) in CONDITIONS.into_iter().enumerate() {
        let name = format!("allow-{at}");
        court.decree(
            &authorization(&name, &format!("action: ALLOW, rules: [{{{condition}}}]")),
            &[&format!("shop/{name}")],
        );
        court.check(&format!("ALLOW {condition}"), met);
    }
    court.mesh.lab.delete_yaml("decree.yaml").expect("our own file");
    court.until_guarded_by(&[]);
    court.check("no policy any more", &ALL.join(" "));
}

#[test]
fn a_deny_policy_keeps_out_those_who_meet_its_conditions() {
    let court = Court::start();
    for (at, (condition, met)) in CONDITIONS.into_iter().enumerate() {
        let name = format!("deny-{at}");
        court.decree(
            &authorization(&name, &format!("action: DENY, rules: [{{{condition}}}]")),
            &[&format!("shop/{name}")],
        );
        let met: Vec<_> = met.split_whitespace().flat_map(super::callers).collect();
        let others = ALL.into_iter().flat_map(super::callers).filter(|caller| !met.contains(caller));
        let others: Vec<String> = others.map(|(name, port)| format!("{name}:{port}")).collect();
        court.check(&format!("DENY {condition}"), &others.join(" "));
    }
}

#[test]
fn policies_add_up() {
    let court = Court::start();
    let alice_and_bob = "rules: [{from: [{source: {serviceAccounts: [alice, bob]}}]}]";
    for (case, policies, allowed) in [
        ("a policy without rules allows nobody", vec![("none", "action: ALLOW")], ""),
        ("an empty spec too", vec![("empty", "")], ""),
        ("an empty rule allows everybody", vec![("everybody", "rules: [{}]")], "alice bob carol mallory"),
        ("a DENY without rules denies nobody", vec![("nobody", "action: DENY")], "alice bob carol mallory"),
        ("an empty rule denies everybody", vec![("everybody", "action: DENY, rules: [{}]")], ""),
        (
            "one of two ALLOWs is enough",
            vec![("one", alice_and_bob), ("two", "rules: [{from: [{source: {namespaces: [bank]}}]}]")],
            "alice bob carol",
        ),
        (
            "DENY wins over ALLOW",
            vec![
                ("one", alice_and_bob),
                ("two", "action: DENY, rules: [{to: [{operation: {ports: ['8081']}}]}]"),
            ],
            "alice:8080 bob:8080",
        ),
        (
            "several rules are alternatives",
            vec![(
                "rules",
                "rules: [{from: [{source: {serviceAccounts: [bob]}}]}, {to: [{operation: {ports: ['8080']}}]}]",
            )],
            "alice:8080 bob carol:8080 mallory:8080",
        ),
        (
            "what needs HTTP allows nothing",
            vec![(
                "get",
                "rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {methods: [GET]}}]}]",
            )],
            "",
        ),
        (
            "what needs HTTP counts as met in a DENY",
            vec![(
                "get",
                "action: DENY, rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {methods: [GET]}}]}]",
            )],
            "carol mallory",
        ),
        (
            "a value that can't be read allows nothing",
            vec![(
                "typo",
                "rules: [{to: [{operation: {ports: ['808O']}}]}, {from: [{source: {ipBlocks: [$alice, 10.0.0]}}]}]",
            )],
            "",
        ),
        (
            "a value that can't be read counts as met in a DENY",
            vec![(
                "typo",
                "action: DENY, rules: [{from: [{source: {namespaces: [bank], ipBlocks: [10.0.0]}}]}]",
            )],
            "alice bob mallory",
        ),
    ] {
        let yaml: String = policies.iter().map(|(name, spec)| authorization(name, spec)).collect();
        let names: Vec<String> = policies.iter().map(|(name, _)| format!("shop/{name}")).collect();
        // Their names recur, so the ones before have to be gone.
        court.decree("", &[]);
        court.decree(&yaml, &names.iter().map(String::as_str).collect::<Vec<_>>());
        court.check(case, allowed);
    }
}

#[test]
fn a_policy_guards_what_its_place_says() {
    let court = Court::start();
    let nobody_but_bank = "rules: [{from: [{source: {namespaces: [bank]}}]}]";
    for (case, name, allowed) in [
        ("the namespace's", "shop/all", "carol"),
        ("another namespace's", "bank/all", "alice bob carol mallory"),
        ("the mesh's", "istio-system/all", "carol"),
    ] {
        court.decree("", &[]);
        court.until_in_force(&[]);
        court.decree(&policy("AuthorizationPolicy", name, nobody_but_bank), &[]);
        court.until_in_force(&[name]);
        court.check(case, allowed);
    }
    // A selector in the root namespace selects in every namespace; one that selects nobody guards nobody.
    court.decree("", &[]);
    court.until_in_force(&[]);
    let selecting = |label: &str| format!("selector: {{matchLabels: {{app: {label}}}}}, {nobody_but_bank}");
    let yaml = policy("AuthorizationPolicy", "shop/nobody", &selecting("nobody"));
    court.mesh.lab.apply_yaml("decree.yaml", &yaml).expect("a file");
    court.until_known("shop/nobody");
    court.check("nobody's", "alice bob carol mallory");
}
