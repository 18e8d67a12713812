//! `airglow top`: what flows through each node's ztunnel, twice looked at and compared.
//!
//! Counters come from metrics, so that nothing short is missed; what there is to say of connections that are open now (round
//! trips, retransmits, policy) from their list.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use clap::Args;
use daemon::config::Vars;
use serde_json::{Value, json};

use crate::Terminal;
use crate::admin_client::{self, AdminError};
use crate::flows::{self, Pair, Rates, Totals, short};
use crate::interrupt::Interrupt;
use crate::mesh::{Mesh, Peer};
use crate::metrics_text::samples;
use crate::output::{Form, Where};
use crate::progress::print;
use crate::show::{Connection, Party, or_dash, round_trip};
use crate::term::{self, Style, Table};

/// Columns and lines of a terminal that does not say how large it is: the size of the first ones.
const WINDOW: (usize, usize) = (80, 24);

#[derive(Args, Debug)]
pub(crate) struct Top {
    #[command(flatten)]
    pub(crate) at: Where,
    /// Show one picture and end; so do JSON, YAML and a pipe.
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
    live: Live,
}

/// A node's counters.
type Counters = BTreeMap<Pair, Totals>;

/// What is said of a pair's open connections together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Live {
    /// The longest round trip, in microseconds.
    rtt_us: Option<u64>,
    retransmits: Option<u64>,
    /// What policy says of them.
    policies: BTreeSet<String>,
}

