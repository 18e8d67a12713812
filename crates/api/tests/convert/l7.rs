//! L7 rules and traffic policies: what goes out comes back, and what is not understood is answered with 500 by its own rule.

use std::time::Duration;

use api::{Invalid, Problem, decode, encode, l7 as wire, type_url};
use model::l7::{Match, PathMatch, Rule};
use prost::Message;
use prost_types::Any;

use proptest::prelude::*;

use crate::l7_strategies::{backend_tls, policy, rule};

proptest! {
    #[test]
    fn rules_come_back(rule in rule()) {
        let sent = encode::rule(&rule);
        prop_assert_eq!(&sent.name, &rule.key.to_string());
        prop_assert_eq!(decode::rule_removed(&sent.name), Some(rule.key.clone()));
        let received = decode::rule(&sent.name, &sent.body).expect("our own");
        // Half a rule is sent on with the reason for which it is refused.
        let unclear = |m: &Match| m.path == PathMatch::Unintelligible;
        prop_assert_eq!(received.problem.is_some(), rule.matches.iter().any(unclear));
        prop_assert_eq!(received.rule, rule);
    }

    #[test]
    fn traffic_policies_come_back(policy in policy()) {
        let sent = encode::traffic_policy(&policy);
        prop_assert_eq!(decode::traffic_policy(&sent.name, &sent.body), Ok(policy));
    }

    #[test]
    fn tls_towards_backends_comes_back(tls in backend_tls()) {
        let sent = encode::backend_tls(&tls);
        prop_assert_eq!(decode::service_named(&sent.name), Some(tls.service.clone()));
        prop_assert_eq!(decode::backend_tls(&sent.name, &sent.body), Ok(tls));
    }

    #[test]
    fn no_bytes_panic(body in proptest::collection::vec(any::<u8>(), 0..64), cut in any::<prop::sample::Index>(), rule in rule()) {
        let any = |type_url: &str, value: Vec<u8>| Any { type_url: type_url.to_owned(), value };
        let _ = decode::rule("HTTPRoute/a/b/0", &any(type_url::L7_RULE, body.clone()));
        let _ = decode::traffic_policy("a/b", &any(type_url::L7_POLICY, body.clone()));
        let _ = decode::backend_tls("a/b", &any(type_url::L7_BACKEND_TLS, body));
        let sent = encode::rule(&rule);
        let mut half = sent.body.value;
        half.truncate(cut.index(half.len()));
        let _ = decode::rule(&sent.name, &any(type_url::L7_RULE, half));
    }
}

/// `HTTPRoute/shop/cart/0` about `shop/cart`, with `/a` redirected.
fn cart() -> wire::Rule {
    let service = wire::Service { namespace: "shop".to_owned(), hostname: "cart".to_owned() };
    let path = wire::r#match::Path::Prefix("/a".to_owned());
    let redirect = wire::Redirect { status: 302, ..Default::default() };
    wire::Rule {
        kind: wire::RouteKind::Http.into(),
        namespace: "shop".to_owned(),
        name: "cart".to_owned(),
        parents: vec![wire::Parent { service: Some(service), port: 80, consumer: false }],
        matches: vec![wire::Match { path: Some(path), ..Default::default() }],
        filters: vec![wire::Filter { kind: Some(wire::filter::Kind::Redirect(redirect)) }],
        ..Default::default()
    }
}

fn received(body: Vec<u8>) -> Result<api::ReceivedRule, api::InvalidRule> {
    decode::rule("HTTPRoute/shop/cart/0", &Any { type_url: type_url::L7_RULE.to_owned(), value: body })
}

/// The rule, which is refused for the reason that the caller rejects the resource with.
fn refused(body: Vec<u8>) -> Rule {
    let received = received(body).expect("a rule that knows what it is about");
    let problem = received.problem.expect("a problem").to_string();
    assert_eq!(received.rule.refusal.as_deref(), Some(&*problem));
    assert_eq!(
        (received.rule.parents.len(), received.rule.matches.len()),
        (1, 1),
        "still in the way of its traffic"
    );
    received.rule
}

/// A field that no version has yet, as it would be encoded.
const NEWER: &[u8] = &[15 << 3 | 2 | 0x80, 7, 1, b'?'];

/// `outer` whose field `number` holds these bytes, and nothing else in that field.
fn with(outer: &wire::Rule, number: u8, inner: &[u8]) -> Vec<u8> {
    let length = u8::try_from(inner.len()).expect("short enough for one byte");
    [outer.encode_to_vec(), vec![number << 3 | 2, length], inner.to_vec()].concat()
}

#[test]
fn what_is_understood_has_no_refusal() {
    let received = received(cart().encode_to_vec()).expect("valid");
    assert_eq!((received.problem, received.rule.refusal), (None, None));
    let refused_by_its_author = wire::Rule { refusal: "no such filter".to_owned(), ..cart() };
    let received = self::received(refused_by_its_author.encode_to_vec()).expect("valid");
    assert_eq!(received.problem, None, "nothing that the sender would have to mend");
    assert_eq!(received.rule.refusal.as_deref(), Some("no such filter"));
}

