//! The series of requests, and what their log lines have in common: found once for whoever asks whom by which rule, and kept
//! while they are used.
//!
//! Looking series up by their two dozen labels costs more than all else that is done for a request. So each thread remembers
//! the handles by what made the labels; what it has not used for a while it forgets, so that series of what is gone expire.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use daemon::access::{self, AccessLog, Words};
use daemon::metrics::{Histogram, Metrics, Table};
use model::Str;
use model::l7::Rule;
use model::service::Service;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use proxy::series::{About, Labels, Party};

use super::cause::Cause;
use super::flags::Flags;
use super::request::Told;

/// Series of requests. Each is some 45 KiB of a scrape, for Istio's three histograms with its two dozen labels: with more
/// than these a scrape of 100 MiB would hurt more than the missing ones, which are counted.
const REQUEST_SERIES_MAX: usize = 2_048;

/// Series of routes, of some 10 KiB each: rules, their backends and six classes of answers.
const ROUTE_SERIES_MAX: usize = 8_192;

/// What one thread remembers handles of. Beyond it it begins anew.
const KNOWN_MAX: usize = 4_096;

/// Kinds of answers that are remembered of each; more are looked up each time.
const ANSWERS_MAX: usize = 32;

/// The labels of requests that were answered alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    #[prometheus(flatten)]
    connection: Labels,
    response_code: u16,
    grpc_response_status: Cow<'static, str>,
}

/// One series of each of Istio's metrics of requests.
#[derive(Debug, Default)]
struct Requests {
    requests: Counter,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
}

/// The labels of what a rule did.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    kind: Cow<'static, str>,
    namespace: Str,
    route: Str,
    rule: u32,
    backend: Str,
    response_class: &'static str,
}

/// One series of each of our metrics of rules.
#[derive(Debug, Default)]
struct Route {
    requests: Counter,
    attempts: Counter,
    delays: Counter,
    aborts: Counter,
    duration: Histogram,
}

/// Every series of requests.
pub(super) struct Tables {
    requests: Table<RequestLabels, Requests>,
    routes: Table<RouteLabels, Route>,
}

impl Tables {
    /// Registers the metrics.
    pub(super) fn new(metrics: &Metrics) -> Self {
        let requests: Table<RequestLabels, Requests> = metrics.table_of(REQUEST_SERIES_MAX);
        metrics.register_column(&requests, "istio_requests", "Requests", |r| &r.requests);
        let about = "From a request's head to its end";
        metrics.register_column(&requests, "istio_request_duration_milliseconds", about, |r| &r.duration);
        metrics.register_column(&requests, "istio_request_bytes", "Bytes of requests", |r| &r.request_bytes);
        metrics
            .register_column(&requests, "istio_response_bytes", "Bytes of responses", |r| &r.response_bytes);
        let routes: Table<RouteLabels, Route> = metrics.table_of(ROUTE_SERIES_MAX);
        metrics.register_column(&routes, "airglow_route_requests", "Requests by rule", |r| &r.requests);
        metrics.register_column(&routes, "airglow_route_attempts", "Attempts by rule", |r| &r.attempts);
        metrics.register_column(&routes, "airglow_route_delays", "Delays by faults", |r| &r.delays);
        metrics.register_column(&routes, "airglow_route_aborts", "Aborts by faults", |r| &r.aborts);
        let about = "The same by rule";
        metrics.register_column(&routes, "airglow_route_duration_milliseconds", about, |r| &r.duration);
        let lost = (requests.clone(), routes.clone());
        metrics.register_counter_fn(
            "airglow_request_series_refused",
            "Requests without a series",
            move || (lost.0.refused() + lost.1.refused()) as u64,
        );
        Self { requests, routes }
    }

    fn requests(&self, told: &Told<'_>, answered: &Answered) -> Arc<Requests> {
        let connection = Labels::of(&About {
            reporter: "waypoint",
            source: &told.facts.source,
            destination: &told.facts.destination,
            service: told.facts.service.as_deref(),
            // Whoever comes here comes by a tunnel.
            mutual_tls: true,
            protocol: if answered.grpc_status.is_some() { "grpc" } else { "http" },
            flag: match answered.flags {
                Flags::NONE => "-".into(),
                flags => flags.to_string().into(),
            },
        });
        let grpc_response_status = match answered.grpc_status {
            Some(status) => status.to_string().into(),
            None => "".into(),
        };
        self.requests.row(RequestLabels { connection, response_code: answered.status, grpc_response_status })
    }

