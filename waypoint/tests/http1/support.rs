//! A forwarder in memory: the client's end in the test's hand, and servers that the test writes as tasks.

use std::collections::VecDeque;
use std::future::{Future, pending};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::timeout;
use waypoint::decide::{
    Answer, AnyRequest, AnyResponse, Decide, Exchange, Failed, FieldEdits, Forward, Next, Record, Refusal,
    Verdict,
};
use waypoint::http1::limits::Timeouts;
use waypoint::http1::{Upstream, serve};

/// Bytes under way in each direction between two ends in memory.
pub(crate) const PIPE: usize = 32 * 1024;

/// Longer than every timeout of the forwarder; under paused time it passes at once when nothing moves.
const PATIENCE: Duration = Duration::from_secs(2 * 60 * 60);

/// Any stream.
pub(crate) trait Both: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Both for T {}

/// A stream whose kind does not matter.
pub(crate) type Any = Box<dyn Both>;

/// Decides as the test said, and remembers.
#[derive(Clone, Default)]
pub(crate) struct Router(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    servers: VecDeque<Any>,
    idle: Vec<Upstream<Any>>,
    answer: Option<Answer>,
    replay: usize,
    retried: Vec<u16>,
    respond_within: Option<Duration>,
    tapped: Vec<u8>,
    log: Vec<String>,
}

impl Router {
    /// Forwards over a pipe to a server that the test runs at its other end; one after the other.
    pub(crate) fn server<F>(self, run: impl FnOnce(DuplexStream) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (ours, theirs) = duplex(PIPE);
        tokio::spawn(run(theirs));
        self.over(Box::new(ours))
    }

    /// Forwards over this.
    pub(crate) fn over(self, io: Any) -> Self {
        self.with(|state| state.servers.push_back(io))
    }

    pub(crate) fn answering(self, answer: Answer) -> Self {
        self.with(|state| state.answer = Some(answer))
    }

    pub(crate) fn replaying(self, bytes: usize) -> Self {
        self.with(|state| state.replay = bytes)
    }

    pub(crate) fn retrying(self, statuses: &[u16]) -> Self {
        self.with(|state| state.retried = statuses.to_vec())
    }

    pub(crate) fn respond_within(self, time: Duration) -> Self {
        self.with(|state| state.respond_within = Some(time))
    }

    fn with(self, change: impl FnOnce(&mut State)) -> Self {
        change(&mut self.0.lock().expect("no test panics in here"));
        self
    }

    fn state<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().expect("no test panics in here"))
    }

    /// One line for each exchange or refusal so far.
    pub(crate) fn log(&self) -> Vec<String> {
        self.state(|state| state.log.clone())
    }

    /// Bytes of requests' bodies that passed.
    pub(crate) fn tapped(&self) -> Vec<u8> {
        self.state(|state| state.tapped.clone())
    }

    /// Connections that could be used again.
    pub(crate) fn idle(&self) -> usize {
        self.state(|state| state.idle.len())
    }

    /// Serves one end of a pipe with it; the other end is the client's.
    pub(crate) fn client(&self) -> Client {
        self.client_with(Timeouts::default(), pending())
    }

    pub(crate) fn client_with(
        &self,
        timeouts: Timeouts,
        drain: impl Future<Output = ()> + Send + 'static,
    ) -> Client {
        let (ours, theirs) = duplex(PIPE);
        let router = self.clone();
        tokio::spawn(async move { serve(theirs, &router, &timeouts, drain).await });
        Client { io: ours }
    }
}

impl Decide for Router {
    type Upstream = Upstream<Any>;
    type Exchange = Course;

    fn begin(&self, _request: &dyn AnyRequest) -> Course {
        Course(self.clone())
    }

    fn refused(&self, refusal: Refusal) {
        self.state(|state| state.log.push(format!("refused {}", refusal.code())));
    }
}

pub(crate) struct Course(Router);

impl Exchange for Course {
    type Upstream = Upstream<Any>;

    fn replay(&self) -> usize {
        self.0.state(|state| state.replay)
    }

