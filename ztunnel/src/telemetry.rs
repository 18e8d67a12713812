//! What a connection is called in metrics, in the access log and on the admin socket.
//!
//! Names and labels are Istio's, so that dashboards made for it work. Built once per connection from [`Facts`]; bytes are
//! taken over from flows at intervals, so that the data path only counts.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use daemon::access::{self, AccessLog, Direction, Entry, Event, TcpFacts};
use daemon::metrics::{Metrics, Table};
use model::Str;
use model::address::{AppAddr, ClientAddr, OriginalDst};
use model::policy::Connection;
use model::service::Service;
use prometheus_client::metrics::counter::Counter;
pub(crate) use proxy::series::Party;
use proxy::series::{self, About, Labels, Series};

use crate::flow::{Flow, Flows};
use crate::refusal::Refusal;

/// Everything that is said of one connection.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// Which end reports.
    pub(crate) reporter: Reporter,
    /// How the bytes travel between the ends.
    pub(crate) transport: Transport,
    /// Who opened it.
    pub(crate) source: Party,
    /// Who answers.
    pub(crate) destination: Party,
    /// Where it comes from.
    pub(crate) client: ClientAddr,
    /// What was dialled.
    pub(crate) dialled: OriginalDst,
    /// Where it ends.
    pub(crate) app: AppAddr,
    /// The tunnel's authority, where there is one.
    pub(crate) authority: Option<Str>,
    /// The service that was dialled.
    pub(crate) service: Option<Arc<Service>>,
    /// The UID of this node's pod that the connection belongs to.
    pub(crate) pod: Str,
    /// Which enrolment of that pod.
    pub(crate) generation: u64,
}

impl Facts {
    /// What policy sees.
    pub(crate) fn connection(&self) -> Connection {
        Connection { peer: self.source.identity.clone(), client: self.client, app: self.app }
    }

    /// Whether the connection belongs to this pod.
    pub(crate) fn is_of(&self, pod: &str) -> bool {
        &*self.pod == pod
    }
}

/// Which end of a connection reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reporter {
    /// The node of the server.
    Destination,
    /// The node of the client.
    Source,
}

impl Reporter {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Destination => "destination",
            Self::Source => "source",
        }
    }

    fn direction(self) -> Direction {
        match self {
            Self::Destination => Direction::Inbound,
            Self::Source => Direction::Outbound,
        }
    }
}

/// How the bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Transport {
    /// In mutual TLS.
    Hbone,
    /// Within this process: both ends are pods of this node, whose identities are known without TLS.
    Local,
    /// Plain TCP.
    Plaintext,
}

impl Transport {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Hbone => "hbone",
            Self::Local => "local",
            Self::Plaintext => "plaintext",
        }
    }
}

/// Where connections are reported.
#[derive(Debug)]
pub(crate) struct Telemetry {
    series: Table<Labels, Series>,
    access: AccessLog,
}

impl Telemetry {
    /// Registers the metrics; connections are logged to `access`.
    pub(crate) fn new(metrics: &Metrics, access: AccessLog) -> Self {
        Self { series: series::table(metrics), access }
    }

    /// A connection was made.
    pub(crate) fn opened(&self, flow: &Flow) {
        self.row(flow).opened.inc();
    }

    /// A connection was not made.
    pub(crate) fn refused(&self, facts: &Facts, refusal: &Refusal) {
        self.series.row(labels(facts, refusal.flag())).failed.inc();
        let event = Event::Failed { code: refusal.code(), error: refusal };
        self.record(facts, event, Carried::default());
    }

    /// Takes over what live flows have carried since the last time. Called every second; the data path only counts.
    pub(crate) fn collect(&self, flows: &Flows) {
        for flow in flows.all() {
            self.take_over(&flow);
        }
    }

    /// A connection has ended; `tcp` is what the kernel knew of its way.
    pub(crate) fn closed(&self, flow: &Flow, outcome: &Result<(), Refusal>, tcp: Option<TcpFacts>) {
        self.take_over(flow);
        self.row(flow).closed.inc();
        let carried = Carried {
            to_server: flow.traffic.to_server(),
            to_client: flow.traffic.to_client(),
            during: flow.opened.elapsed(),
            tcp,
        };
        let event = match outcome {
            Ok(()) => Event::Complete,
            Err(Refusal::Drained(_)) => Event::Drained,
            Err(refusal) => {
                self.series.row(labels(&flow.facts, refusal.flag())).failed.inc();
                Event::Failed { code: refusal.code(), error: refusal }
            }
        };
        self.record(&flow.facts, event, carried);
    }

    fn take_over(&self, flow: &Flow) {
        let series = self.row(flow);
        let take = |seen: &std::sync::atomic::AtomicU64, now: u64, counter: &Counter| {
            counter.inc_by(now.saturating_sub(seen.swap(now, Ordering::Relaxed)));
        };
        take(&flow.reported.0, flow.traffic.to_server(), &series.received);
        take(&flow.reported.1, flow.traffic.to_client(), &series.sent);
    }

    fn row<'a>(&self, flow: &'a Flow) -> &'a Arc<Series> {
        flow.series.get_or_init(|| self.series.row(labels(&flow.facts, "-")))
    }

    fn record(&self, facts: &Facts, event: Event<'_>, carried: Carried) {
        let (bytes_sent, bytes_received) = match facts.reporter {
            Reporter::Source => (carried.to_server, carried.to_client),
            Reporter::Destination => (carried.to_client, carried.to_server),
        };
        // Plaintext proves nothing, so the log names no identity for it.
        let proven = facts.transport != Transport::Plaintext;
        self.access.record(&Entry {
            at: SystemTime::now(),
            event,
            source: facts.source.shown(Some(&facts.client), proven),
            destination: facts.destination.shown(Some(&facts.app), proven),
            hbone_address: shown(facts.authority.as_ref()),
            service: shown(facts.service.as_ref().map(|service| &service.id.hostname)),
            direction: facts.reporter.direction(),
            bytes_sent,
            bytes_received,
            duration: carried.during,
            tcp: carried.tcp,
        });
    }
}

/// What a connection has carried when it ends.
#[derive(Clone, Copy, Debug, Default)]
struct Carried {
    to_server: u64,
    to_client: u64,
    during: Duration,
    tcp: Option<TcpFacts>,
}

fn shown<T: Display>(value: Option<&T>) -> access::Text<'_> {
    value.map(|value| value as &dyn Display)
}

/// The labels of a connection; `flag` says how it ended.
fn labels(facts: &Facts, flag: &'static str) -> Labels {
    Labels::of(&About {
        reporter: facts.reporter.as_str(),
        source: &facts.source,
        destination: &facts.destination,
        service: facts.service.as_deref(),
        mutual_tls: facts.transport == Transport::Hbone,
        protocol: "tcp",
        flag: flag.into(),
    })
}
