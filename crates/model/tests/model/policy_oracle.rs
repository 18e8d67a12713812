//! Policy against a second reading of its rules, written from the description and not from the code; and what must hold
//! whatever the policies say: one more DENY, and one more thing that can't be read, never let anyone in.

use ipnet::IpNet;
use model::policy::{
    Action, Clause, Connection, Denial, Match, Policy, PolicyName, PolicyScope, Rule, ServiceAccountMatch,
    StringMatch,
};
use model::store::{Mesh, Update};
use model::workload::Workload;
use proptest::prelude::*;

use crate::make::{connection, identity, pod, policy_name, text};

/// Whether a policy matches, in words of one syllable.
fn naive_matches(policy: &Policy, c: &Connection) -> bool {
    policy.rules.iter().any(|rule| {
        rule.clauses.iter().all(|clause| {
            clause.matches.is_empty()
                || clause.matches.iter().any(|m| naive_match(m, policy.action == Action::Deny, c))
        })
    })
}

fn naive_match(m: &Match, is_deny: bool, c: &Connection) -> bool {
    if m.unintelligible {
        return is_deny;
    }
    let (principal, namespace, account) = match &c.peer {
        Some(id) => (
            Some(id.to_string().replacen("spiffe://", "", 1)),
            Some(id.namespace.to_string()),
            Some((id.namespace.to_string(), id.service_account.to_string())),
        ),
        None => (None, None, None),
    };
    let string = |m: &StringMatch, value: &Option<String>| match (m, value) {
        (_, None) => false,
        (StringMatch::Exact(want), Some(value)) => **want == **value,
        (StringMatch::Prefix(want), Some(value)) => value.starts_with(&**want),
        (StringMatch::Suffix(want), Some(value)) => value.ends_with(&**want),
        (StringMatch::Presence, Some(_)) => true,
    };
    let accounts = |list: &[ServiceAccountMatch]| {
        list.iter()
            .any(|want| account == Some((want.namespace.to_string(), want.service_account.to_string())))
    };
    let ips = |list: &[IpNet], ip: std::net::IpAddr| list.iter().any(|block| block.contains(&ip));
    // Each kind: is it given, and does it hold?
    let kinds = [
        (!m.namespaces.is_empty(), m.namespaces.iter().any(|m| string(m, &namespace))),
        (!m.not_namespaces.is_empty(), !m.not_namespaces.iter().any(|m| string(m, &namespace))),
        (!m.principals.is_empty(), m.principals.iter().any(|m| string(m, &principal))),
        (!m.not_principals.is_empty(), !m.not_principals.iter().any(|m| string(m, &principal))),
        (!m.service_accounts.is_empty(), accounts(&m.service_accounts)),
        (!m.not_service_accounts.is_empty(), !accounts(&m.not_service_accounts)),
        (!m.source_ips.is_empty(), ips(&m.source_ips, c.client.0.ip())),
        (!m.not_source_ips.is_empty(), !ips(&m.not_source_ips, c.client.0.ip())),
        (!m.destination_ips.is_empty(), ips(&m.destination_ips, c.app.0.ip())),
        (!m.not_destination_ips.is_empty(), !ips(&m.not_destination_ips, c.app.0.ip())),
        (!m.destination_ports.is_empty(), m.destination_ports.contains(&c.app.0.port())),
        (!m.not_destination_ports.is_empty(), !m.not_destination_ports.contains(&c.app.0.port())),
    ];
    kinds.iter().any(|(given, _)| *given) && kinds.iter().all(|(given, holds)| !given || *holds)
}

/// Whether a connection passes, and whether it would with dry-run policies enforced.
fn naive_verdict(policies: &[Policy], destination: &Workload, c: &Connection) -> (bool, bool) {
    let guards = |policy: &&Policy| {
        let by_scope = match policy.scope {
            PolicyScope::Global => true,
            PolicyScope::Namespace => policy.id.namespace == *destination.namespace(),
            PolicyScope::Selector => false,
        };
        by_scope || destination.authorization_policies.contains(&policy.id)
    };
    let known = |name: &PolicyName| policies.iter().any(|policy| policy.id == *name);
    let all_known = destination.authorization_policies.iter().all(known);
    let passes = |with_dry_run: bool| {
        let in_scope: Vec<&Policy> =
            policies.iter().filter(guards).filter(|policy| with_dry_run || !policy.dry_run).collect();
        let denied = in_scope.iter().any(|policy| policy.action == Action::Deny && naive_matches(policy, c));
        let mut allows = in_scope.iter().filter(|policy| policy.action == Action::Allow).peekable();
        let admitted = allows.peek().is_none() || allows.any(|policy| naive_matches(policy, c));
        all_known && !denied && admitted
    };
    (passes(false), passes(true))
}

