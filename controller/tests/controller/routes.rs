//! Routes of the Gateway API: what they are attached to, what becomes of their rules, and what is said about them.

use std::time::Duration;

use controller::source::objects::{Event, Key, Kind};
use model::l7::{
    BackendTarget, Filter, Moment, PathMatch, PathModifier, RouteKind, Rule, Scope, SessionCarrier, SniMatch,
};

use crate::support::{Mesh, upserts};

/// Services `shop/web` (ports 80 and 443) and `shop/v2`, a headless one, and one elsewhere.
const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: web}
spec: {clusterIP: 10.1.0.1, ports: [{name: http, port: 80}, {name: tls, port: 443}, {name: dns, port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: v2}
spec: {clusterIP: 10.1.0.2, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: headless}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: away, name: far}
spec: {clusterIP: 10.1.0.3, ports: [{port: 80}]}
";

const WEB: &str = "[{group: '', kind: Service, name: web}]";

fn route(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{namespace: {namespace}, name: {name}, creationTimestamp: '1970-01-01T00:00:01Z'}}
spec: {spec}
"
    )
}

fn with(routes: &[String]) -> Mesh {
    Mesh::of(&(SERVICES.to_owned() + &routes.concat()))
}

/// A route of `shop/web` with that rule.
fn rule(text: &str) -> Mesh {
    with(&[route("HTTPRoute", "shop", "it", &format!("{{parentRefs: {WEB}, rules: [{text}]}}"))])
}

fn parents(rule: &Rule) -> Vec<String> {
    let word = |port: Option<u16>| port.map_or("*".to_owned(), |port| port.to_string());
    let of =
        |parent: &model::l7::Parent| format!("{}:{} {:?}", parent.service, word(parent.port), parent.scope);
    rule.parents.iter().map(of).collect()
}

#[test]
fn a_rule_says_all_that_its_author_wrote() {
    let mesh = rule(
        "{name: canary,
          matches: [{path: {type: Exact, value: /a}, headers: [{name: X-User, value: jane}, {name: x-user, value: joe}],
            queryParams: [{name: q, type: RegularExpression, value: '[0-9]+'}], method: GET}, {path: {value: /b/}}],
          filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: A, value: b}], remove: [C]}},
            {type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}, percent: 5}},
            {type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}, fraction: {numerator: 1, denominator: 3}}},
            {type: CORS, cors: {allowOrigins: ['https://*.example.com'], allowMethods: ['*']}}],
          backendRefs: [{name: web, port: 80, weight: 9},
            {name: v2, port: 80, filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /x}}}]}],
          timeouts: {request: 2s, backendRequest: 500ms}, retry: {codes: [503], attempts: 2, backoff: 10ms},
          sessionPersistence: {type: Header, header: {name: X-Session}}}",
    );
    let [rule] = mesh.rules("it")[..] else { panic!("{:?}", mesh.seen.rules) };
    assert_eq!(
        (rule.key.to_string().as_str(), rule.name.as_deref()),
        ("HTTPRoute/shop/it/0", Some("canary"))
    );
    assert_eq!(parents(rule), ["shop/web.shop.svc.cluster.local:* Producer"]);
    assert_eq!((rule.created, rule.refusal.as_deref()), (Moment(1_000_000_000), None));
    let [exact, prefix] = &rule.matches[..] else { panic!("{:?}", rule.matches) };
    assert!(matches!(&exact.path, PathMatch::Exact(path) if path.as_str() == "/a"));
    assert_eq!(exact.headers.len(), 1, "of two conditions on a name the first counts");
    assert_eq!((exact.query.len(), exact.method.as_deref()), (1, Some("GET")));
    assert!(matches!(&prefix.path, PathMatch::Prefix(path) if path.trimmed() == "/b"));
    assert_eq!(rule.filters.len(), 4);
    let mut shares = Vec::new();
    for filter in &rule.filters {
        if let Filter::Mirror(mirror) = filter {
            shares.push((mirror.share.numerator(), mirror.share.denominator()));
        }
    }
    assert_eq!(shares, [(5, 100), (1, 3)]);
    let weights: Vec<_> = rule.backends.iter().map(|backend| backend.weight).collect();
    assert_eq!(weights, [9, 1]);
    let [Filter::Rewrite(rewrite)] = &rule.backends[1].filters[..] else { panic!("{:?}", rule.backends) };
    assert!(matches!(rewrite.path, Some(PathModifier::ReplaceFull(_))));
    assert_eq!(rule.timeouts.request, Some(Duration::from_secs(2)));
    assert_eq!(rule.retry.as_ref().map(|retry| (retry.attempts, retry.statuses.len())), Some((2, 1)));
    let carrier = rule.session.as_ref().map(|session| &session.carrier);
    assert!(matches!(carrier, Some(SessionCarrier::Header(name)) if name.is("x-session")), "{carrier:?}");
    assert!(mesh.condition("it", "Accepted").0 && mesh.condition("it", "ResolvedRefs").0);
}

