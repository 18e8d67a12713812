//! A service of the shop.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use clap::Args;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::client::{self, Url};

/// Orders have a hundred bytes.
const BODY_MAX: usize = 64 << 10;

#[derive(Args)]
pub(crate) struct Serve {
    /// What the service calls itself in its answers.
    #[arg(long)]
    name: String,
    /// Address and port; `[::]` takes both families.
    #[arg(long, default_value = "[::]:8080")]
    listen: SocketAddr,
    /// A service that it calls for every request, with the request's body. May be repeated.
    #[arg(long = "call", value_name = "URL")]
    calls: Vec<Url>,
    /// Answers every so many-th request with 500: a replica that is broken now and then.
    #[arg(long, value_name = "NUMBER")]
    fail_every: Option<NonZeroU64>,
}

/// What a request carries in this header, its answer repeats as `edition`.
const EDITION: &str = "x-shop-edition";

/// A service, and what it has done so far.
struct Service {
    args: Serve,
    asked: AtomicU64,
    broken: AtomicU64,
}

/// Answers are JSON: `name`, `client` (the address that the server sees), `edition`, `broken` (how many requests it answered
/// with 500 so far) and `calls` (the answers of the services called). When a call fails, the answer is 502 with the reason.
pub(crate) async fn serve(args: Serve) -> Result<()> {
    let listener =
        TcpListener::bind(args.listen).await.with_context(|| format!("listen on {}", args.listen))?;
    println!("listening on {}", listener.local_addr()?);
    let service = Arc::new(Service { args, asked: AtomicU64::new(0), broken: AtomicU64::new(0) });
    loop {
        let (stream, client) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            let handler = service_fn(move |request| answer(Arc::clone(&service), client, request));
            if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), handler).await {
                eprintln!("{client}: {error}");
            }
        });
    }
}

async fn answer(
    service: Arc<Service>,
    client: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let name = &service.args.name;
    let asked = service.asked.fetch_add(1, Ordering::Relaxed) + 1;
    let edition = request.headers().get(EDITION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (status, body) = if service.args.fail_every.is_some_and(|every| asked.is_multiple_of(every.get())) {
        service.broken.fetch_add(1, Ordering::Relaxed);
        (StatusCode::INTERNAL_SERVER_ERROR, json!({ "name": name, "error": "broken" }))
    } else {
        match called(&service.args, request).await {
            Ok(calls) => {
                let broken = service.broken.load(Ordering::Relaxed);
                let answer = json!({
                    "name": name, "client": client, "edition": edition, "broken": broken, "calls": calls,
                });
                (StatusCode::OK, answer)
            }
            Err(error) => {
                let error = format!("{error:#}");
                (StatusCode::BAD_GATEWAY, json!({ "name": name, "error": error }))
            }
        }
    };
    let mut response = Response::new(Full::from(format!("{body}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    Ok(response)
}

/// The answers of the services that this one depends on.
async fn called(service: &Serve, request: Request<Incoming>) -> Result<Vec<Value>> {
    let body = Limited::new(request.into_body(), BODY_MAX).collect().await;
    let body = body.map_err(anyhow::Error::from_boxed).context("read the request")?.to_bytes();
    let order = String::from_utf8_lossy(&body);
    let mut answers = Vec::new();
    for url in &service.calls {
        let call = async {
            let mut connection = client::connect(url).await?;
            client::ask(&mut connection, url, (&[], &order), false).await
        };
        let answer = call.await.with_context(|| format!("call {}", url.host()))?;
        answers.push(serde_json::from_slice(&answer).with_context(|| format!("answer of {}", url.host()))?);
    }
    Ok(answers)
}
