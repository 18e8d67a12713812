//! The accept loop and one connection's life: limits on how many, how large and how long.
//!
//! Owns its connection tasks: they end when the returned future is dropped.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::{Reply, Request, Routes};

/// Connections at a time. Scrapers, probes and a few operators need a handful. When full, the oldest gives way: somebody who
/// holds connections open cannot keep the kubelet's probe out.
const CONNECTIONS_MAX: usize = 64;

/// From accept to the end of the request's head. Everybody who asks is near.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of a request's head; browsers send 1 to 2 KiB.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Headers of a request.
const HEADERS_MAX: usize = 64;

/// Bytes of a request's body: a log filter or a small document.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// From the request's head to the handler's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection's whole life, however busy: bounds slow readers. Twice the longest answer.
const LIFETIME_MAX: Duration = Duration::from_secs(60);

/// Pause after a failed accept (no file descriptors left), so that the loop does not spin until some come free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers requests on `listener` until dropped.
pub async fn serve_tcp(listener: TcpListener, routes: Routes) {
    serve(routes, move |cx| listener.poll_accept(cx).map_ok(|(io, _)| io)).await;
}

/// The same for those only whom `admits` lets in; others are closed unheard.
pub async fn serve_tcp_to(listener: TcpListener, routes: Routes, admits: impl Fn(&TcpStream) -> bool) {
    let accept = move |cx: &mut Context<'_>| loop {
        let (io, _) = ready!(listener.poll_accept(cx))?;
        if admits(&io) {
            return Poll::Ready(Ok(io));
        }
    };
    serve(routes, accept).await;
}

/// Answers requests on `listener` until dropped.
pub async fn serve_unix(listener: UnixListener, routes: Routes) {
    serve(routes, move |cx| listener.poll_accept(cx).map_ok(|(io, _)| io)).await;
}

async fn serve<Io>(routes: Routes, mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<Io>>)
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let routes = Arc::new(routes);
    let mut connections = JoinSet::new();
    let mut oldest_first = VecDeque::<AbortHandle>::new();
    loop {
        tokio::select! {
            accepted = poll_fn(&mut accept) => match accepted {
                Ok(io) => {
                    oldest_first.retain(|connection| !connection.is_finished());
                    if oldest_first.len() >= CONNECTIONS_MAX && let Some(oldest) = oldest_first.pop_front() {
                        oldest.abort();
                    }
                    oldest_first.push_back(connections.spawn(connection(io, routes.clone())));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept operators' connections");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%error, "a handler panicked");
                }
            }
        }
    }
}

/// One connection, from accept to its end.
fn connection<Io>(io: Io, routes: Arc<Routes>) -> impl Future<Output = ()>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let routes = routes.clone();
        async move { Ok::<_, Infallible>(respond(&routes, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(io), service);
    async move {
        match timeout(LIFETIME_MAX, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "an operator's connection failed"),
            Err(_) => tracing::debug!("an operator's connection was cut at its time limit"),
        }
    }
}

