//! Single requests with every decision about them, for whoever looks on (`airglow trace`).
//!
//! While nobody does, a request costs one look at a flag. While somebody does, what is told of it goes through a bounded queue
//! to the control side, which keeps the last ones; what finds no room is lost and counted.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use proxy::series::Party;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::decide::{FieldEdits, RequestEdits};
use crate::rules::{Plan, Then};
use crate::telemetry::{Ended, Told};

/// Requests on their way to who keeps them: a burst while that one is busy.
const QUEUE: usize = 256;

/// Requests that are kept: whoever looks asks each second. At most some 4 MiB.
const KEPT_MAX: usize = 1_024;

/// Steps of one request: with sixteen attempts, each with a few lines.
const STEPS_MAX: usize = 64;

/// How long requests are told of after somebody has asked for them: several of his intervals.
const LEASE: Duration = Duration::from_secs(15);

/// What has happened to one request, and when.
#[derive(Debug)]
pub(crate) struct Steps {
    began: Instant,
    all: Vec<(Duration, String)>,
}

impl Steps {
    /// Something has happened.
    pub(crate) fn note(&mut self, what: String) {
        if self.all.len() < STEPS_MAX {
            self.all.push((self.began.elapsed(), what));
        }
    }

    /// It was decided what is to become of it.
    pub(crate) fn planned(&mut self, plan: &Plan) {
        self.note(match &plan.rule {
            Some(rule) => format!("rule {}", rule.key),
            None => "no rule decides about it".to_owned(),
        });
        if let Some(delay) = plan.delay {
            self.note(format!("a fault delays it by {delay:?}"));
        }
        match &plan.then {
            Then::Abort => self.note("a fault cuts it".to_owned()),
            Then::Answer(answer) => {
                let why = plan.cause.map(|cause| format!(" ({})", cause.code())).unwrap_or_default();
                self.note(format!("is answered here with {}{why}", answer.status));
            }
            Then::Forward(way) => {
                if let Some((backend, port)) = &way.to {
                    self.note(format!("backend {backend}, port {port}"));
                }
                if let Some(edits) = edits(&way.request) {
                    self.note(format!("request: {edits}"));
                }
                if let Some(edits) = fields(&way.response()) {
                    self.note(format!("response: {edits}"));
                }
            }
        }
    }
}

/// Edits in short: names, for values may be secret.
fn edits(edits: &RequestEdits) -> Option<String> {
    let target = edits.target.as_ref().map(|target| format!("path becomes {target}"));
    let host = edits.authority.as_ref().map(|host| format!("host becomes {host}"));
    joined([target, host, fields(&edits.fields)])
}

fn fields(edits: &FieldEdits) -> Option<String> {
    let named =
        |verb: &str, names: Vec<&str>| (!names.is_empty()).then(|| format!("{verb} {}", names.join(" ")));
    let added = edits.added().iter().map(|(name, _)| name.as_str());
    joined([named("drops", edits.dropped().collect()), named("writes", added.collect())])
}

