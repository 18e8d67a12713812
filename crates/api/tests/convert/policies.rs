//! Policies: whatever can't be understood is marked, never left out.

use api::{Invalid, decode, encode, security, type_url};
use model::policy::{Action, Match, Policy, PolicyName, Rule};
use model::store::Update;
use prost::Message;
use prost_types::Any;

/// What a policy is after it was sent: unintelligible matches keep their meaning, not every one of their conditions.
pub(crate) fn as_sent(mut policy: Policy) -> Policy {
    let action = policy.action;
    let matches = policy.rules.iter_mut().flat_map(|r| &mut r.clauses).flat_map(|c| &mut c.matches);
    for m in matches.filter(|m| m.unintelligible) {
        let blank = Match { unintelligible: true, ..Match::default() };
        match action {
            Action::Allow => *m = blank,
            Action::Deny if *m == blank => m.not_destination_ports.push(0),
            Action::Deny => {}
        }
    }
    policy
}

/// A length-delimited field, as protobuf encodes it.
fn field(number: u8, body: &[u8]) -> Vec<u8> {
    let length = u8::try_from(body.len()).expect("short enough for one byte");
    assert!(number < 16 && length < 128);
    [&[number << 3 | 2, length], body].concat()
}

/// `shop/p`, ALLOW, with this body of its only rule.
fn policy_with_rule(rule: &[u8]) -> Vec<u8> {
    [field(1, b"p"), field(2, b"shop"), field(5, rule)].concat()
}

fn policy_with_match(m: &[u8]) -> Vec<u8> {
    policy_with_rule(&field(1, &field(2, m)))
}

fn decoded(body: Vec<u8>) -> Policy {
    let body = Any { type_url: type_url::AUTHORIZATION.to_owned(), value: body };
    match decode::authorization("shop/p", &body) {
        Ok(Update::Policy(policy)) => policy,
        other => panic!("expected a policy, got {other:?}"),
    }
}

fn only_match(policy: &Policy) -> &Match {
    &policy.rules[0].clauses[0].matches[0]
}

#[test]
fn what_is_understood_is_not_marked() {
    let string = field(1, b"shop");
    let address = [field(1, &[10, 0, 0, 0]), vec![2 << 3, 8]].concat();
    let account = [field(1, b"shop"), field(2, b"cart")].concat();
    let m = [field(1, &string), field(5, &address), field(9, &[80]), field(11, &account)].concat();
    let policy = decoded(policy_with_match(&m));
    let m = only_match(&policy);
    assert!(!m.unintelligible);
    assert_eq!((m.namespaces.len(), m.source_ips.len(), m.service_accounts.len()), (1, 1, 1));
    assert_eq!(m.destination_ports, [80]);
}

#[test]
fn unknown_and_malformed_conditions_mark_their_match() {
    let newer_field = field(14, b"?");
    let extension = field(13, b"");
    let newer_kind_of_string = field(1, &field(5, b"?"));
    let empty_string_match = field(3, b"");
    let newer_account_field = field(11, &[field(1, b"shop"), field(2, b"cart"), field(3, b"td")].concat());
    let bad_address = field(5, &field(1, &[10, 0, 0]));
    let bad_length = field(5, &[field(1, &[10, 0, 0, 0]), vec![2 << 3, 33]].concat());
    let newer_address_field = field(7, &[field(1, &[10, 0, 0, 0]), vec![2 << 3, 8], field(3, b"?")].concat());
    let big_port = field(9, &[0xd0, 0x80, 0x04]); // 65536 + 80
    let nameless_account = field(11, &field(1, b"shop"));
    let conditions = [
        newer_field,
        extension,
        newer_kind_of_string,
        empty_string_match,
        newer_account_field,
        bad_address,
        bad_length,
        newer_address_field,
        big_port,
        nameless_account,
    ];
    for condition in conditions {
        let with_a_known_one = [field(10, &[22]), condition.clone()].concat();
        let policy = decoded(policy_with_match(&with_a_known_one));
        let m = only_match(&policy);
        assert!(m.unintelligible, "{condition:?}");
        assert_eq!(m.not_destination_ports, [22], "what is understood stays");
    }
}

#[test]
fn a_rule_with_an_unknown_demand_gets_one_more_clause() {
    let known = field(1, &field(2, &field(9, &[80])));
    let policy = decoded(policy_with_rule(&[known, field(2, b"?")].concat()));
    let [Rule { clauses }] = policy.rules.as_slice() else { panic!("one rule: {policy:?}") };
    assert_eq!(clauses.len(), 2);
    assert!(!clauses[0].matches[0].unintelligible);
    assert!(clauses[1].matches[0].unintelligible, "all clauses must hold, and this one can't be read");
}