async fn respond(routes: &Routes, request: hyper::Request<Incoming>) -> Response<Full<Bytes>> {
    let reply = match timeout(ANSWER_TIMEOUT, answer(routes, request)).await {
        Ok(reply) => reply,
        Err(_) => Reply::text("no answer in time\n").with_status(StatusCode::SERVICE_UNAVAILABLE),
    };
    let mut response = Response::new(Full::new(reply.body));
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    // State of this moment: never from a cache, never guessed to be something a browser would run.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

async fn answer(routes: &Routes, request: hyper::Request<Incoming>) -> Reply {
    let (head, body) = request.into_parts();
    let body = match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            return Reply::text(format!("cannot read the body: {error}; at most {BODY_BYTES_MAX} bytes\n"))
                .with_status(StatusCode::PAYLOAD_TOO_LARGE);
        }
    };
    let request = Request {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers,
        body,
    };
    routes.answer(request).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::net::{TcpStream, UnixStream};
    use tokio::time::Instant;

    fn routes() -> Routes {
        Routes::new()
            .get("/ok", "fine", |_| async { Reply::text("fine\n") })
            .get("/never", "hangs", |_| pending())
            .get("/panic", "breaks", |_| async { panic!("broken handler") })
            .post("/size", "length", |request| async move { Reply::text(request.body.len().to_string()) })
    }

    /// A connection in memory, so that virtual time can pass.
    fn connected() -> DuplexStream {
        let (near, far) = duplex(1 << 20);
        tokio::spawn(connection(far, Arc::new(routes())));
        near
    }

    async fn exchange(io: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) -> String {
        // A server that refuses early may close before everything is written; its answer is what counts.
        let _ = io.write_all(request.as_bytes()).await;
        let mut response = Vec::new();
        let _ = io.read_to_end(&mut response).await;
        String::from_utf8(response).unwrap()
    }

    fn get(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    }

    #[tokio::test]
    async fn answers_over_tcp_and_unix() {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let unix = super::super::bind_unix(&path).unwrap();
        let mut servers = JoinSet::new();
        servers.spawn(serve_tcp(tcp, routes()));
        servers.spawn(serve_unix(unix, routes()));
        let mut over_tcp = TcpStream::connect(address).await.unwrap();
        let mut over_unix = UnixStream::connect(&path).await.unwrap();
        for response in
            [exchange(&mut over_tcp, &get("/ok")).await, exchange(&mut over_unix, &get("/ok")).await]
        {
            assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
            assert!(response.contains("cache-control: no-store\r\n"), "{response}");
            assert!(response.ends_with("\r\n\r\nfine\n"), "{response}");
        }
        // A handler that panics takes its own connection with it and nothing else.
        let mut broken = TcpStream::connect(address).await.unwrap();
        assert_eq!(exchange(&mut broken, &get("/panic")).await, "");
        let mut fine = TcpStream::connect(address).await.unwrap();
        assert!(exchange(&mut fine, &get("/ok")).await.ends_with("fine\n"));
    }

    #[tokio::test]
    async fn who_is_not_admitted_is_not_heard() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut welcome = TcpStream::connect(address).await.unwrap();
        let mut stranger = TcpStream::connect(address).await.unwrap();
        let name = welcome.local_addr().unwrap();
        let mut servers = JoinSet::new();
        servers
            .spawn(serve_tcp_to(listener, routes(), move |io| io.peer_addr().is_ok_and(|peer| peer == name)));
        assert_eq!(exchange(&mut stranger, &get("/ok")).await, "");
        assert!(exchange(&mut welcome, &get("/ok")).await.ends_with("fine\n"));
    }

    #[tokio::test]
    async fn the_oldest_connection_gives_way() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut servers = JoinSet::new();
        servers.spawn(serve_tcp(listener, routes()));
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            held.push(TcpStream::connect(address).await.unwrap());
        }
        let mut probe = TcpStream::connect(address).await.unwrap();
        assert!(exchange(&mut probe, &get("/ok")).await.ends_with("fine\n"));
        assert_eq!(exchange(&mut held[0], "").await, "", "the oldest was closed");
        assert!(exchange(&mut held[1], &get("/ok")).await.ends_with("fine\n"), "the next was not");
    }

    #[tokio::test(start_paused = true)]
    async fn an_unfinished_head_is_cut() {
        let began = Instant::now();
        exchange(&mut connected(), "GET /ok HTTP/1.1\r\nhost:").await;
        assert!(began.elapsed() <= HEAD_TIMEOUT + Duration::from_secs(1), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_handler_that_hangs_is_answered_for() {
        let response = exchange(&mut connected(), &get("/never")).await;
        assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_connection_still_ends() {
        let mut io = connected();
        let began = Instant::now();
        let request = "GET /ok HTTP/1.1\r\nhost: x\r\n\r\n";
        let mut buffer = vec![0; 4096];
        while io.write_all(request.as_bytes()).await.is_ok()
            && io.read(&mut buffer).await.is_ok_and(|n| n > 0)
        {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(began.elapsed() <= LIFETIME_MAX + Duration::from_secs(1), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn large_requests_are_refused() {
        let post = |length: usize| {
            let body = "x".repeat(length);
            format!(
                "POST /size HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
            )
        };
        let response = exchange(&mut connected(), &post(BODY_BYTES_MAX)).await;
        assert!(response.ends_with("\r\n\r\n65536"), "{response}");
        let response = exchange(&mut connected(), &post(BODY_BYTES_MAX + 1)).await;
        assert!(response.starts_with("HTTP/1.1 413 "), "{response}");
        let head = format!("GET /ok HTTP/1.1\r\nhost: x\r\nlong: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX));
        let response = exchange(&mut connected(), &head).await;
        assert!(response.starts_with("HTTP/1.1 431 "), "{response}");
        let many = (0..=HEADERS_MAX).map(|n| format!("h{n}: x\r\n")).collect::<String>();
        let response = exchange(&mut connected(), &format!("GET /ok HTTP/1.1\r\n{many}\r\n")).await;
        assert!(response.starts_with("HTTP/1.1 431 "), "{response}");
    }

    #[tokio::test(start_paused = true)]
    async fn garbage_is_refused() {
        let response = exchange(&mut connected(), "\x16\x03\x01 not http\r\n\r\n").await;
        assert!(response.starts_with("HTTP/1.1 400 "), "{response}");
    }
}
