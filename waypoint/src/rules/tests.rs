//! That a change concerns what it should, and nothing else.

use std::sync::Arc;

use model::l7::{Fault, Moment, Policy, PolicyName, PolicyTarget, Request, Rule, RuleKey, Selected};
use model::service::ServiceName;

use super::{Book, Change, Rules};
use crate::made;

fn rules() -> Rules {
    Rules::new(("shop".into(), "waypoint".into()))
}

fn put(rule: Rule) -> Change {
    Change::Rule(Box::new(rule))
}

/// The rule that `GET <path>` on a port of `web` meets: `None` without any route, else its index if one matches.
fn met(book: &Book, port: u16, path: &str) -> Option<Option<u32>> {
    let request = Request { method: "GET", path, query: None, headers: &(), client: None };
    match book.of(&made::service_name("web")).routes(port).select(&request) {
        Selected::Implicit => None,
        Selected::Rule { rule, .. } => Some(Some(rule.key.index)),
        Selected::Unmatched => Some(None),
    }
}

fn fault(name: &str, target: PolicyTarget) -> Change {
    let fault = Fault { triggers: Vec::new(), delay: None, abort: None, until: Moment(7) };
    let policy = Policy {
        name: PolicyName { namespace: "shop".into(), name: name.into() },
        target,
        created: Moment(1),
        fault: Some(fault),
        balancing: None,
    };
    Change::Policy(name.to_owned(), Box::new(policy))
}

#[test]
fn rules_come_change_and_go() {
    let mut rules = rules();
    let book = rules.apply([put(made::rule(0, "/a", &[])), put(made::rule(1, "/b", &[]))]);
    assert_eq!(met(&book, 80, "/a/x"), Some(Some(0)));
    assert_eq!(met(&book, 80, "/b"), Some(Some(1)));
    assert_eq!(met(&book, 80, "/c"), Some(None));
    assert_eq!(met(&book, 81, "/a"), None, "another port");
    let web = made::service_name("web");
    assert!(book.of(&web).is_http(80, None) && !book.of(&web).is_http(81, None));

    let mut everywhere = made::rule(1, "/b", &[]);
    everywhere.parents[0].port = None;
    let later = rules.apply([put(everywhere)]);
    assert_eq!(met(&later, 81, "/b"), Some(Some(1)), "all ports");
    assert_eq!(met(&later, 80, "/a"), Some(Some(0)));
    assert_eq!(met(&book, 81, "/b"), None, "who has the old book reads the old book");

    let keys = [0, 1].map(|index| made::rule(index, "/", &[]).key);
    let empty = rules.apply(keys.map(Change::Removed));
    assert_eq!(met(&empty, 80, "/a"), None);
    assert!(empty.services().is_empty(), "nothing is kept");
}

#[test]
fn a_rule_that_is_not_understood_any_more_keeps_its_place() {
    let mut rules = rules();
    rules.apply([put(made::rule(0, "/a", &[])), put(made::rule(1, "/", &[]))]);
    let key = made::rule(0, "/a", &[]).key;
    let stranger = RuleKey { index: 9, ..key.clone() };
    let book = rules.apply([Change::Refused(key, "why".into()), Change::Refused(stranger, "why".into())]);
    let request = Request { method: "GET", path: "/a", query: None, headers: &(), client: None };
    let selected = book.of(&made::service_name("web"));
    let Selected::Rule { rule, .. } = selected.routes(80).select(&request) else { panic!("no rule") };
    assert_eq!((rule.key.index, rule.refusal.as_deref()), (0, Some("why")));
}

#[test]
fn a_change_makes_anew_what_it_concerns() {
    let mut rules = rules();
    let mut other = made::rule(5, "/", &[]);
    other.parents[0].service = made::service_name("other");
    let before = rules.apply([put(made::rule(0, "/", &[])), put(other)]);
    let (web, elsewhere) = (made::service_name("web"), made::service_name("other"));
    let same = |a: &Book, b: &Book, of: &ServiceName| Arc::ptr_eq(a.of(of), b.of(of));
    let after = rules.apply([put(made::rule(1, "/b", &[]))]);
    assert!(!same(&before, &after, &web) && same(&before, &after, &elsewhere));
    assert!(Arc::ptr_eq(before.of(&web).ledger(), after.of(&web).ledger()), "what was spent stays spent");

    let policy = rules.apply([fault("f", PolicyTarget::Service(elsewhere.clone()))]);
    assert!(same(&after, &policy, &web) && !same(&after, &policy, &elsewhere));
    assert!(
        std::ptr::eq(after.of(&elsewhere).routes(80), policy.of(&elsewhere).routes(80)),
        "no rule has changed"
    );
    let has_fault = |book: &Book, service: &ServiceName| book.of(service).chosen(None).fault.is_some();
    assert!(has_fault(&policy, &elsewhere) && !has_fault(&policy, &web));
    let gone = rules.apply([Change::PolicyRemoved("f".to_owned())]);
    assert!(!has_fault(&gone, &elsewhere));
}

#[test]
fn a_policy_of_the_waypoint_holds_for_services_that_nobody_speaks_of() {
    let mut rules = rules();
    let gateway = |name: &str| PolicyTarget::Waypoint { namespace: "shop".into(), name: name.into() };
    let key = made::rule(0, "/", &[]).key;
    let has = |book: &Book, rule: Option<&RuleKey>| {
        let web = made::service_name("web");
        book.of(&web).chosen(rule).fault.is_some()
    };
    let book = rules.apply([fault("theirs", gateway("another"))]);
    assert!(!has(&book, None));
    let book = rules.apply([fault("ours", gateway("waypoint"))]);
    assert!(has(&book, None));
    let book = rules.apply([put(made::rule(0, "/", &[]))]);
    assert!(has(&book, Some(&key)), "and for rules that come later");
    let book = rules.apply([Change::PolicyRemoved("ours".to_owned())]);
    assert!(!has(&book, None) && !has(&book, Some(&key)));
    let route = PolicyTarget::Route { kind: key.kind, namespace: "shop".into(), name: "split".into() };
    let book = rules.apply([fault("route", route)]);
    assert!(!has(&book, None) && has(&book, Some(&key)));
}
