//! One kind: list it, follow it, begin again when that fails. Owns no memory of objects.
//!
//! Lists are streamed where the server can do that, and consistent in any case: an older state than one that was acted
//! upon must not come back.

use std::pin::pin;
use std::time::Duration;

use apiserver::explain;
use futures_util::TryStreamExt as _;
use kube::api::{ListParams, WatchParams};
use kube::core::{ObjectList, Request, WatchEvent};
use kube::{Client, Error};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::super::objects::Kind;
use super::failing::Failing;
use super::held::Said;
use super::stand_in::{name, told};

/// How long the server lets a watch run: below the five minutes after which load balancers cut connections.
const WATCH_SECONDS: u32 = 290;

/// A watch that says nothing for longer than it may run is lost: bookmarks alone come every minute.
const SILENCE: Duration = Duration::from_secs(300);

/// How long a page, or the beginning of a watch, may take: an API server that is just starting answers late.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Objects per page, where lists are not streamed: some hundred kilobytes.
const PAGE: u32 = 500;

/// The same of ConfigMaps, which may have a megabyte each.
const PAGE_OF_CONFIG_MAPS: u32 = 50;

/// The first pause after a failure.
const PAUSE_MIN: Duration = Duration::from_millis(250);

/// The longest: whoever mends the API server should not wait for us.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How often to look whether a kind that the server does not know has come to be.
const ABSENT_AGAIN: Duration = Duration::from_secs(5);

/// Ends the initial events of a streamed list.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// The watch of one kind.
pub(super) struct Watch {
    client: Client,
    kind: Kind,
    /// Which of the kind's versions is asked for.
    at: usize,
    /// How often in a row the server did not know what was asked for.
    absent: usize,
    out: mpsc::Sender<(Kind, Said)>,
    failing: Failing,
    /// What to follow from; `None`: it is to be listed.
    version: Option<String>,
    /// The server streams lists, as far as we know.
    streams: bool,
    pause: Duration,
}

/// Why a watch can't go on.
#[derive(Debug, thiserror::Error)]
enum Broken {
    /// The server does not know the kind.
    #[error("the API server does not know the kind")]
    Absent,
    /// What we followed from is forgotten; to be listed again.
    #[error("the API server has forgotten where we were")]
    Forgotten,
    /// The server can't stream lists.
    #[error("the API server can't stream lists")]
    NoStreaming,
    /// Anything else.
    #[error("{0}")]
    Other(String),
    /// Nobody listens any more.
    #[error("nobody listens")]
    Unheard,
}

impl Watch {
    pub(super) fn new(client: Client, kind: Kind, out: mpsc::Sender<(Kind, Said)>, failing: Failing) -> Self {
        Self { client, kind, at: 0, absent: 0, out, failing, version: None, streams: true, pause: PAUSE_MIN }
    }

    /// Watches until nobody listens.
    pub(super) async fn run(mut self) {
        loop {
            let began = Instant::now();
            match self.once().await {
                // A server that ends every watch at once is not to be asked without a pause.
                Ok(()) if began.elapsed() > PAUSE_MAX => {}
                Ok(()) => self.rest().await,
                Err(Broken::Absent) if self.has_another_version() => {}
                Err(Broken::Absent) => {
                    if self.absent == self.kind.versions().len() {
                        tracing::info!(kind = %self.kind, "the API server does not know the kind; it is asked again");
                    }
                    self.failing.works(self.kind);
                    if self.say(Said::Listed(Vec::new())).await.is_err() {
                        return;
                    }
                    sleep(ABSENT_AGAIN).await;
                }
                Err(Broken::Forgotten) => {
                    self.version = None;
                    self.rest().await;
                }
                Err(Broken::NoStreaming) => self.streams = false,
                Err(Broken::Other(why)) => {
                    self.failing.failed(self.kind, why);
                    self.rest().await;
                }
                Err(Broken::Unheard) => return,
            }
        }
    }