#[test]
fn what_is_not_understood_refuses_the_rule() {
    let newer_filter = with(&cart(), 9, NEWER);
    let newer_field = [cart().encode_to_vec(), NEWER.to_vec()].concat();
    let text = "a\r\nb".to_owned();
    let header = wire::Header { name: "a".to_owned(), value: text.clone() };
    let split = wire::HeaderEdits { set: vec![header], ..Default::default() };
    let split = wire::Filter { kind: Some(wire::filter::Kind::ResponseHeaders(split)) };
    let bad_filter = wire::Rule { filters: vec![split], ..cart() };
    let teapot = wire::Redirect { status: 418, ..Default::default() };
    let teapot = wire::Filter { kind: Some(wire::filter::Kind::Redirect(teapot)) };
    let bad_redirect = wire::Rule { filters: vec![teapot], ..cart() };
    let nowhere = wire::Rule { backends: vec![wire::Backend::default()], ..cart() };
    let never = wire::Rule { retry: Some(wire::Retry::default()), ..cart() };
    let carried_by_nothing = wire::Rule { session: Some(wire::SessionPersistence::default()), ..cart() };
    let framing = wire::HeaderEdits { remove: vec!["Content-Length".to_owned()], ..Default::default() };
    let framing = wire::Filter { kind: Some(wire::filter::Kind::RequestHeaders(framing)) };
    let framing = wire::Rule { filters: vec![framing], ..cart() };
    let rules = [framing, bad_filter, bad_redirect, nowhere, never, carried_by_nothing];
    for body in rules.iter().map(Message::encode_to_vec).chain([newer_filter, newer_field]) {
        let rule = refused(body);
        assert!(!rule.matches[0].unintelligible, "what it matches is clear");
    }
}

