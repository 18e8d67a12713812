//! gRPC echo over cleartext HTTP/2: enough of the protocol that message, status and trailers are real. Asked for its health,
//! as kubelets do, it says that it serves.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context as Task, Poll};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Args;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::header::{CONTENT_TYPE, HeaderValue, TE};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, client, server};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;

use crate::http::NAME;
use crate::pattern::Sum;
use crate::transfer::{connect, done};
use crate::{Listen, pattern, tcp};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const STATUS: &str = "grpc-status";

/// The method of grpc.health.v1, and its answer: a message of two bytes, field 1 (status) is 1 (SERVING).
const HEALTH: &str = "/grpc.health.v1.Health/Check";
const SERVING: Bytes = Bytes::from_static(&[0, 0, 0, 0, 2, 0x08, 0x01]);

/// The method that reads a stream to its end, and answers with one message: [`counted`].
const SUM: &str = "/lab.Echo/Sum";

/// Bytes of a message of a stream.
const MESSAGE: u64 = 60_000;

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
    /// Which method.
    #[arg(long, default_value = "/lab.Echo/Echo")]
    method: String,
    /// The code that each call must end with.
    #[arg(long, default_value = "0")]
    status: HeaderValue,
    /// One call of many messages instead, with so many bytes of the pattern in all, checked as they come back. Says `answered` when
    /// they begin to.
    #[arg(long)]
    stream: Option<u64>,
    /// The same without a way back: the server answers at the end with the checksum of what it got.
    #[arg(long, conflicts_with = "stream")]
    sum: Option<u64>,
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
    let (sender, connection) = handshake.await.context("begin HTTP/2")?;
    tokio::spawn(connection);
    match (args.stream, args.sum) {
        (Some(bytes), _) => stream_back(&args, sender, bytes).await,
        (None, Some(bytes)) => stream_up(&args, sender, bytes).await,
        (None, None) => calls(&args, sender).await,
    }
}

type Sent = UnsyncBoxBody<Bytes, Infallible>;

fn request(args: &Client, body: Sent) -> Result<Request<Sent>> {
    let method = if args.sum.is_some() { SUM } else { &args.method };
    let request = Request::post(format!("http://{}{method}", args.to));
    Ok(request.header(CONTENT_TYPE, GRPC).header(TE, "trailers").body(body)?)
}

async fn calls(args: &Client, mut sender: SendRequest<Sent>) -> Result<()> {
    for number in 0..args.calls {
        let message = frame(pattern::at(number, args.size))?;
        let request = request(args, Full::new(message.clone()).boxed_unsync())?;
        let response = sender.send_request(request).await.with_context(|| format!("call {number}"))?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.context("read the answer")?;
        // A call that fails at once ends with its head.
        let status = body.trailers().unwrap_or(&head.headers).get(STATUS).cloned();
        ensure!(status.as_ref() == Some(&args.status), "call {number} ended with {status:?}");
        ensure!(args.status != "0" || body.to_bytes() == message, "message {number} came back changed");
    }
    println!("{}", json!({"ok": true, "calls": args.calls}));
    Ok(())
}

async fn stream_back(args: &Client, mut sender: SendRequest<Sent>, bytes: u64) -> Result<()> {
    let began = Instant::now();
    let messages = Messages { sent: 0, bytes };
    let response = sender.send_request(request(args, messages.boxed_unsync())?).await?;
    let mut body = response.into_body();
    let (mut sum, mut status) = (Sum::new(), None);
    println!("answered");
    while let Some(part) = body.frame().await {
        match part.context("read the messages")?.into_data() {
            Ok(data) => sum.add(&data),
            Err(part) => status = part.trailers_ref().and_then(|fields| fields.get(STATUS)).cloned(),
        }
    }
    ensure!(status.as_ref() == Some(&args.status), "the stream ended with {status:?}");
    let (got, expected) = (sum.finish(), Messages::sum(bytes));
    ensure!(got == expected, "{got:?} came back, not {expected:?}");
    done(bytes, began);
    Ok(())
}

async fn stream_up(args: &Client, mut sender: SendRequest<Sent>, bytes: u64) -> Result<()> {
    let began = Instant::now();
    let messages = Messages { sent: 0, bytes };
    let response = sender.send_request(request(args, messages.boxed_unsync())?).await?;
    let body = response.into_body().collect().await.context("read the answer")?;
    let status = body.trailers().and_then(|fields| fields.get(STATUS)).cloned();
    ensure!(status.as_ref() == Some(&args.status), "the stream ended with {status:?}");
    let (got, expected) = (body.to_bytes(), counted(Messages::sum(bytes)));
    ensure!(got == expected, "the other end got {got:?}, not {expected:?}");
    done(bytes, began);
    Ok(())
}

/// So many bytes of the pattern, as messages.
struct Messages {
    sent: u64,
    bytes: u64,
}

impl Messages {
    fn next(&mut self) -> Option<Bytes> {
        let message = pattern::at(self.sent, (self.bytes - self.sent).min(MESSAGE));
        self.sent += message.len() as u64;
        (!message.is_empty()).then(|| frame(message).expect("a message is short"))
    }

    /// Length and checksum of so many bytes as messages, with what frames them.
    fn sum(bytes: u64) -> (u64, String) {
        let (mut sum, mut messages) = (Sum::new(), Self { sent: 0, bytes });
        while let Some(message) = messages.next() {
            sum.add(&message);
        }
        sum.finish()
    }
}

impl Body for Messages {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Task<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.next().map(|message| Ok(Frame::data(message))))
    }
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

/// Sends each message back as it comes, unless the method is another one.
async fn echo(
    request: Request<Incoming>,
) -> Result<Response<impl Body<Data = Bytes, Error = hyper::Error>>, Infallible> {
    let message = match request.uri().path() {
        HEALTH => Full::new(SERVING).map_err(|never| match never {}).boxed_unsync(),
        SUM => Full::new(summed(request.into_body()).await).map_err(|never| match never {}).boxed_unsync(),
        _ => request.into_body().boxed_unsync(),
    };
    let mut trailers = HeaderMap::new();
    trailers.insert(STATUS, HeaderValue::from_static("0"));
    let mut response = Response::new(message.with_trailers(async move { Some(Ok(trailers)) }));
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    Ok(response)
}

/// What came of a stream that broke off is another sum than the client expects.
async fn summed(mut body: Incoming) -> Bytes {
    let mut sum = Sum::new();
    while let Some(Ok(part)) = body.frame().await {
        sum.add(part.data_ref().map_or(&[], |data| data.as_ref()));
    }
    counted(sum.finish())
}

/// The message that says how many bytes came, and their checksum.
fn counted((bytes, sha256): (u64, String)) -> Bytes {
    frame(format!("{bytes} {sha256}").as_bytes()).expect("a message is short")
}

/// A length-prefixed message: not compressed, four bytes of length, the message.
fn frame(message: &[u8]) -> Result<Bytes> {
    let length = u32::try_from(message.len())?.to_be_bytes();
    Ok([&[0], length.as_slice(), message].concat().into())
}
