//! Metrics: one registry per process, tables of series whose handles live as long as the connections that count on them, and
//! text for Prometheus.
//!
//! Data threads look a series up once per connection (or less) and then only touch atomics. Encoding and expiry happen on
//! whatever thread asks for them; they hold a table's lock only while copying pointers, never while formatting.

mod histogram;
mod process;
mod table;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge};
use prometheus_client::registry::{Metric, Registry};

pub use histogram::Histogram;
pub use process::register_process_metrics;
pub use table::{SERIES_MAX, Table};

/// How often [`Metrics::expire_forever`] should run: a series is dropped one to two periods after its last use, so with the
/// usual scrape every 15 to 60 s its last value is seen many times.
pub const EXPIRY_PERIOD: Duration = Duration::from_secs(600);

/// The registry of one process. Clones share it.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Inner>);

#[derive(Default)]
struct Inner {
    registry: Mutex<Registry>,
    tables: Mutex<Vec<Box<dyn Expire>>>,
}

/// A table of any kind, as the expiry sees it.
trait Expire: Send + Sync {
    /// Removes idle series; how many.
    fn expire(&self) -> usize;
}

impl Metrics {
    /// Nothing registered.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a metric that lives as long as the process. `name` is complete except for the `_total` of counters.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.0.registry.lock().register(name, help, metric);
    }

    /// Registers a counter whose value is read when somebody asks for it.
    pub fn register_counter_fn(
        &self,
        name: &str,
        help: &str,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        self.register(name, help, Computed { kind: MetricType::Counter, read: Box::new(read) });
    }

    /// Registers a gauge whose value is read when somebody asks for it.
    pub fn register_gauge_fn(&self, name: &str, help: &str, read: impl Fn() -> u64 + Send + Sync + 'static) {
        self.register(name, help, Computed { kind: MetricType::Gauge, read: Box::new(read) });
    }

    /// A table of series, empty: one row of metrics `M` per set of labels `L`. Its columns are exported with
    /// [`Metrics::register_column`].
    pub fn table<L, M>(&self) -> Table<L, M>
    where
        L: table::Labels,
        M: table::Row,
    {
        self.table_of(SERIES_MAX)
    }

    /// The same for rows of which each is much to scrape: no more than `rows_max`.
    pub fn table_of<L, M>(&self, rows_max: usize) -> Table<L, M>
    where
        L: table::Labels,
        M: table::Row,
    {
        let table = Table::new(rows_max);
        self.0.tables.lock().push(Box::new(table.clone()));
        table
    }

    /// Exports one metric of every row of `table` under `name`.
    pub fn register_column<L, M, T>(&self, table: &Table<L, M>, name: &str, help: &str, column: fn(&M) -> &T)
    where
        L: table::Labels,
        M: table::Row,
        T: table::Cell,
    {
        self.register(name, help, table::Column::new(table.clone(), column));
    }

    /// All metrics in the OpenMetrics text format (which a reader of the older Prometheus text format understands too).
    /// Takes milliseconds with many series: not for a data thread.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        text::encode(&mut out, &self.0.registry.lock()).expect("writing to a String cannot fail");
        out
    }

    /// Ages every table by one period; how many series were dropped.
    pub fn expire(&self) -> usize {
        self.0.tables.lock().iter().map(|table| table.expire()).sum()
    }

    /// Ages every table each `period` (normally [`EXPIRY_PERIOD`]), until dropped.
    pub async fn expire_forever(self, period: Duration) {
        let mut ticks = tokio::time::interval(period);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let dropped = self.expire();
            tracing::debug!(dropped, "idle metric series expired");
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// A metric whose value is computed when asked for.
struct Computed {
    kind: MetricType,
    read: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl fmt::Debug for Computed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Computed")
    }
}

impl EncodeMetric for Computed {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        let value = (self.read)();
        if matches!(self.kind, MetricType::Counter) {
            ConstCounter::new(value).encode(encoder)
        } else {
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder)
        }
    }

    fn metric_type(&self) -> MetricType {
        self.kind
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn plain_and_computed_metrics_are_encoded() {
        let metrics = Metrics::new();
        let counter: Counter = Counter::default();
        metrics.register("airglow_things", "Things", counter.clone());
        metrics.register_counter_fn("airglow_lost_lines", "Lost lines", || 7);
        metrics.register_gauge_fn("airglow_threads", "Threads", || 2);
        counter.inc_by(3);
        let expected = "# HELP airglow_things Things.
# TYPE airglow_things counter
airglow_things_total 3
# HELP airglow_lost_lines Lost lines.
# TYPE airglow_lost_lines counter
airglow_lost_lines_total 7
# HELP airglow_threads Threads.
# TYPE airglow_threads gauge
airglow_threads 2
# EOF
";
        assert_eq!(metrics.encode(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn expiry_runs_by_itself() {
        let metrics = Metrics::new();
        let table = metrics.table::<Vec<(String, String)>, Counter>();
        drop(table.row(vec![("pod".into(), "a".into())]));
        let sweeper = tokio::spawn(metrics.clone().expire_forever(EXPIRY_PERIOD));
        tokio::time::sleep(EXPIRY_PERIOD * 3 + Duration::from_secs(1)).await;
        assert_eq!(table.len(), 0);
        sweeper.abort();
    }
}
