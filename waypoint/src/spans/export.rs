//! From the queue to the collector: in batches, each tried once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use api::otlp::trace_service_client::TraceServiceClient;
use api::otlp::{ExportTraceServiceRequest, InstrumentationScope, Resource, ResourceSpans, ScopeSpans, Span};
use http::Uri;
use identity::SystemClock;
use identity::control::{self, BadTarget, Roots, Target};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::transport::{Channel, Endpoint};

use super::{Settings, text};
use crate::config::Own;

/// Spans of one message: some 512 KiB, an eighth of what collectors take.
const BATCH_SPANS: usize = 512;

/// How long spans are gathered for a message. Nobody looks at a trace sooner.
const GATHER: Duration = Duration::from_secs(1);

/// How long a collector may take for a message, connecting included. Meanwhile the queue fills.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends what the queue brings.
pub(crate) struct Exporter {
    client: TraceServiceClient<Channel>,
    to: Uri,
    resource: Resource,
    queue: mpsc::Receiver<Span>,
    lost: Arc<AtomicU64>,
    told: Arc<AtomicU64>,
}

impl Exporter {
    pub(super) fn new(
        settings: &Settings,
        own: &Own,
        queue: mpsc::Receiver<Span>,
        (lost, told): (Arc<AtomicU64>, Arc<AtomicU64>),
    ) -> Result<Self, BadTarget> {
        let to = settings.endpoint.0.clone();
        let channel = match settings.roots.clone().map(Roots::File) {
            Some(roots) => {
                let target = Target { address: to.clone(), roots, server_name: None };
                control::channel(target, Arc::new(SystemClock))?
            }
            None => Endpoint::from(to.clone()).connect_timeout(EXPORT_TIMEOUT).connect_lazy(),
        };
        let (namespace, name) = own.gateway();
        let attributes = vec![
            text("service.name", &format_args!("{name}.{namespace}")),
            text("k8s.namespace.name", &namespace),
            text("service.instance.id", &own.workload),
        ];
        let resource = Resource { attributes };
        Ok(Self { client: TraceServiceClient::new(channel), to, resource, queue, lost, told })
    }

    /// Sends until nobody makes spans any more.
    pub(crate) async fn run(mut self) {
        let mut well = true;
        while let Some(first) = self.queue.recv().await {
            let mut batch = vec![first];
            let until = Instant::now() + GATHER;
            while batch.len() < BATCH_SPANS
                && let Ok(Some(next)) = timeout_at(until, self.queue.recv()).await
            {
                batch.push(next);
            }
            let count = batch.len() as u64;
            let rejected = match self.export(batch).await {
                Ok(rejected) => {
                    well = true;
                    rejected.min(count)
                }
                Err(error) => {
                    // Once: the counter tells how many.
                    if std::mem::take(&mut well) {
                        tracing::warn!(collector = %self.to, error, "spans are lost: the collector does not take them");
                    }
                    count
                }
            };
            self.lost.fetch_add(rejected, Relaxed);
            self.told.fetch_add(count - rejected, Relaxed);
        }
    }

    /// How many were rejected.
    async fn export(&mut self, spans: Vec<Span>) -> Result<u64, String> {
        let scope = InstrumentationScope {
            name: "airglow".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
        let resource_spans = vec![ResourceSpans { resource: Some(self.resource.clone()), scope_spans }];
        let exported = self.client.export(ExportTraceServiceRequest { resource_spans });
        let answer = timeout(EXPORT_TIMEOUT, exported).await.map_err(|_| "no answer in time".to_owned())?;
        let answer = answer.map_err(|status| status.to_string())?.into_inner();
        let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
        Ok(u64::try_from(rejected).unwrap_or(0))
    }
}
