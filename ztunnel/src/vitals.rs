//! What ztunnel says of itself in metrics: its build, its pods, its discovery session and its certificates.
//!
//! Reads when asked; what connections did is `telemetry`'s.

use std::sync::Arc;
use std::time::SystemTime;

use daemon::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;
use xds::client::ClientStatus;

use crate::data::Shared;

/// The labels of `istio_build`, by which dashboards tell components and versions apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    component: &'static str,
    tag: &'static str,
}

/// Registers everything.
pub(crate) fn register(metrics: &Metrics, shared: &Arc<Shared>, discovery: watch::Receiver<ClientStatus>) {
    let build: Family<Build, Gauge> = Family::default();
    build.get_or_create(&Build { component: "ztunnel", tag: env!("CARGO_PKG_VERSION") }).set(1);
    metrics.register("istio_build", "Build of this component", build);

    let pods = Arc::clone(shared);
    let count = move || pods.pods.len() as u64;
    metrics.register_gauge_fn(
        "workload_manager_active_proxy_count",
        "Pods of this node that are served",
        count,
    );
    let flows = Arc::clone(shared);
    let count = move || flows.flows.all().len() as u64;
    metrics.register_gauge_fn("airglow_connections", "Connections that are open through this ztunnel", count);

    let session = discovery.clone();
    let connected = move || u64::from(session.borrow().connected);
    metrics.register_gauge_fn(
        "airglow_discovery_connected",
        "Whether a discovery session is open",
        connected,
    );
    let sessions = discovery.clone();
    let opened = move || sessions.borrow().sessions;
    metrics.register_counter_fn("airglow_discovery_sessions", "Discovery sessions opened", opened);
    let refused = move || discovery.borrow().nacks;
    metrics.register_counter_fn(
        "airglow_discovery_rejections",
        "Responses of which something was rejected",
        refused,
    );

    let held = Arc::clone(shared);
    let soonest = move || seconds_left(&held);
    metrics.register_gauge_fn(
        "airglow_certificate_expiry_seconds",
        "Seconds until the first certificate in use expires; 0 when one has",
        soonest,
    );
}

fn seconds_left(shared: &Shared) -> u64 {
    let now = SystemTime::now();
    let certificates = shared.certificates.states().into_iter().filter_map(|state| state.certificate);
    let left = certificates.map(|held| held.not_after.duration_since(now).map_or(0, |left| left.as_secs()));
    left.min().unwrap_or_default()
}
