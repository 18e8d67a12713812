//! What a waypoint is told of routes and policies: what is about the services that it guards, and no more.

use std::collections::BTreeSet;

use controller::index::Enrolment;
use controller::source::objects::{Event, Key, Kind};
use model::l7::{BackendTarget, Filter, PolicyTarget, Rule};
use model::service::{Service, ServiceName};

use crate::support::{Mesh, upserts};

/// The rules and policies that a waypoint's pod is told of, by name.
pub(crate) fn told(mesh: &Mesh, pod: &Enrolment) -> BTreeSet<String> {
    let told = mesh.published.now().told(pod);
    told.rules.iter().chain(told.policies.iter()).map(|resource| resource.name.clone()).collect()
}

/// The same, found by looking at everything.
pub(crate) fn naively(mesh: &Mesh, pod: &Enrolment) -> BTreeSet<String> {
    let seen = &mesh.seen;
    let is_guarded = |service: &&Service| {
        let weighted = service.weighted_waypoints.iter().map(|waypoint| &waypoint.destination);
        let mut waypoints = service.waypoint.iter().chain(weighted);
        waypoints.any(|at| pod.guards_as.iter().any(|name| **name == at.destination.to_string()))
    };
    let guarded: BTreeSet<_> = seen.services.values().filter(is_guarded).map(|service| &service.id).collect();
    let is_about = |rule: &&Rule| rule.parents.iter().any(|parent| guarded.contains(&parent.service));
    let rules: Vec<&Rule> = seen.rules.values().filter(is_about).collect();
    let named: BTreeSet<&ServiceName> =
        guarded.iter().copied().chain(rules.iter().flat_map(|rule| led_to(rule))).collect();
    let is_of = |target: &PolicyTarget| match target {
        PolicyTarget::Service(service) => named.contains(service),
        PolicyTarget::Rule(key) => rules.iter().any(|rule| rule.key == *key),
        PolicyTarget::Route { kind, namespace, name } => rules
            .iter()
            .any(|rule| (rule.key.kind, &rule.key.namespace, &rule.key.name) == (*kind, namespace, name)),
        PolicyTarget::Waypoint { namespace, name } => {
            (namespace, name) == (&pod.identity.namespace, &pod.identity.service_account)
        }
    };
    let policies = seen.traffic.values().filter(|policy| is_of(&policy.target));
    let policies = policies.map(|policy| api::encode::traffic_policy(policy).name);
    rules.iter().map(|rule| rule.key.to_string()).chain(policies).collect()
}

fn led_to(rule: &Rule) -> impl Iterator<Item = &ServiceName> {
    let filters = rule.filters.iter().chain(rule.backends.iter().flat_map(|backend| &backend.filters));
    let mirrors = filters
        .filter_map(|filter| if let Filter::Mirror(mirror) = filter { Some(&mirror.target) } else { None });
    let targets = rule.backends.iter().map(|backend| &backend.target).chain(mirrors);
    targets.filter_map(|target| match target {
        BackendTarget::Service { name, .. } => Some(name),
        BackendTarget::Invalid(_) => None,
    })
}

fn gateway(namespace: &str) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{namespace: {namespace}, name: wp}}
spec: {{gatewayClassName: airglow-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {{namespaces: {{from: All}}}}}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{namespace: {namespace}, name: wp-1, uid: wp-of-{namespace}, labels: {{gateway.networking.k8s.io/gateway-name: wp}}}}
spec: {{nodeName: n1, serviceAccountName: wp}}
"
    )
}

fn service(name: &str, labels: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{namespace: shop, name: {name}, labels: {{{labels}}}}}
spec: {{clusterIP: 10.1.0.1, ports: [{{port: 80}}]}}
"
    )
}

fn policy(name: &str, target: &str) -> String {
    format!(
        "---
apiVersion: airglow.dev/v1alpha1
kind: TrafficPolicy
metadata: {{namespace: shop, name: {name}}}
spec: {{targetRefs: [{target}], balancing: {{algorithm: Random}}}}
"
    )
}

/// What the waypoint of a namespace is told of, without what all of it begins with.
fn names(mesh: &Mesh, namespace: &str) -> Vec<String> {
    let pods = mesh.seen.enrolments.values();
    let pod = pods.into_iter().find(|pod| *pod.uid == *format!("wp-of-{namespace}")).expect("a pod");
    let told = told(mesh, pod);
    assert_eq!(told, naively(mesh, pod));
    ["to-web", "of-web", "of-v2", "of-other", "of-route", "of-wp"]
        .into_iter()
        .filter(|name| told.iter().any(|told| told.contains(&format!("shop/{name}"))))
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_waypoint_is_told_of_what_it_guards_and_of_what_that_leads_to() {
    const WEB: &str = "istio.io/use-waypoint: wp";
    const ROUTE: &str = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {namespace: shop, name: to-web}
spec:
  parentRefs: [{group: '', kind: Service, name: web}]
  rules: [{backendRefs: [{name: v2, port: 80}]}]
";
    let group = "group: gateway.networking.k8s.io";
    let text = [
        gateway("shop"),
        gateway("away"),
        service("web", WEB),
        service("v2", ""),
        service("other", ""),
        ROUTE.to_owned(),
        policy("of-web", "{kind: Service, name: web}"),
        policy("of-v2", "{kind: Service, name: v2}"),
        policy("of-other", "{kind: Service, name: other}"),
        policy("of-route", &format!("{{{group}, kind: HTTPRoute, name: to-web}}")),
        policy("of-wp", &format!("{{{group}, kind: Gateway, name: wp}}")),
    ];
    let mut mesh = Mesh::of(&text.concat());
    let all = ["to-web", "of-web", "of-v2", "of-route"];
    assert_eq!(names(&mesh, "shop"), [&all[..], &["of-wp"]].concat());
    assert_eq!(names(&mesh, "away"), [""; 0]);

    // Guarded by the other one from now on, and what is about it moves there.
    mesh.apply(upserts(&service("web", &format!("{WEB}, istio.io/use-waypoint-namespace: away"))));
    assert_eq!(
        (names(&mesh, "shop"), names(&mesh, "away")),
        (vec!["of-wp".to_owned()], all.map(str::to_owned).to_vec())
    );
    mesh.apply([Event::Delete(Key {
        kind: Kind::HTTPRoute,
        namespace: "shop".into(),
        name: "to-web".into(),
    })]);
    assert_eq!(names(&mesh, "away"), ["of-web"], "it leads nowhere else any more");
}
