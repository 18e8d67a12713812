//! What the nodes' answers come to, in words and with the object to edit.
//!
//! Decides about no connection: it reads what was decided. Pure.

use serde::{Deserialize, Serialize};

use crate::Terminal;
use crate::admin_client::encode;

/// How the controller calls the policy of STRICT mutual TLS, and what it makes of a PeerAuthentication with ports.
const STRICT: &str = "istio_converted_static_strict";
const CONVERTED: &str = "converted_peer_authentication_";

/// The answer to `/why`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Source {
    /// Who answers.
    node: String,
    pod: String,
    /// As the node has it; `None` where the pod is not this node's.
    state: Option<String>,
    message: Option<String>,
    /// Where the pod is; empty when the mesh does not know it.
    pub(super) on_node: String,
    identity: String,
    captured: bool,
    certificate_failure: Option<String>,
    service: Option<String>,
    is_of_mesh: bool,
    pub(super) routes: Vec<Route>,
}

/// One way that a connection may take.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Route {
    /// `workload`, `waypoint`, `outside` or `nowhere`.
    to: String,
    dialled: String,
    service: Option<String>,
    workload: String,
    name: String,
    node: String,
    app: String,
    /// `tunnel`, `local` or `plain`; `None` where it is refused.
    way: Option<String>,
    refused: Option<Refused>,
    client: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Refused {
    code: String,
    reason: String,
}

/// The answer to `/admits`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Admission {
    captured: bool,
    state: Option<String>,
    message: Option<String>,
    allowed: bool,
    policies: Vec<String>,
    code: Option<String>,
    reason: String,
    refused: Option<Refused>,
    dry_run: Option<String>,
}

/// Something in the cluster that decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Object {
    kind: &'static str,
    namespace: String,
    name: String,
}

/// What becomes of a connection to one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Allowed,
    Refused,
    /// It leaves, and nobody of the mesh is asked where it arrives.
    Unjudged,
}

/// One endpoint, judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Where it is and how it is reached.
    place: String,
    pub(super) verdict: Verdict,
    why: String,
    /// What would change that.
    pub(super) objects: Vec<Object>,
    note: Option<String>,
}

/// What becomes of the connection, whichever endpoint it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    Allowed,
    /// It depends on the endpoint.
    Mixed,
    Refused,
    Unjudged,
}

impl Outcome {
    pub(super) fn of(source: &Source, endpoints: &[Endpoint]) -> Self {
        let any = |verdict| endpoints.iter().any(|endpoint| endpoint.verdict == verdict);
        match (any(Verdict::Refused), any(Verdict::Allowed) || any(Verdict::Unjudged)) {
            (true, true) => Self::Mixed,
            (true, false) => Self::Refused,
            (false, _) if source.captured && any(Verdict::Allowed) => Self::Allowed,
            (false, _) if any(Verdict::Allowed) => Self::Allowed,
            (false, _) => Self::Unjudged,
        }
    }

    pub(super) fn is_refused(self) -> bool {
        matches!(self, Self::Mixed | Self::Refused)
    }
}

impl Source {
    /// Whether the pod's own node answers.
    pub(super) fn is_of_its_node(&self) -> bool {
        self.state.is_some() || self.on_node == self.node
    }
}

impl Route {
    /// Whom to ask whether it is let in, and what.
    pub(super) fn question(&self, source: &Source) -> Option<(&str, String)> {
        let (way, client) = (self.way.as_deref()?, self.client.as_deref()?);
        if self.to != "workload" {
            return None;
        }
        let path = format!(
            "/admits?workload={}&app={}&client={}&way={way}&from={}",
            encode(&self.workload),
            encode(&self.app),
            encode(client),
            encode(&source.identity)
        );
        Some((&self.node, path))
    }
}

impl Endpoint {
    pub(super) fn new(route: &Route, admission: Option<&Admission>) -> Self {
        let endpoint = |verdict, why: String, objects| Self {
            place: place(route),
            verdict,
            why,
            objects,
            note: admission.and_then(|admission| admission.dry_run.clone()),
        };
        if let Some(Refused { code, reason }) = &route.refused {
            let service = route.service.as_deref().and_then(service).into_iter().collect();
            return endpoint(Verdict::Refused, format!("{reason} ({code})"), service);
        }
        match (route.to.as_str(), admission) {
            ("outside", _) => endpoint(
                Verdict::Unjudged,
                "nothing of the mesh: it goes there as it is, in plain TCP".to_owned(),
                Vec::new(),
            ),
            ("waypoint", _) => {
                endpoint(Verdict::Unjudged, "the waypoint takes it on, and decides".to_owned(), Vec::new())
            }
            (_, None) => endpoint(
                Verdict::Unjudged,
                "no ztunnel runs on its node: nobody is asked where it arrives".to_owned(),
                Vec::new(),
            ),
            (_, Some(admission)) if !admission.captured => {
                let state = said(admission.state.as_deref(), admission.message.as_deref());
                let namespace = route.name.split('/').next().unwrap_or_default();
                let object =
                    Object { kind: "Namespace", namespace: String::new(), name: namespace.to_owned() };
                let why = format!("it is not in the mesh{state}: no policy guards it");
                endpoint(Verdict::Unjudged, why, vec![object])
            }
            (_, Some(Admission { refused: Some(refused), .. })) => {
                endpoint(Verdict::Refused, format!("{} ({})", refused.reason, refused.code), Vec::new())
            }
            (_, Some(admission)) => {
                let verdict = if admission.allowed { Verdict::Allowed } else { Verdict::Refused };
                let code = admission.code.as_ref().map_or_else(String::new, |code| format!(" ({code})"));
                let objects = admission.policies.iter().filter_map(|name| policy(name)).collect();
                endpoint(verdict, format!("{}{code}", admission.reason), objects)
            }
        }
    }
}

