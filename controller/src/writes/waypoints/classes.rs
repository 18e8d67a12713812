//! Our classes of Gateways: made where nobody has made them, and accepted where they name us.

use std::sync::Arc;

use apiserver::{call, code};
use http::Method;
use kube::Client;
use serde_json::json;

use super::super::FIELD_MANAGER;
use super::status::{all_said, conditions};
use crate::index::{CONTROLLER, Said};
use crate::source::objects::{GatewayClass, Kind};

/// The annotation of a definition of the Gateway API that says which release of it that is.
const BUNDLE: &str = "gateway.networking.k8s.io/bundle-version";

/// The oldest release that has everything that is read here in its version `v1`.
const OLDEST: (u32, u32) = (1, 0);

/// The first release in whose standard channel a class says what its gateways can do.
const SAYS_FEATURES: (u32, u32) = (1, 4);

/// What waypoints can do, in the Gateway API's words and order: what its own suite tests of it, and passes.
const FEATURES: [&str; 17] = [
    "GRPCRoute",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteParentRefPort",
    "HTTPRouteResponseHeaderModification",
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
];

/// What is remembered of the cluster's definitions.
#[derive(Default)]
pub(super) struct Classes {
    bundle: Option<String>,
}

impl Classes {
    /// Makes those of our classes that are missing, and says of those that name us what there is to say.
    pub(super) async fn keep(
        &mut self,
        client: &Client,
        (missing, ours): (Vec<&'static str>, Vec<Arc<GatewayClass>>),
    ) -> Result<(), kube::Error> {
        let root = format!("/apis/{}/gatewayclasses", Kind::GatewayClass.api_version());
        for name in missing {
            let class = json!({
                "apiVersion": Kind::GatewayClass.api_version(), "kind": "GatewayClass",
                "metadata": { "name": name },
                "spec": { "controllerName": CONTROLLER, "description": "Waypoints of Airglow" },
            });
            match call(client, Method::POST, &root, Some(&class)).await {
                // Or the cluster has no Gateway API, and there is nothing to keep.
                Ok(_) => {}
                Err(error) if code(&error) == Some(409) => {}
                Err(error) => return Err(error),
            }
        }
        for class in ours {
            let bundle = self.bundle(client).await?;
            let said = said(&bundle);
            let metadata = &class.metadata;
            let features = features(&bundle);
            let known = class.status.supported_features.iter().map(|feature| feature.name.as_str());
            if all_said(&said, &class.status.conditions, metadata.generation)
                && known.eq(features.iter().copied())
            {
                continue;
            }
            let mut status =
                json!({ "conditions": conditions(&said, &class.status.conditions, metadata.generation) });
            if !features.is_empty() {
                let named = features.iter().map(|name| json!({ "name": name }));
                status["supportedFeatures"] = named.collect();
            }
            let patch = json!({
                "apiVersion": Kind::GatewayClass.api_version(), "kind": "GatewayClass",
                "metadata": { "name": metadata.name },
                "status": status,
            });
            let path = format!("{root}/{}/status?fieldManager={FIELD_MANAGER}&force=true", metadata.name);
            call(client, Method::PATCH, &path, Some(&patch)).await?;
        }
        Ok(())
    }

    /// The release of the Gateway API that the cluster has, as the definition says; asked once.
    async fn bundle(&mut self, client: &Client) -> Result<String, kube::Error> {
        if let Some(bundle) = &self.bundle {
            return Ok(bundle.clone());
        }
        let path =
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/gateways.gateway.networking.k8s.io";
        let definition = call(client, Method::GET, path, None).await?.unwrap_or_default();
        let bundle = definition["metadata"]["annotations"][BUNDLE].as_str().unwrap_or_default().to_owned();
        Ok(self.bundle.insert(bundle).clone())
    }
}

/// Whether a release is of the same major version as another one, and not older.
fn is_since(bundle: &str, since: (u32, u32)) -> bool {
    let parts: Option<Vec<u32>> =
        bundle.trim_start_matches('v').split('.').take(2).map(|part| part.parse().ok()).collect();
    parts.is_some_and(|parts| matches!(parts[..], [major, minor] if major == since.0 && minor >= since.1))
}

/// What a class can say that its gateways can do.
fn features(bundle: &str) -> &'static [&'static str] {
    if is_since(bundle, SAYS_FEATURES) { &FEATURES } else { &[] }
}

fn said(bundle: &str) -> [Said; 2] {
    let supported = match is_since(bundle, OLDEST) {
        true => Said {
            kind: "SupportedVersion",
            is_so: true,
            reason: "SupportedVersion",
            message: format!("Gateway API {bundle}"),
        },
        false => Said {
            kind: "SupportedVersion",
            is_so: false,
            reason: "UnsupportedVersion",
            message: format!("the definitions say that they are Gateway API {bundle:?}; v1.x is known"),
        },
    };
    let accepted =
        Said { kind: "Accepted", is_so: true, reason: "Accepted", message: "Handled by Airglow".to_owned() };
    [accepted, supported]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        for (bundle, known) in [
            ("v1.6.1", true),
            ("v1.0.0-rc1", true),
            ("v0.8.1", false),
            ("v2.0.0", false),
            ("", false),
            ("main", false),
        ] {
            assert_eq!(said(bundle)[1].is_so, known, "{bundle}");
        }
        assert_eq!((features("v1.3.0").len(), features("v1.4.0").len()), (0, FEATURES.len()));
        assert!(FEATURES.is_sorted());
    }
}