#[test]
fn a_condition_that_is_not_understood_is_marked() {
    let bare = wire::Rule { matches: vec![], ..cart() };
    let known = cart().matches.remove(0).encode_to_vec();
    let newer_condition = with(&bare, 8, &[&known, NEWER].concat());
    let rule = refused(newer_condition);
    assert!(rule.matches[0].unintelligible && matches!(rule.matches[0].path, PathMatch::Prefix(_)));

    let newer_path = with(&bare, 8, NEWER);
    assert_eq!(refused(newer_path).matches[0].path, PathMatch::Unintelligible);
    for regex in ["(", "a{1000}{1000}{1000}"] {
        let path = Some(wire::r#match::Path::Regex(regex.to_owned()));
        let m = wire::Match { path, ..Default::default() };
        let rule = refused(wire::Rule { matches: vec![m], ..cart() }.encode_to_vec());
        assert!(rule.matches[0].unintelligible && rule.matches[0].path == PathMatch::Unintelligible);
    }
    let header = wire::HeaderMatch { name: "a".to_owned(), value: None };
    let m = wire::Match { headers: vec![header], ..cart().matches.remove(0) };
    let rule = refused(wire::Rule { matches: vec![m], ..cart() }.encode_to_vec());
    assert!(rule.matches[0].unintelligible, "any request of that path may be meant");
}

#[test]
fn a_rule_that_says_neither_what_nor_whom_it_is_about_is_refused_whole() {
    let unnamed = wire::Rule { name: String::new(), ..cart() };
    let of_no_kind = wire::Rule { kind: 0, ..cart() };
    let of_a_newer_kind = wire::Rule { kind: 99, ..cart() };
    let of_nobody = wire::Rule { parents: vec![wire::Parent::default()], ..cart() };
    let other = wire::Rule { index: 1, ..cart() };
    for rule in [unnamed, of_no_kind, of_a_newer_kind, of_nobody, other] {
        let error = received(rule.encode_to_vec()).expect_err("refused");
        let key = error.key.expect("its name tells which one is meant");
        assert_eq!(key.to_string(), "HTTPRoute/shop/cart/0");
    }
    assert!(received(b"\xff\xff".to_vec()).is_err());
    let wrong = Any { type_url: type_url::L7_POLICY.to_owned(), value: cart().encode_to_vec() };
    assert!(matches!(decode::rule("x", &wrong), Err(error) if error.key.is_none()));
    for name in ["", "HTTPRoute/a/b", "HTTPRoute/a/b/c", "Other/a/b/0", "HTTPRoute/a/b/0/1"] {
        assert_eq!(decode::rule_removed(name), None, "{name:?}");
    }
}

#[test]
fn a_traffic_policy_that_is_not_understood_does_nothing() {
    let target = wire::traffic_policy::Target::Service(wire::Service {
        namespace: "shop".to_owned(),
        hostname: "cart".to_owned(),
    });
    let share = Some(wire::Fraction { numerator: 1, denominator: 2 });
    let delay = wire::Delay { share, duration_ms: 5 };
    let policy = wire::TrafficPolicy {
        namespace: "shop".to_owned(),
        name: "slow".to_owned(),
        target: Some(target),
        created: 1,
        fault: Some(wire::Fault { delay: Some(delay), until: 9, ..Default::default() }),
        balancing: None,
    };
    let decoded = |body: Vec<u8>| {
        let body = Any { type_url: type_url::L7_POLICY.to_owned(), value: body };
        decode::traffic_policy("shop/slow/Service/shop/cart", &body)
    };
    let fine = decoded(policy.encode_to_vec()).expect("valid");
    let fault = fine.fault.expect("a fault");
    assert_eq!(fault.delay.map(|delay| delay.duration), Some(Duration::from_millis(5)));

    let newer = [policy.encode_to_vec(), NEWER.to_vec()].concat();
    assert!(matches!(decoded(newer), Err(Invalid::NotUnderstood { .. })));
    let with = |change: &dyn Fn(&mut wire::Fault)| {
        let mut fault = policy.fault.clone().expect("a fault");
        change(&mut fault);
        decoded(wire::TrafficPolicy { fault: Some(fault), ..policy.clone() }.encode_to_vec())
    };
    let share = |numerator, denominator| Some(wire::Fraction { numerator, denominator });
    let abort = |answer| Some(wire::Abort { share: share(1, 1), answer });
    let choice = |algorithm: wire::Algorithm| {
        let balancing = Some(wire::Balancing { algorithm: algorithm.into(), key: None });
        decoded(wire::TrafficPolicy { balancing, ..policy.clone() }.encode_to_vec())
    };
    let refused = [
        choice(wire::Algorithm::Unspecified),
        choice(wire::Algorithm::Maglev),
        with(&|fault| fault.delay = Some(wire::Delay { share: share(2, 1), duration_ms: 1 })),
        with(&|fault| fault.delay = Some(wire::Delay { share: share(0, 0), duration_ms: 1 })),
        with(&|fault| fault.abort = abort(None)),
        with(&|fault| fault.abort = abort(Some(wire::abort::Answer::Http(99)))),
        with(&|fault| fault.abort = abort(Some(wire::abort::Answer::Grpc(17)))),
        with(&|fault| fault.triggers = vec![wire::Trigger::default()]),
        with(&|fault| {
            let clients = vec![wire::Client::default()];
            fault.triggers = vec![wire::Trigger { clients, headers: vec![] }];
        }),
    ];
    for result in refused {
        let Err(Invalid::Field(field)) = result else { panic!("refused for a field: {result:?}") };
        assert!(!matches!(field.problem, Problem::Name { .. }));
    }
    let elsewhere = Any { type_url: type_url::L7_POLICY.to_owned(), value: policy.encode_to_vec() };
    assert!(matches!(decode::traffic_policy("shop/slow", &elsewhere), Err(Invalid::Name { .. })));
}

#[test]
fn tls_that_is_not_understood_is_refused_whole() {
    let service = wire::Service { namespace: "shop".to_owned(), hostname: "cart".to_owned() };
    let kind = wire::port_tls::Kind::Tls(wire::ServerTls {
        hostname: "cart".to_owned(),
        names: Vec::new(),
        roots: Some(wire::server_tls::Roots::Pem("pem".to_owned())),
    });
    let fine = wire::BackendTls {
        service: Some(service),
        ports: vec![wire::PortTls { ports: vec![443], kind: Some(kind) }],
    };
    let decoded = |body: Vec<u8>| {
        let body = Any { type_url: type_url::L7_BACKEND_TLS.to_owned(), value: body };
        decode::backend_tls("shop/cart", &body)
    };
    assert!(decoded(fine.encode_to_vec()).is_ok());
    let newer = [fine.encode_to_vec(), NEWER.to_vec()].concat();
    assert!(matches!(decoded(newer), Err(Invalid::NotUnderstood { .. })));
    let with = |change: &dyn Fn(&mut wire::PortTls)| {
        let mut other = fine.clone();
        change(&mut other.ports[0]);
        decoded(other.encode_to_vec())
    };
    let tls = |hostname: &str, roots: &str, names: Vec<wire::SubjectName>| {
        let roots = wire::server_tls::Roots::Pem(roots.to_owned());
        let hostname = hostname.to_owned();
        Some(wire::port_tls::Kind::Tls(wire::ServerTls { hostname, names, roots: Some(roots) }))
    };
    for refused in [
        with(&|port| port.kind = None),
        with(&|port| port.ports.push(0)),
        with(&|port| match &mut port.kind {
            Some(wire::port_tls::Kind::Tls(tls)) => tls.roots = None,
            other => panic!("{other:?}"),
        }),
        with(&|port| port.kind = tls("", "pem", Vec::new())),
        with(&|port| port.kind = tls("cart", "", Vec::new())),
        with(&|port| port.kind = tls("cart", "pem", vec![wire::SubjectName { kind: None }])),
    ] {
        assert!(matches!(refused, Err(Invalid::Field(_))), "{refused:?}");
    }
}
