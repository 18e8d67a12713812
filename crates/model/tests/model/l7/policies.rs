//! Several traffic policies: the narrowest has its say, setting by setting.

use model::l7::{
    Balancing, Fault, Moment, Place, Policy, PolicyName, PolicyTarget, RouteKind, RuleKey, Settings,
};
use model::service::ServiceName;

use super::make::echo;

fn key(name: &str, index: u32) -> RuleKey {
    RuleKey { kind: RouteKind::Http, namespace: "shop".into(), name: name.into(), index }
}

fn policy(name: &str, target: PolicyTarget, created: u64) -> Policy {
    let fault = Fault { triggers: vec![], delay: None, abort: None, until: Moment(9) };
    let name = PolicyName { namespace: "shop".into(), name: name.into() };
    Policy { name, target, created: Moment(created), fault: Some(fault), balancing: Some(Balancing::Random) }
}

/// One policy for each width, the widest the oldest, and for others of the same kind.
fn policies() -> Vec<Policy> {
    let route = |name: &str| PolicyTarget::Route {
        kind: RouteKind::Http,
        namespace: "shop".into(),
        name: name.into(),
    };
    let waypoint = |name: &str| PolicyTarget::Waypoint { namespace: "shop".into(), name: name.into() };
    let other = ServiceName { namespace: "shop".into(), hostname: "pay.shop.svc.cluster.local".into() };
    let grpc = PolicyTarget::Route { kind: RouteKind::Grpc, namespace: "shop".into(), name: "cart".into() };
    vec![
        policy("waypoint", waypoint("waypoint"), 1),
        policy("service", PolicyTarget::Service(echo()), 2),
        policy("route", route("cart"), 3),
        policy("rule", PolicyTarget::Rule(key("cart", 1)), 4),
        policy("other-waypoint", waypoint("other"), 0),
        policy("other-service", PolicyTarget::Service(other), 0),
        policy("other-route", route("other"), 0),
        policy("other-kind", grpc, 0),
        policy("other-rule", PolicyTarget::Rule(key("cart", 7)), 0),
    ]
}

/// Whose fault and whose balancing.
fn names(policies: &[Policy], rule: Option<&RuleKey>) -> (Option<String>, Option<String>) {
    let (service, mut reversed) = (echo(), policies.to_vec());
    reversed.reverse();
    let place = Place { waypoint: ("shop", "waypoint"), service: &service, rule };
    let settings = Settings::at(place, policies);
    assert_eq!(settings, Settings::at(place, &reversed), "the order in which they arrive says nothing");
    let name = |name: &PolicyName| name.name.to_string();
    (settings.fault.map(|(by, _)| name(by)), settings.balancing.map(|(by, _)| name(by)))
}

#[test]
fn the_narrowest_has_its_say() {
    let both = |name: &str| (Some(name.to_owned()), Some(name.to_owned()));
    assert_eq!(names(&policies(), Some(&key("cart", 1))), both("rule"));
    assert_eq!(names(&policies(), Some(&key("cart", 0))), both("route"));
    assert_eq!(names(&policies(), Some(&key("pay", 0))), both("service"));
    assert_eq!(names(&policies(), None), both("service"));
    assert_eq!(names(&policies()[..1], None), both("waypoint"));
    assert_eq!(names(&policies()[4..], Some(&key("cart", 1))), (None, None));
}

#[test]
fn each_setting_by_itself() {
    let mut policies = policies();
    policies[3].fault = None;
    policies[2].fault = None;
    policies[3].balancing = Some(Balancing::RoundRobin);
    let expected = (Some("service".to_owned()), Some("rule".to_owned()));
    assert_eq!(names(&policies, Some(&key("cart", 1))), expected);
}

#[test]
fn among_equals_the_oldest_then_the_first_by_name() {
    let of = |name, created| policy(name, PolicyTarget::Service(echo()), created);
    let fault = |policies: &[Policy]| names(policies, None).0;
    assert_eq!(fault(&[of("a", 2), of("b", 1)]).as_deref(), Some("b"));
    assert_eq!(fault(&[of("b", 1), of("a", 1)]).as_deref(), Some("a"));
}