fn place(route: &Route) -> String {
    let Route { name, app, node, dialled, .. } = route;
    let way = match route.way.as_deref() {
        Some("tunnel") => ", in mutual TLS",
        Some("local") => ", within the node",
        Some("plain") => ", in plain TCP",
        _ => "",
    };
    if name.is_empty() { dialled.clone() } else { format!("{name} at {app} on {node}{way}") }
}

/// `: state, message`, as far as there is any.
fn said(state: Option<&str>, message: Option<&str>) -> String {
    let said: Vec<_> = [state, message].into_iter().flatten().filter(|text| !text.is_empty()).collect();
    if said.is_empty() { String::new() } else { format!(" ({})", said.join(": ")) }
}

/// The object that a policy was made of.
fn policy(name: &str) -> Option<Object> {
    let (namespace, name) = name.split_once('/')?;
    let (kind, name) = match name.strip_prefix(CONVERTED) {
        Some(name) => ("PeerAuthentication", name),
        // It stands for every object that says STRICT.
        None if name == STRICT => ("PeerAuthentication", ""),
        None => ("AuthorizationPolicy", name),
    };
    Some(Object { kind, namespace: namespace.to_owned(), name: name.to_owned() })
}

/// The Service of `namespace/hostname`.
fn service(name: &str) -> Option<Object> {
    let (namespace, hostname) = name.split_once('/')?;
    let name = hostname.split('.').next().unwrap_or(hostname);
    Some(Object { kind: "Service", namespace: namespace.to_owned(), name: name.to_owned() })
}

impl Object {
    /// What to type.
    fn command(&self) -> String {
        let Self { kind, namespace, name } = self;
        match *kind {
            "Namespace" => format!("kubectl label namespace {name} istio.io/dataplane-mode=ambient"),
            "PeerAuthentication" if name.is_empty() => {
                "kubectl get peerauthentication -A (one says STRICT; or put the source into the mesh)"
                    .to_owned()
            }
            kind => format!("kubectl -n {namespace} edit {} {name}", kind.to_ascii_lowercase()),
        }
    }
}

