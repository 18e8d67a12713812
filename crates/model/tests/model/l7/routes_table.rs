//! Which rule a request meets: the rows of the mesh conformance tests that are about matching, and the order of precedence.

use model::l7::{Moment, Parent, RouteKind, Routes, Rule, Scope, Selected};
use model::service::ServiceName;

use super::make::{asked, consumer, echo, matching, rule, shared};

/// Who answers: the backend's name, `implicit` or `unmatched`.
fn answer(selected: Selected<'_>) -> String {
    match selected {
        Selected::Implicit => "implicit".to_owned(),
        Selected::Rule { rule, .. } => rule.key.name.to_string(),
        Selected::Unmatched => "unmatched".to_owned(),
    }
}

/// HTTP rules of objects of these names, the oldest first. A name may stand there several times: rules of one object.
fn http(rules: &[(&str, &[&str])]) -> Vec<Rule> {
    of_kind(RouteKind::Http, rules)
}

fn of_kind(kind: RouteKind, rules: &[(&str, &[&str])]) -> Vec<Rule> {
    let make = |(index, (name, matches)): (u32, &(&str, &[&str]))| {
        rule(kind, name, index, matches.iter().map(|text| matching(text)).collect())
    };
    (0..).zip(rules).map(make).collect()
}

fn check(rules: Vec<Rule>, rows: &[(&str, &str)]) {
    // The order in which rules arrive says nothing.
    for rules in [rules.clone(), rules.into_iter().rev().collect()] {
        let routes = Routes::of(&echo(), 80, &shared(rules));
        for (request, expected) in rows {
            let asked = asked(request, Some("shop"));
            assert_eq!(answer(routes.select(&asked.request())), *expected, "{request}");
        }
    }
}

#[test]
fn without_a_route_the_service_answers() {
    check(vec![], &[("GET /", "implicit")]);
    let routes = Routes::default();
    assert!(routes.is_empty() && routes.kind(None).is_none());
}

/// MeshHTTPRouteSimpleSameNamespace.
#[test]
fn a_rule_without_conditions_takes_everything() {
    check(http(&[("v1", &["/"])]), &[("GET /", "v1"), ("POST /a/b?c", "v1"), ("GET //", "v1")]);
}

/// MeshHTTPRouteMatching.
#[test]
fn paths_and_headers() {
    let rules = http(&[("v1", &["/", "version:one"]), ("v2", &["/v2", "version:two"])]);
    let rows = [
        ("GET /", "v1"),
        ("GET /example", "v1"),
        ("GET / version=one", "v1"),
        ("GET /v2", "v2"),
        ("GET /v2/example", "v2"),
        ("GET / version=two", "v2"),
        ("GET /v2/ version=two", "v2"),
        // Not a segment's end.
        ("GET /v2example", "v1"),
        ("GET /foo/v2/example", "v1"),
    ];
    check(rules, &rows);
}

/// MeshTrafficSplit; what no rule matches is answered with 404.
#[test]
fn exact_paths() {
    let rules = http(&[("v1", &["=/v1"]), ("v2", &["=/v2"])]);
    let rows = [
        ("GET /v1", "v1"),
        ("GET /v2", "v2"),
        ("GET /v1/", "unmatched"),
        ("GET /v1/a", "unmatched"),
        ("GET /V1", "unmatched"),
        ("GET /%76%31", "unmatched"),
        ("GET /", "unmatched"),
        ("OPTIONS *", "unmatched"),
    ];
    check(rules, &rows);
}

/// MeshHTTPRouteQueryParamMatching.
#[test]
fn query_parameters() {
    let rules = http(&[
        ("v1", &["?animal=whale", "?animal=dolphin ?color=blue"]),
        ("v2", &["?animal=dolphin", "?ANIMAL=Whale"]),
        ("path1", &["/path1 ?animal=whale", "/path1"]),
        ("path2", &["/path2 ?animal=whale version:one"]),
    ]);
    let rows = [
        ("GET /?animal=whale", "v1"),
        ("GET /?animal=dolphin", "v2"),
        ("GET /?animal=dolphin&color=blue", "v1"),
        ("GET /?color=blue&animal=dolphin", "v1"),
        ("GET /?ANIMAL=Whale", "v2"),
        ("GET /?animal=whale&otherparam=irrelevant", "v1"),
        ("GET /?animal=w%68ale", "v1"),
        ("GET /?animal=whale&animal=dolphin", "v1"),
        ("GET /?animal=dog", "unmatched"),
        ("GET /?animal=whaledolphin", "unmatched"),
        ("GET /", "unmatched"),
        // A path goes before a parameter.
        ("GET /path1?animal=whale", "path1"),
        ("GET /path1?animal=dolphin", "path1"),
        ("GET /path2?animal=whale version=one", "path2"),
        ("GET /path2?animal=whale", "v1"),
    ];
    check(rules, &rows);
}

