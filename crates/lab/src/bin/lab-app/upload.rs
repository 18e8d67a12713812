//! The pattern as the body of HTTP messages, in both directions, and its checksum at the other end.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context as Task, Poll};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Args;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use hyper::client::conn::{http1, http2};
use hyper::header::HOST;
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;

use crate::pattern::{self, Sum};
use crate::transfer::{connect, done};

#[derive(Args)]
pub(crate) struct Transfer {
    /// Name or address, and port, of an `http` server.
    #[arg(long)]
    with: String,
    #[arg(long)]
    bytes: u64,
    /// With a length that is told before, instead of in chunks.
    #[arg(long)]
    sized: bool,
    /// Speaks HTTP/2 (in clear, known beforehand).
    #[arg(long)]
    http2: bool,
}

/// So many bytes of the pattern.
pub(crate) struct Pattern {
    sent: u64,
    bytes: u64,
    sized: bool,
}

impl Pattern {
    pub(crate) fn new(bytes: u64, sized: bool) -> Self {
        Self { sent: 0, bytes, sized }
    }
}

impl Body for Pattern {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Task<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.sent == self.bytes {
            return Poll::Ready(None);
        }
        let part = pattern::at(self.sent, self.bytes - self.sent);
        self.sent += part.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(part)))))
    }

    fn size_hint(&self) -> SizeHint {
        if self.sized { SizeHint::with_exact(self.bytes - self.sent) } else { SizeHint::default() }
    }
}

pub(crate) async fn upload(args: Transfer) -> Result<()> {
    let began = Instant::now();
    let body = Pattern::new(args.bytes, args.sized);
    let (bytes, _, answer) = ask((&args.with, args.http2), Method::PUT, "/upload", body).await?;
    ensure!(bytes < 1 << 20, "an answer of {bytes} bytes");
    let answer: Value = serde_json::from_slice(&answer).context("the answer is not JSON")?;
    let got = (answer["bytes"].as_u64(), answer["sha256"].as_str());
    let expected = pattern::checksum(args.bytes);
    ensure!(got == (Some(args.bytes), Some(&expected)), "the other end got {got:?}");
    let framing = if args.sized { "content-length" } else { "transfer-encoding" };
    let framed = answer["headers"][framing].is_string() || args.http2 && !args.sized;
    ensure!(framed, "the request came without {framing}: {answer}");
    done(args.bytes, began);
    Ok(())
}

pub(crate) async fn download(args: Transfer) -> Result<()> {
    let began = Instant::now();
    let path = format!("/{}/{}", if args.sized { "sized" } else { "chunked" }, args.bytes);
    let (bytes, sha256, _) = ask((&args.with, args.http2), Method::GET, &path, Pattern::new(0, true)).await?;
    ensure!(
        (bytes, &sha256) == (args.bytes, &pattern::checksum(args.bytes)),
        "{bytes} bytes arrived: {sha256}"
    );
    done(args.bytes, began);
    Ok(())
}

/// Length and checksum of the answer, and its first megabyte.
async fn ask(
    (to, in_http2): (&str, bool),
    method: Method,
    path: &str,
    body: Pattern,
) -> Result<(u64, String, Vec<u8>)> {
    let stream = TokioIo::new(connect(to).await?);
    let mut answer = if in_http2 {
        let handshake = http2::handshake(TokioExecutor::new(), stream);
        let (mut sender, connection) = handshake.await.context("speak HTTP/2")?;
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(format!("http://{to}{path}")).body(body)?;
        sender.send_request(request).await
    } else {
        let (mut sender, connection) = http1::handshake(stream).await.context("speak HTTP")?;
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header(HOST, to).body(body)?;
        sender.send_request(request).await
    }
    .context("no answer")?;
    ensure!(answer.status().is_success(), "status {}", answer.status());
    let (mut sum, mut first) = (Sum::new(), Vec::new());
    while let Some(frame) = answer.frame().await {
        let frame = frame.context("read the answer")?;
        let data = frame.data_ref().map_or(&[] as &[u8], |data| data.as_ref());
        sum.add(data);
        if first.len() < 1 << 20 {
            first.extend_from_slice(data);
        }
    }
    let (bytes, sha256) = sum.finish();
    Ok((bytes, sha256, first))
}
