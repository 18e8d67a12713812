//! A table of metric series with typed labels, whose idle rows expire.
//!
//! A row is in use while somebody holds its handle, and was used when it was handed out since the last expiry. A row that was
//! neither during two consecutive expiries is dropped: one to two periods after its last use. Nothing is recorded per
//! increment, so counting stays one atomic addition. A row that comes back starts at zero, which Prometheus reads as a restart.

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::RwLock;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric};

use super::Expire;

/// Rows that one table holds. Above it the scrape (about 1 KiB per series and column) would hurt more than the missing
/// rows: further label sets are counted nowhere, and how many were refused is known.
pub const SERIES_MAX: usize = 50_000;

/// Locks per table: more than threads that look rows up, so that they seldom meet.
const SHARDS: usize = 16;

/// Idle expiries after which a row goes. Two, so that one which was used just before the first is not dropped by it.
const IDLE_PERIODS: u8 = 2;

/// What can label a row.
pub trait Labels: EncodeLabelSet + Eq + Hash + Debug + Send + Sync + 'static {}
impl<L: EncodeLabelSet + Eq + Hash + Debug + Send + Sync + 'static> Labels for L {}

/// What a row can be: a metric, or a struct of metrics.
pub trait Row: Default + Debug + Send + Sync + 'static {}
impl<M: Default + Debug + Send + Sync + 'static> Row for M {}

/// A metric in a row.
pub trait Cell: EncodeMetric + TypedMetric + Send + Sync + 'static {}
impl<T: EncodeMetric + TypedMetric + Send + Sync + 'static> Cell for T {}

/// One row of metrics `M` per label set `L`. Clones share the rows.
#[derive(Debug)]
pub struct Table<L, M>(Arc<Shards<L, M>>);

#[derive(Debug)]
struct Shards<L, M> {
    hasher: RandomState,
    shards: [RwLock<HashMap<Arc<L>, Slot<M>>>; SHARDS],
    rows_max: usize,
    rows: AtomicUsize,
    refused: AtomicUsize,
}

#[derive(Debug)]
struct Slot<M> {
    row: Arc<M>,
    touched: AtomicBool,
    idle_periods: u8,
}

impl<L, M> Clone for Table<L, M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<L: Labels, M: Row> Table<L, M> {
    pub(super) fn new(rows_max: usize) -> Self {
        let shards = std::array::from_fn(|_| RwLock::default());
        let counters = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (hasher, (rows, refused)) = (RandomState::new(), counters);
        Self(Arc::new(Shards { hasher, shards, rows_max, rows, refused }))
    }

    /// The row of `labels`, made if it is new. Hold it as long as the thing it counts lives: a held row does not expire.
    /// In a full table (see [`SERIES_MAX`]) a new label set gets a row that is not exported.
    pub fn row(&self, labels: L) -> Arc<M> {
        let shard = self.shard(&labels);
        if let Some(slot) = shard.read().get(&labels) {
            return slot.hand_out();
        }
        let mut rows = shard.write();
        if let Some(slot) = rows.get(&labels) {
            return slot.hand_out();
        }
        if self.0.rows.fetch_add(1, Ordering::Relaxed) >= self.0.rows_max {
            self.0.rows.fetch_sub(1, Ordering::Relaxed);
            self.0.refused.fetch_add(1, Ordering::Relaxed);
            return Arc::default();
        }
        let slot = Slot { row: Arc::<M>::default(), touched: AtomicBool::new(true), idle_periods: 0 };
        let row = slot.row.clone();
        rows.insert(Arc::new(labels), slot);
        row
    }

