//! gRPC echo over cleartext HTTP/2: enough of the protocol that message, status and trailers are real. Asked for its health,
//! as kubelets do, it says that it serves.

use std::collections::BTreeMap;
use std::convert::Infallible;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, TE};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, client, server};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;

use crate::http::NAME;
use crate::transfer::connect;
use crate::{Listen, pattern, tcp};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const STATUS: &str = "grpc-status";

/// The method of grpc.health.v1, and its answer: a message of two bytes, field 1 (status) is 1 (SERVING).
const HEALTH: &str = "/grpc.health.v1.Health/Check";
const SERVING: Bytes = Bytes::from_static(&[0, 0, 0, 0, 2, 0x08, 0x01]);

#[derive(Args)]
pub(crate) struct Client {
    /// Name or address, and port.
    #[arg(long)]
    to: String,
    /// Calls, one after the other on one connection.
    #[arg(long, default_value_t = 10)]
    calls: u64,
    /// Bytes of each message.
    #[arg(long, default_value_t = 1000)]
    size: u64,
}

#[derive(Args)]
pub(crate) struct Count {
    /// Name or address, and port, of an `http` server that speaks HTTP/2.
    #[arg(long)]
    to: String,
    /// `/<service>/<method>`.
    #[arg(long)]
    path: String,
    /// Calls, one after the other on one connection.
    #[arg(long)]
    calls: u64,
}

pub(crate) async fn serve(args: Listen) -> Result<()> {
    tcp::serve(args, |stream, _| async move {
        let connection = server::conn::http2::Builder::new(TokioExecutor::new());
        let served = connection.serve_connection(TokioIo::new(stream), service_fn(echo));
        served.await.map_err(std::io::Error::other)
    })
    .await
}

pub(crate) async fn client(args: Client) -> Result<()> {
    let stream = TokioIo::new(connect(&args.to).await?);
    let handshake = client::conn::http2::handshake(TokioExecutor::new(), stream);
    let (mut sender, connection) = handshake.await.context("begin HTTP/2")?;
    tokio::spawn(connection);
    for number in 0..args.calls {
        let message = frame(pattern::at(number, args.size))?;
        let request = Request::post(format!("http://{}/lab.Echo/Echo", args.to))
            .header(CONTENT_TYPE, GRPC)
            .header(TE, "trailers")
            .body(Full::new(message.clone()))?;
        let response = sender.send_request(request).await.with_context(|| format!("call {number}"))?;
        let body = response.into_body().collect().await.context("read the answer")?;
        let status = body.trailers().and_then(|trailers| trailers.get(STATUS)).cloned();
        ensure!(status == Some(HeaderValue::from_static("0")), "call {number} ended with {status:?}");
        ensure!(body.to_bytes() == message, "message {number} came back changed");
    }
    println!("{}", json!({"ok": true, "calls": args.calls}));
    Ok(())
}

/// Prints how many calls each server answered, by the name that it gives.
pub(crate) async fn count(args: Count) -> Result<()> {
    let stream = TokioIo::new(connect(&args.to).await?);
    let handshake = client::conn::http2::handshake(TokioExecutor::new(), stream);
    let (mut sender, connection) = handshake.await.context("begin HTTP/2")?;
    tokio::spawn(connection);
    let mut answered_by = BTreeMap::<String, u64>::new();
    for number in 0..args.calls {
        let request = Request::post(format!("http://{}{}", args.to, args.path))
            .header(CONTENT_TYPE, GRPC)
            .header(TE, "trailers")
            .body(Full::new(frame(b"count me")?))?;
        let response = sender.send_request(request).await.with_context(|| format!("call {number}"))?;
        let name = response.headers().get(NAME).and_then(|name| name.to_str().ok());
        *answered_by.entry(name.unwrap_or("nobody").to_owned()).or_default() += 1;
        response.into_body().collect().await.context("read the answer")?;
    }
    println!("{}", json!({"answered_by": answered_by}));
    Ok(())
}

async fn echo(
    request: Request<Incoming>,
) -> Result<Response<impl Body<Data = Bytes, Error = Infallible>>, hyper::Error> {
    let message = match request.uri().path() {
        HEALTH => SERVING,
        _ => request.into_body().collect().await?.to_bytes(),
    };
    let mut trailers = HeaderMap::new();
    trailers.insert(STATUS, HeaderValue::from_static("0"));
    let body = Full::new(message).with_trailers(async move { Some(Ok(trailers)) });
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    Ok(response)
}

/// A length-prefixed message: not compressed, four bytes of length, the message.
fn frame(message: &[u8]) -> Result<Bytes> {
    let length = u32::try_from(message.len())?.to_be_bytes();
    Ok([&[0], length.as_slice(), message].concat().into())
}