    /// Lists, if that is due, and follows until the server ends the watch.
    async fn once(&mut self) -> Result<(), Broken> {
        if self.version.is_none() && !self.streams {
            self.pages().await?;
        }
        let mut listed = self.version.is_none().then(Vec::new);
        let from = self.version.clone().unwrap_or_default();
        let params = WatchParams {
            timeout: Some(WATCH_SECONDS),
            send_initial_events: listed.is_some(),
            ..WatchParams::default()
        };
        let request = Request::new(self.path()).watch(&params, &from).map_err(other)?;
        let started = timeout(ANSWER_WITHIN, self.client.request_events::<Value>(request)).await;
        let started = started.map_err(|_| unanswered())?;
        let mut events = pin!(started.map_err(|error| self.broken(error, listed.is_some()))?);
        if listed.is_none() {
            self.works();
        }
        loop {
            let next = timeout(SILENCE, events.try_next()).await;
            let next = next.map_err(|_| Broken::Other(format!("silent for {SILENCE:?}")))?;
            let Some(event) = next.map_err(|error| self.broken(error, false))? else { return Ok(()) };
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    let version = version(&object);
                    let Some(told) = told(self.kind, object) else { continue };
                    match &mut listed {
                        Some(listed) => listed.push(told),
                        None => {
                            self.say(Said::Told(told)).await?;
                            self.version = version.or(self.version.take());
                        }
                    }
                }
                WatchEvent::Deleted(object) => {
                    let Some(name) = name(&object) else { continue };
                    self.say(Said::Gone(name)).await?;
                    self.version = version(&object).or(self.version.take());
                }
                WatchEvent::Bookmark(bookmark) => {
                    let ends = bookmark.metadata.annotations.contains_key(INITIAL_EVENTS_END);
                    if ends && let Some(listed) = listed.take() {
                        self.say(Said::Listed(listed)).await?;
                        self.works();
                    }
                    if listed.is_none() {
                        self.version = Some(bookmark.metadata.resource_version);
                    }
                }
                WatchEvent::Error(status) => return Err(self.broken(Error::Api(status), false)),
            }
        }
    }

    /// Lists page by page.
    async fn pages(&mut self) -> Result<(), Broken> {
        let (mut listed, mut next) = (Vec::new(), None);
        let limit = if self.kind == Kind::ConfigMap { PAGE_OF_CONFIG_MAPS } else { PAGE };
        loop {
            let params = ListParams { limit: Some(limit), continue_token: next, ..ListParams::default() };
            let request = Request::new(self.path()).list(&params).map_err(other)?;
            let page = timeout(ANSWER_WITHIN, self.client.request::<ObjectList<Value>>(request)).await;
            let page = page.map_err(|_| unanswered())?;
            let page = page.map_err(|error| self.broken(error, false))?;
            listed.extend(page.items.into_iter().filter_map(|object| told(self.kind, object)));
            next = page.metadata.continue_.filter(|token| !token.is_empty());
            if next.is_none() {
                let version = page.metadata.resource_version;
                self.version = Some(version.ok_or_else(|| other("a list without a version"))?);
                self.say(Said::Listed(listed)).await?;
                self.works();
                return Ok(());
            }
        }
    }

    async fn say(&self, said: Said) -> Result<(), Broken> {
        self.out.send((self.kind, said)).await.map_err(|_| Broken::Unheard)
    }

    /// Goes on to the next version of the kind, unless the server knows none of them: definitions may be older than we are.
    fn has_another_version(&mut self) -> bool {
        let versions = self.kind.versions().len();
        self.version = None;
        self.absent += 1;
        let tried_all = self.absent.is_multiple_of(versions);
        self.at = if tried_all { 0 } else { (self.at + 1) % versions };
        !tried_all
    }

    fn path(&self) -> String {
        let version = self.kind.versions()[self.at];
        let root = if version.contains('/') { "apis" } else { "api" };
        format!("/{root}/{version}/{}", self.kind.plural())
    }

    fn works(&mut self) {
        self.absent = 0;
        self.pause = PAUSE_MIN;
        self.failing.works(self.kind);
    }

    /// Waits a little longer each time, and never as long as the others do.
    async fn rest(&mut self) {
        let part = 0.5 + fastrand::f64() / 2.0;
        sleep(self.pause.mul_f64(part)).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    /// What `error` means. `streamed`: a streamed list was asked for.
    fn broken(&self, error: Error, streamed: bool) -> Broken {
        let Error::Api(status) = &error else { return other(explain(&error)) };
        match status.code {
            404 if self.kind.is_optional() => Broken::Absent,
            410 => Broken::Forgotten,
            400 | 422 if streamed => Broken::NoStreaming,
            403 => Broken::Other(format!("{}; grant the service account `list` and `watch`", status.message)),
            _ => other(explain(&error)),
        }
    }
}