fn joined<const N: usize>(parts: [Option<String>; N]) -> Option<String> {
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// The data threads' side.
#[derive(Debug)]
pub(crate) struct Watched {
    on: AtomicBool,
    tell: mpsc::Sender<Value>,
    lost: AtomicU64,
}

impl Watched {
    /// Nobody looks on yet. What is told of requests arrives at the board, which has to be run.
    pub(crate) fn new() -> (Arc<Self>, Arc<Board>, mpsc::Receiver<Value>) {
        let (tell, told) = mpsc::channel(QUEUE);
        let watched = Arc::new(Self { on: AtomicBool::new(false), tell, lost: AtomicU64::new(0) });
        let board = Board { watched: Arc::clone(&watched), ring: Mutex::default() };
        (watched, Arc::new(board), told)
    }

    /// A request has arrived: where its steps go, if anybody wants to know.
    pub(crate) fn begin(&self) -> Option<Box<Steps>> {
        let steps = || Box::new(Steps { began: Instant::now(), all: Vec::new() });
        self.on.load(Relaxed).then(steps)
    }

    /// It is over.
    pub(crate) fn end(&self, steps: &Steps, told: &Told<'_>, ended: &Ended) {
        match self.tell.try_reserve() {
            Ok(place) => place.send(document(steps, told, ended)),
            Err(_) => drop(self.lost.fetch_add(1, Relaxed)),
        }
    }
}

fn document(steps: &Steps, told: &Told<'_>, ended: &Ended) -> Value {
    let (facts, record) = (told.facts, told.record);
    let text = |value: Option<&dyn Display>| value.map(ToString::to_string);
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let party = |party: &Party| {
        let workload = party.workload.as_deref();
        json!({
            "workload": workload.map(|w| &*w.name),
            "owner": workload.map(|w| &*w.workload_name),
            "kind": workload.map(|w| w.workload_type.as_str()),
            "namespace": workload.map(|w| &**w.namespace()),
            "identity": party.identity.as_ref().map(ToString::to_string),
        })
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let took = record.ended.duration_since(record.began);
    json!({
        "began_us": micros(now.saturating_sub(took)),
        "method": told.method(),
        "url": told.url().map(|url| url.to_string()),
        "protocol": told.protocol,
        "source": party(&facts.source),
        "destination": party(&facts.destination),
        "client": facts.client.to_string(),
        "endpoint": text(facts.app.as_ref().map(|app| app as _)),
        "service": facts.service.as_ref().map(|service| json!({
            "name": &*service.name, "namespace": &*service.id.namespace, "hostname": &*service.id.hostname,
        })),
        "rule": text(told.rule.map(|rule| &rule.key as _)),
        "status": record.status,
        "grpc_status": told.grpc_status(),
        "flags": ended.flags.to_string(),
        "code": ended.code,
        "attempts": record.attempts,
        "request_bytes": record.request_bytes,
        "response_bytes": record.response_bytes,
        "duration_us": micros(took),
        "response_us": record.responded.map(|at| micros(at.duration_since(record.began))),
        "request_id": told.request_id(),
        "trace_id": told.trace.map(|trace| format!("{:032x}", trace.id)),
        "steps": steps.all.iter().map(|(after, what)| json!({ "after_us": micros(*after), "what": what })).collect::<Vec<_>>(),
    })
}

/// The control side: the last requests, and for how long they are wanted.
pub(crate) struct Board {
    watched: Arc<Watched>,
    ring: Mutex<Ring>,
}

#[derive(Default)]
struct Ring {
    /// The number of the next one.
    next: u64,
    kept: VecDeque<(u64, Value)>,
    /// Until when somebody looks on.
    until: Option<Instant>,
}

impl Board {
    /// The requests from number `after` on, and where to go on from. From now on, for a while, there are some.
    pub(crate) fn read(&self, after: Option<u64>) -> Value {
        let mut ring = self.ring.lock();
        ring.until = Some(Instant::now() + LEASE);
        self.watched.on.store(true, Relaxed);
        let from = after.unwrap_or(ring.next);
        let requests: Vec<_> =
            ring.kept.iter().filter(|(number, _)| *number >= from).map(|(_, told)| told).collect();
        let first = ring.kept.front().map_or(ring.next, |(number, _)| *number);
        json!({
            "next": ring.next,
            // Of what came since then, what is not kept any more; and all that found no room since the start.
            "missed": first.saturating_sub(from),
            "lost": self.watched.lost.load(Relaxed),
            "requests": requests,
        })
    }

    /// Keeps what it is told, as long as somebody looks on.
    pub(crate) async fn run(self: Arc<Self>, mut told: mpsc::Receiver<Value>) {
        loop {
            let until = self.ring.lock().until.unwrap_or_else(|| Instant::now() + LEASE);
            tokio::select! {
                request = told.recv() => {
                    let Some(request) = request else { return };
                    self.keep(request);
                }
                () = sleep_until(until) => self.expire(),
            }
        }
    }

    fn keep(&self, request: Value) {
        let mut ring = self.ring.lock();
        let number = ring.next;
        ring.next += 1;
        ring.kept.push_back((number, request));
        if ring.kept.len() > KEPT_MAX {
            ring.kept.pop_front();
        }
    }

    /// Stops telling and forgets, unless somebody has asked meanwhile.
    fn expire(&self) {
        let mut ring = self.ring.lock();
        if ring.until.is_none_or(|until| until <= Instant::now()) {
            self.watched.on.store(false, Relaxed);
            ring.until = None;
            ring.kept.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_are_told_of_only_while_somebody_asks() {
        let (watched, board, told) = Watched::new();
        tokio::spawn(Arc::clone(&board).run(told));
        assert!(watched.begin().is_none(), "nobody looks on");
        let next = board.read(None)["next"].as_u64();
        assert!(watched.begin().is_some());
        for number in 0..3 {
            watched.tell.try_send(json!(number)).unwrap();
        }
        while board.read(next)["requests"].as_array().unwrap().len() < 3 {
            tokio::task::yield_now().await;
        }
        assert_eq!(board.read(Some(1))["requests"], json!([1, 2]));
        assert_eq!((&board.read(Some(3))["requests"], &board.read(Some(3))["next"]), (&json!([]), &json!(3)));
        tokio::time::sleep(LEASE * 2).await;
        assert!(watched.begin().is_none(), "whoever asked has gone");
        assert_eq!(board.read(Some(0))["missed"], 3, "and what was kept for him too");
    }

    #[tokio::test]
    async fn only_the_last_ones_are_kept_and_the_rest_counted() {
        let (_watched, board, _told) = Watched::new();
        (0..KEPT_MAX + 5).for_each(|number| board.keep(json!(number)));
        let read = board.read(Some(0));
        assert_eq!((&read["missed"], read["requests"].as_array().unwrap().len()), (&json!(5), KEPT_MAX));
    }

    #[test]
    fn edits_are_told_without_their_values() {
        let mut request = RequestEdits { target: Some("/b".parse().unwrap()), ..RequestEdits::default() };
        request.fields.set(http::header::AUTHORIZATION, "secret".parse().unwrap());
        let text = edits(&request).unwrap();
        assert_eq!(text, "path becomes /b, drops authorization, writes authorization");
        assert_eq!(edits(&RequestEdits::default()), None);
    }
}
