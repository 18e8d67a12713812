//! HTTP/2 and gRPC by the `h2` crate: requests side by side on one connection.

use std::rc::Rc;

use anyhow::{Context as _, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};

use super::message::{
    self, BYTES_HEADER, CALL, FIELDS, NUMBER, NUMBER_HEADER, PATH, Pattern, RULE, SECRET, WEIGHTS,
};

/// Bytes that may be under way to us: more than what is asked for at once.
const WINDOW: u32 = 4 << 20;
/// The head of a message of gRPC: not compressed, and its length.
const PREFIX: usize = 5;
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// One of those who call over one connection.
#[derive(Clone)]
pub(crate) struct Caller {
    send: SendRequest<Bytes>,
    pattern: Rc<Pattern>,
    wanted: usize,
    grpc: bool,
    mark: HeaderValue,
    fields: HeaderMap,
}

impl Caller {
    /// Begins a connection; whatever moves on it is moved by a task of this thread.
    pub(crate) async fn over<Io>(
        io: Io,
        pattern: &Rc<Pattern>,
        (wanted, grpc, mark): (usize, bool, &str),
    ) -> anyhow::Result<Self>
    where
        Io: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let (send, connection) = builder.handshake(io).await.context("begin HTTP/2")?;
        tokio::task::spawn_local(connection);
        let mut fields = HeaderMap::new();
        for (name, value) in FIELDS {
            fields.insert(name, HeaderValue::from_static(value));
        }
        fields.insert(BYTES_HEADER, HeaderValue::from(wanted));
        if grpc {
            fields.insert("content-type", GRPC);
            fields.insert("te", HeaderValue::from_static("trailers"));
        }
        let mark = HeaderValue::from_str(mark).context("a mark that can't be sent")?;
        Ok(Self { send, pattern: Rc::clone(pattern), wanted, grpc, mark, fields })
    }

    /// One request and its answer, which has to be the right one.
    pub(crate) async fn call(&mut self, number: u64) -> anyhow::Result<()> {
        let digits = message::digits(number);
        let (method, path) = if self.grpc { ("POST", CALL) } else { ("GET", PATH) };
        let request = Request::builder().method(method).uri(format!("http://server.shop{path}"));
        let mut request = request.body(()).context("a request")?;
        *request.headers_mut() = self.fields.clone();
        request.headers_mut().insert(NUMBER_HEADER, HeaderValue::from_bytes(&digits)?);
        let mut send = self.send.clone().ready().await.context("wait for a stream")?;
        let (answer, mut body) = send.send_request(request, !self.grpc).context("send a request")?;
        if self.grpc {
            body.send_data(framed(&digits), true).context("send a message")?;
        }
        let (head, mut body) = answer.await.context("wait for an answer")?.into_parts();
        ensure!(head.status == 200, "answered with {head:?}");
        ensure!(head.headers.get(WEIGHTS.0) == Some(&self.mark), "no route was followed: {head:?}");
        let received = read(&mut body).await.context("read a body")?;
        if !self.grpc {
            return self.pattern.check(&digits, self.wanted, &received);
        }
        let trailers = body.trailers().await.context("read trailers")?.unwrap_or(head.headers);
        let status = trailers.get("grpc-status").map(HeaderValue::as_bytes);
        ensure!(status == Some(b"0"), "the call failed: {trailers:?}");
        self.pattern.check(&digits, self.wanted, unframed(&received)?)
    }
}

/// Answers the requests of one connection until it ends.
pub(crate) async fn serve<Io>(io: Io, pattern: &Rc<Pattern>) -> anyhow::Result<()>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let mut connection = builder.handshake(io).await?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        let pattern = Rc::clone(pattern);
        tokio::task::spawn_local(async move {
            // The client sees an answer that is missing and says so.
            if let Err(error) = answer(request, respond, &pattern).await {
                eprintln!("origin: {error:#}");
            }
        });
    }
    Ok(())
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    pattern: &Pattern,
) -> anyhow::Result<()> {
    let (head, mut body) = request.into_parts();
    let grpc = head.headers.get("content-type") == Some(&GRPC);
    let value = |name: &str| head.headers.get(name).map(HeaderValue::as_bytes);
    let number = value(NUMBER_HEADER).context("a request without a number")?;
    let followed = value(RULE.0) == Some(RULE.1.as_bytes()) && value(SECRET).is_none();
    ensure!(followed, "no route was followed: {head:?}");
    ensure!(number.len() == NUMBER, "a number of {} digits", number.len());
    let bytes = value(BYTES_HEADER).and_then(message::length).context("no length")?;
    if grpc {
        let message = read(&mut body).await?;
        ensure!(unframed(&message)? == number, "a message of another call");
    }
    let mut text = Vec::with_capacity(PREFIX + bytes);
    if grpc {
        text.put_u8(0);
        text.put_u32(u32::try_from(bytes)?);
    }
    pattern.append(number, bytes, &mut text);
    let response = Response::builder().header("server", "bench").header("x-served-by", "one");
    let kind = if grpc { GRPC } else { HeaderValue::from_static("text/plain") };
    let mut stream = respond.send_response(response.header("content-type", kind).body(())?, false)?;
    send(&mut stream, text.into(), !grpc).await?;
    if grpc {
        stream.send_trailers(HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-status"),
            HeaderValue::from_static("0"),
        )]))?;
    }
    Ok(())
}

/// Sends all of it as the peer's window allows.
async fn send(stream: &mut SendStream<Bytes>, mut bytes: Bytes, end: bool) -> anyhow::Result<()> {
    stream.reserve_capacity(bytes.len());
    while stream.capacity() < bytes.len() {
        let room =
            std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.context("a stream that ended")??;
        if room < bytes.len() {
            stream.send_data(bytes.split_to(room), false)?;
            stream.reserve_capacity(bytes.len());
        }
    }
    Ok(stream.send_data(bytes, end)?)
}

async fn read(body: &mut RecvStream) -> anyhow::Result<Bytes> {
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        match (first.is_empty(), all.is_empty()) {
            // Mostly there is one.
            (true, true) => first = chunk,
            (false, true) => all.extend([first.clone(), chunk]),
            (_, false) => all.extend([chunk]),
        }
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(PREFIX + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).expect("messages are short"));
    frame.extend_from_slice(message);
    frame.freeze()
}

fn unframed(frame: &[u8]) -> anyhow::Result<&[u8]> {
    let (prefix, message) = frame.split_at_checked(PREFIX).context("a message without a head")?;
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    ensure!(usize::try_from(length) == Ok(message.len()), "{length} bytes announced, {} came", message.len());
    Ok(message)
}
