//! `airglow top`: what flows through each node's ztunnel, twice looked at and compared.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use crate::admin_client::{self, AdminError};
use crate::flows::{self, Pair, Rates, Totals, short};
use crate::interrupt::Interrupt;
use crate::metrics_text::samples;
use crate::nodes::{self, Node};
use crate::progress::print;
use crate::term::{self, Style, Table};
use crate::{Form, Terminal};

/// Columns and lines of a terminal that does not say how large it is: the size of the first ones.
const WINDOW: (usize, usize) = (80, 24);

/// What to look at.
#[derive(Args, Debug)]
pub(crate) struct Where {
    /// Only this node.
    #[arg(long)]
    pub(crate) node: Option<String>,
    /// A ztunnel's run directory, or one with a directory per node (as a lab has). Found by itself when there is one only.
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// Output: a table, or JSON for scripts.
    #[arg(short = 'o', long = "output", value_enum, default_value = "table")]
    pub(crate) form: Form,
}

#[derive(Args, Debug)]
pub(crate) struct Top {
    #[command(flatten)]
    pub(crate) at: Where,
    /// Show one picture and end; so do JSON and a pipe.
    #[arg(long)]
    pub(crate) once: bool,
    /// Seconds between two looks.
    #[arg(long, default_value_t = 2.0, value_parser = interval)]
    pub(crate) interval: f64,
}

/// Two looks at once give no rate, and nobody waits for an hour.
fn interval(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if (0.1..=3600.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err("not between 0.1 and 3600 seconds".to_owned())
    }
}

/// One line of the picture.
struct Row {
    node: String,
    pair: Pair,
    totals: Totals,
    rates: Rates,
}

/// A node's counters.
type Counters = BTreeMap<Pair, Totals>;

/// What the counters of every node were at one time.
struct Look {
    at: Instant,
    nodes: Vec<(Node, Result<Counters, AdminError>)>,
}

/// Shows flows until interrupted, or once.
pub(crate) fn run(args: &Top, terminal: Terminal, interrupt: &Interrupt) -> anyhow::Result<()> {
    let once = args.once || args.at.form == Form::Json || !terminal.live;
    let period = Duration::from_secs_f64(args.interval);
    let mut before = look(nodes::find(args.at.run_dir.as_deref(), args.at.node.as_deref())?);
    loop {
        if interrupt.pause(period).is_err() {
            return Ok(());
        }
        // Nodes may come and go between two pictures.
        let now = look(nodes::find(args.at.run_dir.as_deref(), args.at.node.as_deref())?);
        let (rows, problems) = compare(&before, &now);
        match (args.at.form, once) {
            (Form::Json, _) => print(&format!("{:#}\n", document(&rows)))?,
            (Form::Table, true) => print(&whole(&rows, terminal.style))?,
            (Form::Table, false) => print(&screen(&rows, &problems, terminal.style))?,
        }
        if once {
            anyhow::ensure!(problems.is_empty(), "{}", problems.join("; "));
            return Ok(());
        }
        before = now;
    }
}

fn look(nodes: Vec<Node>) -> Look {
    let at = Instant::now();
    let ask = |node: Node| {
        let counters = admin_client::get(&node.socket, "/metrics")
            .map(|text| flows::totals(&samples(&text, flows::METRICS)));
        (node, counters)
    };
    Look { at, nodes: nodes.into_iter().map(ask).collect() }
}

/// Rows, the busiest of each node first, and what went wrong.
fn compare(before: &Look, now: &Look) -> (Vec<Row>, Vec<String>) {
    let (mut rows, mut problems) = (Vec::new(), Vec::new());
    for (node, counters) in &now.nodes {
        let counters = match counters {
            Ok(counters) => counters,
            Err(problem) => {
                problems.push(problem.to_string());
                continue;
            }
        };
        let earlier = before.nodes.iter().find(|(known, _)| known == node);
        let earlier = earlier.and_then(|(_, counters)| counters.as_ref().ok());
        let passed = now.at.duration_since(before.at);
        let mut of_node: Vec<_> = counters
            .iter()
            .map(|(pair, totals)| {
                // A node that was not there before has no rate yet.
                let since =
                    |known: &Counters| totals.since(known.get(pair).unwrap_or(&Totals::default()), passed);
                let rates = earlier.map_or(Rates::default(), since);
                Row { node: node.name.clone(), pair: pair.clone(), totals: *totals, rates }
            })
            .collect();
        of_node.sort_by(|a, b| {
            b.rates.bytes_per_s.total_cmp(&a.rates.bytes_per_s).then(b.totals.bytes().cmp(&a.totals.bytes()))
        });
        rows.extend(of_node);
    }
    (rows, problems)
}

/// Everything, for a pipe or a look.
fn whole(rows: &[Row], style: Style) -> String {
    let mut lines = table(rows).lines(style);
    if rows.is_empty() {
        lines.push("no connection yet".to_owned());
    }
    lines.join("\n") + "\n"
}