    async fn next(&mut self, request: &dyn AnyRequest, failed: Option<&Failed>) -> Next<Upstream<Any>> {
        let mut fresh = false;
        if let Some(failed) = failed {
            let wanted = matches!(failed.failure, waypoint::decide::Failure::Status(_));
            if !wanted && !failed.is_free(request) {
                return Next::Answer(failed.answer());
            }
            fresh = true;
        }
        self.0.state(|state| {
            if let Some(answer) = &state.answer {
                return Next::Answer(answer.clone());
            }
            let idle = state.idle.pop().filter(|_| !fresh);
            let upstream = idle.or_else(|| Some(Upstream::new(state.servers.pop_front()?)));
            let Some(upstream) = upstream else { return Next::Answer(Answer::status(503)) };
            let mut forward = Forward::over(upstream);
            forward.respond_by = state.respond_within.map(|time| tokio::time::Instant::now() + time);
            Next::Forward(forward)
        })
    }

    fn body(&mut self, bytes: &[u8]) {
        self.0.state(|state| state.tapped.extend_from_slice(bytes));
    }

    fn response(&mut self, _request: &dyn AnyRequest, response: &dyn AnyResponse, again: bool) -> Verdict {
        let retried = self.0.state(|state| state.retried.contains(&response.status()));
        if retried && again { Verdict::Retry } else { Verdict::Forward(FieldEdits::default()) }
    }

    fn give_back(&mut self, upstream: Upstream<Any>) {
        self.0.state(|state| state.idle.push(upstream));
    }

    fn end(self, request: &dyn AnyRequest, record: &Record) {
        let Record { outcome, status, attempts, request_bytes, response_bytes, .. } = record;
        let status = status.map_or("-".to_owned(), |status| status.to_string());
        let line = format!(
            "{} {} {status} {outcome:?} attempts={attempts} up={request_bytes} down={response_bytes}",
            request.method(),
            request.path()
        );
        self.0.state(|state| state.log.push(line));
    }
}

/// The client's end.
pub(crate) struct Client {
    pub(crate) io: DuplexStream,
}

impl Client {
    pub(crate) async fn send(&mut self, text: &str) {
        send(&mut self.io, text).await;
    }

    /// Reads so much and compares.
    pub(crate) async fn expect(&mut self, text: &str) {
        expect(&mut self.io, text).await;
    }

    /// Everything until the end.
    pub(crate) async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        timeout(PATIENCE, self.io.read_to_end(&mut rest))
            .await
            .expect("the connection ends")
            .expect("it is in memory");
        String::from_utf8(rest).expect("text")
    }

    /// Ends this direction.
    pub(crate) async fn finish(&mut self) {
        self.io.shutdown().await.expect("it is in memory");
    }
}

pub(crate) async fn send(io: &mut (impl AsyncWrite + Unpin), text: &str) {
    timeout(PATIENCE, io.write_all(text.as_bytes())).await.expect("somebody reads").expect("it is open");
}

/// Reads so much and compares.
pub(crate) async fn expect(io: &mut (impl AsyncRead + Unpin), text: &str) {
    let mut found = Vec::new();
    let mut limited = io.take(text.len() as u64);
    let read = timeout(PATIENCE, limited.read_to_end(&mut found)).await;
    let found = String::from_utf8_lossy(&found);
    assert_eq!(found, text, "then: {read:?}");
}

/// Requests, and what is answered to each.
pub(crate) type Script = &'static [(&'static str, &'static str)];

/// A server that reads each request, answers it, and closes after the last.
pub(crate) fn script(
    pairs: Script,
) -> impl FnOnce(DuplexStream) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
    move |mut io| {
        Box::pin(async move {
            for (request, response) in pairs {
                expect(&mut io, request).await;
                send(&mut io, response).await;
            }
            let _ = io.shutdown().await;
            // Half closed: what still comes is read, so that the other side sees no error.
            let _ = tokio::io::copy(&mut io, &mut tokio::io::sink()).await;
        })
    }
}