/// Whom a connection counts to: way, source, destination and transport of a [`Pair`].
type Key = (&'static str, String, String, String);

/// A node's counters, and its open connections.
struct State {
    counters: Counters,
    live: BTreeMap<Key, Live>,
}

/// How every node was at one time.
struct Look {
    at: Instant,
    nodes: Vec<(String, Result<State, AdminError>)>,
}

/// Shows flows until interrupted, or once.
pub(crate) fn run(
    args: &Top,
    terminal: Terminal,
    vars: &dyn Vars,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let form = args.at.form;
    let once = args.once || form.is_document() || !terminal.live;
    let period = Duration::from_secs_f64(args.interval);
    let mesh = Mesh::find(&args.at.which, vars)?;
    let node = args.at.node.as_deref();
    let mut before = look(&mesh, mesh.nodes(node)?);
    loop {
        if interrupt.pause(period).is_err() {
            return Ok(());
        }
        // Nodes may come and go between two pictures.
        let now = look(&mesh, mesh.nodes(node)?);
        let (mut rows, problems) = compare(&before, &now);
        rows.retain(|row| args.at.admits(namespaces(&row.pair)));
        if once {
            args.at.print(&document(&rows), table(&rows), "no connection yet", terminal.style)?;
            anyhow::ensure!(problems.is_empty(), "{}", problems.join("; "));
            return Ok(());
        }
        print(&screen(table(&rows), form == Form::Wide, &problems, terminal.style))?;
        before = now;
    }
}

fn namespaces(pair: &Pair) -> [&str; 2] {
    [&pair.source, &pair.destination].map(|name| name.split_once('/').map_or("", |(namespace, _)| namespace))
}

fn look(mesh: &Mesh, nodes: Vec<Peer>) -> Look {
    let (metrics, connections) = (mesh.ask_all(&nodes, "/metrics"), mesh.ask_all(&nodes, "/connections"));
    let at = Instant::now();
    let read = |node: &Peer, metrics: Result<String, AdminError>, connections: Result<String, AdminError>| {
        let counters = flows::totals(&samples(&metrics?, flows::METRICS));
        let connections: Vec<Connection> = admin_client::read(&node.name, "/connections", &connections?)?;
        Ok(State { counters, live: live(&connections) })
    };
    let states = nodes.iter().zip(metrics).zip(connections);
    let states =
        states.map(|((node, metrics), connections)| (node.name.clone(), read(node, metrics, connections)));
    Look { at, nodes: states.collect() }
}

/// Adds open connections up by pair.
fn live(connections: &[Connection]) -> BTreeMap<Key, Live> {
    let mut all: BTreeMap<Key, Live> = BTreeMap::new();
    for connection in connections {
        let name = |party: &Party| match (&party.namespace, &party.owner) {
            (Some(namespace), Some(owner)) => format!("{namespace}/{owner}"),
            _ => flows::UNKNOWN.to_owned(),
        };
        let way = if connection.reporter == "source" { "out" } else { "in" };
        let ends = (name(&connection.source), name(&connection.destination));
        let of_pair = all.entry((way, ends.0, ends.1, connection.transport.clone())).or_default();
        of_pair.rtt_us = of_pair.rtt_us.max(connection.rtt_us);
        // Connections of one pair share their tunnels: the most of one is what all of them have.
        of_pair.retransmits = of_pair.retransmits.max(connection.retransmits);
        of_pair.policies.extend(connection.policy.as_ref().map(|policy| policy.words()));
    }
    all
}

/// Rows, the busiest of each node first, and what went wrong.
fn compare(before: &Look, now: &Look) -> (Vec<Row>, Vec<String>) {
    let (mut rows, mut problems) = (Vec::new(), Vec::new());
    for (node, state) in &now.nodes {
        let state = match state {
            Ok(state) => state,
            Err(problem) => {
                problems.push(problem.to_string());
                continue;
            }
        };
        let earlier = before.nodes.iter().find(|(known, _)| known == node);
        let earlier = earlier.and_then(|(_, state)| state.as_ref().ok());
        let passed = now.at.duration_since(before.at);
        let row = |(pair, totals): (&Pair, &Totals)| {
            // A node that was not there before has no rate yet.
            let since =
                |known: &State| totals.since(known.counters.get(pair).unwrap_or(&Totals::default()), passed);
            let key =
                (pair.direction, pair.source.clone(), pair.destination.clone(), pair.transport.to_owned());
            Row {
                node: node.clone(),
                pair: pair.clone(),
                totals: *totals,
                rates: earlier.map_or(Rates::default(), since),
                live: state.live.get(&key).cloned().unwrap_or_default(),
            }
        };
        let mut of_node: Vec<_> = state.counters.iter().map(row).collect();
        of_node.sort_by(|a, b| {
            b.rates.bytes_per_s.total_cmp(&a.rates.bytes_per_s).then(b.totals.bytes().cmp(&a.totals.bytes()))
        });
        rows.extend(of_node);
    }
    (rows, problems)
}

/// As much as the window holds: home, and clear below, so that nothing flickers or scrolls.
fn screen(table: Table, wide: bool, problems: &[String], style: Style) -> String {
    let (width, height) = terminal_size::terminal_size()
        .map_or(WINDOW, |(width, height)| (usize::from(width.0), usize::from(height.0)));
    let table = if wide { table } else { table.narrow() };
    let mut lines =
        vec![format!("{}  {}", style.bold("airglow top"), style.dim("Ctrl-C ends")), String::new()];
    lines.extend(table.lines_within(width, style));
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
        ">OPEN",
        ">RTT",
        ">RETRANS",
        ">REFUSED",
        "POLICY",
        "SOURCE IDENTITY",
        "DESTINATION IDENTITY",
        "+>CONNS/S",
        "+>CONNS",
        "+>REQUEST",
        "+>RESPONSE",
    ]);
    for Row { node, pair, totals, rates, live } in rows {
        let policies: Vec<_> = live.policies.iter().map(String::as_str).collect();
        table.row([
            node.clone(),
            pair.direction.to_owned(),
            pair.source.clone(),
            pair.destination.clone(),
            pair.transport.to_owned(),
            format!("{}/s", term::bytes(rates.bytes_per_s)),
            totals.open().to_string(),
            round_trip(live.rtt_us),
            or_dash(live.retransmits),
            totals.failed.to_string(),
            if policies.is_empty() { "-".to_owned() } else { policies.join(", ") },
            short(&pair.source_identity),
            short(&pair.destination_identity),
            format!("{:.1}", rates.opened_per_s),
            totals.opened.to_string(),
            flows::size(totals.bytes_to_server),
            flows::size(totals.bytes_to_client),
        ]);
    }
    table
}

