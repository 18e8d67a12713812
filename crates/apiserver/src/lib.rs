//! A client of a Kubernetes API server: inside the cluster by the pod's service account, outside by a kubeconfig.
//!
//! kube brings its own TLS only if it is asked to, and it is not: `identity` makes every TLS configuration. Knows no object:
//! what is asked for is the caller's.

mod forward;
mod requests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
pub use forward::{ForwardError, exchange};
use identity::SystemClock;
use identity::control::{ApiConnector, ApiServer, BadTarget, ClientPem, Roots};
use kube::Config;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig, KubeconfigError};
pub use kube::{Client, Error};
pub use requests::{call, code, is_conflict, merge};
use secrecy::ExposeSecret as _;
use tower::BoxError;
use tower::util::MapErr;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is at fault.
    #[error("the API server's address can't be used: {0}")]
    Address(#[from] BadTarget),
    /// A certificate, key or token that is configured can't be used.
    #[error("the credentials for the API server can't be used: {0}")]
    Credentials(String),
    /// The kubeconfig can't be used.
    #[error("kubeconfig {0} can't be used: {1}")]
    Kubeconfig(PathBuf, String),
    /// No pod's service account.
    #[error("there is no kubeconfig, and this is no pod with a service account: {0}")]
    NoServiceAccount(String),
    /// What we refuse to do.
    #[error("{0}")]
    Refused(&'static str),
}

/// A client by the kubeconfigs, merged as kubectl does, or without one by the service account of the pod that we are.
/// `context`: one of theirs, instead of their current one. Does not connect yet.
///
/// # Errors
/// When there are no credentials, or they can't be used.
pub async fn connect(kubeconfigs: &[PathBuf], context: Option<&str>) -> Result<Client, ConnectError> {
    let config = match kubeconfigs {
        [] => Config::incluster().map_err(|error| ConnectError::NoServiceAccount(error.to_string()))?,
        [first, others @ ..] => from_files(first, others, context).await?,
    };
    if config.accept_invalid_certs {
        return Err(ConnectError::Refused(
            "insecure-skip-tls-verify is refused: whoever stands between could grant every policy; name the cluster's CA",
        ));
    }
    if config.proxy_url.is_some() {
        return Err(ConnectError::Refused("proxy-url is not supported; name the API server itself"));
    }
    let server = ApiServer {
        address: config.cluster_url.clone(),
        roots: roots(&config)?,
        server_name: config.tls_server_name.clone(),
        client: client_pem(&config.auth_info)?,
    };
    let connector = ApiConnector::new(server, Arc::new(SystemClock))?;
    let http: hyper_util::client::legacy::Client<_, Body> =
        hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build(connector);
    let builder = ClientBuilder::new(MapErr::new(http, BoxError::from), config.default_namespace.clone())
        .with_layer(&config.base_uri_layer());
    let token = config.auth_layer().map_err(|error| ConnectError::Credentials(error.to_string()))?;
    Ok(match token {
        Some(token) => builder.with_layer(&token).build(),
        None => builder.build(),
    })
}

async fn from_files(first: &Path, others: &[PathBuf], context: Option<&str>) -> Result<Config, ConnectError> {
    let bad =
        |path: &Path, error: KubeconfigError| ConnectError::Kubeconfig(path.to_owned(), error.to_string());
    let mut all = Kubeconfig::read_from(first).map_err(|error| bad(first, error))?;
    for path in others {
        let next = Kubeconfig::read_from(path).map_err(|error| bad(path, error))?;
        all = all.merge(next).map_err(|error| bad(path, error))?;
    }
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    Config::from_custom_kubeconfig(all, &options).await.map_err(|error| bad(first, error))
}

/// An error in words fit for a log: what the API server says, or else every cause of the failure.
#[must_use]
pub fn explain(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("status {}: {}", status.code, status.message);
    }
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

fn roots(config: &Config) -> Result<Roots, ConnectError> {
    if let Some(path) = &config.root_cert_file {
        return Ok(Roots::File(path.clone()));
    }
    let Some(roots) = &config.root_cert else {
        return Err(ConnectError::Refused(
            "the kubeconfig names no certificate-authority, and the public web's are not trusted; name the cluster's CA",
        ));
    };
    let pem = |der: &Vec<u8>| {
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der))
    };
    Ok(Roots::Pem(roots.iter().map(pem).collect()))
}

fn client_pem(auth: &AuthInfo) -> Result<Option<ClientPem>, ConnectError> {
    let key = auth.client_key_data.as_ref().map(|data| data.expose_secret());
    let chain = pem(auth.client_certificate_data.as_deref(), auth.client_certificate.as_deref())?;
    let key = pem(key, auth.client_key.as_deref())?;
    match (chain, key) {
        (Some(chain), Some(key)) => Ok(Some(ClientPem { chain, key })),
        (None, None) => Ok(None),
        (Some(_), None) | (None, Some(_)) => {
            Err(ConnectError::Credentials("a client certificate and its key go together".into()))
        }
    }
}

/// From `data` in base64, or else from the file.
fn pem(data: Option<&str>, file: Option<&str>) -> Result<Option<Vec<u8>>, ConnectError> {
    let bad =
        |what: &str, error: &dyn std::fmt::Display| ConnectError::Credentials(format!("{what}: {error}"));
    match (data, file) {
        (Some(data), _) => STANDARD.decode(data.trim()).map(Some).map_err(|error| bad("not base64", &error)),
        (None, Some(file)) => std::fs::read(file).map(Some).map_err(|error| bad(file, &error)),
        (None, None) => Ok(None),
    }
}
