//! TrafficPolicies: what they are attached to, what they set, and which of several counts.

use std::time::Duration;

use controller::source::objects::{Event, Key, Kind};
use model::l7::{AbortAnswer, Balancing, Client, HashKey, Policy, PolicyTarget};

use crate::support::{Mesh, upserts};

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: web}
spec: {clusterIP: 10.1.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {namespace: shop, name: split}
spec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{}, {name: canary}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {namespace: shop, name: waypoint}
spec: {gatewayClassName: airglow-waypoint}
";

const SERVICE: &str = "{kind: Service, name: web}";
const ABORT: &str = "fault: {until: '2026-12-01T18:00:00Z', abort: {httpStatus: 503}}";

fn policy(name: &str, second: u8, targets: &str, more: &str) -> String {
    format!(
        "---
apiVersion: airglow.dev/v1alpha1
kind: TrafficPolicy
metadata: {{namespace: shop, name: {name}, creationTimestamp: '2026-11-01T00:00:0{second}Z'}}
spec: {{targetRefs: [{targets}], {more}}}
"
    )
}

fn with(policies: &[String]) -> Mesh {
    Mesh::of(&(WEB.to_owned() + &policies.concat()))
}

fn told<'a>(mesh: &'a Mesh, name: &str) -> Vec<&'a Policy> {
    mesh.seen.traffic.values().filter(|policy| &*policy.name.name == name).collect()
}

#[test]
fn a_policy_says_what_befalls_whom_until_when() {
    let mesh = with(&[policy(
        "chaos",
        1,
        SERVICE,
        "fault: {until: '2026-12-01T18:00:00Z',
           matches: [{headers: [{name: x-user, value: jane}], clients: [{serviceAccount: cart}, {namespace: away}]}],
           delay: {duration: 1s500ms, percent: 50}, abort: {grpcStatus: UNAVAILABLE, fraction: {numerator: 1, denominator: 1000}}},
         balancing: {algorithm: Maglev, hash: {cookie: {name: c, ttl: 1h}}}",
    )]);
    let [policy] = told(&mesh, "chaos")[..] else { panic!("{:?}", mesh.seen.traffic) };
    let PolicyTarget::Service(service) = &policy.target else { panic!("{policy:?}") };
    assert_eq!(service.to_string(), "shop/web.shop.svc.cluster.local");
    let fault = policy.fault.as_ref().expect("a fault");
    assert_eq!(fault.until.0, 1_796_148_000_000_000_000);
    let [trigger] = &fault.triggers[..] else { panic!("{fault:?}") };
    assert_eq!((trigger.headers.len(), trigger.clients.len()), (1, 2));
    assert_eq!(trigger.clients[0], Client::ServiceAccount { namespace: "shop".into(), name: "cart".into() });
    assert_eq!(trigger.clients[1], Client::Namespace("away".into()));
    let delay = fault.delay.expect("a delay");
    assert_eq!((delay.duration, delay.share.numerator()), (Duration::from_millis(1500), 50));
    let abort = fault.abort.expect("an abort");
    assert_eq!((abort.answer, abort.share.denominator()), (AbortAnswer::Grpc(14), 1000));
    let Some(Balancing::Maglev(HashKey::Cookie { ttl, .. })) = &policy.balancing else {
        panic!("{policy:?}")
    };
    assert_eq!(*ttl, Some(Duration::from_secs(3600)));
    assert!(mesh.condition("chaos", "Accepted").0);
}