fn unanswered() -> Broken {
    Broken::Other(format!("no answer within {ANSWER_WITHIN:?}"))
}

fn other(error: impl ToString) -> Broken {
    Broken::Other(error.to_string())
}

fn version(object: &Value) -> Option<String> {
    object.pointer("/metadata/resourceVersion").and_then(Value::as_str).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::client::Body;
    use serde_json::json;
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    /// An API server that was told what to answer, and notes what it was asked.
    fn server(answers: Vec<(u16, String)>) -> (Client, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (noted, answers) = (asked.clone(), Arc::new(Mutex::new(VecDeque::from(answers))));
        let service = tower::service_fn(move |request: http::Request<Body>| {
            noted.lock().expect("not poisoned").push(request.uri().to_string());
            let next = answers.lock().expect("not poisoned").pop_front();
            async move {
                let Some((status, body)) = next else { return std::future::pending().await };
                let body = Body::from(body.into_bytes());
                Ok::<_, Infallible>(http::Response::builder().status(status).body(body).expect("an answer"))
            }
        });
        (Client::new(service, "default"), asked)
    }

    fn node(name: &str, version: &str) -> String {
        format!(
            "{}\n",
            json!({"type": "ADDED", "object": {"metadata": {"name": name, "resourceVersion": version}}})
        )
    }

    fn listed(version: &str) -> String {
        let metadata = json!({"resourceVersion": version, "annotations": {INITIAL_EVENTS_END: "true"}});
        let object = json!({"kind": "Node", "apiVersion": "v1", "metadata": metadata});
        format!("{}\n", json!({"type": "BOOKMARK", "object": object}))
    }

    fn words(said: Said) -> String {
        match said {
            Said::Gone((_, name)) => format!("-{name}"),
            Said::Listed(all) => all.into_iter().map(|told| format!("={}", told.name.1)).collect(),
            Said::Told(told) => format!("+{}", told.name.1),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_has_forgotten_where_we_were_is_listed_again() {
        let gone = json!({"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "old"});
        let (client, asked) = server(vec![
            (200, node("a", "3") + &node("b", "1") + &listed("5") + &node("c", "6")),
            // Ended by the server: followed from where it was.
            (200, node("d", "7")),
            (503, "not now".to_owned()),
            (410, gone.to_string()),
            (200, node("c", "9") + &listed("9")),
        ]);
        let (out, mut heard) = mpsc::channel(16);
        let failing = Failing::default();
        let task = tokio::spawn(Watch::new(client, Kind::Node, out, failing.clone()).run());
        for expected in ["=a=b", "+c", "+d", "=c"] {
            let (_, said) = heard.recv().await.expect("it goes on");
            assert_eq!(words(said), expected);
        }
        assert_eq!(failing.count(), 0);
        let versions = asked
            .lock()
            .expect("not poisoned")
            .iter()
            .map(|query| {
                let initial = query.contains("sendInitialEvents=true");
                let version = query.rsplit_once("resourceVersion=").map_or("", |(_, version)| version);
                format!("{version}{}", if initial { "!" } else { "" })
            })
            .collect::<Vec<_>>();
        assert_eq!(versions, ["!", "6", "7", "7", "!"], "lists are always the latest");
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_kind_is_read_in_the_newest_version_that_the_server_knows() {
        let absent =
            json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": "?"});
        let absent = || (404, absent.to_string());
        let (client, asked) =
            server(vec![absent(), (200, listed("5")), absent(), absent(), (200, listed("6"))]);
        let (out, mut heard) = mpsc::channel(16);
        let task = tokio::spawn(Watch::new(client, Kind::PeerAuthentication, out, Failing::default()).run());
        // Known in the older version, then in none, then in the newest.
        for _ in 0..3 {
            let (_, said) = heard.recv().await.expect("it goes on");
            assert_eq!(words(said), "", "a list of nothing");
        }
        let asked = asked.lock().expect("not poisoned").clone();
        let versions = asked.iter().map(|uri| if uri.contains("/v1beta1/") { "old" } else { "new" });
        assert_eq!(versions.take(5).collect::<Vec<_>>(), ["new", "old", "old", "new", "new"]);
        task.abort();
    }
}