fn strings(values: &'static [&'static str]) -> impl Strategy<Value = Vec<StringMatch>> {
    let value = prop::sample::select(values);
    let one = (0..4_u8, value).prop_map(|(kind, value)| match kind {
        0 => StringMatch::Exact(text(value)),
        1 => StringMatch::Prefix(text(value)),
        2 => StringMatch::Suffix(text(value)),
        _ => StringMatch::Presence,
    });
    // Mostly absent, or nothing would ever match.
    prop_oneof![3 => Just(vec![]), 1 => prop::collection::vec(one, 1..3)]
}

fn sparse<T: Clone + std::fmt::Debug + 'static>(values: Vec<T>) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![4 => Just(vec![]), 1 => prop::collection::vec(prop::sample::select(values), 1..3)]
}

fn blocks() -> impl Strategy<Value = Vec<IpNet>> {
    let parse = |text: &str| text.parse().expect("a block");
    sparse(["10.0.0.1/32", "10.0.0.2/32", "10.0.0.0/8", "0.0.0.0/0", "::/0"].map(parse).to_vec())
}

fn accounts() -> impl Strategy<Value = Vec<ServiceAccountMatch>> {
    let make = |(namespace, account)| ServiceAccountMatch {
        namespace: text(namespace),
        service_account: text(account),
    };
    sparse([("a", "x"), ("a", "y"), ("b", "x"), ("", "")].map(make).to_vec())
}

fn a_match() -> impl Strategy<Value = Match> {
    const NAMESPACES: &[&str] = &["", "a", "b"];
    const PRINCIPALS: &[&str] =
        &["", "cluster.local/ns/a/sa/x", "cluster.local/ns/a/", "/sa/x", "x", "clusterxlocal/ns/a/sa/x"];
    let peers = (strings(NAMESPACES), strings(NAMESPACES), strings(PRINCIPALS), strings(PRINCIPALS));
    let places = (blocks(), blocks(), blocks(), blocks(), sparse(vec![80, 81]), sparse(vec![80, 81]));
    (peers, places, accounts(), accounts(), prop::bool::weighted(0.1)).prop_map(
        |(peers, places, service_accounts, not_service_accounts, unintelligible)| Match {
            namespaces: peers.0,
            not_namespaces: peers.1,
            principals: peers.2,
            not_principals: peers.3,
            source_ips: places.0,
            not_source_ips: places.1,
            destination_ips: places.2,
            not_destination_ips: places.3,
            destination_ports: places.4,
            not_destination_ports: places.5,
            service_accounts,
            not_service_accounts,
            unintelligible,
        },
    )
}

fn a_policy() -> impl Strategy<Value = Policy> {
    let clause = prop::collection::vec(a_match(), 0..3).prop_map(|matches| Clause { matches });
    let rule = prop::collection::vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    let name = prop::sample::select(&["a/p", "a/q", "b/p", "istio-system/p", "istio-system/q"][..]);
    let scope =
        prop::sample::select(vec![PolicyScope::Global, PolicyScope::Namespace, PolicyScope::Selector]);
    let action = prop::sample::select(vec![Action::Allow, Action::Deny]);
    let rules = prop::collection::vec(rule, 0..3);
    (name, scope, action, rules, prop::bool::weighted(0.2)).prop_map(
        |(name, scope, action, rules, dry_run)| Policy {
            id: policy_name(name),
            scope,
            action,
            rules,
            dry_run,
        },
    )
}

/// Policies of distinct names.
fn policies() -> impl Strategy<Value = Vec<Policy>> {
    prop::collection::vec(a_policy(), 0..4).prop_map(|mut policies| {
        policies.sort_by(|a, b| a.id.cmp(&b.id));
        policies.dedup_by(|a, b| a.id == b.id);
        policies
    })
}

