//! Waypoints that come when something needs them: which services have one, from when to when, and what is said of it.

use std::sync::Arc;

use controller::index::{AUTOMATIC_NAME, WAYPOINT_BOUND, Wish};
use controller::source::objects::{Event, Key, Kind, Object};

use crate::support::{Mesh, Silence, objects, pod, upserts};

const ASKING: &str = "---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {airglow.dev/waypoint: auto}}
";

fn service(name: &str, labels: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{namespace: shop, name: {name}, labels: {{{labels}}}}}
spec: {{clusterIP: 10.1.0.1, selector: {{app: {name}}}, ports: [{{port: 80}}]}}
"
    )
}

/// A route to `web`, attached to `parent`.
fn route(namespace: &str, parent: &str) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{namespace: {namespace}, name: to-{parent}}}
spec:
  parentRefs: [{{group: '', kind: Service, namespace: shop, name: {parent}}}]
  rules: [{{backendRefs: [{{name: web, namespace: shop, port: 80}}]}}]
"
    )
}

/// The Gateway as it is made, with this said of it.
fn gateway(labels: &str, attached: &str, address: &str) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{namespace: shop, name: {AUTOMATIC_NAME}, uid: g1, labels: {{{labels}}}}}
spec: {{gatewayClassName: airglow-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}
status: {{addresses: [{address}], conditions: [{{type: airglow.dev/Attached, status: '{attached}'}}]}}
"
    )
}

const MARK: &str = "airglow.dev/waypoint: auto";
const ADDRESS: &str = "{type: Hostname, value: waypoint-auto.shop.svc.cluster.local}";

fn gone(kind: Kind, namespace: &str, name: &str) -> [Event; 1] {
    [Event::Delete(Key { kind, namespace: namespace.into(), name: name.into() })]
}

fn wishes(mesh: &Mesh) -> Vec<Wish> {
    mesh.index.automatic_waypoints()
}

fn is_guarded(mesh: &Mesh, service: &str) -> bool {
    mesh.service(service).waypoint.is_some()
}

/// Writes what is to be said of the Service `web` into its status, as an API server would keep it, and returns the word about its
/// waypoint.
fn tell(mesh: &mut Mesh) -> (String, String) {
    let judgements = mesh.index.judgements(&[], &Silence, true);
    let of = judgements.into_iter().find(|it| it.about == WAYPOINT_BOUND && it.key.name == "web");
    let conditions = of.map(|it| it.conditions).unwrap_or_default();
    let mut objects = objects(&service("web", ""));
    let [Object::Service(web)] = &mut objects[..] else { panic!("{objects:?}") };
    Arc::make_mut(web).status.conditions.clone_from(&conditions);
    mesh.apply(objects.into_iter().map(Event::Upsert));
    let bound = conditions.into_iter().find(|it| it.kind == WAYPOINT_BOUND).unwrap_or_default();
    (bound.reason, bound.message)
}

/// What is said of the Gateway's attachment: whether, and why in a word.
fn attached(mesh: &Mesh) -> (bool, &'static str, String) {
    let wanted = mesh.index.wanted_waypoints();
    let [wanted] = &wanted[..] else { panic!("{wanted:?}") };
    let said = wanted.conditions(None);
    let said = said.iter().find(|said| said.kind == "airglow.dev/Attached").expect("it is said");
    (said.is_so, said.reason, said.message.clone())
}

#[test]
fn one_comes_when_it_is_needed_and_goes_when_it_is_not() {
    let mut mesh = Mesh::of(&(ASKING.to_owned() + &service("web", "") + &service("idle", "")));
    assert_eq!(wishes(&mesh), [], "nothing needs it");
    mesh.apply(upserts(&route("shop", "web")));
    assert_eq!(wishes(&mesh), [Wish::Make("shop".into())]);
    assert!(!is_guarded(&mesh, "web"), "reached as before while it is made");
    let (_, _, message) = mesh.condition("to-web", "Accepted");
    assert!(message.contains("not ready yet"), "{message}");

    mesh.apply(upserts(&gateway(MARK, "False", "")));
    assert_eq!(wishes(&mesh), []);
    assert!(!is_guarded(&mesh, "web"));
    let (is_so, reason, message) = attached(&mesh);
    assert_eq!((is_so, reason), (false, "Pending"), "{message}");

    // A pod of it is ready, and what is said of that comes back.
    let instance = pod("shop", "wp", "10.0.0.9")
        .replace("app: wp", "gateway.networking.k8s.io/gateway-name: waypoint-auto");
    mesh.apply(upserts(
        &(service(AUTOMATIC_NAME, "gateway.networking.k8s.io/gateway-name: waypoint-auto") + &instance),
    ));
    assert_eq!(attached(&mesh).1, "Attached");
    mesh.apply(upserts(&gateway(MARK, "True", ADDRESS)));
    assert!(is_guarded(&mesh, "web") && !is_guarded(&mesh, "idle"));
    let (_, _, message) = mesh.condition("to-web", "Accepted");
    assert_eq!(message, "attached to the Service");

    // Nobody is ready any more: closed, for it was there.
    mesh.apply(gone(Kind::Pod, "shop", "wp"));
    assert_eq!(attached(&mesh).1, "Attached", "{:?}", attached(&mesh));
    assert!(is_guarded(&mesh, "web"));

    mesh.apply(gone(Kind::HTTPRoute, "shop", "to-web"));
    assert!(!is_guarded(&mesh, "web"), "before it goes");
    assert_eq!(wishes(&mesh), [Wish::Remove("shop".into(), "g1".into())]);
    assert_eq!((attached(&mesh).0, attached(&mesh).1), (false, "Unneeded"));
    mesh.apply(gone(Kind::Gateway, "shop", AUTOMATIC_NAME));
    assert_eq!(wishes(&mesh), []);
}

