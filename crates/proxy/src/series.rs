//! The series of Istio's TCP metrics, and the parties of a connection as metrics and access log name them.
//!
//! Which connections there are, and when they are counted, is the programs'.

use std::borrow::Cow;
use std::fmt::Display;
use std::sync::{Arc, LazyLock};

use daemon::access;
use daemon::metrics::{Metrics, Table};
use model::Str;
use model::identity::Identity;
use model::service::Service;
use model::workload::Workload;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;

/// Who is at one end.
#[derive(Clone, Debug, Default)]
pub struct Party {
    /// What discovery knows of it.
    pub workload: Option<Arc<Workload>>,
    /// What it has proven to be.
    pub identity: Option<Identity>,
}

impl Party {
    /// As the access log shows it: with its identity where it was `proven`.
    #[must_use]
    pub fn shown<'a>(&'a self, address: access::Text<'a>, proven: bool) -> access::Party<'a> {
        let workload = self.workload.as_deref();
        access::Party {
            address,
            workload: shown(workload.map(|w| &w.name)),
            namespace: shown(workload.map(Workload::namespace)),
            identity: shown(self.identity.as_ref().filter(|_| proven)),
            cluster: shown(workload.map(|w| &w.cluster_id)),
        }
    }
}

fn shown<T: Display>(value: Option<&T>) -> access::Text<'_> {
    value.map(|value| value as &dyn Display)
}

/// What the labels of a connection are made of.
#[derive(Clone, Debug)]
pub struct About<'a> {
    /// Who reports it.
    pub reporter: &'static str,
    /// Who opened it.
    pub source: &'a Party,
    /// Who answers.
    pub destination: &'a Party,
    /// The service that was dialled.
    pub service: Option<&'a Service>,
    /// Whether it came or went in mutual TLS.
    pub mutual_tls: bool,
    /// What is spoken: `tcp`, `http` or `grpc`.
    pub protocol: &'static str,
    /// How it ended.
    pub flag: Cow<'static, str>,
}

/// The label set of Istio's metrics. What is not known is `unknown`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Labels {
    reporter: &'static str,
    source_workload: Str,
    source_canonical_service: Str,
    source_canonical_revision: Str,
    source_workload_namespace: Str,
    source_principal: Str,
    source_app: Str,
    source_version: Str,
    source_cluster: Str,
    destination_service: Str,
    destination_service_namespace: Str,
    destination_service_name: Str,
    destination_workload: Str,
    destination_canonical_service: Str,
    destination_canonical_revision: Str,
    destination_workload_namespace: Str,
    destination_principal: Str,
    destination_app: Str,
    destination_version: Str,
    destination_cluster: Str,
    request_protocol: &'static str,
    response_flags: Cow<'static, str>,
    connection_security_policy: &'static str,
}

/// One series of each traffic metric.
#[derive(Debug, Default)]
pub struct Series {
    /// Connections made.
    pub opened: Counter,
    /// Connections that were made and have ended.
    pub closed: Counter,
    /// Connections refused or cut.
    pub failed: Counter,
    /// Request bytes.
    pub received: Counter,
    /// Response bytes.
    pub sent: Counter,
}

/// Registers the metrics. Their rows are theirs who count.
#[must_use]
pub fn table(metrics: &Metrics) -> Table<Labels, Series> {
    let table: Table<Labels, Series> = metrics.table();
    metrics.register_column(&table, "istio_tcp_connections_opened", "TCP connections opened", |s| &s.opened);
    metrics.register_column(&table, "istio_tcp_connections_closed", "TCP connections closed", |s| &s.closed);
    let about = "TCP connections refused or cut";
    metrics.register_column(&table, "istio_tcp_connections_failed", about, |s| &s.failed);
    metrics.register_column(&table, "istio_tcp_received_bytes", "Request bytes", |s| &s.received);
    metrics.register_column(&table, "istio_tcp_sent_bytes", "Response bytes", |s| &s.sent);
    table
}

static UNKNOWN: LazyLock<Str> = LazyLock::new(|| "unknown".into());

impl Labels {
    /// The labels of a connection.
    #[must_use]
    pub fn of(about: &About<'_>) -> Self {
        let source = End::of(about.source);
        let destination = End::of(about.destination);
        let service = about.service;
        let or_unknown = |value: Option<&Str>| value.unwrap_or(&UNKNOWN).clone();
        Self {
            reporter: about.reporter,
            source_app: source.canonical_name.clone(),
            source_version: source.canonical_revision.clone(),
            source_workload: source.workload,
            source_canonical_service: source.canonical_name,
            source_canonical_revision: source.canonical_revision,
            source_workload_namespace: source.namespace,
            source_principal: source.principal,
            source_cluster: source.cluster,
            destination_service: or_unknown(service.map(|service| &service.id.hostname)),
            destination_service_namespace: or_unknown(service.map(|service| &service.id.namespace)),
            destination_service_name: or_unknown(service.map(|service| &service.name)),
            destination_app: destination.canonical_name.clone(),
            destination_version: destination.canonical_revision.clone(),
            destination_workload: destination.workload,
            destination_canonical_service: destination.canonical_name,
            destination_canonical_revision: destination.canonical_revision,
            destination_workload_namespace: destination.namespace,
            destination_principal: destination.principal,
            destination_cluster: destination.cluster,
            request_protocol: about.protocol,
            response_flags: about.flag.clone(),
            connection_security_policy: if about.mutual_tls { "mutual_tls" } else { "unknown" },
        }
    }
}

/// The labels of one end.
struct End {
    workload: Str,
    canonical_name: Str,
    canonical_revision: Str,
    namespace: Str,
    principal: Str,
    cluster: Str,
}

impl End {
    fn of(party: &Party) -> Self {
        let known = |value: Option<&Str>| {
            let value = value.filter(|value| !value.is_empty());
            value.unwrap_or(&UNKNOWN).clone()
        };
        let workload = party.workload.as_deref();
        Self {
            workload: known(workload.map(|w| &w.workload_name)),
            canonical_name: known(workload.map(|w| &w.canonical_name)),
            canonical_revision: known(workload.map(|w| &w.canonical_revision)),
            namespace: known(workload.map(Workload::namespace)),
            principal: party.identity.as_ref().map_or_else(|| UNKNOWN.clone(), |id| id.to_string().into()),
            cluster: known(workload.map(|w| &w.cluster_id)),
        }
    }
}