#[test]
fn what_is_left_out_means_what_the_api_says() {
    let mesh = with(&[
        route("HTTPRoute", "shop", "bare", &format!("{{parentRefs: {WEB}}}")),
        route("TLSRoute", "shop", "names", &format!("{{parentRefs: {WEB}, hostnames: [a.example.com, '*.b.example'],
            rules: [{{backendRefs: [{{name: v2, port: 80}}]}}]}}")),
        route("GRPCRoute", "shop", "calls", "{parentRefs: [{group: '', kind: Service, name: v2}],
            rules: [{backendRefs: [{name: v2, port: 80}]}, {matches: [{method: {service: a.B, method: C}}, {method: {type: RegularExpression, service: 'a.*'}}]}]}"),
    ]);
    let [bare] = mesh.rules("bare")[..] else { panic!("one rule") };
    assert!(
        matches!(&bare.matches[..], [all] if matches!(&all.path, PathMatch::Prefix(path) if path.trimmed().is_empty()))
    );
    assert!(bare.backends.is_empty(), "answered with an error");
    // Displaced by the HTTPRoute on every port.
    assert!(mesh.rules("names").is_empty());
    assert_eq!(mesh.condition("names", "Accepted").1, "RouteReasonConflicted");
    let [every, some] = mesh.rules("calls")[..] else { panic!("two rules") };
    assert!(matches!(every.matches[0].path, PathMatch::Grpc { service: None, method: None }));
    assert!(matches!(&some.matches[1].path, PathMatch::Grpc { service: Some(_), method: None }));
    let mesh = with(&[route(
        "TLSRoute",
        "shop",
        "names",
        &format!("{{parentRefs: {WEB}, hostnames: [a.example.com, '*.b.example']}}"),
    )]);
    let [names] = mesh.rules("names")[..] else { panic!("one rule") };
    let [Some(SniMatch::Exact(a)), Some(SniMatch::Below(b))] =
        [0, 1].map(|at: usize| names.matches[at].sni.clone())
    else {
        panic!("{:?}", names.matches)
    };
    assert_eq!((a.as_str(), b.as_str()), ("a.example.com", "b.example"));
}

#[test]
fn a_route_is_attached_to_services_with_an_address_and_says_why_not() {
    let attached = |namespace: &str, parent: &str| {
        let mesh = with(&[route("HTTPRoute", namespace, "it", &format!("{{parentRefs: [{parent}]}}"))]);
        let parents = mesh.rules("it").first().map(|rule| parents(rule)).unwrap_or_default();
        let (_, reason, _) = mesh.condition("it", "Accepted");
        (parents.join(","), reason)
    };
    for (parent, expected) in [
        ("{group: '', kind: Service, name: web, port: 80}", "shop/web.shop.svc.cluster.local:80 Producer"),
        (
            "{group: core, kind: Service, name: web, sectionName: tls}",
            "shop/web.shop.svc.cluster.local:443 Producer",
        ),
    ] {
        assert_eq!(attached("shop", parent), (expected.to_owned(), "Accepted"));
    }
    let far = "{group: '', kind: Service, namespace: shop, name: web}";
    assert_eq!(attached("away", far).0, "shop/web.shop.svc.cluster.local:* Consumer");
    for (parent, reason) in [
        ("{group: '', kind: Service, name: nobody}", "NoMatchingParent"),
        ("{group: '', kind: Service, name: web, port: 81}", "NoMatchingParent"),
        ("{group: '', kind: Service, name: web, port: 53}", "NoMatchingParent"),
        ("{group: '', kind: Service, name: web, sectionName: http, port: 443}", "NoMatchingParent"),
        ("{group: '', kind: Service, name: headless}", "UnsupportedValue"),
        ("{kind: Service, name: web}", "NoMatchingParent"),
    ] {
        assert_eq!(attached("shop", parent), (String::new(), reason), "{parent}");
    }
    let mesh = with(&[route("HTTPRoute", "shop", "it", "{parentRefs: [{name: gateway}]}")]);
    assert!(mesh.rules("it").is_empty() && mesh.conditions("it").is_empty(), "another controller's");
}

