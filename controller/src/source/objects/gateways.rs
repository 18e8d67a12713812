//! Gateways and their classes, of the Gateway API: how waypoints are asked for. Plain data, owns no rules.

use serde::{Deserialize, Deserializer};

use super::policies::PolicyCondition;
use super::{Labels, Metadata, lenient, nullable};

/// `gateway.networking.k8s.io` Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Gateway {
    /// Names and labels.
    #[serde(default)]
    pub metadata: Metadata,
    /// What was asked for.
    #[serde(default)]
    pub spec: GatewaySpec,
    /// What was said about it.
    #[serde(default, deserialize_with = "lenient_status")]
    pub status: GatewayStatus,
}

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewaySpec {
    /// Who makes it.
    #[serde(default, deserialize_with = "nullable")]
    pub gateway_class_name: String,
    /// What it listens for.
    #[serde(default, deserialize_with = "nullable")]
    pub listeners: Vec<Listener>,
    /// What is made for it.
    #[serde(default, deserialize_with = "nullable")]
    pub infrastructure: Infrastructure,
}

/// What a gateway listens for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Unique within the gateway.
    #[serde(default, deserialize_with = "nullable")]
    pub name: String,
    /// The port.
    pub port: u16,
    /// `HBONE` for a waypoint.
    #[serde(default, deserialize_with = "nullable")]
    pub protocol: String,
    /// Whose objects may attach.
    #[serde(default, deserialize_with = "nullable")]
    pub allowed_routes: AllowedRoutes,
}

/// Whose objects may attach.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct AllowedRoutes {
    /// Those of these namespaces.
    #[serde(default, deserialize_with = "nullable")]
    pub namespaces: RouteNamespaces,
}

/// Which namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct RouteNamespaces {
    /// Which, in a word.
    #[serde(default, deserialize_with = "nullable")]
    pub from: Reach,
    /// Which, by their labels, where the word is `Selector`.
    #[serde(default)]
    pub selector: Option<LabelSelector>,
}

/// Which namespaces, in a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Reach {
    /// All of them.
    All,
    /// The gateway's own.
    #[default]
    Same,
    /// Those that a selector selects.
    Selector,
    /// None, also for words that are not known here.
    #[serde(other)]
    None,
}

/// Which objects, by their labels; all requirements have to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// All of these labels.
    #[serde(default, deserialize_with = "nullable")]
    pub match_labels: Labels,
    /// All of these.
    #[serde(default, deserialize_with = "nullable")]
    pub match_expressions: Vec<Expression>,
}

/// A requirement of one label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Expression {
    /// The label.
    #[serde(default)]
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    #[serde(default)]
    pub operator: String,
    /// For `In` and `NotIn`.
    #[serde(default, deserialize_with = "nullable")]
    pub values: Vec<String>,
}

/// What is made for a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Infrastructure {
    /// Labels of what is made.
    #[serde(default, deserialize_with = "nullable")]
    pub labels: Labels,
    /// Annotations of what is made.
    #[serde(default, deserialize_with = "nullable")]
    pub annotations: Labels,
}

/// What was said about a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GatewayStatus {
    /// Where it is.
    pub addresses: Vec<StatusAddress>,
    /// What was judged.
    pub conditions: Vec<PolicyCondition>,
    /// What was judged of each listener.
    pub listeners: Vec<ListenerStatus>,
}

/// Where a gateway is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StatusAddress {
    /// `IPAddress`, which is the default, or `Hostname`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The address.
    pub value: String,
}

/// What was judged of a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ListenerStatus {
    /// Which listener.
    pub name: String,
    /// How many routes are attached.
    pub attached_routes: i64,
    /// What was judged.
    pub conditions: Vec<PolicyCondition>,
}

/// `gateway.networking.k8s.io` GatewayClass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct GatewayClass {
    /// Names and labels.
    #[serde(default)]
    pub metadata: Metadata,
    /// What it is.
    #[serde(default, deserialize_with = "nullable")]
    pub spec: GatewayClassSpec,
    /// What was said about it.
    #[serde(default, deserialize_with = "lenient")]
    pub status: GatewayClassStatus,
}

/// What was said about a class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GatewayClassStatus {
    /// What was judged.
    pub conditions: Vec<PolicyCondition>,
    /// What its gateways can do.
    pub supported_features: Vec<Feature>,
}

/// Something that gateways of a class can do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Feature {
    /// In the Gateway API's words.
    pub name: String,
}

/// What a class is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayClassSpec {
    /// Who makes gateways of the class.
    #[serde(default, deserialize_with = "nullable")]
    pub controller_name: String,
}

/// Whatever else is found in its place must not make a gateway unintelligible.
fn lenient_status<'de, D: Deserializer<'de>>(from: D) -> Result<GatewayStatus, D::Error> {
    let found = serde_json::Value::deserialize(from)?;
    Ok(serde_json::from_value(found).unwrap_or_default())
}
