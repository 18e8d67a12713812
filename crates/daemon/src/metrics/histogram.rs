//! How often values fell into which range, counted without a lock.
//!
//! The ranges are Istio's (Envoy's own), for times in milliseconds and for bytes alike, so that its dashboards compare.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// The upper ends of the ranges; above the last one there is one more.
const BOUNDS: [f64; 19] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 3e5, 6e5, 1.8e6,
    3.6e6,
];

/// Thousandths: the sum is counted in them, so that an addition is one atomic operation.
const SCALE: f64 = 1e3;

/// Counts of values by range.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicU64,
}

impl Histogram {
    /// Counts one value, which is not negative.
    pub fn observe(&self, value: f64) {
        self.counts[BOUNDS.partition_point(|bound| *bound < value)].fetch_add(1, Relaxed);
        self.sum.fetch_add((value * SCALE) as u64, Relaxed);
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        let counts = self.counts.iter().map(|count| count.load(Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.sum.load(Relaxed) as f64 / SCALE;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn values_are_counted_where_they_belong() {
        let metrics = Metrics::new();
        let histogram = Histogram::default();
        // On a bound, between two, above all, and nothing.
        [0.5, 0.75, 4e6, 0.0].into_iter().for_each(|value| histogram.observe(value));
        metrics.register("took", "Took", histogram);
        let text = metrics.encode();
        for line in [
            "took_bucket{le=\"0.5\"} 2",
            "took_bucket{le=\"1.0\"} 3",
            "took_bucket{le=\"3600000.0\"} 3",
            "took_bucket{le=\"+Inf\"} 4",
            "took_sum 4000001.25",
            "took_count 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} of {text}");
        }
    }
}
