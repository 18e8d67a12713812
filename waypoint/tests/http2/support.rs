//! A forwarder in memory, an `h2` client before it, and an `h2` server behind it that the test writes as a function.

use std::collections::VecDeque;
use std::future::{Future, pending, poll_fn};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::io::{DuplexStream, duplex};
use tokio::time::{Instant, timeout};
use waypoint::decide::{
    Answer, AnyRequest, AnyResponse, Decide, Exchange, Failed, FieldEdits, Forward, Next, Record, Refusal,
    Verdict,
};
use waypoint::http2::{Link, Stalls, Upstream, connect, serve};

/// Bytes under way in each direction between two ends in memory.
const PIPE: usize = 64 * 1024;

/// What takes longer will not come.
const IN_VAIN: Duration = Duration::from_secs(120);

pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(IN_VAIN, future).await.unwrap_or_else(|_| panic!("waited {IN_VAIN:?} in vain: {what}"))
}

/// Decides as the test said, and remembers.
#[derive(Clone, Default)]
pub(crate) struct Router(Arc<Mutex<State>>, Arc<Stalls>);

#[derive(Default)]
struct State {
    links: VecDeque<Link>,
    answer: Option<Answer>,
    replay: usize,
    retried: Vec<u16>,
    respond_within: Option<Duration>,
    complete_within: Option<Duration>,
    log: Vec<String>,
}

impl Router {
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut RouterState<'_>) -> T) -> T {
        change(&mut RouterState(&mut self.0.lock().unwrap()))
    }

    /// Forwards over a connection to a server that answers each request by `answer`.
    pub(crate) async fn server<F>(
        self,
        answer: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.server_of(h2::server::Builder::new(), answer).await
    }

    /// The same for a server that is set up so.
    pub(crate) async fn server_of<F>(
        self,
        builder: h2::server::Builder,
        answer: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.behind(move |io| async move {
            let mut connection = builder.handshake(io).await.expect("a preface");
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(answer(request, respond));
            }
        })
        .await
    }

    /// Forwards over a connection to whatever the test runs at its other end.
    pub(crate) async fn behind<F>(self, run: impl FnOnce(DuplexStream) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (ours, theirs) = duplex(PIPE);
        tokio::spawn(run(theirs));
        let (link, drive) = connect(ours).await.expect("a connection");
        tokio::spawn(drive);
        self.0.lock().unwrap().links.push_back(link);
        self
    }

    /// A client's connection to the forwarder, as bytes.
    pub(crate) fn client_io(&self, drain: impl Future<Output = ()> + Send + 'static) -> DuplexStream {
        let (ours, theirs) = duplex(PIPE);
        let with = (Arc::new(self.clone()), Arc::clone(&self.1));
        tokio::spawn(async move { serve(theirs, with, drain).await });
        ours
    }

    pub(crate) async fn client(&self) -> Client {
        self.client_of(h2::client::Builder::new(), pending()).await
    }

    pub(crate) async fn client_of(
        &self,
        builder: h2::client::Builder,
        drain: impl Future<Output = ()> + Send + 'static,
    ) -> Client {
        let (send, connection) = builder.handshake(self.client_io(drain)).await.expect("a preface");
        let ended = tokio::spawn(async move {
            let _ = connection.await;
        });
        Client { send, ended }
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.0.lock().unwrap().log.clone()
    }

    /// Waits until so many exchanges are over, and says how.
    pub(crate) async fn logged(&self, count: usize) -> Vec<String> {
        let deadline = Instant::now() + IN_VAIN;
        while self.log().len() < count {
            assert!(Instant::now() < deadline, "{:?}", self.log());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.log()
    }
}

/// What a test changes of a router.
pub(crate) struct RouterState<'a>(&'a mut State);

impl RouterState<'_> {
    pub(crate) fn answer(&mut self, answer: Answer) {
        self.0.answer = Some(answer);
    }

    pub(crate) fn replay(&mut self, bytes: usize, statuses: &[u16]) {
        (self.0.replay, self.0.retried) = (bytes, statuses.to_vec());
    }

    pub(crate) fn respond_within(&mut self, time: Duration) {
        self.0.respond_within = Some(time);
    }

    pub(crate) fn complete_within(&mut self, time: Duration) {
        self.0.complete_within = Some(time);
    }
}

impl Decide for Router {
    type Upstream = Upstream;
    type Exchange = Course;

    fn begin(&self, _: &dyn AnyRequest) -> Course {
        Course(self.clone())
    }

    fn refused(&self, refusal: Refusal) {
        self.0.lock().unwrap().log.push(format!("refused {}", refusal.code()));
    }
}

pub(crate) struct Course(Router);

impl Exchange for Course {
    type Upstream = Upstream;

    fn replay(&self) -> usize {
        self.0.0.lock().unwrap().replay
    }