#[test]
fn targets_are_services_routes_rules_and_gateways() {
    let api = "group: gateway.networking.k8s.io";
    let found = |target: &str| {
        let mesh = with(&[policy("it", 1, target, ABORT)]);
        let target = told(&mesh, "it").first().map(|policy| policy.target.clone());
        let (_, reason, message) = mesh.condition("it", "Accepted");
        (target, reason, message)
    };
    let is = |target: &str| found(&format!("{{{api}, {target}}}")).0.expect("a target");
    assert!(matches!(is("kind: HTTPRoute, name: split"), PolicyTarget::Route { .. }));
    let PolicyTarget::Rule(rule) = is("kind: HTTPRoute, name: split, sectionName: canary") else {
        panic!("a rule")
    };
    assert_eq!(rule.to_string(), "HTTPRoute/shop/split/1");
    assert!(matches!(is("kind: Gateway, name: waypoint"), PolicyTarget::Waypoint { .. }));
    for (target, reason) in [
        (format!("{{{api}, kind: HTTPRoute, name: split, sectionName: other}}"), "TargetNotFound"),
        (format!("{{{api}, kind: GRPCRoute, name: split}}"), "TargetNotFound"),
        ("{kind: Service, name: nobody}".into(), "TargetNotFound"),
        ("{kind: Service, name: web, sectionName: http}".into(), "Invalid"),
        ("{kind: Pod, name: web}".into(), "Invalid"),
        (format!("{{{api}, kind: Gateway, name: other}}"), "TargetNotFound"),
        (format!("{{{api}, kind: Gateway, name: waypoint, sectionName: mesh}}"), "Invalid"),
    ] {
        let (told, said, message) = found(&target);
        assert_eq!((told, said), (None, reason), "{target}: {message}");
    }
    let mut mesh = with(&[policy("it", 1, "{kind: Service, name: later}", ABORT)]);
    mesh.apply(upserts("apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: later}"));
    assert!(mesh.condition("it", "Accepted").0 && told(&mesh, "it").len() == 1);
    // A rule is known by its name wherever it stands.
    let mut mesh = with(&[policy(
        "it",
        1,
        &format!("{{{api}, kind: HTTPRoute, name: split, sectionName: canary}}"),
        ABORT,
    )]);
    mesh.apply(upserts(&WEB.replace("rules: [{}, {name: canary}]", "rules: [{name: canary}]")));
    assert!(
        matches!(&told(&mesh, "it")[..], [one] if matches!(&one.target, PolicyTarget::Rule(rule) if rule.index == 0))
    );
}

#[test]
fn each_setting_is_taken_from_the_oldest_policy_that_has_it() {
    let balancing = "balancing: {algorithm: Random}";
    let mut mesh = with(&[
        policy("old", 1, SERVICE, balancing),
        policy("mid", 2, SERVICE, &format!("{ABORT}, {balancing}")),
        policy("new", 3, SERVICE, ABORT),
        policy("broken", 0, SERVICE, "fault: {until: tomorrow, abort: {httpStatus: 500}}"),
    ]);
    let sets = |mesh: &Mesh, name: &str| {
        let all = told(mesh, name);
        all.iter().map(|it| (it.fault.is_some(), it.balancing.is_some())).collect::<Vec<_>>()
    };
    assert_eq!([sets(&mesh, "old"), sets(&mesh, "mid")], [[(false, true)], [(true, false)]]);
    assert!(mesh.condition("mid", "Accepted").2.contains("balancing is taken from TrafficPolicy shop/old"));
    assert_eq!((sets(&mesh, "new").len(), mesh.condition("new", "Accepted").1), (0, "Conflicted"));
    assert_eq!(mesh.condition("broken", "Accepted").1, "Invalid", "and it displaces nobody");
    for name in ["old", "mid"] {
        mesh.apply([Event::Delete(Key {
            kind: Kind::TrafficPolicy,
            namespace: "shop".into(),
            name: name.into(),
        })]);
    }
    assert_eq!(sets(&mesh, "new"), [(true, false)]);
}

#[test]
fn what_cannot_be_meant_is_refused_in_words() {
    let fault = |more: &str| format!("fault: {{until: '2026-12-01T18:00:00Z', {more}}}");
    for (spec, part) in [
        (fault(""), "add delay or abort"),
        (fault("abort: {}"), "one of httpStatus"),
        (fault("abort: {httpStatus: 500, reset: true}"), "one of httpStatus"),
        (fault("abort: {httpStatus: 99}"), "one of httpStatus"),
        (fault("abort: {grpcStatus: OK}"), "UNAVAILABLE"),
        (fault("abort: {reset: true, percent: 101}"), "no share"),
        (fault("abort: {reset: true, percent: 1, fraction: {numerator: 1}}"), "keep one"),
        (fault("delay: {duration: long}"), "long"),
        (fault("matches: [{}], abort: {reset: true}"), "no condition"),
        (
            fault(
                "matches: [{headers: [{name: a, type: RegularExpression, value: '('}]}], abort: {reset: true}",
            ),
            "regular expression",
        ),
        ("balancing: {algorithm: RingHash}".into(), "need balancing.hash"),
        ("balancing: {hash: {source: true}}".into(), "for RingHash and Maglev"),
        ("balancing: {algorithm: RingHash, hash: {source: true, header: a}}".into(), "one of header"),
    ] {
        let mesh = with(&[policy("it", 1, SERVICE, &spec)]);
        let (accepted, reason, message) = mesh.condition("it", "Accepted");
        assert_eq!((accepted, reason, told(&mesh, "it").len()), (false, "Invalid", 0), "{spec}");
        assert!(message.contains(part), "{spec}: {message}");
    }
}
