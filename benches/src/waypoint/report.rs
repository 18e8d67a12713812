//! Everything that was measured, and its tables.

use serde::Serialize;

use super::Args;
use super::abuse::{self, Abused};
use super::ground::Kind;
use super::measure::{Metric, Slot};
use super::scale::{Crowded, Memory};
use super::shapes::SHAPES;
use crate::machine::Machine;
use crate::stats::{ratios, spread};
use crate::table::{Table, cell, number};

/// Everything that was measured, and on what.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    machine: Machine,
    rounds: usize,
    window_seconds: f64,
    pub(crate) slots: Vec<Slot>,
    pub(crate) memory: Vec<Memory>,
    pub(crate) crowded: Vec<Crowded>,
    pub(crate) abused: Vec<Abused>,
    /// From a route's change to the first answer that follows it: median and longest.
    pub(crate) change_us: Option<(u64, u64)>,
}

const METRICS: [(Metric, &str); 4] = [
    (Metric::Cpu, "CPU µs"),
    (Metric::PerSecond, "per second"),
    (Metric::P50Microseconds, "p50 µs"),
    (Metric::P99Microseconds, "p99 µs"),
];

impl Results {
    /// Nothing measured yet.
    pub(crate) fn new(args: &Args, machine: Machine) -> Self {
        Self {
            machine,
            rounds: args.rounds,
            window_seconds: args.seconds,
            slots: Vec::new(),
            memory: Vec::new(),
            crowded: Vec::new(),
            abused: Vec::new(),
            change_us: None,
        }
    }

    /// The tables.
    pub(crate) fn to_markdown(&self) -> String {
        let mut text = format!(
            "{}; reno. Medians of {} rounds of {} s windows, [min-max]; \"x\" columns are medians of per-round ratios to Envoy.\n",
            self.machine, self.rounds, self.window_seconds
        );
        let slots = self.slots.iter().chain(self.crowded.iter().flat_map(|crowded| &crowded.slots));
        let others: Vec<_> = slots.map(|slot| slot.others * 100.0).collect();
        text += &format!(
            "Of the machine went to other programs, %: {}. Every answer was right.\n",
            cell(spread(&others))
        );
        if !self.slots.is_empty() {
            text += &format!("\n{}", self.slots_table().to_markdown());
        }
        if !self.memory.is_empty() {
            text += &format!("\n### Resident memory, MiB\n\n{}", self.memory_table().to_markdown());
        }
        if !self.crowded.is_empty() {
            text +=
                &format!("\n### Beside other routes of the host\n\n{}", self.crowded_table().to_markdown());
        }
        if !self.abused.is_empty() {
            let table = abuse::table(&self.abused, self.rounds);
            text += &format!("\n### Beside clients that want to hurt\n\n{}", table.to_markdown());
        }
        if let Some((median, longest)) = self.change_us {
            let [median, longest] = [median, longest].map(|us| number(us as f64 / 1e3));
            text += &format!(
                "\nFrom a route's change to the first answer that follows it: median {median} ms, longest {longest} ms.\n"
            );
        }
        text
    }

    fn slots_table(&self) -> Table {
        let mut titles = vec!["shape".to_owned(), "aim".to_owned()];
        titles.extend(columns(&METRICS));
        let mut table = Table::new(titles);
        for shape in SHAPES {
            if !self.slots.iter().any(|slot| slot.shape == shape.name) {
                continue;
            }
            let mut cells = vec![shape.title.to_owned(), shape.aim.map_or_else(|| "-".to_owned(), number)];
            let slots: Vec<_> = self.slots.iter().filter(|slot| slot.shape == shape.name).collect();
            cells.extend(self.compared(&slots, &METRICS));
            table.row(cells);
        }
        table
    }

    fn crowded_table(&self) -> Table {
        let mut titles = vec!["routes".to_owned()];
        titles.extend(columns(&METRICS[..1]));
        let mut table = Table::new(titles);
        for Crowded { routes, slots } in &self.crowded {
            let mut cells = vec![routes.to_string()];
            cells.extend(self.compared(&slots.iter().collect::<Vec<_>>(), &METRICS[..1]));
            table.row(cells);
        }
        table
    }

    fn memory_table(&self) -> Table {
        let titles = [
            "proxy",
            "idle",
            "with idle tunnels",
            "KiB per tunnel",
            "KiB with a stream",
            "with 1,000 routes",
            "with 10,000 endpoints",
        ];
        let mut table = Table::new(titles);
        let mib = |bytes: u64| number(bytes as f64 / f64::from(1 << 20));
        for Memory { proxy, idle, tunnels, connected, routes, endpoints, used } in &self.memory {
            let each = |bytes: u64| bytes.saturating_sub(*idle) as f64 / 1024.0 / *tunnels as f64;
            table.row(vec![
                format!("{proxy:?}"),
                mib(*idle),
                mib(*connected),
                number(each(*connected)),
                number(each(*used)),
                mib(*routes),
                mib(*endpoints),
            ]);
        }
        table
    }

    /// Ours, Envoy's and the ratio of each figure.
    fn compared(&self, slots: &[&Slot], metrics: &[(Metric, &str)]) -> Vec<String> {
        let by_round = |proxy: Kind, metric: Metric| {
            let mut values = vec![None; self.rounds];
            for slot in slots.iter().filter(|slot| slot.proxy == proxy) {
                values[slot.round] = slot.values.get(&metric).copied();
            }
            values
        };
        let all =
            |values: &[Option<f64>]| cell(spread(&values.iter().flatten().copied().collect::<Vec<_>>()));
        let figures = metrics.iter().flat_map(|(metric, _)| {
            let [ours, theirs] = [Kind::Airglow, Kind::Envoy].map(|kind| by_round(kind, *metric));
            [all(&ours), all(&theirs), cell(spread(&ratios(&ours, &theirs)))]
        });
        figures.collect()
    }
}

fn columns(metrics: &[(Metric, &str)]) -> Vec<String> {
    let three = |title: &str| [title.to_owned(), "Envoy".to_owned(), "x".to_owned()];
    metrics.iter().flat_map(|(_, title)| three(title)).collect()
}
