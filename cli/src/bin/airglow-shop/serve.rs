//! A service of the shop.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

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
}

/// Answers are JSON: `name`, `client` (the address that the server sees) and `calls` (the answers of the services called). When
/// a call fails, the answer is 502 with the reason.
pub(crate) async fn serve(args: Serve) -> Result<()> {
    let listener =
        TcpListener::bind(args.listen).await.with_context(|| format!("listen on {}", args.listen))?;
    println!("listening on {}", listener.local_addr()?);
    let service = Arc::new(args);
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
    service: Arc<Serve>,
    client: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, body) = match called(&service, request).await {
        Ok(calls) => (StatusCode::OK, json!({ "name": service.name, "client": client, "calls": calls })),
        Err(error) => {
            let error = format!("{error:#}");
            (StatusCode::BAD_GATEWAY, json!({ "name": service.name, "error": error }))
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
            client::ask(&mut connection, url, &order, false).await
        };
        let answer = call.await.with_context(|| format!("call {}", url.host()))?;
        answers.push(serde_json::from_slice(&answer).with_context(|| format!("answer of {}", url.host()))?);
    }
    Ok(answers)
}
