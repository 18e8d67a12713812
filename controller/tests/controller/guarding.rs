//! What a waypoint is told of routes and policies: what is about the services that it guards, and no more.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use controller::index::Enrolment;
use controller::source::objects::{Event, Key, Kind, Object, Pod};
use model::l7::{BackendTarget, Filter, PolicyTarget, Rule};
use model::service::{GatewayAddress, Service, ServiceName};
use model::workload::{NetworkMode, Workload};
use xds::Resource;

use crate::support::{Mesh, objects, pod, upserts};

/// What a waypoint's pod is told of but for AuthorizationPolicies, by name.
pub(crate) fn told(mesh: &Mesh, pod: &Enrolment) -> BTreeSet<String> {
    let told = mesh.published.now().told(pod);
    told.rules
        .iter()
        .chain(told.policies.iter())
        .chain(told.addresses.iter())
        .map(|resource| resource.name.clone())
        .collect()
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
    let rules = rules.iter().map(|rule| rule.key.to_string());
    rules.chain(policies).chain(addresses_naively(mesh, pod, &named)).collect()
}

/// The services and workloads of them, where rules lead to `named`.
fn addresses_naively(mesh: &Mesh, pod: &Enrolment, named: &BTreeSet<&ServiceName>) -> BTreeSet<String> {
    let seen = &mesh.seen;
    let is_called =
        |at: &GatewayAddress| pod.guards_as.iter().any(|name| **name == at.destination.to_string());
    let is_needed = |workload: &Workload| {
        workload.services.keys().any(|service| named.contains(service))
            || workload.waypoint.as_ref().is_some_and(is_called)
    };
    let addresses = |workload: &Workload| -> BTreeSet<_> {
        workload.addresses.iter().map(|ip| (workload.network.clone(), *ip)).collect()
    };
    // Somebody's address that was written down as an endpoint.
    let borrowed: BTreeSet<_> = seen
        .workloads
        .values()
        .filter(|workload| workload.network_mode == NetworkMode::HostNetwork && is_needed(workload))
        .flat_map(addresses)
        .collect();
    let workloads = seen.workloads.values().filter(|workload| {
        let is_lender =
            workload.network_mode == NetworkMode::Standard && !addresses(workload).is_disjoint(&borrowed);
        is_needed(workload) || is_lender || workload.uid == pod.workload
    });
    let own = seen.workloads.get(&pod.workload).map(|own| own.services.keys().collect()).unwrap_or_default();
    let services = seen.services.keys().filter(|name| named.contains(name) || BTreeSet::contains(&own, name));
    services.map(ToString::to_string).chain(workloads.map(|workload| workload.uid.to_string())).collect()
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
status: {{phase: Running, podIP: 10.0.9.9}}
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
fn names(mesh: &mut Mesh, namespace: &str) -> Vec<String> {
    mesh.later();
    let pod = instance(mesh, namespace);
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
    assert_eq!(names(&mut mesh, "shop"), [&all[..], &["of-wp"]].concat());
    assert_eq!(names(&mut mesh, "away"), [""; 0]);

    // Guarded by the other one from now on, and what is about it moves there.
    mesh.apply(upserts(&service("web", &format!("{WEB}, istio.io/use-waypoint-namespace: away"))));
    assert_eq!(
        (names(&mut mesh, "shop"), names(&mut mesh, "away")),
        (vec!["of-wp".to_owned()], all.map(str::to_owned).to_vec())
    );
    mesh.apply([Event::Delete(Key {
        kind: Kind::HTTPRoute,
        namespace: "shop".into(),
        name: "to-web".into(),
    })]);
    assert_eq!(names(&mut mesh, "away"), ["of-web"], "it leads nowhere else any more");
}

/// The waypoint's pod of a namespace.
fn instance<'a>(mesh: &'a Mesh, namespace: &str) -> &'a Enrolment {
    let mut pods = mesh.seen.enrolments.values();
    pods.find(|pod| *pod.uid == *format!("wp-of-{namespace}")).expect("a pod")
}

/// Pods like the one of that text, each of an application `app-N` of the namespace `team-M`.
fn crowd(pods: usize, of_one: usize) -> Vec<Event> {
    let one = objects(&pod("shop", "one", "10.0.0.1"));
    let [Object::Pod(one)] = &one[..] else { panic!("{one:?}") };
    let made = (0..pods).map(|index| {
        let (mut pod, app) = (Pod::clone(one), index / of_one);
        pod.metadata.namespace = format!("team-{}", app / 2);
        pod.metadata.name = format!("pod-{index}");
        pod.metadata.uid = format!("uid-{index}");
        pod.metadata.labels.insert("app".into(), format!("app-{app}"));
        let address = Ipv4Addr::from_bits(0x0a80_0000 + u32::try_from(index).expect("few"));
        pod.status.pod_ip = address.to_string();
        Event::Upsert(Object::Pod(Arc::new(pod)))
    });
    made.collect()
}

#[test]
fn what_a_waypoint_is_told_does_not_grow_with_the_cluster() {
    const ROUTE: &str = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {namespace: team-1, name: to-web}
spec:
  parentRefs: [{group: '', kind: Service, name: app-2}]
  rules: [{backendRefs: [{name: app-3, port: 80}]}]
";
    let service = |app: usize, labels: &str| {
        service(&format!("app-{app}"), labels)
            .replace("namespace: shop", &format!("namespace: team-{}", app / 2))
            .replace("ports", &format!("selector: {{app: app-{app}}}, ports"))
    };
    let services: String = (0..200).filter(|app| *app != 2).map(|app| service(app, "")).collect();
    let guarded = service(2, "istio.io/use-waypoint: wp");
    let mut mesh = Mesh::of(&[&services, &guarded, ROUTE, &gateway("team-1")].concat());
    mesh.apply(crowd(10_000, 50));
    let wp = instance(&mesh, "team-1").clone();
    let told = |mesh: &Mesh| mesh.published.now().told(&wp).addresses;
    let all = mesh.published.now().addresses.len();
    // Two services, their pods, and the waypoint's own pod.
    assert_eq!((all, told(&mesh).len()), (10_201, 2 + 2 * 50 + 1));

    let changed = |mesh: &mut Mesh, index: usize| {
        let before = told(mesh);
        let mut pods = crowd(index + 1, 50);
        let Some(Event::Upsert(Object::Pod(mut pod))) = pods.pop() else { panic!("a pod") };
        Arc::make_mut(&mut pod).status.conditions.clear();
        mesh.apply([Event::Upsert(Object::Pod(pod))]);
        let is_other = |(before, after): (&Arc<Resource>, &Arc<Resource>)| before.version != after.version;
        before.iter().zip(told(mesh).iter()).filter(|pair| is_other(*pair)).count()
    };
    assert_eq!(changed(&mut mesh, 120), 1, "one of the guarded service's is not ready any more");
    assert_eq!(changed(&mut mesh, 160), 1, "one of those that its route leads to");
    assert_eq!(changed(&mut mesh, 9_000), 0, "somebody else's");

    // Guarded no more: for a while it is told that nobody guards that now.
    mesh.apply(upserts(&service(2, "")));
    let unguarded = told(&mesh);
    assert_eq!(unguarded.len(), 2 + 2 * 50 + 1);
    let web = unguarded.get("team-1/app-2.team-1.svc.cluster.local").expect("told");
    assert!(mesh.published.now().addresses.get(&web.name).is_some_and(|now| now.version == web.version));
    mesh.later();
    assert_eq!(told(&mesh).len(), 1);
}
