//! Policy by example.

use model::identity::Identity;
use model::policy::{
    Action, Allowed, Clause, Denial, Match, Policy, PolicyScope, Rule, ServiceAccountMatch, StringMatch,
};
use model::store::{Mesh, Update};

use crate::make::{connection, exact, identity, pod, policy, policy_name, text};

/// The verdict on a connection to port 80 of pod `pay/api`, which names `names` as its policies.
fn check(updates: &[Update], names: &[&str], peer: Option<Identity>, expected: Result<Allowed, Denial>) {
    let (enforced, dry_run) = verdict(updates, names, peer);
    assert_eq!(enforced, expected, "{updates:#?}");
    assert_eq!(dry_run, None, "{updates:#?}");
}

fn verdict(
    updates: &[Update],
    names: &[&str],
    peer: Option<Identity>,
) -> (Result<Allowed, Denial>, Option<Denial>) {
    let mut mesh = Mesh::default();
    mesh.apply(updates.iter().cloned());
    let mut destination = pod("pay/api", &["10.0.0.2"]);
    destination.authorization_policies = names.iter().map(|name| policy_name(name)).collect();
    let verdict = mesh.authorize(&destination, connection(peer, 80));
    (verdict.enforced.map(|permit| permit.reason().clone()), verdict.dry_run)
}

fn deny(name: &str, scope: PolicyScope, m: Match) -> Update {
    Update::Policy(policy(name, scope, Action::Deny, m))
}

fn allow(name: &str, scope: PolicyScope, m: Match) -> Update {
    Update::Policy(policy(name, scope, Action::Allow, m))
}

fn dry(update: Update) -> Update {
    let Update::Policy(policy) = update else { panic!("not a policy") };
    Update::Policy(Policy { dry_run: true, ..policy })
}

fn from_namespace(namespace: &str) -> Match {
    Match { namespaces: vec![exact(namespace)], ..Match::default() }
}

fn shop() -> Option<Identity> {
    Some(identity("shop", "cart"))
}

fn denied(name: &str) -> Result<Allowed, Denial> {
    Err(Denial::ByPolicy(policy_name(name)))
}

fn allowed(name: &str) -> Result<Allowed, Denial> {
    Ok(Allowed::By(policy_name(name)))
}

fn not_allowed(names: &[&str]) -> Denial {
    Denial::NotAllowed(names.iter().map(|name| policy_name(name)).collect())
}

use PolicyScope::{Global, Namespace, Selector};

#[test]
fn without_policy_everything_passes() {
    check(&[], &[], shop(), Ok(Allowed::NoPolicy));
    check(&[], &[], None, Ok(Allowed::NoPolicy));
}

#[test]
fn deny_wins_over_allow() {
    let both = [
        allow("pay/yes", Namespace, from_namespace("shop")),
        deny("pay/no", Namespace, from_namespace("shop")),
    ];
    check(&both, &[], shop(), denied("pay/no"));
    check(&both, &[], Some(identity("other", "x")), Err(not_allowed(&["pay/yes"])));
}

#[test]
fn one_allow_is_enough_and_one_is_needed() {
    let two =
        [allow("pay/a", Namespace, from_namespace("a")), allow("pay/b", Namespace, from_namespace("shop"))];
    check(&two, &[], shop(), allowed("pay/b"));
    check(&two, &[], None, Err(not_allowed(&["pay/a", "pay/b"])));
}