/// As much as the window holds: home, and clear below, so that nothing flickers or scrolls.
fn screen(rows: &[Row], problems: &[String], style: Style) -> String {
    let (width, height) = terminal_size::terminal_size()
        .map_or(WINDOW, |(width, height)| (usize::from(width.0), usize::from(height.0)));
    let mut lines =
        vec![format!("{}  {}", style.bold("airglow top"), style.dim("Ctrl-C ends")), String::new()];
    lines.extend(table(rows).lines_within(width, style));
    // One line stays for the cursor, and one for each problem.
    let room = height.saturating_sub(1 + problems.len());
    if lines.len() > room {
        lines.truncate(room.saturating_sub(1));
        lines.push(style.dim("... more than the window holds"));
    }
    lines.extend(problems.iter().map(|problem| style.red(&problem.chars().take(width).collect::<String>())));
    format!("\x1b[H\x1b[J{}\n", lines.join("\n"))
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new([
        "NODE",
        "WAY",
        "SOURCE",
        "DESTINATION",
        "TRANSPORT",
        ">RATE",
        ">CONNS/S",
        ">OPEN",
        ">CONNS",
        ">REFUSED",
        ">REQUEST",
        ">RESPONSE",
        "SOURCE IDENTITY",
        "DESTINATION IDENTITY",
    ]);
    for Row { node, pair, totals, rates } in rows {
        table.row([
            node.clone(),
            pair.direction.to_owned(),
            pair.source.clone(),
            pair.destination.clone(),
            pair.transport.to_owned(),
            format!("{}/s", term::bytes(rates.bytes_per_s)),
            format!("{:.1}", rates.opened_per_s),
            totals.open().to_string(),
            totals.opened.to_string(),
            totals.failed.to_string(),
            flows::size(totals.bytes_to_server),
            flows::size(totals.bytes_to_client),
            short(&pair.source_identity),
            short(&pair.destination_identity),
        ]);
    }
    table
}

fn document(rows: &[Row]) -> Value {
    let rows = rows.iter().map(|Row { node, pair, totals, rates }| {
        let mut row = json!(pair);
        for part in [json!(totals), json!(rates), json!({ "node": node, "open": totals.open() })] {
            row.as_object_mut()
                .expect("a struct is an object")
                .extend(part.as_object().expect("likewise").clone());
        }
        row
    });
    Value::Array(rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look_of(at: Instant, opened: u64, bytes: u64) -> Look {
        let pair = Pair {
            direction: "out",
            source: "shop/frontend".into(),
            destination: "shop/cart".into(),
            source_identity: "spiffe://cluster.local/ns/shop/sa/frontend".into(),
            destination_identity: "spiffe://cluster.local/ns/shop/sa/cart".into(),
            transport: "hbone",
        };
        let totals = Totals { opened, bytes_to_server: bytes, ..Totals::default() };
        let node = Node { name: "n1".into(), socket: "/x/n1/admin.sock".into() };
        Look { at, nodes: vec![(node, Ok(BTreeMap::from([(pair, totals)])))] }
    }

    #[test]
    fn two_looks_give_rates() {
        let start = Instant::now();
        let (rows, problems) =
            compare(&look_of(start, 1, 0), &look_of(start + Duration::from_secs(2), 5, 4096));
        assert!(problems.is_empty());
        let document = document(&rows);
        assert_eq!(document[0]["node"], "n1");
        assert_eq!(document[0]["open"], 5);
        assert_eq!(document[0]["opened_per_s"], 2.0);
        assert_eq!(document[0]["bytes_per_s"], 2048.0);
        let picture = whole(&rows, Style::new(false, false, false));
        for part in ["shop/frontend", "hbone", "2.0 KiB/s", "4.0 KiB"] {
            assert!(picture.contains(part), "{picture}");
        }
        let problems = ["n2 is gone".to_owned()];
        let screen = screen(&rows, &problems, Style::new(false, false, false));
        assert!(screen.ends_with("n2 is gone\n"), "{screen}");
    }

    #[test]
    fn a_node_that_does_not_answer_is_a_problem_and_a_new_one_has_no_rate() {
        let start = Instant::now();
        let nothing = Look { at: start, nodes: Vec::new() };
        let (rows, _) = compare(&nothing, &look_of(start + Duration::from_secs(1), 5, 4096));
        assert_eq!(rows[0].rates, Rates::default());
        let node = Node { name: "n2".into(), socket: "/none/n2/admin.sock".into() };
        let (rows, problems) = compare(&nothing, &look(vec![node]));
        assert!(rows.is_empty());
        assert!(problems[0].contains("/none/n2/admin.sock"), "{problems:?}");
    }

    #[test]
    fn intervals_are_sane() {
        assert_eq!(interval("0.5"), Ok(0.5));
        for bad in ["0", "-1", "x", "nan", "4000"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