#[test]
fn a_clause_with_an_unknown_alternative_is_unreadable_as_a_whole() {
    let clause = [field(2, &field(9, &[80])), field(3, b"?")].concat();
    let policy = decoded(policy_with_rule(&field(1, &clause)));
    assert_eq!(policy.rules[0].clauses[0].matches, [Match { unintelligible: true, ..Match::default() }]);
}

#[test]
fn a_group_or_a_truncated_field_counts_as_unknown() {
    // A group (wire types 3 and 4) that the decoder skips.
    let group = [field(9, &[80]), vec![15 << 3 | 3, 15 << 3 | 4]].concat();
    assert!(only_match(&decoded(policy_with_match(&group))).unintelligible);
    // In a rule it hides where the next clause begins: nothing of the rule is relied on.
    let clause = field(1, &field(2, &field(14, b"?")));
    let rule = [vec![15 << 3 | 3, 15 << 3 | 4], clause].concat();
    let unreadable = Match { unintelligible: true, ..Match::default() };
    let policy = decoded(policy_with_rule(&rule));
    assert_eq!(policy.rules[0].clauses, [model::policy::Clause { matches: vec![unreadable] }]);
}

fn refused(name: &str, body: Vec<u8>) -> (Option<String>, Invalid) {
    let body = Any { type_url: type_url::AUTHORIZATION.to_owned(), value: body };
    let error = decode::authorization(name, &body).expect_err("refused");
    let guarded = match error.update() {
        Some(Update::PolicyUnenforceable(name, reason)) => {
            assert_eq!(*reason, error.why.to_string());
            Some(name.to_string())
        }
        None => None,
        other => panic!("a refused policy only becomes unenforceable: {other:?}"),
    };
    (guarded, error.why)
}

#[test]
fn a_refused_policy_stays_known_as_unenforceable() {
    let named =
        security::Authorization { name: "p".to_owned(), namespace: "shop".to_owned(), ..Default::default() };
    let unknown_scope = security::Authorization { scope: 3, ..named.clone() };
    let unknown_action = security::Authorization { action: 2, ..named.clone() };
    let extension =
        security::Authorization { extensions: vec![api::workload::Extension::default()], ..named.clone() };
    for policy in [unknown_scope, unknown_action, extension] {
        let (guarded, _) = refused("shop/p", policy.encode_to_vec());
        assert_eq!(guarded.as_deref(), Some("shop/p"));
    }
    let newer = [named.encode_to_vec(), field(8, b"?")].concat();
    let (guarded, why) = refused("shop/p", newer);
    assert_eq!(guarded.as_deref(), Some("shop/p"));
    assert!(matches!(why, Invalid::UnknownField { number: 8, .. }), "{why:?}");

    let (guarded, _) = refused("shop/p", b"\xff\xff".to_vec());
    assert_eq!(guarded.as_deref(), Some("shop/p"), "not even protobuf, but its name says what it may guard");
    let (guarded, why) = refused("shop/other", named.encode_to_vec());
    assert_eq!(guarded.as_deref(), Some("shop/other"));
    assert!(matches!(why, Invalid::Name { .. }), "{why:?}");
    let (guarded, _) = refused("", named.encode_to_vec());
    assert_eq!(guarded.as_deref(), Some("shop/p"), "its body says what it may guard");
}

/// Another proxy drops a condition that it can't read. What we send must not allow more there.
#[test]
fn an_unreadable_match_is_harmless_to_a_proxy_that_drops_conditions() {
    for (action, expect_conditions) in [(Action::Allow, false), (Action::Deny, true)] {
        let m = Match { unintelligible: true, ..Match::default() };
        let policy = Policy {
            id: PolicyName { namespace: "shop".into(), name: "p".into() },
            scope: model::policy::PolicyScope::Namespace,
            action,
            rules: vec![Rule { clauses: vec![model::policy::Clause { matches: vec![m] }] }],
            dry_run: false,
        };
        let sent = encode::policy(&policy);
        let wire = security::Authorization::decode(sent.body.value.as_slice()).expect("our own");
        let mut m = wire.rules[0].clauses[0].matches[0].clone();
        m.principals.retain(|p| p.match_type.is_some());
        // An empty match matches nothing there; one with a condition that always holds matches everything.
        assert_eq!(m != security::Match::default(), expect_conditions);
    }
}