#[test]
fn the_strongest_kind_holds_a_port_alone_among_routes_of_a_namespace() {
    let spec = |port: &str| {
        format!(
            "{{parentRefs: [{{group: '', kind: Service, namespace: shop, name: web{port}}}], rules: [{{backendRefs: [{{namespace: shop, name: v2, port: 80}}]}}]}}"
        )
    };
    let (http, grpc) = (
        route("HTTPRoute", "shop", "http", &spec("")),
        route("GRPCRoute", "shop", "grpc", &spec(", port: 80")),
    );
    let mut mesh = with(&[http, route("TCPRoute", "shop", "tcp", &spec(", port: 80"))]);
    assert_eq!(mesh.condition("tcp", "Accepted").1, "RouteReasonConflicted");
    assert!(mesh.condition("tcp", "Accepted").2.contains("HTTPRoute shop/http"));
    mesh.apply(upserts(&grpc));
    assert_eq!(mesh.rules("http").len(), 1, "443 is left to it");
    mesh.apply(upserts(&route("GRPCRoute", "shop", "grpc", &spec(""))));
    assert!(mesh.rules("http").is_empty() && mesh.rules("grpc").len() == 1);
    // Of other clients another namespace decides.
    mesh.apply(upserts(&route("HTTPRoute", "away", "consumer", &spec(""))));
    assert_eq!(mesh.rules("consumer")[0].parents[0].scope, Scope::Consumer);
    mesh.apply([Event::Delete(Key { kind: Kind::GRPCRoute, namespace: "shop".into(), name: "grpc".into() })]);
    assert_eq!(mesh.rules("http").len(), 1);
    assert_eq!(mesh.rules("http")[0].key.kind, RouteKind::Http);
}

#[test]
fn a_backend_that_leads_nowhere_keeps_its_share() {
    for (backend, reason) in [
        ("{name: nobody, port: 80}", "BackendNotFound"),
        ("{name: v2, port: 81}", "BackendNotFound"),
        ("{name: v2}", "BackendNotFound"),
        ("{name: web, port: 53}", "UnsupportedProtocol"),
        ("{group: example.com, kind: Bucket, name: b}", "InvalidKind"),
    ] {
        let mesh = rule(&format!("{{backendRefs: [{{name: v2, port: 80, weight: 3}}, {backend}]}}"));
        let [rule] = mesh.rules("it")[..] else { panic!("{backend}") };
        assert!(matches!(&rule.backends[0].target, BackendTarget::Service { port: 80, .. }));
        let BackendTarget::Invalid(why) = &rule.backends[1].target else { panic!("{:?}", rule.backends) };
        assert!(why.starts_with(reason) && rule.backends[1].weight == 1, "{why}");
        let (resolved, said, message) = mesh.condition("it", "ResolvedRefs");
        assert_eq!((resolved, said), (false, reason), "{message}");
        assert!(mesh.condition("it", "Accepted").0, "the rest is carried out");
    }
    let mut mesh = rule("{backendRefs: [{name: later, port: 80}]}");
    mesh.apply(upserts("apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: later}\nspec: {clusterIP: 10.1.0.9, ports: [{port: 80}]}"));
    assert!(mesh.condition("it", "ResolvedRefs").0, "it has come");
}

