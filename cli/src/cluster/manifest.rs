//! What an installation is made of: the objects of deploy/airglow.yaml, where the API keeps each, and who may put them there.
//!
//! Text in, values out; asks no API server.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context as _;
use serde_json::Value;

/// The namespace that deploy/airglow.yaml installs into.
pub(crate) const NAMESPACE: &str = "airglow-system";

/// What the chart makes with its defaults; the same file is for kubectl.
const EMBEDDED: &str = include_str!("../../../deploy/airglow.yaml");

/// The definitions of the kinds that users write for the mesh; charts carry the same file.
const DEFINITIONS: &str = include_str!("../../../deploy/chart/airglow/crds/definitions.yaml");

/// The kind of definitions.
const DEFINITION: &str = "CustomResourceDefinition";

/// Where the API keeps each kind that a chart of ours has: group and version, kind, plural, whether it is in a namespace.
const KINDS: &[(&str, &str, &str, bool)] = &[
    ("apiextensions.k8s.io/v1", DEFINITION, "customresourcedefinitions", false),
    ("apps/v1", "DaemonSet", "daemonsets", true),
    ("apps/v1", "Deployment", "deployments", true),
    ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", true),
    ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", true),
    ("rbac.authorization.k8s.io/v1", "ClusterRole", "clusterroles", false),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "clusterrolebindings", false),
    ("rbac.authorization.k8s.io/v1", "Role", "roles", true),
    ("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings", true),
    ("v1", "ConfigMap", "configmaps", true),
    ("v1", "Namespace", "namespaces", false),
    ("v1", "Service", "services", true),
    ("v1", "ServiceAccount", "serviceaccounts", true),
];

/// An object to be put into a cluster.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Object {
    /// As the API takes it.
    pub(crate) body: Value,
    group: &'static str,
    plural: &'static str,
    namespaced: bool,
}

/// Leave to do something with objects of a kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Right {
    /// The API's group; empty for the core.
    pub(crate) group: &'static str,
    /// Plural of the kind.
    pub(crate) resource: &'static str,
    /// `create`, `patch`, ...
    pub(crate) verb: &'static str,
    /// Where; `None` for kinds that are in no namespace.
    pub(crate) namespace: Option<String>,
}

/// Why a text is no installation.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadManifest {
    /// It can't be read as YAML.
    #[error("document {0}: {1}")]
    Yaml(usize, String),
    /// A kind that no chart of ours has.
    #[error("document {0}: {1} {2} is nothing that Airglow is made of")]
    Kind(usize, String, String),
    /// It has no name, or in one part of the cluster only.
    #[error("document {0}: no metadata.{1}")]
    Unnamed(usize, &'static str),
}

/// The objects that this program has with it, in the order in which they are to be made.
pub(crate) fn embedded() -> Vec<Object> {
    objects(EMBEDDED).expect("a test reads deploy/airglow.yaml")
}

/// The definitions that this program has with it.
pub(crate) fn definitions() -> Vec<Object> {
    objects(DEFINITIONS).expect("a test reads the definitions")
}

/// The objects of a manifest, in its order.
pub(crate) fn objects(text: &str) -> Result<Vec<Object>, BadManifest> {
    let mut objects = Vec::new();
    for (number, document) in documents(text).into_iter().enumerate() {
        let body: Option<Value> = serde_saphyr::from_str(&document)
            .map_err(|error| BadManifest::Yaml(number, error.to_string()))?;
        if let Some(body) = body.filter(|body| !body.is_null()) {
            objects.push(object(number, body)?);
        }
    }
    Ok(objects)
}

/// Every right that it takes to make, change and remove `objects`.
pub(crate) fn rights(objects: &[Object]) -> BTreeSet<Right> {
    let verbs = ["get", "create", "patch", "delete"];
    let all = objects.iter().flat_map(|object| verbs.map(|verb| (object, verb)));
    let right = |(object, verb): (&Object, &'static str)| Right {
        group: object.group.split_once('/').map_or("", |(group, _)| group),
        resource: object.plural,
        verb,
        namespace: object.namespaced.then(|| object.text("namespace").to_owned()),
    };
    all.map(right).collect()
}

impl Object {
    /// Where the API keeps it.
    pub(crate) fn path(&self) -> String {
        let root = if self.group == "v1" { "/api/v1".to_owned() } else { format!("/apis/{}", self.group) };
        let place =
            if self.namespaced { format!("/namespaces/{}", self.text("namespace")) } else { String::new() };
        format!("{root}{place}/{}/{}", self.plural, self.text("name"))
    }

    /// What a person calls it: `DaemonSet airglow-system/ztunnel`.
    pub(crate) fn title(&self) -> String {
        let place = if self.namespaced { format!("{}/", self.text("namespace")) } else { String::new() };
        format!("{} {place}{}", self.kind(), self.text("name"))
    }

    /// Whether it defines a kind: with it go all objects of the kind.
    pub(crate) fn is_definition(&self) -> bool {
        self.kind() == DEFINITION
    }

    /// Where the API keeps the objects of the kind that it defines.
    pub(crate) fn defined(&self) -> String {
        let spec = |pointer: &str| self.body.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (group, version) = (spec("/spec/group"), spec("/spec/versions/0/name"));
        format!("/apis/{group}/{version}/{}", spec("/spec/names/plural"))
    }

    pub(crate) fn kind(&self) -> &str {
        self.body["kind"].as_str().unwrap_or_default()
    }

    pub(crate) fn text(&self, field: &str) -> &str {
        self.body["metadata"][field].as_str().unwrap_or_default()
    }
}