/// A workload of namespace `a` that names some policies, mostly ones that exist.
fn a_destination() -> impl Strategy<Value = Workload> {
    let names = prop::sample::subsequence(vec!["a/p", "a/q", "b/p"], 0..3);
    prop_oneof![2 => Just(vec![]), 1 => names].prop_map(|names| Workload {
        authorization_policies: names.into_iter().map(policy_name).collect(),
        ..pod("a/api", &["10.0.0.2"])
    })
}

fn a_connection() -> impl Strategy<Value = Connection> {
    let peers = vec![None, Some(("a", "x")), Some(("a", "y")), Some(("b", "x"))];
    (prop::sample::select(peers), prop::sample::select(vec![80, 81, 82])).prop_map(|(peer, port)| {
        connection(peer.map(|(namespace, account)| identity(namespace, account)), port)
    })
}

fn mesh(policies: &[Policy]) -> Mesh {
    let mut mesh = Mesh::default();
    mesh.apply(policies.iter().cloned().map(Update::Policy));
    mesh
}

fn matches_of(policies: &mut [Policy]) -> impl Iterator<Item = &mut Match> {
    let rules = policies.iter_mut().flat_map(|policy| &mut policy.rules);
    rules.flat_map(|rule| &mut rule.clauses).flat_map(|clause| &mut clause.matches)
}

fn passes(policies: &[Policy], destination: &Workload, c: &Connection) -> bool {
    mesh(policies).authorize(destination, c.clone()).enforced.is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3072))]

    #[test]
    fn verdicts_agree_with_a_second_reading(policies in policies(), destination in a_destination(), c in a_connection()) {
        let verdict = mesh(&policies).authorize(&destination, c.clone());
        let (enforced, with_dry_run) = naive_verdict(&policies, &destination, &c);
        prop_assert_eq!(verdict.enforced.is_ok(), enforced, "{:?}", verdict);
        prop_assert_eq!(verdict.dry_run.is_some(), enforced && !with_dry_run, "{:?}", verdict);
        if let Err(Denial::ByPolicy(name)) = &verdict.enforced {
            let policy = policies.iter().find(|policy| policy.id == *name).expect("a policy of the world");
            prop_assert!(policy.action == Action::Deny && !policy.dry_run && naive_matches(policy, &c));
        }
        if let Ok(permit) = &verdict.enforced {
            prop_assert_eq!(permit.connection(), &c);
        }
    }

    #[test]
    fn one_more_deny_never_allows_more(
        policies in policies(), more in a_policy(), destination in a_destination(), c in a_connection()
    ) {
        let more = Policy { id: policy_name("istio-system/more"), action: Action::Deny, ..more };
        let with: Vec<Policy> = policies.iter().cloned().chain([more]).collect();
        prop_assert!(passes(&policies, &destination, &c) || !passes(&with, &destination, &c));
    }

    /// A match that lost conditions to a reader that did not understand them, whichever they were, and says so.
    #[test]
    fn what_cannot_be_read_never_allows_more(
        policies in policies().prop_filter("has a match", |policies| matches_of(&mut policies.clone()).next().is_some()),
        place in any::<prop::sample::Index>(), left in a_match(),
        destination in a_destination(), c in a_connection()
    ) {
        let mut damaged = policies.clone();
        let mut matches: Vec<&mut Match> = matches_of(&mut damaged).collect();
        let place = place.index(matches.len());
        *matches[place] = Match { unintelligible: true, ..left };
        prop_assert!(passes(&policies, &destination, &c) || !passes(&damaged, &destination, &c));
    }

    #[test]
    fn a_policy_that_is_refused_never_allows_more(
        policies in policies().prop_filter("not empty", |policies| !policies.is_empty()),
        place in any::<prop::sample::Index>(), destination in a_destination(), c in a_connection()
    ) {
        let refused = policies[place.index(policies.len())].clone();
        let mut after = mesh(&policies);
        after.apply([Update::PolicyUnenforceable(refused.id.clone(), text("why"))]);
        let allowed_after = after.authorize(&destination, c.clone()).enforced.is_ok();
        // One of another namespace that is enforced everywhere is the exception: its name does not say where it reached.
        prop_assume!(refused.scope != PolicyScope::Global || &*refused.id.namespace == "istio-system");
        prop_assert!(passes(&policies, &destination, &c) || !allowed_after);
    }
}