#[test]
fn a_namespace_that_grants_references_to_services_grants_no_others() {
    let grant = |from: &str, to: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{namespace: away, name: g}}\n\
                 spec: {{from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: {from}}}], to: [{to}]}}\n"
        )
    };
    let mut mesh = rule("{backendRefs: [{namespace: away, name: far, port: 80}]}");
    let resolved = |mesh: &Mesh| mesh.condition("it", "ResolvedRefs").1;
    assert_eq!(resolved(&mesh), "ResolvedRefs", "a mesh needs no grants");
    for (from, to, expected) in [
        ("shop", "{group: '', kind: Secret}", "ResolvedRefs"),
        ("other", "{group: '', kind: Service}", "RefNotPermitted"),
        ("shop", "{group: '', kind: Service, name: other}", "RefNotPermitted"),
        ("shop", "{group: '', kind: Service, name: far}", "ResolvedRefs"),
    ] {
        mesh.apply(upserts(&grant(from, to)));
        assert_eq!(resolved(&mesh), expected, "{from} {to}");
    }
    // What clients addressed themselves is nobody's to grant.
    let own = "{parentRefs: [{group: '', kind: Service, namespace: away, name: far}], rules: [{backendRefs: [{namespace: away, name: far, port: 80}]}]}";
    mesh.apply(upserts(
        &(grant("other", "{group: '', kind: Service}") + &route("HTTPRoute", "shop", "it", own)),
    ));
    assert_eq!(resolved(&mesh), "ResolvedRefs");
}

#[test]
fn a_rule_that_cannot_be_carried_out_stands_refused_in_its_place() {
    let backend = "backendRefs: [{name: v2, port: 80}]";
    for (text, reason, part) in [
        (format!("{{matches: [{{cookies: [{{name: a}}]}}], {backend}}}"), "UnsupportedValue", "\"cookies\""),
        (format!("{{matches: [{{path: {{type: RegularExpression, value: '('}}}}], {backend}}}"), "UnsupportedValue", "regular expression"),
        (format!("{{matches: [{{path: {{type: Glob, value: /a}}}}], {backend}}}"), "UnsupportedValue", "\"Glob\""),
        (format!("{{matches: [{{method: BREW}}], {backend}}}"), "UnsupportedValue", "\"BREW\""),
        (format!("{{matches: [{{headers: [{{name: 'a b', value: c}}]}}], {backend}}}"), "UnsupportedValue", "header name"),
        (format!("{{filters: [{{type: ExtensionRef, extensionRef: {{name: a}}}}], {backend}}}"), "UnsupportedValue", "ExtensionRef"),
        (format!("{{filters: [{{type: Teleport}}], {backend}}}"), "UnsupportedValue", "\"Teleport\""),
        (format!("{{filters: [{{type: URLRewrite}}], {backend}}}"), "UnsupportedValue", "does not say"),
        (format!("{{filters: [{{type: RequestRedirect, requestRedirect: {{port: 1}}}}], {backend}}}"), "IncompatibleFilters", "backendRefs"),
        ("{filters: [{type: RequestRedirect, requestRedirect: {statusCode: 305}}]}".into(), "UnsupportedValue", "305"),
        ("{filters: [{type: RequestRedirect, requestRedirect: {}}, {type: URLRewrite, urlRewrite: {hostname: a}}]}".into(), "IncompatibleFilters", "URLRewrite"),
        (format!("{{filters: [{{type: CORS, cors: {{}}}}, {{type: CORS, cors: {{}}}}], {backend}}}"), "IncompatibleFilters", "twice"),
        (format!("{{matches: [{{path: {{type: Exact, value: /a}}}}], filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: /}}}}}}], {backend}}}"), "UnsupportedValue", "PathPrefix"),
        (format!("{{filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{add: [{{name: a, value: b}}], remove: [A]}}}}], {backend}}}"), "UnsupportedValue", "twice"),
        ("{backendRefs: [{name: v2, port: 80, filters: [{type: Teleport}]}]}".into(), "UnsupportedValue", "\"Teleport\""),
        (format!("{{timeouts: {{request: 1s, backendRequest: 2s}}, {backend}}}"), "UnsupportedValue", "longer"),
        (format!("{{timeouts: {{request: soon}}, {backend}}}"), "UnsupportedValue", "\"soon\""),
        (format!("{{retry: {{codes: [200]}}, {backend}}}"), "UnsupportedValue", "200"),
        (format!("{{sessionPersistence: {{cookie: {{lifetimeType: Permanent}}}}, {backend}}}"), "UnsupportedValue", "absoluteTimeout"),
    ] {
        let mesh = rule(&text);
        let [rule] = mesh.rules("it")[..] else { panic!("it keeps its place: {text}") };
        let refusal = rule.refusal.as_deref().unwrap_or_else(|| panic!("{text}"));
        assert!(refusal.contains(part), "{text}: {refusal}");
        let (accepted, said, message) = mesh.condition("it", "Accepted");
        assert_eq!((accepted, said), (false, reason), "{text}: {message}");

        let some = with(&[route("HTTPRoute", "shop", "it", &format!("{{parentRefs: {WEB}, rules: [{{name: fine}}, {text}]}}"))]);
        assert!(some.condition("it", "Accepted").0);
        let (partial, _, message) = some.condition("it", "PartiallyInvalid");
        assert!(partial && message.starts_with("Dropped Rule") && message.contains("rule 1"), "{message}");
    }
}