#[test]
fn scopes() {
    let m = || from_namespace("shop");
    check(&[deny("istio-system/g", Global, m())], &[], shop(), denied("istio-system/g"));
    check(&[deny("pay/n", Namespace, m())], &[], shop(), denied("pay/n"));
    check(&[deny("else/n", Namespace, m())], &[], shop(), Ok(Allowed::NoPolicy));
    check(&[deny("pay/s", Selector, m())], &[], shop(), Ok(Allowed::NoPolicy));
    check(&[deny("pay/s", Selector, m())], &["pay/s"], shop(), denied("pay/s"));
    check(&[deny("istio-system/s", Selector, m())], &["istio-system/s"], shop(), denied("istio-system/s"));
    // Named counts whatever the scope says, and in scope twice counts once.
    check(&[deny("else/n", Namespace, m())], &["else/n"], shop(), denied("else/n"));
    let once = [allow("pay/n", Namespace, m())];
    check(&once, &["pay/n"], None, Err(not_allowed(&["pay/n"])));
}

#[test]
fn a_policy_that_is_named_and_not_known_denies() {
    check(
        &[],
        &["istio-system/strict"],
        shop(),
        Err(Denial::PolicyUnknown(policy_name("istio-system/strict"))),
    );
    let yes = allow("pay/yes", Namespace, from_namespace("shop"));
    check(&[yes], &["pay/x"], shop(), Err(Denial::PolicyUnknown(policy_name("pay/x"))));
    // A DENY that matches is the more certain reason.
    let no = deny("pay/no", Namespace, from_namespace("shop"));
    check(&[no], &["pay/x"], shop(), denied("pay/no"));
}

#[test]
fn a_policy_that_cannot_be_enforced_denies_what_it_may_guard() {
    let refused = |name: &str| Update::PolicyUnenforceable(policy_name(name), text("bad port"));
    let because = |name: &str| Err(Denial::PolicyUnenforceable(policy_name(name), text("bad port")));
    check(&[refused("pay/x")], &[], shop(), because("pay/x"));
    check(&[refused("istio-system/x")], &[], shop(), because("istio-system/x"));
    check(&[refused("else/x")], &[], shop(), Ok(Allowed::NoPolicy));
    check(&[refused("else/x")], &["else/x"], shop(), because("else/x"));
    // A good version does not survive a refused one, and a refused one gives way to a good one or to removal.
    let good = || allow("pay/x", Namespace, from_namespace("shop"));
    check(&[good(), refused("pay/x")], &[], shop(), because("pay/x"));
    check(&[refused("pay/x"), good()], &[], shop(), allowed("pay/x"));
    check(
        &[refused("pay/x"), Update::PolicyRemoved(policy_name("pay/x"))],
        &[],
        shop(),
        Ok(Allowed::NoPolicy),
    );
}

#[test]
fn the_root_namespace_is_a_setting() {
    let refused = Update::PolicyUnenforceable(policy_name("mesh/x"), text("why"));
    let destination = pod("pay/api", &["10.0.0.2"]);
    for (root, passes) in [("mesh", false), ("istio-system", true)] {
        let mut mesh = Mesh::new(root);
        mesh.apply([refused.clone()]);
        assert_eq!(
            mesh.authorize(&destination, connection(None, 80)).enforced.is_ok(),
            passes,
            "root {root}"
        );
    }
}

#[test]
fn emptiness_at_every_level() {
    let with = |rules| {
        let id = policy_name("pay/p");
        Update::Policy(Policy { id, scope: Namespace, action: Action::Deny, rules, dry_run: false })
    };
    let clause = |matches| Clause { matches };
    check(&[with(vec![])], &[], shop(), Ok(Allowed::NoPolicy));
    check(&[with(vec![Rule { clauses: vec![] }])], &[], shop(), denied("pay/p"));
    check(&[with(vec![Rule { clauses: vec![clause(vec![])] }])], &[], shop(), denied("pay/p"));
    let nothing = vec![Rule { clauses: vec![clause(vec![Match::default()])] }];
    check(&[with(nothing)], &[], shop(), Ok(Allowed::NoPolicy));
    // ALLOW of nothing: guards, and lets nobody in.
    let allow_nothing = Policy {
        id: policy_name("pay/p"),
        scope: Namespace,
        action: Action::Allow,
        rules: vec![],
        dry_run: false,
    };
    check(&[Update::Policy(allow_nothing)], &[], shop(), Err(not_allowed(&["pay/p"])));
}

