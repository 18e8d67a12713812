//! What was measured: everything for JSON, medians and ratios for people.
//!
//! Ratios are taken per round, between values of the same round, and then summarised; they survive what the neighbours on
//! the machine do, which absolute figures do not. Owns no opinion on which of them are good.

use std::collections::BTreeSet;

use serde::Serialize;

use super::enrolment::Enrolment;
use super::measure::{BESIDE, DISTURBED, Measurement, Metric, Slot};
use super::memory::Memory;
use super::variants::{Description, Mesh};
use super::{Args, Congestion};
use crate::machine::Machine;
use crate::stats::{ratios, spread};
use crate::table::{Table, cell, number};

/// Everything that was measured, and how.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    pub(crate) congestion: Congestion,
    pub(crate) rounds: usize,
    pub(crate) window_seconds: f64,
    pub(crate) variants: Vec<Description>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) memory: Vec<Memory>,
    pub(crate) enrolment: Option<Enrolment>,
}

/// A column of values, and what is compared.
struct Column {
    metric: Metric,
    title: &'static str,
    to_none: bool,
    to_peer: bool,
}

const BULK: [Column; 3] = [
    Column { metric: Metric::GigabitsPerSecond, title: "Gb/s", to_none: true, to_peer: true },
    Column { metric: Metric::ProxyCpu, title: "proxies s/GB", to_none: false, to_peer: true },
    Column { metric: Metric::MachineCpu, title: "machine s/GB", to_none: true, to_peer: true },
];

const OPERATIONS: [Column; 5] = [
    Column { metric: Metric::OperationsPerSecond, title: "per second", to_none: true, to_peer: true },
    Column { metric: Metric::P50Microseconds, title: "p50 µs", to_none: true, to_peer: true },
    Column { metric: Metric::P99Microseconds, title: "p99 µs", to_none: false, to_peer: true },
    Column { metric: Metric::ProxyCpu, title: "proxies µs", to_none: false, to_peer: true },
    Column { metric: Metric::MachineCpu, title: "machine µs", to_none: true, to_peer: true },
];

impl Results {
    /// Nothing measured yet.
    pub(crate) fn new(args: &Args, machine: Machine) -> Self {
        Self {
            machine,
            congestion: args.congestion,
            rounds: args.rounds,
            window_seconds: args.seconds,
            variants: Vec::new(),
            slots: Vec::new(),
            memory: Vec::new(),
            enrolment: None,
        }
    }

    /// The tables.
    pub(crate) fn to_markdown(&self) -> String {
        let mut text = self.heading();
        let measurements: BTreeSet<_> = self.slots.iter().map(|slot| slot.measurement).collect();
        for measurement in measurements {
            let (title, table) = match measurement {
                Measurement::Bulk(1) => ("Bulk, 1 connection".into(), self.columns(measurement, &BULK)),
                Measurement::Bulk(n) => (format!("Bulk, {n} connections"), self.columns(measurement, &BULK)),
                Measurement::PingPong(n) => (
                    format!("Ping-pong of 64 bytes, connections: {n}"),
                    self.columns(measurement, &OPERATIONS),
                ),
                Measurement::Connect(n) => (
                    format!("New connections (connect, 64 bytes each way, close), clients: {n}"),
                    self.columns(measurement, &OPERATIONS),
                ),
                Measurement::Beside => (format!("Ping-pong beside {BESIDE} bulk connections"), self.beside()),
            };
            text += &format!("\n### {title}\n\n{}", table.to_markdown());
        }
        text += &self.memory_table();
        text += &self.enrolment_lines();
        text
    }

    fn heading(&self) -> String {
        let control = match self.congestion {
            Congestion::Reno => "reno".to_owned(),
            Congestion::AsFound => format!("{} (as found)", self.machine.congestion_control),
        };
        let mut text = format!("{}; {control}.\n", self.machine);
        if self.slots.is_empty() {
            return text;
        }
        text += &format!(
            "Medians of {} rounds of {} s windows, [min-max]; \"x\" columns are medians of per-round ratios.\n",
            self.rounds, self.window_seconds
        );
        let share = |of: fn(&Slot) -> f64| {
            let values: Vec<_> = self.slots.iter().map(of).collect();
            spread(&values).map_or_else(String::new, |s| {
                format!("{:.0} % [{:.0}-{:.0}]", s.median * 100.0, s.min * 100.0, s.max * 100.0)
            })
        };
        text += &format!(
            "Of the machine went to other programs: {}; to other machines of its host: {}. More than {:.0} % to others in {} of {} slots.\n",
            share(|slot| slot.others),
            share(|slot| slot.stolen),
            DISTURBED * 100.0,
            self.slots.iter().filter(|slot| slot.others > DISTURBED).count(),
            self.slots.len()
        );
        let failed: u64 = self.slots.iter().map(|slot| slot.failed).sum();
        text += &format!("Failed connections: {failed}.\n");
        if !self.has_peer() {
            text += "No peer was measured (--peer).\n";
        }
        text
    }

