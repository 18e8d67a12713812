//! An HTTP/1.1 server that says what it saw.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::Result;
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::sync::Arc;

use crate::pattern::Sum;
use crate::{Listen, tcp};

/// The header that names the server which answered.
pub(crate) const NAME: &str = "x-lab-name";

#[derive(Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    listen: Listen,
    /// What the server calls itself.
    #[arg(long, default_value = "http")]
    name: String,
}

/// Answers are JSON: `name`, `client` (the address that the server sees), `method`, `path`, `headers`, `bytes` and
/// `sha256` of the request's body. A path `/status/<code>` is answered with that code.
pub(crate) async fn serve(args: Serve) -> Result<()> {
    let name: Arc<str> = args.name.into();
    tcp::serve(args.listen, move |stream, client| {
        let name = Arc::clone(&name);
        async move {
            let service = service_fn(move |request| answer(Arc::clone(&name), client, request));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            connection.await.map_err(std::io::Error::other)
        }
    })
    .await
}

async fn answer(
    name: Arc<str>,
    client: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, mut body) = request.into_parts();
    let mut sum = Sum::new();
    while let Some(Ok(frame)) = body.frame().await {
        sum.add(frame.data_ref().map_or(&[], |data| data.as_ref()));
    }
    let (bytes, sha256) = sum.finish();
    let headers: serde_json::Map<String, Value> = head
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), json!(String::from_utf8_lossy(value.as_bytes()))))
        .collect();
    let path = head.uri.path();
    let code = path.strip_prefix("/status/").and_then(|code| code.parse().ok()).unwrap_or(StatusCode::OK);
    let text = json!({
        "name": &*name,
        "client": client,
        "method": head.method.as_str(),
        "path": head.uri.path_and_query().map_or(path, |whole| whole.as_str()),
        "headers": headers,
        "bytes": bytes,
        "sha256": sha256,
    });
    let response = Response::builder()
        .status(code)
        .header(CONTENT_TYPE, "application/json")
        .header(NAME, &*name)
        .body(Full::from(format!("{text}\n")));
    Ok(response.unwrap_or_else(|error| Response::new(Full::from(format!("--name: {error}\n")))))
}
