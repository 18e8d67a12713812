//! Two readings of the same bytes: a server of hyper's that gets them directly, and the same server behind the forwarder.
//! Used by the property test, the corpus and the fuzz target.

use std::convert::Infallible;
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use waypoint::decide::{
    AnyRequest, AnyResponse, Decide, Exchange, Failed, FieldEdits, Forward, Next, Record, Refusal, Verdict,
};
use waypoint::http1::limits::Timeouts;
use waypoint::http1::{Upstream, serve};

/// Requests as an application sees them.
type Seen = Arc<Mutex<Vec<String>>>;

/// What an application sees without the forwarder, and behind it.
pub(crate) struct Readings {
    pub(crate) direct: Vec<String>,
    pub(crate) forwarded: Vec<String>,
    pub(crate) refusals: Vec<Refusal>,
}

/// Reads `bytes` in both ways.
pub(crate) fn read(bytes: &[u8]) -> Readings {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime needs nothing").block_on(async {
        let (direct, forwarded) = (Seen::default(), Seen::default());
        let origin = Origin { seen: forwarded.clone(), refusals: Arc::default() };
        let (ours, theirs) = duplex(1 << 20);
        tokio::spawn(application(theirs, direct.clone()));
        exchange(ours, bytes).await;
        let (ours, theirs) = duplex(1 << 20);
        let served = origin.clone();
        tokio::spawn(async move { serve(theirs, &served, &Timeouts::default(), pending()).await });
        exchange(ours, bytes).await;
        let take = |seen: Seen| std::mem::take(&mut *seen.lock().expect("nobody panics"));
        let refusals = std::mem::take(&mut *origin.refusals.lock().expect("nobody panics"));
        Readings { direct: take(direct), forwarded: take(forwarded), refusals }
    })
}

/// The rule: what the application sees behind the forwarder is what it sees without it, up to the point where the
/// forwarder refuses to go on; all of it, if the forwarder refuses nothing.
pub(crate) fn check(bytes: &[u8]) -> Readings {
    let readings = read(bytes);
    let Readings { direct, forwarded, refusals } = &readings;
    let agree = if refusals.is_empty() { direct == forwarded } else { direct.starts_with(forwarded) };
    let text = String::from_utf8_lossy(bytes);
    assert!(agree, "{text:?}\n{refusals:?}\ndirect: {direct:#?}\nforwarded: {forwarded:#?}");
    readings
}

/// Sends it all and reads until the end, or until nothing happens for very long.
async fn exchange(mut io: DuplexStream, bytes: &[u8]) {
    let mut answers = Vec::new();
    let all = async {
        let _ = io.write_all(bytes).await;
        let _ = io.shutdown().await;
        let _ = io.read_to_end(&mut answers).await;
    };
    let _ = tokio::time::timeout(Duration::from_secs(24 * 60 * 60), all).await;
}

/// Answers every request, and notes those that are whole.
async fn application(io: DuplexStream, seen: Seen) {
    let service = service_fn(|request: Request<Incoming>| {
        let seen = seen.clone();
        async move {
            let connect = request.method() == "CONNECT";
            if let Some(line) = note(request).await {
                seen.lock().expect("nobody panics").push(line);
            }
            let mut response = Response::new(Full::new(Bytes::from_static(b"seen")));
            if connect {
                *response.status_mut() = hyper::StatusCode::FORBIDDEN;
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut server = http1::Builder::new();
    let connection = server.half_close(true).serve_connection(TokioIo::new(io), service);
    let _ = connection.await;
}

/// Everything that an application can see and that a proxy must not change.
async fn note(request: Request<Incoming>) -> Option<String> {
    const OF_ONE_HOP: [&str; 10] = [
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "te",
        "transfer-encoding",
        "upgrade",
    ];
    let (head, body) = request.into_parts();
    let host = || head.headers.get("host").map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
    let authority =
        head.uri.authority().map(|authority| authority.to_string()).or_else(host).unwrap_or_default();
    let path = match head.uri.path_and_query() {
        // In absolute form, the asterisk has no other way to be said.
        Some(path) if head.method == "OPTIONS" && head.uri.scheme().is_some() && path == "/" => {
            "*".to_owned()
        }
        Some(path) => path.to_string(),
        None => String::new(),
    };
    // So are those that the client names itself (RFC 9110, section 7.6.1).
    let named: Vec<u8> = head
        .headers
        .get_all("connection")
        .iter()
        .map(|value| value.as_bytes())
        .collect::<Vec<_>>()
        .join(&b',');
    let is_named = |name: &str| {
        named.split(|byte| *byte == b',').any(|word| word.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
    };
    let mut fields: Vec<_> = head
        .headers
        .iter()
        .filter(|(name, _)| !OF_ONE_HOP.contains(&name.as_str()) && !is_named(name.as_str()))
        .map(|(name, value)| format!("{name}: {:?}", value.as_bytes()))
        .collect();
    fields.sort();
    let body = body.collect().await.ok()?;
    let trailers = body.trailers().map(|trailers| format!("{trailers:?}"));
    let body = body.to_bytes();
    Some(format!("{} {path} at {authority}, {fields:?}, {body:?}, {trailers:?}", head.method))
}

/// Forwards everything to the application.
#[derive(Clone)]
struct Origin {
    seen: Seen,
    refusals: Arc<Mutex<Vec<Refusal>>>,
}

impl Decide for Origin {
    type Upstream = Upstream<DuplexStream>;
    type Exchange = Self;

    fn begin(&self, _request: &dyn AnyRequest) -> Self {
        self.clone()
    }

    fn refused(&self, refusal: Refusal) {
        self.refusals.lock().expect("nobody panics").push(refusal);
    }
}

impl Exchange for Origin {
    type Upstream = Upstream<DuplexStream>;

    async fn next(
        &mut self,
        _request: &dyn AnyRequest,
        failed: Option<&Failed>,
    ) -> Next<Upstream<DuplexStream>> {
        if let Some(failed) = failed {
            return Next::Answer(failed.answer());
        }
        let (ours, theirs) = duplex(1 << 20);
        tokio::spawn(application(theirs, self.seen.clone()));
        Next::Forward(Forward::over(Upstream::new(ours)))
    }

    fn response(&mut self, _request: &dyn AnyRequest, _response: &dyn AnyResponse, _again: bool) -> Verdict {
        Verdict::Forward(FieldEdits::default())
    }

    fn give_back(&mut self, _upstream: Upstream<DuplexStream>) {}

    fn end(self, _request: &dyn AnyRequest, record: &Record) {
        if let waypoint::decide::Outcome::Refused(refusal) = record.outcome {
            self.refused(refusal);
        }
    }
}
