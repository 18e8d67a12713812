//! Requests to the API server for a handful of objects, as JSON: their types are not worth having.

use std::time::Duration;

use http::{Method, Request, header};
use kube::{Client, Error};
use serde_json::Value;
use tokio::time::timeout;

/// How long an answer may take; an API server that is asked for one object takes milliseconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A patch by [`call`] is a server-side apply.
const APPLY: &str = "application/apply-patch+yaml";

/// Asks for an object, or hands one over; `None` when there is none of that name.
///
/// # Errors
/// With what the API server said, or that it could not be asked.
pub async fn call(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Option<Value>, Error> {
    let content = if method == Method::PATCH { APPLY } else { "application/json" };
    send(client, method, path, content, body).await
}

/// Merges `patch` into an object; `None` when there is none of that name.
///
/// # Errors
/// With what the API server said, or that it could not be asked.
pub async fn merge(client: &Client, path: &str, patch: &Value) -> Result<Option<Value>, Error> {
    send(client, Method::PATCH, path, "application/merge-patch+json", Some(patch)).await
}

async fn send(
    client: &Client,
    method: Method,
    path: &str,
    content: &str,
    body: Option<&Value>,
) -> Result<Option<Value>, Error> {
    let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, content)
        .body(body)
        .expect("paths are made of Kubernetes names");
    let answer = timeout(ANSWER_WITHIN, client.request::<Value>(request)).await;
    match answer.unwrap_or_else(|_| Err(Error::Service(format!("no answer within {ANSWER_WITHIN:?}").into())))
    {
        Ok(object) => Ok(Some(object)),
        Err(error) if code(&error) == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The status that the API server answered with.
#[must_use]
pub fn code(error: &Error) -> Option<u16> {
    if let Error::Api(status) = error { Some(status.code) } else { None }
}

/// Whether someone else was first.
#[must_use]
pub fn is_conflict(error: &Error) -> bool {
    code(error) == Some(409)
}
