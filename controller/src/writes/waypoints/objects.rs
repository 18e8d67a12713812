//! What is made for a Gateway: account, Deployment, Service, and on request what scales it and what keeps some of it running.
//!
//! Pure. The pods are the chart's template, with the names and labels that make them this waypoint's.

use serde_json::{Map, Value, json};

use crate::index::{GATEWAY_NAME, MANAGED};
use crate::source::objects::{Gateway, Labels};

/// How many pods there are to be.
const REPLICAS: &str = "airglow.dev/replicas";

/// How many there may be when they are busy.
const MAX_REPLICAS: &str = "airglow.dev/max-replicas";

/// Pods of one waypoint: several times what the largest namespaces need, and less than what a slip of the keyboard costs.
const MAX: u32 = 100;

/// When pods are busy, in percent of the CPU that they request: as Istio's charts have it.
const BUSY: u32 = 80;

/// Labels and annotations of the Gateway API's own, and of tools, are about the Gateway and not about what is made for it.
const NOT_INHERITED: [&str; 4] =
    ["gateway.networking.k8s.io/", "kubectl.kubernetes.io/", "airglow.dev/", "istio.io/for-service-account"];

/// One object that is to be there, or not to be there.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Made {
    /// `apis/apps/v1`, ...
    root: &'static str,
    plural: &'static str,
    namespace: String,
    name: String,
    pub(super) part: Part,
    /// Between which numbers of pods an autoscaler chooses.
    scale: Option<(u32, u32)>,
}

/// Whether it is to be there.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Part {
    /// As said here, in the fields that are said.
    Wanted(Value),
    /// Not at all.
    Unwanted,
}

impl Made {
    /// Where it is.
    pub(super) fn path(&self) -> String {
        let Self { root, plural, namespace, name, .. } = self;
        format!("/{root}/namespaces/{namespace}/{plural}/{name}")
    }

    /// `object` as it is to be applied to what is there, as `manager`. How many pods there are is the autoscaler's to say once it has
    /// said so. Until then we go on saying it: left out, what was ours would fall back to one.
    pub(super) fn over(&self, object: &Value, there: Option<&Value>, manager: &str) -> Value {
        let mut object = object.clone();
        if let Some((least, most)) = self.scale
            && there.is_none_or(|there| says_replicas(there, manager))
        {
            let are = there.and_then(|there| there["spec"]["replicas"].as_u64()).unwrap_or(0);
            object["spec"]["replicas"] = json!(are.clamp(least.into(), most.into()));
        }
        object
    }
}

/// Whether `manager` has said last how many pods there are to be.
fn says_replicas(there: &Value, manager: &str) -> bool {
    let fields = there["metadata"]["managedFields"].as_array();
    fields.into_iter().flatten().any(|said| {
        said["manager"] == manager
            && said.pointer("/fieldsV1/f:spec/f:replicas").is_some_and(Value::is_object)
    })
}