#[test]
fn plaintext_satisfies_no_positive_condition_and_every_negative_one() {
    let positive = |m| check(&[deny("pay/p", Namespace, m)], &[], None, Ok(Allowed::NoPolicy));
    let negative = |m| check(&[deny("pay/p", Namespace, m)], &[], None, denied("pay/p"));
    let account = || vec![ServiceAccountMatch { namespace: text(""), service_account: text("") }];
    for m in [exact(""), StringMatch::Prefix(text("")), StringMatch::Suffix(text("")), StringMatch::Presence]
    {
        positive(Match { principals: vec![m.clone()], ..Match::default() });
        positive(Match { namespaces: vec![m.clone()], ..Match::default() });
        negative(Match { not_principals: vec![m.clone()], ..Match::default() });
        negative(Match { not_namespaces: vec![m], ..Match::default() });
    }
    positive(Match { service_accounts: account(), ..Match::default() });
    negative(Match { not_service_accounts: account(), ..Match::default() });
}

#[test]
fn strict_mutual_tls_with_a_port_exception() {
    let strict = Match { not_principals: vec![StringMatch::Presence], ..Match::default() };
    let exception = |port| Match { not_destination_ports: vec![port], ..Match::default() };
    let merged = |port| {
        let clauses =
            vec![Clause { matches: vec![strict.clone()] }, Clause { matches: vec![exception(port)] }];
        let id = policy_name("pay/strict");
        let rules = vec![Rule { clauses }];
        Update::Policy(Policy { id, scope: Selector, action: Action::Deny, rules, dry_run: false })
    };
    check(&[merged(80)], &["pay/strict"], None, Ok(Allowed::NoPolicy));
    check(&[merged(81)], &["pay/strict"], None, denied("pay/strict"));
    check(&[merged(81)], &["pay/strict"], shop(), Ok(Allowed::NoPolicy));
}

#[test]
fn every_kind_of_condition() {
    let matches = |m: Match| check(&[allow("pay/p", Namespace, m)], &[], shop(), allowed("pay/p"));
    let differs =
        |m: Match| check(&[allow("pay/p", Namespace, m)], &[], shop(), Err(not_allowed(&["pay/p"])));
    let block = |text: &str| vec![text.parse().expect("a block")];
    let account = |namespace: &str, account: &str| {
        vec![ServiceAccountMatch { namespace: text(namespace), service_account: text(account) }]
    };
    let principal = |m: StringMatch| Match { principals: vec![m], ..Match::default() };

    matches(principal(exact("cluster.local/ns/shop/sa/cart")));
    differs(principal(exact("spiffe://cluster.local/ns/shop/sa/cart")));
    differs(principal(exact("cluster-local/ns/shop/sa/cart")));
    // A dot is a dot.
    differs(principal(exact("cluster.local/ns/shop/sa/c.rt")));
    matches(principal(StringMatch::Prefix(text("cluster.local/ns/shop/"))));
    matches(principal(StringMatch::Suffix(text("/sa/cart"))));
    differs(principal(StringMatch::Suffix(text("xcart"))));
    matches(principal(StringMatch::Presence));
    matches(Match { namespaces: vec![exact("x"), exact("shop")], ..Match::default() });
    differs(Match { namespaces: vec![exact("sho")], ..Match::default() });
    differs(Match { not_namespaces: vec![exact("x"), exact("shop")], ..Match::default() });
    matches(Match { service_accounts: account("shop", "cart"), ..Match::default() });
    differs(Match { service_accounts: account("shop", "car"), ..Match::default() });
    differs(Match { service_accounts: account("other", "cart"), ..Match::default() });
    differs(Match { not_service_accounts: account("shop", "cart"), ..Match::default() });
    matches(Match { source_ips: block("10.0.0.0/24"), ..Match::default() });
    differs(Match { source_ips: block("10.0.1.0/24"), ..Match::default() });
    differs(Match { not_source_ips: block("10.0.0.1/32"), ..Match::default() });
    matches(Match { destination_ips: block("10.0.0.2/32"), ..Match::default() });
    differs(Match { destination_ips: block("10.0.0.1/32"), ..Match::default() });
    differs(Match { not_destination_ips: block("0.0.0.0/0"), ..Match::default() });
    matches(Match { not_source_ips: block("::/0"), ..Match::default() });
    matches(Match { destination_ports: vec![443, 80], ..Match::default() });
    differs(Match { destination_ports: vec![443], ..Match::default() });
    differs(Match { not_destination_ports: vec![80], ..Match::default() });
    // All kinds together, and one that fails.
    let both = Match { namespaces: vec![exact("shop")], destination_ports: vec![80], ..Match::default() };
    matches(both.clone());
    differs(Match { destination_ports: vec![81], ..both.clone() });
    differs(Match { not_source_ips: block("10.0.0.0/8"), ..both });
}