    fn route(&self, told: &Told<'_>, class: usize) -> Arc<Route> {
        let nothing = Str::default();
        let key = told.rule.map(|rule| &rule.key);
        self.routes.row(RouteLabels {
            kind: key.map_or("none".into(), |key| key.kind.to_string().into()),
            namespace: key.map_or(&nothing, |key| &key.namespace).clone(),
            route: key.map_or(&nothing, |key| &key.name).clone(),
            rule: key.map_or(0, |key| key.index),
            backend: told.facts.service.as_ref().map_or(&nothing, |service| &service.id.hostname).clone(),
            response_class: CLASSES[class],
        })
    }
}

const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Of a status; 0 is none.
fn class(status: u16) -> usize {
    usize::from(status / 100).min(CLASSES.len() - 1)
}

/// What tells the requests of the same parties apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answered {
    status: u16,
    grpc_status: Option<u32>,
    flags: Flags,
}

/// Who asks whom by which rule: where these are in memory. [`Known`] holds them, so that nothing else gets to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key([usize; 6]);

impl Key {
    fn of(told: &Told<'_>) -> Self {
        let facts = told.facts;
        let place = |party: &Party| {
            let identity =
                party.identity.as_ref().map(|identity| Arc::as_ptr(&identity.service_account).addr());
            let workload = party.workload.as_ref().map(|workload| Arc::as_ptr(workload).addr());
            (workload.unwrap_or_default(), identity.unwrap_or_default())
        };
        let ((source, client), (destination, server)) = (place(&facts.source), place(&facts.destination));
        let service = facts.service.as_ref().map_or(0, |service| Arc::as_ptr(service).addr());
        let rule = told.rule.map_or(0, |rule| Arc::as_ptr(rule).addr());
        Self([source, client, destination, server, service, rule])
    }
}

/// The handles of those who are named by a key.
struct Known {
    used: bool,
    answers: Vec<(Answered, Arc<Requests>)>,
    routes: [Option<Arc<Route>>; CLASSES.len()],
    words: Words,
    _held: (Party, Party, Option<Arc<Service>>, Option<Arc<Rule>>),
}

impl Known {
    fn new(told: &Told<'_>, access: &AccessLog) -> Self {
        let facts = told.facts;
        let words = access.words(&access::Route {
            source: facts.source.shown(None, true),
            destination: facts.destination.shown(None, true),
            service: facts.service.as_ref().map(|service| &service.id.hostname as _),
            rule: told.rule.map(|rule| &rule.key as _),
        });
        let held =
            (facts.source.clone(), facts.destination.clone(), facts.service.clone(), told.rule.cloned());
        Self { used: true, answers: Vec::new(), routes: Default::default(), words, _held: held }
    }

    fn requests(&mut self, tables: &Tables, told: &Told<'_>, answered: Answered) -> Arc<Requests> {
        if let Some((_, found)) = self.answers.iter().find(|(kind, _)| *kind == answered) {
            return Arc::clone(found);
        }
        let row = tables.requests(told, &answered);
        if self.answers.len() < ANSWERS_MAX {
            self.answers.push((answered, Arc::clone(&row)));
        }
        row
    }
}

/// What one thread remembers. The lock is this thread's alone and so never waited for.
#[derive(Default)]
pub(crate) struct Seen(Mutex<HashMap<Key, Known>>);