/// The whole in words.
pub(super) fn lines(source: &Source, to: &str, endpoints: &[Endpoint], stdout: Terminal) -> Vec<String> {
    let style = stdout.style;
    let mut lines = Vec::new();
    let state = said(source.state.as_deref(), source.message.as_deref());
    let node = if source.on_node.is_empty() { &source.node } else { &source.on_node };
    lines.push(if source.captured {
        format!("{} on {node} is in the mesh, as {}", style.bold(&source.pod), source.identity)
    } else {
        format!(
            "{} on {node} is not in the mesh{state}: its connections leave in plain TCP, without an identity",
            style.bold(&source.pod)
        )
    });
    if let Some(failure) = &source.certificate_failure {
        lines.push(format!("{} it has no certificate: {failure}", style.red("!")));
    }
    match (&source.service, source.is_of_mesh) {
        (Some(service), _) => lines.push(format!("{to} is service {service}")),
        (None, true) => {}
        (None, false) => lines.push(format!(
            "{to} is no name that the mesh knows: the pod's resolver answers, and the connection goes there as it is"
        )),
    }
    for endpoint in endpoints {
        let (sign, why) = match endpoint.verdict {
            Verdict::Allowed => (style.green(stdout.sign()), endpoint.why.clone()),
            Verdict::Refused => {
                (style.red(if stdout.live { "✗" } else { "refused" }), style.red(&endpoint.why))
            }
            Verdict::Unjudged => (style.yellow("-"), endpoint.why.clone()),
        };
        lines.push(format!("{sign} {}: {why}", endpoint.place));
        if let Some(note) = &endpoint.note {
            lines.push(format!("    would be refused if the dry run were over: {note}"));
        }
        if endpoint.verdict != Verdict::Allowed {
            lines.extend(endpoint.objects.iter().map(|object| format!("    edit: {}", object.command())));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::term::Style;

    fn source(captured: bool, routes: Value) -> Source {
        let source = json!({
            "node": "n1", "pod": "shop/web", "state": if captured { "enrolled" } else { "not wanted" }, "message": "",
            "on_node": "n1", "identity": "spiffe://cluster.local/ns/shop/sa/web", "captured": captured,
            "certificate_failure": null, "service": "shop/pay.shop.svc.cluster.local", "is_of_mesh": true,
            "routes": routes,
        });
        serde_json::from_value(source).expect("as a ztunnel has it")
    }

    fn route(way: &str) -> Value {
        json!({
            "to": "workload", "dialled": "10.96.0.1:80", "service": "shop/pay.shop.svc.cluster.local",
            "workload": "Kubernetes//Pod/shop/pay", "name": "shop/pay", "node": "n2", "app": "10.0.0.2:8080", "way": way,
            "refused": null, "authority": "10.0.0.2:8080", "expected": [], "client": "10.0.0.1",
        })
    }

    /// What is said of one endpoint, and the outcome.
    fn check(route: Value, admission: Value) -> (String, Outcome) {
        let source = source(true, json!([route]));
        let admission: Option<Admission> = serde_json::from_value(admission).expect("as a ztunnel has it");
        let endpoints = [Endpoint::new(&source.routes[0], admission.as_ref())];
        let stdout = Terminal { live: false, style: Style::new(false, false, false) };
        (lines(&source, "pay:80", &endpoints, stdout)[2..].join("\n"), Outcome::of(&source, &endpoints))
    }

    #[test]
    fn a_denial_names_the_policy_to_edit() {
        let denied = json!({
            "captured": true, "allowed": false, "policies": ["shop/no-web"], "code": "policy-denied",
            "reason": "denied by policy shop/no-web", "dry_run": null,
        });
        let (text, outcome) = check(route("tunnel"), denied);
        assert_eq!(
            text,
            "refused shop/pay at 10.0.0.2:8080 on n2, in mutual TLS: denied by policy shop/no-web (policy-denied)\n    \
             edit: kubectl -n shop edit authorizationpolicy no-web"
        );
        assert_eq!(outcome, Outcome::Refused);
        assert_eq!(
            policy("a/converted_peer_authentication_p").expect("one").command(),
            "kubectl -n a edit peerauthentication p"
        );
        assert!(policy("a/istio_converted_static_strict").expect("one").command().contains("STRICT"));
    }

    #[test]
    fn what_is_allowed_needs_no_edit() {
        let allowed = json!({
            "captured": true, "allowed": true, "policies": ["shop/p"], "reason": "allowed by policy shop/p", "code": null,
            "dry_run": "denied by policy shop/soon",
        });
        let (text, outcome) = check(route("local"), allowed);
        assert!(text.starts_with("ok shop/pay at") && text.contains("within the node"), "{text}");
        assert!(
            text.contains("dry run were over: denied by policy shop/soon") && !text.contains("edit:"),
            "{text}"
        );
        assert_eq!(outcome, Outcome::Allowed);
    }

    #[test]
    fn what_nobody_judges_says_so() {
        let (text, outcome) =
            check(route("plain"), json!({"captured": false, "state": "not wanted", "message": "no label"}));
        assert!(text.contains("not in the mesh (not wanted: no label)"), "{text}");
        assert!(text.contains("kubectl label namespace shop istio.io/dataplane-mode=ambient"), "{text}");
        assert_eq!(outcome, Outcome::Unjudged);
        let (text, outcome) = check(json!({"to": "outside", "dialled": "192.0.2.1:80"}), Value::Null);
        assert!(text.contains("- 192.0.2.1:80: nothing of the mesh"), "{text}");
        assert_eq!(outcome, Outcome::Unjudged);
    }

    #[test]
    fn what_can_not_be_routed_names_the_service() {
        let refused = json!({"code": "no-route", "reason": "service has no endpoint"});
        let route = json!({"to": "nowhere", "dialled": "10.96.0.1:80", "service": "shop/pay.shop.svc", "refused": refused});
        let (text, outcome) = check(route, Value::Null);
        assert!(
            text.contains("no endpoint (no-route)") && text.contains("kubectl -n shop edit service pay"),
            "{text}"
        );
        assert!(outcome.is_refused());
    }

    #[test]
    fn a_pod_outside_of_the_mesh_has_no_identity() {
        let source = source(false, json!([]));
        let stdout = Terminal { live: false, style: Style::new(false, false, false) };
        let text = lines(&source, "pay:80", &[], stdout).join("\n");
        assert!(
            text.contains("not in the mesh (not wanted)") && text.contains("without an identity"),
            "{text}"
        );
    }

    #[test]
    fn the_destination_is_asked_about_the_same_connection() {
        let source = source(true, json!([route("tunnel"), {"to": "outside", "dialled": "192.0.2.1:80"}]));
        let (node, path) = source.routes[0].question(&source).expect("somebody to ask");
        assert_eq!(node, "n2");
        assert_eq!(
            path,
            "/admits?workload=Kubernetes//Pod/shop/pay&app=10.0.0.2:8080&client=10.0.0.1&way=tunnel\
             &from=spiffe://cluster.local/ns/shop/sa/web"
        );
        assert_eq!(source.routes[1].question(&source), None);
    }
}