fn document(rows: &[Row]) -> Value {
    let rows = rows.iter().map(|Row { node, pair, totals, rates, live }| {
        let mut row = json!(pair);
        let more = json!({
            "node": node, "open": totals.open(), "rtt_us": live.rtt_us, "retransmits": live.retransmits,
            "policies": live.policies,
        });
        for part in [json!(totals), json!(rates), more] {
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

    fn state(opened: u64, bytes: u64) -> State {
        let pair = Pair {
            direction: "out",
            source: "shop/frontend".into(),
            destination: "shop/cart".into(),
            source_identity: "spiffe://cluster.local/ns/shop/sa/frontend".into(),
            destination_identity: "spiffe://cluster.local/ns/shop/sa/cart".into(),
            transport: "hbone",
        };
        let totals = Totals { opened, bytes_to_server: bytes, ..Totals::default() };
        let party =
            |name: &str| json!({"workload": name, "owner": name, "namespace": "shop", "identity": null});
        let connection = |rtt: u64| {
            json!({
                "reporter": "source", "transport": "hbone", "source": party("frontend"), "destination": party("cart"),
                "client": "10.0.0.1:1", "app": "10.0.0.2:2", "bytes_to_server": 0, "bytes_to_client": 0, "open_ms": 1,
                "rtt_us": rtt, "retransmits": 2, "policy": {"allowed": true, "policies": ["shop/allow"]},
            })
        };
        let connections = json!([connection(200), connection(1500)]);
        let connections: Vec<Connection> = serde_json::from_value(connections).unwrap();
        State { counters: BTreeMap::from([(pair, totals)]), live: live(&connections) }
    }

    fn look_of(at: Instant, opened: u64, bytes: u64) -> Look {
        Look { at, nodes: vec![("n1".to_owned(), Ok(state(opened, bytes)))] }
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
        assert_eq!((&document[0]["rtt_us"], &document[0]["retransmits"]), (&json!(1500), &json!(2)));
        assert_eq!(document[0]["policies"], json!(["ok (shop/allow)"]));
        let plain = Style::new(false, false, false);
        let picture = table(&rows).lines(plain).join("\n");
        for part in ["shop/frontend", "hbone", "2.0 KiB/s", "4.0 KiB", "1.5 ms", "ok (shop/allow)"] {
            assert!(picture.contains(part), "{picture}");
        }
        let problems = ["n2 is gone".to_owned()];
        let screen = screen(table(&rows), false, &problems, plain);
        assert!(screen.ends_with("n2 is gone\n") && !screen.contains("4.0 KiB"), "{screen}");
        assert_eq!(namespaces(&rows[0].pair), ["shop", "shop"]);
    }

    #[test]
    fn a_node_that_does_not_answer_is_a_problem_and_a_new_one_has_no_rate() {
        let start = Instant::now();
        let nothing = Look { at: start, nodes: Vec::new() };
        let (rows, _) = compare(&nothing, &look_of(start + Duration::from_secs(1), 5, 4096));
        assert_eq!(rows[0].rates, Rates::default());
        let gone = Err(AdminError::unreachable("n2", "/metrics", "it is gone"));
        let (rows, problems) = compare(&nothing, &Look { at: start, nodes: vec![("n2".to_owned(), gone)] });
        assert!(rows.is_empty());
        assert!(problems[0].contains("n2"), "{problems:?}");
    }

    #[test]
    fn intervals_are_sane() {
        assert_eq!(interval("0.5"), Ok(0.5));
        for bad in ["0", "-1", "x", "nan", "4000"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
