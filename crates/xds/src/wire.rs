//! The sessions' messages as protobuf. Owns no decision.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::discovery as wire;
use prost_types::value::Kind;
use prost_types::{Struct, Value};

use crate::message::{Request, Response};
use crate::resource::Resource;

/// The metadata key by which a client says that it looks at `more`, so that large changes can come in parts.
const PARTS: &str = "AIRGLOW_PARTIAL_RESPONSES";

/// gRPC's INVALID_ARGUMENT, for a response that held something unusable.
const INVALID_ARGUMENT: i32 = 3;

/// Who a client says it is. Nothing here is proven.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// `<kind>~<ip>~<pod>.<namespace>~<domain>`.
    pub id: String,
    /// What it says about itself; only values that are strings.
    pub metadata: BTreeMap<String, String>,
}

impl Node {
    /// Whether this client waits for the last part of a change.
    pub(crate) fn takes_parts(&self) -> bool {
        self.metadata.get(PARTS).is_some_and(|value| value == "true")
    }
}

impl From<wire::Node> for Node {
    fn from(node: wire::Node) -> Self {
        let wire::Node { id, cluster: _, metadata, build_version: _ } = node;
        let text = |(key, value): (String, Value)| match value.kind {
            Some(Kind::StringValue(text)) => Some((key, text)),
            _ => None,
        };
        let metadata = metadata.map(|m| m.fields.into_iter().filter_map(text).collect()).unwrap_or_default();
        Self { id, metadata }
    }
}

/// The node as this crate's client sends it, which takes changes in parts.
pub(crate) fn own_node(Node { id, metadata }: &Node) -> wire::Node {
    let text = |(key, text): (&str, &str)| {
        (key.to_owned(), Value { kind: Some(Kind::StringValue(text.to_owned())) })
    };
    let given = metadata.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let fields = given.chain([(PARTS, "true")]).map(text).collect();
    wire::Node { id: id.clone(), metadata: Some(Struct { fields }), ..wire::Node::default() }
}

impl From<wire::DeltaDiscoveryRequest> for Request {
    fn from(request: wire::DeltaDiscoveryRequest) -> Self {
        let wire::DeltaDiscoveryRequest {
            node: _, // The session was opened with it.
            type_url,
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            initial_resource_versions: held,
            response_nonce: nonce,
            error_detail,
        } = request;
        let error = error_detail.map(|status| status.message);
        Self { type_url, subscribe, unsubscribe, held, nonce, error }
    }
}

/// A request, with the node where it is the first of its type.
pub(crate) fn request(request: Request, node: Option<wire::Node>) -> wire::DeltaDiscoveryRequest {
    let Request { type_url, subscribe, unsubscribe, held, nonce, error } = request;
    let detail = |message| wire::Status { code: INVALID_ARGUMENT, message, details: Vec::new() };
    wire::DeltaDiscoveryRequest {
        node,
        type_url,
        resource_names_subscribe: subscribe,
        resource_names_unsubscribe: unsubscribe,
        initial_resource_versions: held,
        response_nonce: nonce,
        error_detail: error.map(detail),
    }
}

impl From<wire::DeltaDiscoveryResponse> for Response {
    fn from(response: wire::DeltaDiscoveryResponse) -> Self {
        let wire::DeltaDiscoveryResponse {
            system_version_info: _, // For people who watch the wire.
            resources,
            type_url,
            nonce,
            removed_resources: removed,
            more,
        } = response;
        let resources = resources.into_iter().map(|resource| Arc::new(resource.into())).collect();
        Self { type_url, nonce, resources, removed, more }
    }
}

impl From<Response> for wire::DeltaDiscoveryResponse {
    fn from(Response { type_url, nonce, resources, removed, more }: Response) -> Self {
        Self {
            system_version_info: String::new(),
            resources: resources.into_iter().map(|resource| Arc::unwrap_or_clone(resource).into()).collect(),
            type_url,
            nonce,
            removed_resources: removed,
            more,
        }
    }
}

impl From<wire::Resource> for Resource {
    fn from(resource: wire::Resource) -> Self {
        let wire::Resource {
            version,
            resource,
            name,
            aliases,
            ttl: _,           // No mesh control plane sends resources that expire.
            cache_control: _, // For caching proxies.
        } = resource;
        // A body that is missing is for the sink to reject, like any other that it can't read.
        Self { name, version, body: resource.unwrap_or_default(), aliases }
    }
}

impl From<Resource> for wire::Resource {
    fn from(Resource { name, version, body, aliases }: Resource) -> Self {
        Self { version, resource: Some(body), name, aliases, ttl: None, cache_control: None }
    }
}
