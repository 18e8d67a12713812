//! The Secret in which a CA is plugged in, under Istio's name and with Istio's keys. Read, never written.

use std::time::SystemTime;

use apiserver::call;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use identity::authority::{PluggedCa, PluggedPem};
use kube::Client;
use serde_json::Value;

/// The Secret's name.
pub(super) const NAME: &str = "cacerts";

/// What is in the Secret.
pub(super) struct Found {
    /// Changes with it.
    pub(super) version: String,
    /// The CA, or why it can't be used.
    pub(super) ca: Result<PluggedCa, String>,
}

/// Reads the Secret of `namespace`; `None` when there is none.
///
/// # Errors
/// When the API server does not say.
pub(super) async fn look(
    client: &Client,
    namespace: &str,
    trust_domain: &str,
    now: SystemTime,
) -> Result<Option<Found>, kube::Error> {
    let path = format!("/api/v1/namespaces/{namespace}/secrets/{NAME}");
    let Some(secret) = call(client, Method::GET, &path, None).await? else { return Ok(None) };
    let version = secret["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    Ok(Some(Found { version, ca: read(&secret, trust_domain, now) }))
}

fn read(secret: &Value, trust_domain: &str, now: SystemTime) -> Result<PluggedCa, String> {
    let optional = |key: &str| {
        let Some(data) = secret["data"][key].as_str() else { return Ok(None) };
        let bytes = STANDARD.decode(data).map_err(|error| format!("{key}: {error}"))?;
        String::from_utf8(bytes).map(Some).map_err(|_| format!("{key} is not text"))
    };
    let required = |key: &str| optional(key)?.ok_or_else(|| format!("it has no {key}"));
    let (ca_cert, ca_key) = (required("ca-cert.pem")?, required("ca-key.pem")?);
    let (root_cert, cert_chain) =
        (required("root-cert.pem")?, optional("cert-chain.pem")?.unwrap_or_default());
    let pem =
        PluggedPem { ca_cert: &ca_cert, ca_key: &ca_key, root_cert: &root_cert, cert_chain: &cert_chain };
    PluggedCa::read(pem, trust_domain, now).map_err(|error| error.to_string())
}