impl Right {
    /// `resource.group`.
    pub(crate) fn what(&self) -> String {
        let dot = if self.group.is_empty() { "" } else { "." };
        format!("{}{dot}{}", self.resource, self.group)
    }
}

/// The installation in `file`, or the one that this program has with it.
pub(crate) fn load(file: Option<&Path>) -> anyhow::Result<Vec<Object>> {
    let Some(path) = file else { return Ok(embedded()) };
    let text = std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
    objects(&text).with_context(|| format!("{} is no manifest of Airglow", path.display()))
}

/// The object of that kind and name; an installation has one.
pub(crate) fn find<'a>(objects: &'a [Object], kind: &str, name: &str) -> anyhow::Result<&'a Object> {
    let found = objects.iter().find(|object| object.kind() == kind && object.text("name") == name);
    found.with_context(|| format!("the manifest has no {kind} {name}: it is not Airglow's"))
}

/// Takes images from another registry, or of another version.
pub(crate) fn set_images(objects: &mut [Object], registry: Option<&str>, tag: Option<&str>) {
    for object in objects {
        let containers = object.body.pointer_mut("/spec/template/spec/containers");
        for container in containers.and_then(Value::as_array_mut).into_iter().flatten() {
            let image = container["image"].as_str().unwrap_or_default().to_owned();
            let (from, name) = image.rsplit_once('/').unwrap_or(("", &image));
            let (name, version) = name.split_once(':').unwrap_or((name, "latest"));
            let (registry, tag) = (registry.unwrap_or(from).trim_end_matches('/'), tag.unwrap_or(version));
            container["image"] = format!("{registry}/{name}:{tag}").into();
        }
    }
}

fn documents(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line.trim_end() == "---" {
            documents.push(String::new());
        } else if let Some(last) = documents.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    let said = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    documents.retain(|document| document.lines().any(said));
    documents
}

fn object(number: usize, body: Value) -> Result<Object, BadManifest> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text(&body["apiVersion"]), text(&body["kind"]));
    let known = KINDS.iter().find(|(known, known_kind, ..)| *known == version && *known_kind == kind);
    let Some(&(group, _, plural, namespaced)) = known else {
        return Err(BadManifest::Kind(number, version, kind));
    };
    let object = Object { body, group, plural, namespaced };
    for field in ["name", "namespace"] {
        if object.text(field).is_empty() && (namespaced || field == "name") {
            return Err(BadManifest::Unnamed(number, field));
        }
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_manifest_is_an_installation() {
        let objects = embedded();
        assert_eq!(objects.len(), EMBEDDED.matches("\nkind: ").count());
        assert_eq!(objects[0].plural, "namespaces", "everything else is in it");
        assert!(objects.iter().all(|object| !object.namespaced || object.text("namespace") == NAMESPACE));
        let rights = rights(&objects);
        let right = |group, resource, namespace: Option<&str>| Right {
            group,
            resource,
            verb: "patch",
            namespace: namespace.map(str::to_owned),
        };
        assert!(rights.contains(&right("apps", "daemonsets", Some(NAMESPACE))));
        assert!(rights.contains(&right("", "namespaces", None)));
        assert_eq!(right("apps", "daemonsets", None).what(), "daemonsets.apps");
        assert_eq!(right("", "namespaces", None).what(), "namespaces");
    }

    #[test]
    fn objects_have_a_path_and_a_title() {
        let all = embedded();
        let ztunnel = find(&all, "DaemonSet", "ztunnel").expect("it is there");
        assert_eq!(ztunnel.path(), "/apis/apps/v1/namespaces/airglow-system/daemonsets/ztunnel");
        assert_eq!(ztunnel.title(), "DaemonSet airglow-system/ztunnel");
        assert_eq!(all[0].path(), "/api/v1/namespaces/airglow-system");
        assert_eq!(all[0].title(), "Namespace airglow-system");
        find(&all, "DaemonSet", "other").expect_err("there is none");
    }

    #[test]
    fn definitions_say_where_their_objects_are() {
        let all = definitions();
        assert!(all.iter().all(Object::is_definition) && !embedded().iter().any(Object::is_definition));
        let policies =
            find(&all, DEFINITION, "authorizationpolicies.security.istio.io").expect("it is there");
        assert_eq!(policies.defined(), "/apis/security.istio.io/v1/authorizationpolicies");
        let path =
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/authorizationpolicies.security.istio.io";
        assert_eq!(policies.path(), path);
    }

    #[test]
    fn images_come_from_where_one_says() {
        let images = |registry, tag| {
            let mut all = embedded();
            set_images(&mut all, registry, tag);
            let image = |object: &Object| {
                let image = object.body.pointer("/spec/template/spec/containers/0/image");
                image.and_then(Value::as_str).map(str::to_owned)
            };
            all.iter().filter_map(image).collect::<Vec<_>>()
        };
        let before = images(None, None);
        assert!(before.len() == 2 && before[0].contains("/ztunnel:"), "{before:?}");
        let after = ["example.test:5000/a/ztunnel:7", "example.test:5000/a/controller:7"];
        assert_eq!(images(Some("example.test:5000/a/"), Some("7")), after);
    }

    #[test]
    fn what_is_no_installation_is_refused() {
        let refused = |text: &str| objects(text).expect_err("refused").to_string();
        assert!(refused("a: [").starts_with("document 0"));
        assert!(refused("# a comment\n---\napiVersion: v1\nkind: Secret\n").contains("v1 Secret"));
        assert!(refused("apiVersion: v1\nkind: Namespace\n").contains("metadata.name"));
        let nowhere = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n";
        assert!(refused(nowhere).contains("metadata.namespace"));
        assert_eq!(objects("# nothing\n---\n").expect("empty"), []);
    }
}
