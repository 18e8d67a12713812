//! What connections and requests are called in metrics and in the access log.
//!
//! Names and labels are Istio's, so that dashboards made for it work. The series of a connection are found once; what its bytes
//! cost is two additions.

mod cause;
mod flags;
mod request;
mod series;

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use daemon::access::{AccessLog, Direction, Entry, Event};
use daemon::metrics::{Metrics, Table};
use hbone::{Carried, Progress};
use model::Str;
use model::address::{AppAddr, ClientAddr};
use model::l7::Headers;
use model::service::Service;
use proxy::series::{About, Labels, Party, Series};

use crate::refusal::Refusal;
use crate::spans::{Trace, Tracer};
pub(crate) use cause::{Cause, Done, Ended};
pub(crate) use request::{REQUEST_ID, Told, new_id};
pub(crate) use series::Seen;
use series::Tables;

/// Everything that is said of one connection.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// Where it comes from.
    pub(crate) client: ClientAddr,
    /// Who opened it.
    pub(crate) source: Party,
    /// Who answers.
    pub(crate) destination: Party,
    /// The service that was dialled.
    pub(crate) service: Option<Arc<Service>>,
    /// What the tunnel's request named.
    pub(crate) authority: Str,
    /// Where it ends.
    pub(crate) app: Option<AppAddr>,
}

/// Where connections and requests are reported.
pub(crate) struct Telemetry {
    requests: Tables,
    series: Table<Labels, Series>,
    access: AccessLog,
    tracer: Option<Tracer>,
}

/// A connection that was made, and what it has carried.
pub(crate) struct Live {
    pub(crate) facts: Facts,
    series: Arc<Series>,
    since: Instant,
    to_server: AtomicU64,
    to_client: AtomicU64,
}

impl Live {
    pub(crate) fn forth(&self, bytes: u64) {
        self.to_server.fetch_add(bytes, Relaxed);
        self.series.received.inc_by(bytes);
    }

    pub(crate) fn back(&self, bytes: u64) {
        self.to_client.fetch_add(bytes, Relaxed);
        self.series.sent.inc_by(bytes);
    }
}

/// Between a client's stream and an endpoint's.
impl Carried for Live {
    fn forth(&self, bytes: u64) {
        Live::forth(self, bytes);
    }

    fn back(&self, bytes: u64) {
        Live::back(self, bytes);
    }
}

/// Between a client's stream and an endpoint's TCP connection.
impl Progress for Live {
    fn to_tunnel(&self, bytes: u64) {
        self.back(bytes);
    }

    fn to_tcp(&self, bytes: u64) {
        self.forth(bytes);
    }
}

impl Telemetry {
    /// Registers the metrics; connections and requests are logged to `access`.
    pub(crate) fn new(metrics: &Metrics, access: AccessLog, tracer: Option<Tracer>) -> Self {
        Self { requests: Tables::new(metrics), series: proxy::series::table(metrics), access, tracer }
    }

    /// The trace that a request with these fields belongs to, where there are traces.
    pub(crate) fn trace(&self, fields: &dyn Headers) -> Option<Trace> {
        self.tracer.as_ref().map(|tracer| tracer.trace(fields))
    }

    /// A request is over; how it ended.
    pub(crate) fn request(&self, seen: &Seen, told: &Told<'_>) -> Ended {
        let ended = cause::end(told.record, told.done);
        let words = seen.count(&self.requests, told, (ended.flags, &self.access));
        told.log(&self.access, &ended, &words);
        if let (Some(tracer), Some(trace)) = (&self.tracer, told.trace) {
            tracer.end(trace, told, &ended);
        }
        ended
    }

    /// A connection was made.
    pub(crate) fn opened(&self, facts: Facts) -> Live {
        let series = self.series.row(labels(&facts, "-"));
        series.opened.inc();
        let (to_server, to_client) = Default::default();
        Live { facts, series, since: Instant::now(), to_server, to_client }
    }

    /// A connection was not made.
    pub(crate) fn refused(&self, facts: &Facts, refusal: &Refusal) {
        self.series.row(labels(facts, refusal.flag())).failed.inc();
        self.record(facts, failed(refusal), (0, 0, Duration::ZERO));
    }

    /// A connection has ended.
    pub(crate) fn closed(&self, live: &Live, outcome: Result<(), Refusal>) {
        live.series.closed.inc();
        let carried = (live.to_server.load(Relaxed), live.to_client.load(Relaxed), live.since.elapsed());
        match outcome {
            Ok(()) => self.record(&live.facts, Event::Complete, carried),
            Err(refusal) => {
                self.series.row(labels(&live.facts, refusal.flag())).failed.inc();
                self.record(&live.facts, failed(&refusal), carried);
            }
        }
    }

    /// A connection of somebody who has not proven who he is.
    pub(crate) fn turned_away(&self, client: SocketAddr, refusal: &Refusal) {
        let facts = Facts {
            client: ClientAddr(client),
            source: Party::default(),
            destination: Party::default(),
            service: None,
            authority: Str::default(),
            app: None,
        };
        self.refused(&facts, refusal);
    }

    fn record(&self, facts: &Facts, event: Event<'_>, (to_server, to_client, during): (u64, u64, Duration)) {
        let app = facts.app.as_ref().map(|app| app as &dyn Display);
        self.access.record(&Entry {
            at: SystemTime::now(),
            event,
            source: facts.source.shown(Some(&facts.client), true),
            destination: facts.destination.shown(app, true),
            hbone_address: Some(&facts.authority)
                .filter(|text| !text.is_empty())
                .map(|text| text as &dyn Display),
            service: facts.service.as_ref().map(|service| &service.id.hostname as &dyn Display),
            direction: Direction::Inbound,
            bytes_sent: to_client,
            bytes_received: to_server,
            duration: during,
            tcp: None,
        });
    }
}

fn failed(refusal: &Refusal) -> Event<'_> {
    Event::Failed { code: refusal.code(), error: refusal }
}

fn labels(facts: &Facts, flag: &'static str) -> Labels {
    Labels::of(&About {
        reporter: "waypoint",
        source: &facts.source,
        destination: &facts.destination,
        service: facts.service.as_deref(),
        // Whoever comes here comes by a tunnel.
        mutual_tls: true,
        protocol: "tcp",
        flag: flag.into(),
    })
}