    async fn next(&mut self, request: &dyn AnyRequest, failed: Option<&Failed>) -> Next<Upstream> {
        let mut state = self.0.0.lock().unwrap();
        if let Some(failed) = failed {
            let wanted = matches!(failed.failure, waypoint::decide::Failure::Status(_));
            if !wanted && !failed.is_free(request) {
                return Next::GiveUp;
            }
        }
        if let Some(answer) = &state.answer {
            return Next::Answer(answer.clone());
        }
        while state.links.front().is_some_and(|link| !link.is_open()) {
            state.links.pop_front();
        }
        let Some(link) = state.links.front() else { return Next::Answer(Answer::status(503)) };
        let mut forward = Forward::over(link.lend());
        let now = Instant::now();
        forward.respond_by = state.respond_within.map(|time| now + time);
        forward.complete_by = state.complete_within.map(|time| now + time);
        Next::Forward(forward)
    }

    fn response(&mut self, _: &dyn AnyRequest, response: &dyn AnyResponse, again: bool) -> Verdict {
        let retried = self.0.0.lock().unwrap().retried.contains(&response.status());
        if retried && again { Verdict::Retry } else { Verdict::Forward(FieldEdits::default()) }
    }

    fn give_back(&mut self, _: Upstream) {}

    fn end(self, request: &dyn AnyRequest, record: &Record) {
        let Record { outcome, status, grpc_status, attempts, request_bytes, response_bytes, .. } = record;
        let status = status.map_or("-".to_owned(), |status| status.to_string());
        let grpc = grpc_status.map(|code| format!(" grpc={code}")).unwrap_or_default();
        let line = format!(
            "{} {} {status}{grpc} {outcome:?} attempts={attempts} up={request_bytes} down={response_bytes}",
            request.method(),
            request.path()
        );
        self.0.0.lock().unwrap().log.push(line);
    }
}

/// The client's end.
pub(crate) struct Client {
    pub(crate) send: SendRequest<Bytes>,
    /// Resolves when the connection is over.
    pub(crate) ended: tokio::task::JoinHandle<()>,
}

/// A request that may have fields and a body: `http://shop<path>`.
pub(crate) fn to(method: &str, path: &str, fields: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder().method(method).uri(format!("http://shop{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).expect("tests make valid requests")
}

/// A gRPC call.
pub(crate) fn call(path: &str) -> Request<()> {
    to("POST", path, &[("content-type", "application/grpc"), ("te", "trailers")])
}

/// A response with all that came.
#[derive(Debug, PartialEq)]
pub(crate) struct Whole {
    pub(crate) status: u16,
    pub(crate) fields: HeaderMap,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Whole {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).and_then(|value| value.to_str().ok())
    }
}

impl Client {
    pub(crate) async fn open(
        &mut self,
        request: Request<()>,
        over: bool,
    ) -> (ResponseFuture, SendStream<Bytes>) {
        soon("room for a request", poll_fn(|cx| self.send.poll_ready(cx))).await.expect("a connection");
        self.send.send_request(request, over).expect("a request")
    }

    /// All at once: the request, its body, the whole answer.
    pub(crate) async fn ask(&mut self, request: Request<()>, body: &[u8]) -> Result<Whole, h2::Error> {
        let (response, send) = self.open(request, body.is_empty()).await;
        if !body.is_empty() {
            let body = Bytes::copy_from_slice(body);
            tokio::spawn(async move { sent(send, body, true).await });
        }
        whole(response).await
    }
}

/// Sends bytes as there is room for them; `None` when the other side takes no more.
pub(crate) async fn sent(
    mut send: SendStream<Bytes>,
    mut bytes: Bytes,
    over: bool,
) -> Option<SendStream<Bytes>> {
    while !bytes.is_empty() {
        send.reserve_capacity(bytes.len());
        let room = match send.capacity() {
            0 => poll_fn(|cx| send.poll_capacity(cx)).await?.ok()?,
            room => room,
        };
        let part = bytes.split_to(room.min(bytes.len()));
        let last = over && bytes.is_empty();
        send.send_data(part, last).ok()?;
    }
    Some(send)
}

pub(crate) async fn whole(response: ResponseFuture) -> Result<Whole, h2::Error> {
    let (parts, body) = soon("an answer", response).await?.into_parts();
    let (body, trailers) = drained(body).await?;
    Ok(Whole { status: parts.status.as_u16(), fields: parts.headers, body, trailers })
}

/// All of a body.
pub(crate) async fn drained(mut body: RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut all = Vec::new();
    while let Some(piece) = soon("a body", body.data()).await {
        let piece = piece?;
        all.extend_from_slice(&piece);
        body.flow_control().release_capacity(piece.len())?;
    }
    Ok((all, soon("trailers", body.trailers()).await?))
}

/// Answers with what was asked: the head as text, then the body and the trailers as they came.
pub(crate) async fn mirror(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let (parts, body) = request.into_parts();
    let mut head = format!("{} {}\n", parts.method, parts.uri);
    for (name, value) in &parts.headers {
        head += &format!("{name}: {}\n", value.to_str().unwrap_or("?"));
    }
    let Ok((body, trailers)) = drained(body).await else { return };
    let Ok(send) = respond.send_response(Response::new(()), false) else { return };
    let all = [head.into_bytes(), b"\n".to_vec(), body].concat();
    if let Some(mut send) = sent(send, all.into(), trailers.is_none()).await
        && let Some(trailers) = trailers
    {
        let _ = send.send_trailers(trailers);
    }
}