/// Everything that is made for a Gateway, from the template of its pods.
///
/// # Errors
/// When the Gateway asks for what can't be, or the template is none.
pub(super) fn of(gateway: &Gateway, template: &Value) -> Result<Vec<Made>, String> {
    let name = &gateway.metadata.name;
    let replicas = number(gateway, REPLICAS)?.unwrap_or(1);
    let most = number(gateway, MAX_REPLICAS)?.filter(|most| *most > replicas);
    let selector = json!({ "matchLabels": { GATEWAY_NAME: name } });
    let mut deployment = json!({
        "selector": selector,
        "strategy": { "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
        "template": pods(gateway, template)?,
    });
    let scale = most.map(|most| (replicas, most));
    if scale.is_none() {
        deployment["replicas"] = json!(replicas);
    }
    let port = |name: &str, port: u16| json!({ "name": name, "port": port, "protocol": "TCP" });
    let mut tunnel = port("mesh", 15008);
    tunnel["appProtocol"] = json!("hbone");
    let service = json!({
        "type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack",
        "selector": { GATEWAY_NAME: name }, "ports": [port("status-port", 15021), tunnel],
    });
    let metric = json!({ "type": "Resource", "resource": {
        "name": "cpu", "target": { "type": "Utilization", "averageUtilization": BUSY } } });
    let scaling = most.map(|most| {
        json!({
            "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": name },
            "minReplicas": replicas, "maxReplicas": most, "metrics": [metric],
        })
    });
    // With one pod it could only forbid to drain the node.
    let budget = (replicas > 1).then(|| json!({ "maxUnavailable": 1, "selector": selector }));
    let spec = |spec| json!({ "spec": spec });
    Ok(vec![
        made(gateway, ("v1", "ServiceAccount", "serviceaccounts"), Some(json!({}))),
        made(gateway, ("v1", "Service", "services"), Some(spec(service))),
        Made { scale, ..made(gateway, ("apps/v1", "Deployment", "deployments"), Some(spec(deployment))) },
        made(
            gateway,
            ("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
            scaling.map(spec),
        ),
        made(gateway, ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"), budget.map(spec)),
    ])
}

fn number(gateway: &Gateway, annotation: &str) -> Result<Option<u32>, String> {
    let Some(text) = gateway.metadata.annotations.get(annotation) else { return Ok(None) };
    let number = text.parse().ok().filter(|number| (1..=MAX).contains(number));
    number.map(Some).ok_or_else(|| format!("annotation {annotation}: {text:?} is no number from 1 to {MAX}"))
}

fn made(
    gateway: &Gateway,
    (version, kind, plural): (&'static str, &str, &'static str),
    object: Option<Value>,
) -> Made {
    let metadata = &gateway.metadata;
    let root = match version {
        "v1" => "api/v1",
        "apps/v1" => "apis/apps/v1",
        "autoscaling/v2" => "apis/autoscaling/v2",
        _ => "apis/policy/v1",
    };
    let part = object.map_or(Part::Unwanted, |mut object| {
        object["apiVersion"] = json!(version);
        object["kind"] = json!(kind);
        object["metadata"] = json!({
            "name": metadata.name, "namespace": metadata.namespace,
            "labels": labels(gateway), "annotations": annotations(gateway),
            // The API server removes it with its Gateway.
            "ownerReferences": [{
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
                "name": metadata.name, "uid": metadata.uid, "controller": true,
            }],
        });
        Part::Wanted(object)
    });
    Made {
        root,
        plural,
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
        part,
        scale: None,
    }
}

/// The pods: the template's, with what makes them this Gateway's. The template can't take that away.
fn pods(gateway: &Gateway, template: &Value) -> Result<Value, String> {
    let spec =
        template.get("spec").and_then(Value::as_object).ok_or("the template of waypoints has no spec")?;
    let mut spec = spec.clone();
    spec.insert("serviceAccountName".to_owned(), json!(gateway.metadata.name));
    let own = |field: &str| {
        let own = template["metadata"][field].as_object().cloned().unwrap_or_default();
        own.into_iter().filter(|(_, value)| value.is_string()).collect::<Map<_, _>>()
    };
    let (mut labelled, mut annotated) = (own("labels"), own("annotations"));
    labelled.extend(labels(gateway));
    annotated.extend(annotations(gateway));
    for (label, value) in [
        // It speaks HBONE itself, and nothing captures it.
        ("networking.istio.io/tunnel", "http"),
        ("istio.io/dataplane-mode", "none"),
        ("sidecar.istio.io/inject", "false"),
    ] {
        labelled.insert(label.to_owned(), json!(value));
    }
    for label in ["service.istio.io/canonical-name", "service.istio.io/canonical-revision"] {
        let value = if label.ends_with("name") { gateway.metadata.name.as_str() } else { "latest" };
        labelled.entry(label).or_insert_with(|| json!(value));
    }
    Ok(json!({ "metadata": { "labels": labelled, "annotations": annotated }, "spec": spec }))
}

/// Of everything that is made: what the Gateway asks for, else its own, with what says whose it is.
fn labels(gateway: &Gateway) -> Map<String, Value> {
    let asked = &gateway.spec.infrastructure.labels;
    let mut labels = inherited(if asked.is_empty() { &gateway.metadata.labels } else { asked });
    // How the waypoint itself is guarded is not for the objects of a namespace to say.
    labels.retain(|label, _| !label.starts_with("istio.io/use-waypoint"));
    let class = "gateway.networking.k8s.io/gateway-class-name";
    labels.insert(GATEWAY_NAME.to_owned(), json!(gateway.metadata.name));
    labels.insert(class.to_owned(), json!(gateway.spec.gateway_class_name));
    labels.insert(MANAGED.to_owned(), json!("istio.io-mesh-controller"));
    labels
}

fn annotations(gateway: &Gateway) -> Map<String, Value> {
    let asked = &gateway.spec.infrastructure.annotations;
    inherited(if asked.is_empty() { &gateway.metadata.annotations } else { asked })
}

fn inherited(from: &Labels) -> Map<String, Value> {
    let is_own = |key: &str| NOT_INHERITED.iter().any(|not| key.starts_with(not));
    from.iter().filter(|(key, _)| !is_own(key)).map(|(key, value)| (key.clone(), json!(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template() -> Value {
        json!({
            "metadata": { "labels": { "app": "waypoint", GATEWAY_NAME: "another" }, "annotations": { "a": "b" } },
            "spec": { "serviceAccountName": "admin", "containers": [{ "name": "waypoint" }] },
        })
    }

    fn gateway(metadata: Value) -> Gateway {
        let mut object = json!({ "metadata": metadata, "spec": { "gatewayClassName": "airglow-waypoint" } });
        object["metadata"]["name"] = json!("wp");
        object["metadata"]["namespace"] = json!("shop");
        object["metadata"]["uid"] = json!("u1");
        serde_json::from_value(object).expect("a Gateway")
    }

    fn all(metadata: Value) -> Vec<Made> {
        of(&gateway(metadata), &template()).expect("it can be made")
    }

    fn wanted<'a>(made: &'a [Made], plural: &str) -> Option<&'a Value> {
        made.iter().find(|made| made.plural == plural).and_then(|made| match &made.part {
            Part::Wanted(object) => Some(object),
            Part::Unwanted => None,
        })
    }

    #[test]
    fn everything_is_the_gateways_own_and_ends_with_it() {
        let made =
            all(json!({"labels": {"team": "x", "istio.io/use-waypoint": "other", "airglow.dev/y": "z"}}));
        for made in &made {
            assert!(made.path().ends_with("/wp"), "{}", made.path());
            let Part::Wanted(object) = &made.part else { continue };
            assert_eq!(object.pointer("/metadata/ownerReferences/0/uid"), Some(&json!("u1")));
            let labels = &object["metadata"]["labels"];
            assert_eq!((&labels["team"], &labels[GATEWAY_NAME]), (&json!("x"), &json!("wp")));
            assert!(labels.get("istio.io/use-waypoint").is_none() && labels.get("airglow.dev/y").is_none());
        }
        let deployment = wanted(&made, "deployments").expect("there is one");
        assert_eq!(made[2].path(), "/apis/apps/v1/namespaces/shop/deployments/wp");
        assert_eq!(deployment["spec"]["replicas"], 1);
        assert!(wanted(&made, "horizontalpodautoscalers").is_none());
        assert!(wanted(&made, "poddisruptionbudgets").is_none());
        let ports = wanted(&made, "services").expect("there is one")["spec"]["ports"].clone();
        assert_eq!(ports[1]["port"], 15008);
    }

    #[test]
    fn a_template_can_not_make_a_pod_anybody_elses() {
        let made = all(json!({}));
        let pod = &wanted(&made, "deployments").expect("there is one")["spec"]["template"];
        assert_eq!(pod["spec"]["serviceAccountName"], "wp");
        let labels = &pod["metadata"]["labels"];
        assert_eq!((&labels[GATEWAY_NAME], &labels["app"]), (&json!("wp"), &json!("waypoint")));
        assert_eq!(labels["networking.istio.io/tunnel"], "http");
        assert_eq!(labels["istio.io/dataplane-mode"], "none");
    }

    #[test]
    fn scaling_is_made_when_it_is_asked_for() {
        let annotated =
            |replicas: &str, most: &str| json!({"annotations": {REPLICAS: replicas, MAX_REPLICAS: most}});
        let made = all(annotated("2", "5"));
        let scaling = &wanted(&made, "horizontalpodautoscalers").expect("asked for")["spec"];
        assert_eq!((&scaling["minReplicas"], &scaling["maxReplicas"]), (&json!(2), &json!(5)));
        assert!(wanted(&made, "poddisruptionbudgets").is_some(), "one of two may go");
        let deployment = made.iter().find(|made| made.plural == "deployments").expect("there is one");
        let Part::Wanted(object) = &deployment.part else { panic!("it is wanted") };
        let over = |there: Option<&Value>| deployment.over(object, there, "us")["spec"]["replicas"].clone();
        let there = |replicas: u32, manager: &str| {
            let fields = json!({"f:spec": {"f:replicas": {}, "f:template": {}}});
            let managed = json!([{"manager": manager, "fieldsV1": fields},
                {"manager": "us", "fieldsV1": {"f:spec": {"f:template": {}}}}]);
            json!({"metadata": {"managedFields": managed}, "spec": {"replicas": replicas}})
        };
        assert_eq!(over(None), 2, "as many as there are at least");
        for (are, stay) in [(1, 2), (3, 3), (9, 5)] {
            assert_eq!(over(Some(&there(are, "us"))), stay, "nobody else has said how many of {are}");
        }
        assert_eq!(over(Some(&there(4, "autoscaler"))), Value::Null, "whoever scales says it");
        for (replicas, most) in [("0", "1"), ("many", "1"), ("1", "101")] {
            assert!(of(&gateway(annotated(replicas, most)), &template()).is_err(), "{replicas} {most}");
        }
        assert!(of(&gateway(json!({})), &json!({})).is_err(), "no template");
    }
}
