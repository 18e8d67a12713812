//! Requests to the API server for a handful of objects, as JSON: their types are not worth having.

use http::{Method, Request, header};
use kube::{Client, Error};
use serde_json::Value;

/// Asks for an object, or hands one over; `None` when there is none of that name.
///
/// # Errors
/// With what the API server said, or that it could not be asked.
pub(super) async fn call(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Option<Value>, Error> {
    // The only kind of patch that is used: server-side apply.
    let content = if method == Method::PATCH { "application/apply-patch+yaml" } else { "application/json" };
    let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, content)
        .body(body)
        .expect("paths are made of Kubernetes names");
    match client.request::<Value>(request).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if code(&error) == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The status that the API server answered with.
pub(super) fn code(error: &Error) -> Option<u16> {
    if let Error::Api(status) = error { Some(status.code) } else { None }
}

/// Whether someone else was first.
pub(super) fn is_conflict(error: &Error) -> bool {
    code(error) == Some(409)
}