impl Seen {
    /// Counts a request; what its line in this log has in common with others.
    pub(super) fn count(
        &self,
        tables: &Tables,
        told: &Told<'_>,
        (flags, access): (Flags, &AccessLog),
    ) -> Words {
        let mut all = self.0.lock();
        if all.len() >= KNOWN_MAX {
            all.clear();
        }
        let known = all.entry(Key::of(told)).or_insert_with(|| Known::new(told, access));
        known.used = true;
        let record = told.record;
        let status = record.status.unwrap_or(0);
        let answered = Answered { status, grpc_status: told.grpc_status(), flags };
        let took = record.ended.duration_since(record.began).as_secs_f64() * 1e3;
        let series = known.requests(tables, told, answered);
        series.requests.inc();
        series.duration.observe(took);
        series.request_bytes.observe(record.request_bytes as f64);
        series.response_bytes.observe(record.response_bytes as f64);

        let class = class(status);
        let route = known.routes[class].get_or_insert_with(|| tables.route(told, class));
        route.requests.inc();
        route.attempts.inc_by(record.attempts.into());
        route.delays.inc_by(told.done.was_delayed.into());
        route.aborts.inc_by((told.done.cause == Some(Cause::Fault)).into());
        route.duration.observe(took);
        known.words.clone()
    }

    /// Forgets what was not used since the last time. To be called now and then.
    pub(crate) fn sweep(&self) {
        self.0.lock().retain(|_, known| std::mem::take(&mut known.used));
    }
}

#[cfg(test)]
mod tests {
    use model::address::ClientAddr;
    use tokio::time::Instant;

    use super::*;
    use crate::decide::{Outcome, Record};
    use crate::made;
    use crate::telemetry::{Done, Facts};

    fn facts(endpoint: &Arc<model::workload::Workload>) -> Facts {
        Facts {
            client: ClientAddr("10.0.0.1:4711".parse().unwrap()),
            source: Party { workload: None, identity: Some(made::identity("client")) },
            destination: Party { workload: Some(Arc::clone(endpoint)), identity: None },
            service: Some(Arc::new(made::service("web", "10.96.0.1", true))),
            authority: "web:80".into(),
            app: None,
        }
    }

    fn count(seen: &Seen, tables: &Tables, facts: &Facts, status: u16) {
        let record =
            Record { outcome: Outcome::Forwarded, status: Some(status), ..Record::begun(Instant::now()) };
        let told = Told {
            facts,
            request: None,
            protocol: "HTTP/1.1",
            rule: None,
            record: &record,
            grpc_status: None,
            done: Done::default(),
            given_id: None,
            trace: None,
        };
        seen.count(tables, &told, (Flags::NONE, &AccessLog::off()));
    }

    #[test]
    fn series_are_looked_up_once_and_go_when_nobody_uses_them() {
        let (metrics, seen) = (Metrics::new(), Seen::default());
        let tables = Tables::new(&metrics);
        let pods = ["one", "two"].map(|name| Arc::new(made::pod(name, name, "10.0.0.2", "web")));
        let [one, two] = pods.each_ref().map(facts);
        (0..3).for_each(|_| count(&seen, &tables, &one, 200));
        count(&seen, &tables, &one, 503);
        count(&seen, &tables, &two, 200);
        assert_eq!((seen.0.lock().len(), tables.requests.len()), (2, 3));
        let requests = || tables.requests.rows().iter().map(|(_, row)| row.requests.get()).sum::<u64>();
        assert_eq!(requests(), 5);

        // The first one goes on being used, for many times longer than what is idle is kept.
        for _ in 0..6 {
            seen.sweep();
            count(&seen, &tables, &one, 200);
            metrics.expire();
        }
        assert_eq!(seen.0.lock().len(), 1, "the second is forgotten");
        assert_eq!((tables.requests.len(), requests()), (2, 10), "and its series gone; others count on");
        seen.sweep();
        seen.sweep();
        let dropped: usize = (0..3).map(|_| metrics.expire()).sum();
        assert!(dropped >= 3, "{dropped}");
        assert_eq!((tables.requests.len(), tables.routes.len()), (0, 0));
    }

    #[test]
    fn statuses_that_servers_make_up_are_counted_and_remembered_within_bounds() {
        let (metrics, seen) = (Metrics::new(), Seen::default());
        let tables = Tables::new(&metrics);
        let one = facts(&Arc::new(made::pod("one", "one", "10.0.0.2", "web")));
        for status in 100..1000 {
            count(&seen, &tables, &one, status);
        }
        assert_eq!(tables.requests.len(), 900);
        assert!(seen.0.lock().values().all(|known| known.answers.len() == ANSWERS_MAX));
        assert_eq!(tables.routes.len(), 5, "what is beyond 599 counts as 5xx");
    }
}
