//! hyper on both sides, over TCP: what others speak, and a body that is larger than every buffer.

use std::convert::Infallible;
use std::future::pending;
use std::hash::{DefaultHasher, Hasher};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use waypoint::http1::limits::Timeouts;
use waypoint::http1::serve;

use crate::support::Router;

type Boxed = BoxBody<Bytes, Infallible>;

/// Bytes of the large body: many times all buffers together. A gigabyte takes too long in a debug build.
const LARGE: u64 = 64 << 20;

/// Bytes of a body whose length is known: it takes the simpler path of the two.
const SIZED: u64 = 8 << 20;

/// Bytes of one frame; not a divisor of any buffer's size.
const FRAME: usize = 50_001;

/// A body of so many bytes that nobody holds, with a trailer behind it.
struct Made {
    left: u64,
    sum: DefaultHasher,
    known: bool,
    over: bool,
}

impl Made {
    fn new(left: u64, known: bool) -> Self {
        Self { left, sum: DefaultHasher::new(), known, over: false }
    }
}

impl Body for Made {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            if self.over || self.known {
                return Poll::Ready(None);
            }
            self.over = true;
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", self.sum.finish().into());
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        let len = self.left.min(FRAME as u64) as usize;
        let bytes = vec![(self.left % 251) as u8; len];
        self.sum.write(&bytes);
        self.left -= len as u64;
        Poll::Ready(Some(Ok(Frame::data(bytes.into()))))
    }

    fn size_hint(&self) -> SizeHint {
        if self.known { SizeHint::with_exact(self.left) } else { SizeHint::default() }
    }
}

/// How many bytes, whether their sum is that of the same bytes made again, and whether the trailer says so too.
async fn received(mut body: Incoming) -> (u64, bool, Option<bool>) {
    let mut sum = DefaultHasher::new();
    let mut frame = Vec::new();
    let (mut count, mut trailer) = (0, None);
    while let Some(next) = body.frame().await {
        match next.expect("the body is whole").into_data() {
            Ok(bytes) => {
                count += bytes.len() as u64;
                frame.extend_from_slice(&bytes);
                while frame.len() >= FRAME {
                    let rest = frame.split_off(FRAME);
                    sum.write(&frame);
                    frame = rest;
                }
            }
            Err(other) => trailer = other.into_trailers().ok(),
        }
    }
    if !frame.is_empty() {
        sum.write(&frame);
    }
    let mut made = Made::new(count, false);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    while made.left > 0 {
        let _ = Pin::new(&mut made).poll_frame(&mut cx);
    }
    let sum = sum.finish();
    let told = trailer.map(|trailers| trailers["x-sum"].to_str().ok() == Some(&sum.to_string()));
    (count, sum == made.sum.finish(), told)
}

/// Answers `/get` with a body that is chunked, `/sized` with one of a known length, and everything else with what it
/// received.
async fn answer(request: Request<Incoming>) -> Result<Response<Boxed>, Infallible> {
    let body = match request.uri().path() {
        "/get" => Made::new(LARGE, false).boxed(),
        "/sized" => Made::new(SIZED, true).boxed(),
        "/none" => {
            let mut response = Response::new(Empty::new().boxed());
            *response.status_mut() = hyper::StatusCode::NO_CONTENT;
            return Ok(response);
        }
        _ => {
            let text = format!("{:?}", received(request.into_body()).await);
            Full::new(Bytes::from(text)).boxed()
        }
    };
    let mut response = Response::new(body);
    response.headers_mut().insert("trailer", "x-sum".parse().expect("a good value"));
    Ok(response)
}

async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("it is bound");
    let (dialled, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (dialled.expect("it listens"), accepted.expect("somebody dials").0)
}

/// A client of hyper's, the forwarder, and a server of hyper's.
async fn chain() -> (SendRequest<Boxed>, Router) {
    let (to_server, server) = tcp().await;
    tokio::spawn(
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service_fn(answer)),
    );
    let router = Router::default().over(Box::new(to_server));
    let (client, ours) = tcp().await;
    let served = router.clone();
    tokio::spawn(async move { serve(ours, &served, &Timeouts::default(), pending()).await });
    let (send, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(client)).await.expect("a connection");
    tokio::spawn(connection);
    (send, router)
}

fn request(method: Method, path: &str) -> hyper::http::request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "a")
        .header("te", "trailers")
        .header("trailer", "x-sum")
}

#[tokio::test]
async fn large_bodies_pass_whole_in_both_directions_over_one_connection() {
    let (mut send, router) = chain().await;
    for (path, size) in [("/get", LARGE), ("/sized", SIZED)] {
        let get = request(Method::GET, path).body(Empty::new().boxed()).expect("good");
        let response = send.send_request(get).await.expect("an answer");
        let trailer = (path == "/get").then_some(true);
        assert_eq!(received(response.into_body()).await, (size, true, trailer), "{path}");
    }
    for (known, size) in [(false, LARGE), (true, SIZED)] {
        let put = request(Method::PUT, "/put").body(Made::new(size, known).boxed()).expect("good");
        let response = send.send_request(put).await.expect("an answer");
        let text = response.into_body().collect().await.expect("whole").to_bytes();
        let trailer = (!known).then_some(true);
        assert_eq!(String::from_utf8_lossy(&text), format!("{:?}", (size, true, trailer)));
    }
    assert_eq!(router.log().len(), 4);
    assert_eq!(router.log()[0], format!("GET /get 200 Forwarded attempts=1 up=0 down={LARGE}"));
}

#[tokio::test]
async fn every_kind_of_answer_leaves_the_connection_fit_for_the_next() {
    let (mut send, router) = chain().await;
    for _ in 0..50 {
        for (method, path, status) in
            [(Method::HEAD, "/sized", 200), (Method::GET, "/none", 204), (Method::POST, "/echo", 200)]
        {
            send.ready().await.expect("the connection goes on");
            let next = request(method, path).body(Empty::new().boxed()).expect("good");
            let response = send.send_request(next).await.expect("an answer");
            assert_eq!(response.status(), status);
            response.into_body().collect().await.expect("whole");
        }
    }
    assert_eq!((router.log().len(), router.idle()), (150, 1));
}