#[test]
fn what_cannot_be_read_never_lets_anyone_in() {
    let unreadable = |m: Match| Match { unintelligible: true, ..m };
    let port = |port| Match { destination_ports: vec![port], ..Match::default() };
    check(&[allow("pay/p", Namespace, unreadable(port(80)))], &[], shop(), Err(not_allowed(&["pay/p"])));
    check(&[deny("pay/p", Namespace, unreadable(port(80)))], &[], shop(), denied("pay/p"));
    // Nobody knows whether the list of ports is whole.
    check(&[deny("pay/p", Namespace, unreadable(port(81)))], &[], shop(), denied("pay/p"));
    check(&[deny("pay/p", Namespace, unreadable(Match::default()))], &[], shop(), denied("pay/p"));
}

#[test]
fn dry_run_is_reported_and_never_enforced() {
    let dry_deny = || dry(deny("pay/dry", Namespace, from_namespace("shop")));
    let dry_allow = |namespace| dry(allow("pay/dry", Namespace, from_namespace(namespace)));
    let would = Denial::ByPolicy(policy_name("pay/dry"));
    let report = |updates: &[Update]| verdict(updates, &[], shop());

    assert_eq!(report(&[dry_deny()]), (Ok(Allowed::NoPolicy), Some(would)));
    assert_eq!(report(&[dry_allow("shop")]), (Ok(Allowed::NoPolicy), None));
    assert_eq!(report(&[dry_allow("other")]), (Ok(Allowed::NoPolicy), Some(not_allowed(&["pay/dry"]))));
    // An enforced ALLOW that matched would still match.
    let yes = || allow("pay/yes", Namespace, from_namespace("shop"));
    assert_eq!(report(&[yes(), dry_allow("other")]), (allowed("pay/yes"), None));
    // A dry-run ALLOW lets nobody in.
    let no = || allow("pay/no", Namespace, from_namespace("other"));
    assert_eq!(report(&[no(), dry_allow("shop")]), (Err(not_allowed(&["pay/no"])), None));
}

#[test]
fn a_permit_says_for_what() {
    let mesh = Mesh::default();
    let asked = connection(shop(), 80);
    let verdict = mesh.authorize(&pod("pay/api", &["10.0.0.2"]), asked.clone());
    assert_eq!(verdict.enforced.expect("allowed").connection(), &asked);
}

#[test]
fn an_ipv4_mapped_client_is_the_ipv4_client() {
    let mut mesh = Mesh::default();
    let block = Match { source_ips: vec!["10.0.0.0/24".parse().expect("a block")], ..Match::default() };
    mesh.apply([deny("pay/p", Namespace, block)]);
    let mut asked = connection(shop(), 80);
    asked.client.0 = crate::make::addr("[::ffff:10.0.0.1]:40000");
    assert!(mesh.authorize(&pod("pay/api", &["10.0.0.2"]), asked).enforced.is_err());
}