#[test]
fn what_was_said_is_not_said_again_and_others_may_say_what_they_like() {
    let mesh = rule("{backendRefs: [{name: v2, port: 80}]}");
    let conditions = mesh.conditions("it");
    let said = |message: &str| {
        let ours: String = conditions
            .iter()
            .map(|it| {
                format!(
                    "{{type: {}, status: 'True', reason: {}, message: '{}{message}'}},",
                    it.kind, it.reason, it.message
                )
            })
            .collect();
        format!(
            "status: {{parents: [{{parentRef: {{name: other}}, controllerName: example.com/other, conditions: [{{type: Accepted, status: 'False'}}]}},
               {{parentRef: {{group: '', kind: Service, name: web}}, controllerName: airglow.dev/controller,
                 conditions: [{ours} {{type: example.com/Seen, status: 'True'}}]}}]}}\n"
        )
    };
    let text = route(
        "HTTPRoute",
        "shop",
        "it",
        &format!("{{parentRefs: {WEB}, rules: [{{backendRefs: [{{name: v2, port: 80}}]}}]}}"),
    );
    assert!(with(&[text.clone() + &said("")]).index.statements(&[]).is_empty());
    assert_eq!(with(&[text.clone() + &said("!")]).index.statements(&[]).len(), 1);
    let elsewhere = text.replace("name: web", "name: gateway").replace("kind: Service, ", "kind: Gateway, ");
    let statements = with(&[elsewhere + &said("")]).index.statements(&[]);
    assert!(statements.len() == 1 && statements[0].attachments.is_empty(), "ours is to go: {statements:?}");
}

#[test]
fn a_waypoint_is_no_parent_and_the_route_says_what_is() {
    let to_gateway = route("HTTPRoute", "shop", "it", "{parentRefs: [{name: wp}], rules: [{}]}");
    let gateway = |class: &str| {
        format!(
            "---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{namespace: shop, name: wp}}
spec: {{gatewayClassName: {class}, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}
"
        )
    };
    let mut mesh = with(&[to_gateway]);
    assert_eq!(mesh.conditions("it"), [], "somebody else's, for all that is known");
    mesh.apply(upserts(&gateway("airglow-waypoint")));
    let (holds, reason, message) = mesh.condition("it", "Accepted");
    assert_eq!((holds, reason), (false, "NoMatchingParent"));
    assert!(message.contains("name a Service"), "{message}");
    assert!(mesh.rules("it").is_empty());
    mesh.apply(upserts(&gateway("nginx")));
    assert_eq!(mesh.conditions("it"), []);
}

#[test]
fn findings_say_the_same() {
    let mesh = rule("{backendRefs: [{name: nobody, port: 80}]}");
    let said: Vec<_> = mesh.findings("it").iter().map(|it| format!("{} {}", it.outcome, it.reason)).collect();
    assert_eq!(said, ["Accepted Accepted", "Partial Incomplete"]);
}