#[test]
fn prefixes_are_made_of_segments() {
    let rules = http(&[("abc", &["/abc"]), ("deep", &["/abc/d/e/"]), ("double", &["/x//y"])]);
    let rows = [
        ("GET /abc", "abc"),
        ("GET /abc/", "abc"),
        ("GET /abc/d", "abc"),
        ("GET /abc/d/e", "deep"),
        ("GET /abc/d/e/f", "deep"),
        ("GET /abc/d/ef", "abc"),
        ("GET /abcd", "unmatched"),
        ("GET //abc", "unmatched"),
        ("GET /x//y/z", "double"),
        ("GET /x/y", "unmatched"),
    ];
    check(rules, &rows);
}

#[test]
fn methods_and_headers() {
    let rules = http(&[
        ("post", &["POST"]),
        ("both", &["a:1 b:2"]),
        ("pattern", &["c:~[0-9]+"]),
        ("many", &["d:1,2"]),
        ("name", &["X-Upper:1"]),
    ]);
    let rows = [
        ("POST /", "post"),
        ("post /", "unmatched"),
        ("GET / a=1 b=2", "both"),
        ("GET / a=1", "unmatched"),
        // A method goes before any number of headers.
        ("POST / a=1 b=2", "post"),
        ("GET / c=42", "pattern"),
        ("GET / c=42x", "unmatched"),
        ("GET / d=1 d=2", "many"),
        ("GET / d=2 d=1", "unmatched"),
        ("GET / x-upper=1", "name"),
    ];
    check(rules, &rows);
}

/// One row for each step of the order: the first of the two wins though the second was made earlier and is first by name.
#[test]
fn the_order_of_precedence() {
    let request = "GET /a/b?p=1&q=1 h=1 i=1";
    let rows = [
        ("an exact path before a pattern", "=/a/b", "~/a/b|/a/b/c/d/e/f"),
        ("a pattern before a prefix", "~.*", "/a/b"),
        ("a longer pattern", "~/a/b?b", "~/.*"),
        ("a longer prefix", "/a/b", "/a h:1 GET"),
        ("an exact path before anything else", "=/a/b", "/a/b h:1 i:1 ?p=1 ?q=1 GET"),
        ("a method before headers", "/a/b GET", "/a/b h:1 i:1"),
        ("more headers", "/a/b h:1 i:1", "/a/b h:1 ?p=1 ?q=1"),
        ("more parameters", "/a/b ?p=1 ?q=1", "/a/b ?p=1"),
        ("a slash at the end is no longer prefix", "/a/b h:1", "/a/b/"),
    ];
    for (why, first, second) in rows {
        let mut winner = rule(RouteKind::Http, "z", 1, vec![matching(first)]);
        winner.created = Moment(2);
        let loser = rule(RouteKind::Http, "a", 0, vec![matching(second)]);
        let routes = Routes::of(&echo(), 80, &shared(vec![loser.clone(), winner]));
        assert_eq!(answer(routes.select(&asked(request, None).request())), "z", "{why}");
        // And the other one does match.
        let alone = Routes::of(&echo(), 80, &shared(vec![loser]));
        assert_eq!(answer(alone.select(&asked(request, None).request())), "a", "{why}");
    }
}