#[test]
fn what_was_guarded_is_refused_while_its_waypoint_is_made_again() {
    let guarded =
        [ASKING.to_owned(), service("web", ""), route("shop", "web"), gateway(MARK, "True", ADDRESS)];
    let mut mesh = Mesh::of(&guarded.concat());
    assert_eq!(tell(&mut mesh).0, "WaypointAccepted");

    // Somebody deletes it: closed, also for a controller that was not there to see it.
    let way = mesh.service("web").waypoint.clone();
    mesh.apply(gone(Kind::Gateway, "shop", AUTOMATIC_NAME));
    assert_eq!(wishes(&mesh), [Wish::Make("shop".into())]);
    assert_eq!(mesh.service("web").waypoint, way, "the same, which is not there");
    let (reason, message) = tell(&mut mesh);
    assert!(reason == "WaypointIsNotReady" && message.contains("connections are refused"), "{message}");
    assert!(is_guarded(&mesh, "web"), "what was said of that keeps it so");

    // What comes to need it meanwhile was never guarded.
    mesh.apply(upserts(&(service("new", "") + &route("shop", "new") + &gateway(MARK, "False", ""))));
    assert!(is_guarded(&mesh, "web") && !is_guarded(&mesh, "new"));
    let (is_so, _, message) = attached(&mesh);
    assert!(
        !is_so && message.ends_with("without it: new; these are refused, for one guarded them before: web")
    );
    mesh.apply(upserts(&gateway(MARK, "True", ADDRESS)));
    assert_eq!(tell(&mut mesh).0, "WaypointAccepted");

    // Somebody else takes the name: it can't be made, and nothing is reached by theirs.
    mesh.apply(upserts(&gateway("", "True", ADDRESS)));
    let at = mesh.service("web").waypoint.as_ref().expect("closed").destination.to_string();
    assert!(at.contains("invalid"), "{at}");
    let (reason, message) = tell(&mut mesh);
    assert!(reason == "AttachmentDenied" && message.ends_with("connections are refused"), "{message}");

    // Nothing needs one any more, and that is remembered too.
    mesh.apply(gone(Kind::HTTPRoute, "shop", "to-web"));
    assert!(!is_guarded(&mesh, "web"));
    assert_eq!(tell(&mut mesh), Default::default());
    mesh.apply(upserts(&route("shop", "web")));
    assert!(!is_guarded(&mesh, "web"), "anew: it goes on until there is one");
}

#[test]
fn what_labels_say_comes_first() {
    let of = |text: &[String]| Mesh::of(&text.concat());
    let asking = ASKING.to_owned();
    for label in ["istio.io/use-waypoint: none", "istio.io/use-waypoint: other"] {
        let mesh = of(&[asking.clone(), service("web", label), route("shop", "web")]);
        assert_eq!(wishes(&mesh), [], "{label}");
        let of_namespace = asking.replace("auto}", &format!("auto, {label}}}"));
        let mesh = of(&[of_namespace, service("web", ""), route("shop", "web")]);
        assert_eq!(wishes(&mesh), [], "{label} of the namespace");
    }
    let mesh = of(&[service("web", ""), route("shop", "web")]);
    assert_eq!(wishes(&mesh), [], "nobody asks");
    let (holds, _, message) = mesh.condition("to-web", "Accepted");
    assert!(holds && message.contains("no waypoint guards Service shop/web"), "{message}");
    let mesh = of(&[asking.clone(), service("web", ""), route("away", "web")]);
    assert_eq!(wishes(&mesh), [Wish::Make("shop".into())], "a consumer's route needs it too");
    let headless = service("web", "").replace("10.1.0.1", "None");
    assert_eq!(wishes(&of(&[asking.clone(), headless, route("shop", "web")])), [], "it can't be a parent");
    let backend = route("shop", "other");
    assert_eq!(wishes(&of(&[asking.clone(), service("web", ""), backend])), [], "a backend needs none");

    let policy = "---
apiVersion: airglow.dev/v1alpha1
kind: TrafficPolicy
metadata: {namespace: shop, name: chaos}
spec:
  targetRefs: [{kind: Service, name: web}]
  balancing: {algorithm: Random}
";
    let mut mesh = of(&[asking, service("web", ""), policy.to_owned()]);
    assert_eq!(wishes(&mesh), [Wish::Make("shop".into())]);
    mesh.apply(gone(Kind::TrafficPolicy, "shop", "chaos"));
    assert_eq!(wishes(&mesh), []);
}

#[test]
fn a_gateway_of_that_name_that_somebody_wrote_is_left_alone() {
    let text = [ASKING.to_owned(), service("web", ""), route("shop", "web"), gateway("", "True", ADDRESS)];
    let mut mesh = Mesh::of(&text.concat());
    assert_eq!(wishes(&mesh), []);
    assert!(!is_guarded(&mesh, "web"));
    let judgements = mesh.index.judgements(&[], &Silence, true);
    let said = judgements.iter().find(|it| it.about == WAYPOINT_BOUND && it.key.name == "web").expect("said");
    assert!(said.conditions[0].message.contains("somebody else's Gateway"), "{said:?}");
    // Nobody asks any more: theirs stays, and ours goes.
    mesh.apply(upserts(&ASKING.replace("airglow.dev/waypoint: auto", "")));
    assert_eq!(wishes(&mesh), []);
    mesh.apply(upserts(&gateway(MARK, "True", ADDRESS)));
    assert_eq!(wishes(&mesh), [Wish::Remove("shop".into(), "g1".into())]);
}