    /// Drops the row of `labels` now, whoever holds it: what they still count is not exported.
    pub fn remove(&self, labels: &L) {
        if self.shard(labels).write().remove(labels).is_some() {
            self.0.rows.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.0.rows.load(Ordering::Relaxed)
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often a new label set found the table full.
    pub fn refused(&self) -> usize {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// All rows. The locks are held only while pointers are copied.
    pub fn rows(&self) -> Vec<(Arc<L>, Arc<M>)> {
        let mut all = Vec::with_capacity(self.len());
        for shard in &self.0.shards {
            all.extend(shard.read().iter().map(|(labels, slot)| (labels.clone(), slot.row.clone())));
        }
        all
    }

    fn shard(&self, labels: &L) -> &RwLock<HashMap<Arc<L>, Slot<M>>> {
        let hash = self.0.hasher.hash_one(labels);
        &self.0.shards[usize::try_from(hash % SHARDS as u64).expect("less than SHARDS")]
    }
}

impl<M> Slot<M> {
    fn hand_out(&self) -> Arc<M> {
        self.touched.store(true, Ordering::Relaxed);
        self.row.clone()
    }

    /// One expiry passes; whether the row goes.
    fn age(&mut self) -> bool {
        let used = std::mem::take(self.touched.get_mut()) || Arc::strong_count(&self.row) > 1;
        self.idle_periods = if used { 0 } else { self.idle_periods + 1 };
        self.idle_periods >= IDLE_PERIODS
    }
}

impl<L: Labels, M: Row> Expire for Table<L, M> {
    fn expire(&self) -> usize {
        let mut dropped = 0;
        for shard in &self.0.shards {
            // A writer excludes hand-outs, so a count of one cannot rise while we look.
            shard.write().retain(|_, slot| {
                let goes = slot.age();
                dropped += usize::from(goes);
                !goes
            });
        }
        self.0.rows.fetch_sub(dropped, Ordering::Relaxed);
        dropped
    }
}

/// One metric of every row, as the registry sees it.
pub(super) struct Column<L, M, T> {
    table: Table<L, M>,
    column: fn(&M) -> &T,
}

impl<L, M, T> Column<L, M, T> {
    pub(super) fn new(table: Table<L, M>, column: fn(&M) -> &T) -> Self {
        Self { table, column }
    }
}

impl<L, M, T> Debug for Column<L, M, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Column")
    }
}

impl<L: Labels, M: Row, T: Cell> EncodeMetric for Column<L, M, T> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        self.table.rows().iter().try_for_each(|(labels, row)| {
            let encoder = encoder.encode_family(labels.as_ref())?;
            (self.column)(row).encode(encoder)
        })
    }

    fn metric_type(&self) -> MetricType {
        T::TYPE
    }

    fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;

    #[derive(Clone, Debug, PartialEq, Eq, Hash, prometheus_client::encoding::EncodeLabelSet)]
    struct Pod {
        pod: String,
    }

    #[derive(Debug, Default)]
    struct Traffic {
        bytes: Counter,
        open: Gauge,
    }

    fn pod(name: &str) -> Pod {
        Pod { pod: name.to_owned() }
    }

    fn traffic() -> (Metrics, Table<Pod, Traffic>) {
        let metrics = Metrics::new();
        let table = metrics.table();
        metrics.register_column(&table, "bytes", "Bytes", |row: &Traffic| &row.bytes);
        metrics.register_column(&table, "open", "Open", |row: &Traffic| &row.open);
        (metrics, table)
    }

    #[test]
    fn columns_share_rows_and_escape_labels() {
        let (metrics, table) = traffic();
        assert_eq!(metrics.encode(), "# EOF\n");
        table.row(pod("a")).bytes.inc_by(5);
        table.row(pod("a")).bytes.inc_by(2);
        table.row(pod("a")).open.inc();
        let expected = "# HELP bytes Bytes.\n# TYPE bytes counter\nbytes_total{pod=\"a\"} 7\n\
                        # HELP open Open.\n# TYPE open gauge\nopen{pod=\"a\"} 1\n# EOF\n";
        assert_eq!(metrics.encode(), expected);
        table.row(pod("x\"} 1\n"));
        assert!(metrics.encode().contains(r#"bytes_total{pod="x\"} 1\n"} 0"#), "{}", metrics.encode());
    }

    #[test]
    fn idle_rows_expire_and_used_ones_stay() {
        let (metrics, table) = traffic();
        let held = table.row(pod("held"));
        drop(table.row(pod("idle")));
        assert_eq!(metrics.expire(), 0, "both were used since the start");
        drop(table.row(pod("busy")));
        assert_eq!(metrics.expire(), 0, "idle was idle for one period only");
        drop(table.row(pod("busy")));
        assert_eq!(metrics.expire(), 1);
        assert!(!metrics.encode().contains("idle"));
        assert_eq!(table.len(), 2);
        drop(held);
        drop(table.row(pod("busy")));
        assert_eq!((metrics.expire(), metrics.expire()), (0, 1), "held goes after two periods");
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn rows_can_be_removed_at_once() {
        let (metrics, table) = traffic();
        let held = table.row(pod("gone"));
        table.remove(&pod("gone"));
        table.remove(&pod("gone"));
        held.bytes.inc();
        assert!(table.is_empty());
        assert_eq!(metrics.encode(), "# EOF\n");
    }

    #[test]
    fn a_full_table_refuses_new_label_sets_and_counts_them() {
        let (_, table) = traffic();
        (0..SERIES_MAX).for_each(|n| drop(table.row(pod(&n.to_string()))));
        table.row(pod("one too many")).bytes.inc();
        assert_eq!((table.len(), table.refused()), (SERIES_MAX, 1));
        table.row(pod("7")).bytes.inc();
        assert_eq!(table.row(pod("7")).bytes.get(), 1, "rows that exist still count");
    }
}