#[test]
fn among_equals_the_oldest_then_the_first_by_name_then_the_first_of_the_object() {
    let made = |name: &str, index, created| Rule {
        created: Moment(created),
        ..rule(RouteKind::Http, name, index, vec![matching("/")])
    };
    let cases = [
        ([made("z", 0, 1), made("a", 0, 2)], ("z", 0)),
        ([made("b", 0, 1), made("a", 5, 1)], ("a", 5)),
        ([made("a", 2, 1), made("a", 1, 1)], ("a", 1)),
        // By letters of namespace/name, not part by part.
        ([made("a-b", 0, 1), made("a", 0, 1)], ("a", 0)),
    ];
    for (rules, (name, index)) in cases {
        let routes = Routes::of(&echo(), 80, &shared(rules.to_vec()));
        let asked = asked("GET /", None);
        let Selected::Rule { rule, .. } = routes.select(&asked.request()) else { panic!("a rule") };
        assert_eq!((&*rule.key.name, rule.key.index), (name, index));
    }
}

/// MeshGRPCRoute, and GRPCRoute's own order.
#[test]
fn grpc_calls() {
    let rules = of_kind(
        RouteKind::Grpc,
        &[
            ("any", &["grpc:/"]),
            ("header", &["grpc:/ color:blue"]),
            ("service", &["grpc:shop.Cart/"]),
            ("call", &["grpc:shop.Cart/Add"]),
            ("method", &["grpc:/Add"]),
            ("pattern", &["grpc:~shop[.].*/~Get.*"]),
            ("gets", &["grpc:shop.Cart/~Get.*"]),
            ("noted", &["grpc:shop.Cart/Add urgent:yes"]),
        ],
    );
    let rows = [
        ("POST /shop.Cart/Add", "call"),
        ("POST /shop.Cart/Add urgent=yes", "noted"),
        ("POST /shop.Cart/Remove", "service"),
        ("POST /shop.Cart/GetAll", "gets"),
        ("POST /shop.Pay/GetAll", "pattern"),
        ("POST /shop.Pay/Add", "method"),
        ("POST /shop.Pay/Do", "any"),
        ("POST /shop.Pay/Do color=blue", "header"),
        ("POST /shop.Cart", "unmatched"),
        ("POST /shop.Cart/", "unmatched"),
        ("POST /shop.Cart/Add/x", "unmatched"),
        ("POST //Add", "unmatched"),
        ("POST /", "unmatched"),
    ];
    check(rules, &rows);
}

#[test]
fn the_first_kind_decides_alone() {
    let kinds = [RouteKind::Tcp, RouteKind::Tls, RouteKind::Http, RouteKind::Grpc];
    let all = |count: usize| -> Vec<Rule> {
        kinds[..count].iter().map(|kind| rule(*kind, &kind.to_string(), 0, vec![matching("=/a")])).collect()
    };
    for count in 1..=kinds.len() {
        let routes = Routes::of(&echo(), 80, &shared(all(count)));
        assert_eq!(routes.kind(None), Some(kinds[count - 1]));
        assert_eq!(answer(routes.select(&asked("GET /a", None).request())), kinds[count - 1].to_string());
    }
    let grpc = Routes::of(&echo(), 80, &shared(all(4)));
    assert_eq!(answer(grpc.select(&asked("GET /b", None).request())), "unmatched", "not on to HTTPRoute");
}

/// MeshPorts.
#[test]
fn a_rule_is_about_a_port_or_about_all() {
    let mut one = rule(RouteKind::Http, "one", 0, vec![matching("=/a")]);
    one.parents[0].port = Some(80);
    let all = rule(RouteKind::Http, "all", 0, vec![matching("/")]);
    let other_service =
        ServiceName { namespace: "shop".into(), hostname: "pay.shop.svc.cluster.local".into() };
    let rules = shared(vec![one, all]);
    let ask = |service: &ServiceName, port| {
        answer(Routes::of(service, port, &rules).select(&asked("GET /a", None).request()))
    };
    assert_eq!(ask(&echo(), 80), "one");
    assert_eq!(ask(&echo(), 8080), "all");
    assert_eq!(ask(&other_service, 80), "implicit");
}