    fn columns(&self, measurement: Measurement, columns: &[Column]) -> Table {
        let mut titles = vec!["variant".to_owned()];
        for column in columns {
            titles.push(column.title.into());
            titles.extend(column.to_none.then(|| "x none".into()));
            titles.extend((column.to_peer && self.has_peer()).then(|| "x peer".into()));
        }
        let mut table = Table::new(titles);
        for variant in self.taking(measurement) {
            let mut cells = vec![variant.name.to_owned()];
            for Column { metric, to_none, to_peer, .. } in columns {
                let is_absent = *metric == Metric::ProxyCpu && variant.mesh == Mesh::None;
                let of = |name: &str| self.values(measurement, name, *metric);
                let values = of(variant.name);
                let ratio = |mesh| match self.base(variant, mesh) {
                    Some(base) if !is_absent => cell(spread(&ratios(&values, &of(base)))),
                    _ => "-".into(),
                };
                let absolute: Vec<_> = values.iter().flatten().copied().collect();
                cells.push(if is_absent { "-".into() } else { cell(spread(&absolute)) });
                cells.extend(to_none.then(|| ratio(Mesh::None)));
                cells.extend((*to_peer && self.has_peer()).then(|| ratio(Mesh::Peer)));
            }
            table.row(cells);
        }
        table
    }

    /// What bulk traffic does to a ping-pong and the ping-pong to bulk traffic, each compared with itself alone.
    fn beside(&self) -> Table {
        let mut table = Table::new(["variant", "p50 µs", "x alone", "p99 µs", "bulk Gb/s", "x alone"]);
        for variant in self.taking(Measurement::Beside) {
            let of = |measurement, metric| self.values(measurement, variant.name, metric);
            let alone = |metric, measurement| {
                cell(spread(&ratios(&of(Measurement::Beside, metric), &of(measurement, metric))))
            };
            let absolute = |metric| {
                let values: Vec<_> = of(Measurement::Beside, metric).into_iter().flatten().collect();
                cell(spread(&values))
            };
            table.row(vec![
                variant.name.into(),
                absolute(Metric::P50Microseconds),
                alone(Metric::P50Microseconds, Measurement::PingPong(1)),
                absolute(Metric::P99Microseconds),
                absolute(Metric::GigabitsPerSecond),
                alone(Metric::GigabitsPerSecond, Measurement::Bulk(BESIDE)),
            ]);
        }
        table
    }

    fn memory_table(&self) -> String {
        if self.memory.is_empty() {
            return String::new();
        }
        let titles = [
            "variant",
            "proxies",
            "idle MiB",
            "connections",
            "MiB",
            "KiB per connection",
            "MiB after they ended",
        ];
        let mut table = Table::new(titles);
        let mib = |bytes: u64| number(bytes as f64 / f64::from(1 << 20));
        for Memory { variant, proxies, connections, idle, connected, after } in &self.memory {
            let per_connection = connected.saturating_sub(*idle) as f64 / 1024.0 / *connections as f64;
            table.row(vec![
                (*variant).into(),
                proxies.to_string(),
                mib(*idle),
                connections.to_string(),
                mib(*connected),
                number(per_connection),
                mib(*after),
            ]);
        }
        format!(
            "\n### Resident memory of all proxies of a variant, idle and with idle connections\n\n{}",
            table.to_markdown()
        )
    }

    fn enrolment_lines(&self) -> String {
        let Some(Enrolment { times_ms, median_ms, p99_ms }) = &self.enrolment else { return String::new() };
        format!(
            "\n### Enrolment\n\nFrom the namespace's label to the first TLS byte between its two pods, {} times: median {} ms, p99 {} ms.\n",
            times_ms.len(),
            number(*median_ms),
            number(*p99_ms)
        )
    }

    fn has_peer(&self) -> bool {
        self.variants.iter().any(|variant| variant.mesh == Mesh::Peer)
    }

    fn taking(&self, measurement: Measurement) -> impl Iterator<Item = &Description> {
        let taken =
            move |name| self.slots.iter().any(|slot| slot.measurement == measurement && slot.variant == name);
        self.variants.iter().filter(move |variant| taken(variant.name))
    }

    /// The variant of that mesh on the same way; nothing for itself.
    fn base(&self, variant: &Description, mesh: Mesh) -> Option<&'static str> {
        let base = self.variants.iter().find(|other| other.mesh == mesh && other.way == variant.way)?;
        (base.name != variant.name).then_some(base.name)
    }

    /// A figure by round.
    fn values(&self, measurement: Measurement, variant: &str, metric: Metric) -> Vec<Option<f64>> {
        let mut values = vec![None; self.rounds];
        for slot in
            self.slots.iter().filter(|slot| slot.measurement == measurement && slot.variant == variant)
        {
            values[slot.round] = slot.values.get(&metric).copied();
        }
        values
    }
}
