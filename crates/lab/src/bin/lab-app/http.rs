//! An HTTP server that says what it saw.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};

use crate::pattern::Sum;
use crate::upload::Pattern;
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
    /// Speaks HTTP/2 (in clear, known beforehand) instead of HTTP/1.1.
    #[arg(long)]
    http2: bool,
}

/// Requests of each path that begins with `/fails/`.
type Asked = Mutex<HashMap<String, u64>>;

/// Answers are JSON: `name`, `client` (the address that the server sees), `method`, `path`, `headers` (those of one name as one,
/// with commas; in HTTP/2, `host` is what stands for it), `bytes` and `sha256` of the request's body. A path
/// `/status/<code>` is answered with that code. Of
/// `/fails/<n>/<how>`, the first n requests are answered with a code, or their connection is closed (`drop`), or nothing is answered
/// (`hang`); `asked` is the number of the request. `/chunked/<n>` and `/sized/<n>` are answered with so much of the pattern.
pub(crate) async fn serve(args: Serve) -> Result<()> {
    let state: Arc<(String, Asked)> = Arc::new((args.name, Asked::default()));
    tcp::serve(args.listen, move |stream, client| {
        let state = Arc::clone(&state);
        async move {
            let service = service_fn(move |request| answer(Arc::clone(&state), client, request));
            let stream = TokioIo::new(stream);
            let served = if args.http2 {
                http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await
            } else {
                http1::Builder::new().serve_connection(stream, service).await
            };
            served.map_err(io::Error::other)
        }
    })
    .await
}

async fn answer(
    state: Arc<(String, Asked)>,
    client: SocketAddr,
    request: Request<Incoming>,
) -> io::Result<Response<Either<Full<Bytes>, Pattern>>> {
    let (name, asked) = &*state;
    let (head, mut body) = request.into_parts();
    let mut sum = Sum::new();
    while let Some(Ok(frame)) = body.frame().await {
        sum.add(frame.data_ref().map_or(&[], |data| data.as_ref()));
    }
    let (bytes, sha256) = sum.finish();
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let values = |name| head.headers.get_all(name).iter().map(text).collect::<Vec<_>>().join(",");
    let mut headers: serde_json::Map<String, Value> =
        head.headers.keys().map(|name| (name.to_string(), json!(values(name)))).collect();
    if let Some(authority) = head.uri.authority() {
        headers.entry("host").or_insert_with(|| json!(authority.as_str()));
    }
    let path = head.uri.path();
    if let Some(pattern) = pattern_of(path) {
        return Ok(Response::new(Either::Right(pattern)));
    }
    let code = path.strip_prefix("/status/").and_then(|code| code.parse().ok()).unwrap_or(StatusCode::OK);
    let (number, fate) = failing(asked, path);
    let code = match fate {
        Some("drop") => return Err(io::Error::other("dropped, as asked for")),
        Some("hang") => std::future::pending().await,
        Some(other) => other.parse().unwrap_or(code),
        None => code,
    };
    let text = json!({
        "name": name,
        "asked": number,
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
        .header(NAME, name)
        .body(Full::from(format!("{text}\n")));
    let response = response.unwrap_or_else(|error| Response::new(Full::from(format!("--name: {error}\n"))));
    Ok(response.map(Either::Left))
}

/// Which request of its path this is, from 1, and what is to become of it, for a path that begins with `/fails/`.
fn failing<'a>(asked: &Asked, path: &'a str) -> (u64, Option<&'a str>) {
    let Some((count, rest)) = path.strip_prefix("/fails/").and_then(|rest| rest.split_once('/')) else {
        return (0, None);
    };
    let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
    let number = asked.entry(path.to_owned()).or_default();
    *number += 1;
    let fails = count.parse().is_ok_and(|count: u64| *number <= count);
    (*number, fails.then(|| rest.split('/').next().unwrap_or_default()))
}

/// The body that is asked for by `/chunked/<n>` and `/sized/<n>`.
fn pattern_of(path: &str) -> Option<Pattern> {
    let (kind, bytes) = path.strip_prefix('/')?.split_once('/')?;
    let sized = match kind {
        "chunked" => false,
        "sized" => true,
        _ => return None,
    };
    Some(Pattern::new(bytes.parse().ok()?, sized))
}