/// MeshConsumerRoute.
#[test]
fn a_consumers_routes_are_for_its_namespace_and_stand_alone_there() {
    let producer = rule(RouteKind::Http, "producer", 0, vec![matching("/")]);
    let consumer_rule = consumer("club", rule(RouteKind::Http, "consumer", 0, vec![matching("=/a")]));
    let both = Routes::of(&echo(), 80, &shared(vec![producer, consumer_rule.clone()]));
    let alone = Routes::of(&echo(), 80, &shared(vec![consumer_rule.clone()]));
    let rows = [
        (&both, Some("club"), "/a", "consumer"),
        (&both, Some("club"), "/b", "unmatched"),
        (&both, Some("shop"), "/a", "producer"),
        (&both, None, "/a", "producer"),
        (&alone, Some("club"), "/a", "consumer"),
        (&alone, Some("shop"), "/a", "implicit"),
        (&alone, None, "/a", "implicit"),
    ];
    for (routes, client, path, expected) in rows {
        let asked = asked(&format!("GET {path}"), client);
        assert_eq!(answer(routes.select(&asked.request())), expected, "{client:?} {path}");
    }
    // A consumer's TCP route goes before a producer's HTTP route: the groups do not mix.
    let tcp = consumer("club", rule(RouteKind::Tcp, "tcp", 0, vec![matching("/")]));
    let mixed =
        Routes::of(&echo(), 80, &shared(vec![rule(RouteKind::Http, "http", 0, vec![matching("/")]), tcp]));
    assert_eq!(answer(mixed.select(&asked("GET /", Some("club")).request())), "tcp");
    assert_eq!(answer(mixed.select(&asked("GET /", None).request())), "http");
    // A route may be a producer's for one service and a consumer's for another.
    let mut several = consumer_rule;
    let own = ServiceName { namespace: "club".into(), hostname: "own.club.svc.cluster.local".into() };
    several.parents.push(Parent { service: own.clone(), port: None, scope: Scope::Producer });
    let own = Routes::of(&own, 80, &shared(vec![several]));
    assert_eq!(answer(own.select(&asked("GET /a", None).request())), "consumer");
}

#[test]
fn connections_by_the_name_that_is_asked_for() {
    let rules = of_kind(
        RouteKind::Tls,
        &[
            ("any", &["/"]),
            ("exact", &["sni:a.example.com"]),
            ("below", &["sni:*.example.com"]),
            ("deep", &["sni:*.b.example.com"]),
        ],
    );
    let routes = Routes::of(&echo(), 80, &shared(rules));
    let rows = [
        (Some("a.example.com"), "exact"),
        (Some("A.Example.com"), "exact"),
        (Some("c.example.com"), "below"),
        (Some("c.d.example.com"), "below"),
        (Some("c.b.example.com"), "deep"),
        (Some("b.example.com"), "below"),
        (Some("example.com"), "any"),
        (Some("example.org"), "any"),
        (None, "any"),
    ];
    for (sni, expected) in rows {
        assert_eq!(answer(routes.select_connection(None, sni)), expected, "{sni:?}");
    }
    let named = Routes::of(&echo(), 80, &shared(of_kind(RouteKind::Tls, &[("a", &["sni:a.b"])])));
    assert_eq!(answer(named.select_connection(None, Some("c.b"))), "unmatched");
    let http = Routes::of(&echo(), 80, &shared(http(&[("v1", &["/"])])));
    assert_eq!(answer(http.select_connection(None, None)), "unmatched", "no way around rules for requests");
    assert_eq!(answer(Routes::default().select_connection(None, None)), "implicit");
}

/// What a newer controller means by a condition that this version does not know can't be told: nobody else gets it.
#[test]
fn what_is_not_understood_goes_first() {
    let mut path = matching("/");
    path.path = model::l7::PathMatch::Unintelligible;
    let mut post_somewhere = matching("POST");
    post_somewhere.path = model::l7::PathMatch::Unintelligible;
    let mut on_a = matching("/a");
    on_a.unintelligible = true;
    let known = http(&[("known", &["=/a", "/a GET h:1", "/a/b", "/"])]);
    let with = |m| {
        let mut rules = known.clone();
        rules.push(rule(RouteKind::Http, "unclear", 9, vec![m]));
        rules
    };
    check(with(path), &[("GET /a", "unclear"), ("GET /x", "unclear")]);
    check(with(post_somewhere), &[("GET /a", "known"), ("POST /a", "unclear")]);
    let rows = [("GET /a", "known"), ("GET /a/c h=1", "unclear"), ("GET /a/b", "known"), ("GET /x", "known")];
    check(with(on_a), &rows);
}
