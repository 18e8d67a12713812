//! Traces: a span of ours for each request that is sampled, told to a collector of OpenTelemetry.
//!
//! A request costs the making of a span at most: spans go through a bounded queue that loses and counts, and batches are sent
//! by a task of the control side.

mod context;
mod export;

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use api::otlp::span::SpanKind;
use api::otlp::status::StatusCode;
use api::otlp::{AnyValue, KeyValue, Span, Status, any_value};
use daemon::metrics::Metrics;
use http::Uri;
use identity::control::BadTarget;
use model::l7::Headers;
use proxy::series::Party;
use tokio::sync::mpsc;

use crate::config::Own;
use crate::telemetry::{Ended, Told};
pub(crate) use context::Trace;
pub(crate) use export::Exporter;

/// Spans that wait for the collector. Each is about 1 KiB; four seconds of a thousand sampled requests a second.
const QUEUE_SPANS: usize = 4_096;

/// What an operator can set of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where the collector is.
    pub endpoint: Endpoint,
    /// The PEM file of the roots that it is verified with, if TLS is spoken with it.
    pub roots: Option<PathBuf>,
    /// How many of the traces that begin here are sampled.
    pub sampling: Percent,
}

/// `http://host:port` or `https://host:port` of a collector that speaks OTLP by gRPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(Uri);

impl Endpoint {
    /// Whether TLS is spoken with it.
    pub(crate) fn is_tls(&self) -> bool {
        self.0.scheme_str() == Some("https")
    }
}

impl FromStr for Endpoint {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let uri: Uri = text.parse().map_err(|_| ())?;
        let is_known = matches!(uri.scheme_str(), Some("http" | "https"));
        if is_known && uri.host().is_some() && uri.port().is_some() { Ok(Self(uri)) } else { Err(()) }
    }
}

/// A share, from 0 to 100.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Percent(f64);

impl Percent {
    /// Of traces that nobody else has decided about: enough to see how requests go, at little cost.
    pub const DEFAULT: Self = Self(1.0);
}

impl FromStr for Percent {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let value: f64 = text.parse().map_err(|_| ())?;
        if (0.0..=100.0).contains(&value) { Ok(Self(value)) } else { Err(()) }
    }
}

/// Where spans are made.
pub(crate) struct Tracer {
    sampling: f64,
    spans: mpsc::Sender<Span>,
    lost: Arc<AtomicU64>,
}

impl Tracer {
    /// A tracer, and what sends its spans; connects nowhere yet. To be called within a runtime.
    ///
    /// # Errors
    /// When the collector's name is none that TLS can be spoken with.
    pub(crate) fn new(
        settings: &Settings,
        own: &Own,
        metrics: &Metrics,
    ) -> Result<(Self, Exporter), BadTarget> {
        let (spans, queue) = mpsc::channel(QUEUE_SPANS);
        let (lost, told) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let (of_lost, of_told) = (Arc::clone(&lost), Arc::clone(&told));
        metrics.register_counter_fn("airglow_spans_lost", "Spans that no collector got", move || {
            of_lost.load(Relaxed)
        });
        metrics.register_counter_fn("airglow_spans_sent", "Spans that a collector took", move || {
            of_told.load(Relaxed)
        });
        let exporter = Exporter::new(settings, own, queue, (Arc::clone(&lost), told))?;
        Ok((Self { sampling: settings.sampling.0 / 100.0, spans, lost }, exporter))
    }

    /// The trace that a request belongs to.
    pub(crate) fn trace(&self, fields: &dyn Headers) -> Trace {
        let ids = (fastrand::u128(..), fastrand::u64(..));
        Trace::of(fields, ids, || fastrand::f64() < self.sampling)
    }

    /// A request is over.
    pub(crate) fn end(&self, trace: &Trace, told: &Told<'_>, ended: &Ended) {
        // Made only where there is room for it.
        match self.spans.try_reserve() {
            _ if !trace.is_sampled => {}
            Ok(place) => place.send(span(trace, told, ended)),
            Err(_) => drop(self.lost.fetch_add(1, Relaxed)),
        }
    }
}

fn span(trace: &Trace, told: &Told<'_>, ended: &Ended) -> Span {
    let record = told.record;
    let end = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let start = end.saturating_sub(record.ended.duration_since(record.began));
    let nanos = |at: Duration| u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
    let is_failed = matches!(record.status, None | Some(500..));
    let status =
        Status { message: ended.code.unwrap_or_default().to_owned(), code: StatusCode::Error.into() };
    let state = told.fields().and_then(|fields| fields.first("tracestate"));
    let host = told.facts.service.as_ref().map(|service| service.id.hostname.to_string());
    Span {
        trace_id: trace.id.to_be_bytes().to_vec(),
        span_id: trace.span.to_be_bytes().to_vec(),
        trace_state: state.filter(|_| trace.is_w3c()).unwrap_or_default().to_owned(),
        parent_span_id: trace.parent.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default(),
        name: told.rule.map(|rule| rule.key.to_string()).or(host).unwrap_or_else(|| "request".to_owned()),
        kind: SpanKind::Server.into(),
        start_time_unix_nano: nanos(start),
        end_time_unix_nano: nanos(end),
        attributes: attributes(told, ended),
        status: is_failed.then_some(status),
    }
}

/// In the names that Istio's spans have; ours follow after them.
fn attributes(told: &Told<'_>, ended: &Ended) -> Vec<KeyValue> {
    let mut all = Vec::with_capacity(24);
    let mut say = |key: &str, value: &dyn Display| all.push(text(key, value));
    let (facts, record) = (told.facts, told.record);
    say("component", &"proxy");
    say("http.protocol", &told.protocol);
    say("http.status_code", &record.status.unwrap_or(0));
    say("request_size", &record.request_bytes);
    say("response_size", &record.response_bytes);
    say("response_flags", &ended.flags);
    say("peer.address", &facts.client.0.ip());
    for (name, value) in [("http.method", told.method()), ("guid:x-request-id", told.request_id())] {
        if let Some(value) = &value {
            say(name, value);
        }
    }
    if let Some(url) = told.url() {
        say("http.url", &url);
    }
    if let Some(status) = told.grpc_status() {
        say("grpc.status_code", &status);
    }
    let mut party = |side: &str, party: &Party| {
        if let Some(workload) = &party.workload {
            say(&format!("istio.{side}.workload"), &workload.workload_name);
            say(&format!("istio.{side}.namespace"), workload.namespace());
        }
        if let Some(identity) = &party.identity {
            say(&format!("airglow.{side}.identity"), identity);
        }
    };
    party("downstream", &facts.source);
    party("upstream", &facts.destination);
    if let Some(service) = &facts.service {
        say("upstream_cluster", &service.id.hostname);
    }
    if let Some(app) = &facts.app {
        say("upstream_address", app);
    }
    say("airglow.attempts", &record.attempts);
    if let Some(code) = ended.code {
        say("airglow.code", &code);
    }
    all
}

/// One attribute.
fn text(key: &str, value: &dyn Display) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_string())) };
    KeyValue { key: key.to_owned(), value: Some(value) }
}
