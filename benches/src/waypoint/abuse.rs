//! What clients that want to hurt cost others: the latency of an orderly client beside them, and the memory that they take.
//!
//! Attackers and the load share a core, and its contention is no proxy's doing: what counts is the orderly client's latency while
//! its waypoint is attacked, over its latency while the same attacker attacks another one, out of everybody's way. Others' time
//! slices would drown that, so the client, its waypoint and its servers have precedence over all programs.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Serialize;

use super::ground::{Ground, Kind, Proxy};
use super::load::abuses::{ABUSES, Abuse};
use super::load::attacker::Account;
use super::measure;
use super::shapes::{HBONE, Mesh, Shape};
use super::{begins, say};
use crate::resident;
use crate::stats::{ratios, spread};
use crate::table::{Table, cell, number};

/// The orderly client: a fixed schedule, far below what either core could do.
const ORDERLY: Shape = Shape { rate: Some(2000), preferred: true, ..HBONE };

/// Load before a window.
const WARM: Duration = Duration::from_millis(300);
/// How long an attacker may take until it has said something, on a busy machine.
const BEGUN_WITHIN: Duration = Duration::from_secs(60);

/// Whom the attacker attacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Target {
    Nobody,
    /// A waypoint that is not measured.
    Another,
    /// The orderly client's.
    Measured,
}

/// What one window gave.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Abused {
    abuse: &'static str,
    round: usize,
    target: Target,
    p50_us: f64,
    p99_us: f64,
    /// The measured waypoint's share of its core.
    busy: f64,
    /// Its resident set before, and its peak.
    before: u64,
    peak: u64,
    attacker: Account,
}

/// The abuses whose names begin with one of these; all without any.
pub(crate) fn named(names: &[String]) -> anyhow::Result<Vec<Abuse>> {
    begins(&ABUSES, |abuse| abuse.name, names)
}

/// Measures every abuse in every round. What is compared lies as close together in time as it can, and the order is reversed
/// from round to round.
pub(crate) fn rounds(
    ground: &Ground,
    abuses: &[Abuse],
    (rounds, length): (usize, Duration),
) -> anyhow::Result<Vec<Abused>> {
    let ours = ground.taking(Mesh::Hbone).find(|proxy| proxy.kind == Kind::Airglow);
    let ours = ours.context("ours does not run")?;
    ground.prefer(ours)?;
    let another = ground.start_aside("waypoint-aside")?;
    ground.await_answers(&another)?;
    let mut targets = [Target::Nobody, Target::Another, Target::Measured];
    let mut all = Vec::new();
    for round in 0..rounds {
        say(&format!("round {} of {rounds}: {} abuses", round + 1, abuses.len()));
        for abuse in abuses {
            for target in targets {
                let window = window(ground, (ours, &another), (abuse, target), length);
                let abused = window.with_context(|| format!("{} against {target:?}", abuse.name))?;
                all.push(Abused { round, ..abused });
            }
        }
        targets.reverse();
    }
    another.process.kill()?;
    another.pod.remove()?;
    Ok(all)
}

fn window(
    ground: &Ground,
    (ours, another): (&Proxy, &Proxy),
    (abuse, target): (&Abuse, Target),
    length: Duration,
) -> anyhow::Result<Abused> {
    let pid = ours.process.pid();
    let before = resident::bytes(&[pid])?;
    resident::forget_peak(pid)?;
    let attacked = match target {
        Target::Nobody => None,
        Target::Another => Some(another),
        Target::Measured => Some(ours),
    };
    let attack = attacked.map(|proxy| ground.attack(proxy, abuse)).transpose()?;
    if let Some(attack) = &attack {
        attack.wait_for_line("made", BEGUN_WITHIN).inspect_err(|_| drop(attack.kill()))?;
    }
    let report = measure::run(ground, ours, &ORDERLY, (WARM, length));
    let attacker = match attack {
        None => Account::default(),
        Some(attack) => {
            ensure!(attack.is_running(), "the attacker ended: {}", attack.output().stderr.trim());
            let said = attack.kill()?.stdout;
            // The last line may be cut.
            let whole = said.lines().filter_map(|line| serde_json::from_str(line).ok()).next_back();
            whole.context("the attacker has said nothing")?
        }
    };
    let report = report?;
    Ok(Abused {
        abuse: abuse.name,
        round: 0,
        target,
        p50_us: report.p50_us,
        p99_us: report.p99_us,
        busy: report.cpu.proxies / report.seconds,
        before,
        peak: resident::peak(pid)?,
        attacker,
    })
}

/// The table.
pub(crate) fn table(all: &[Abused], rounds: usize) -> Table {
    let titles = [
        "abuse",
        "p99 µs alone",
        "attacker elsewhere",
        "attacked",
        "x",
        "core %, alone",
        "attacked",
        "grown at most, MiB",
        "attacker made",
        "was refused",
        "thrown out",
        "KiB",
    ];
    let mut table = Table::new(titles);
    for abuse in ABUSES {
        let found: Vec<_> = all.iter().filter(|abused| abused.abuse == abuse.name).collect();
        if found.is_empty() {
            continue;
        }
        let of = |target: Target, figure: &dyn Fn(&Abused) -> f64| {
            let mut values = vec![None; rounds];
            for abused in found.iter().filter(|abused| abused.target == target) {
                values[abused.round] = Some(figure(abused));
            }
            values
        };
        let shown =
            |values: &[Option<f64>]| cell(spread(&values.iter().flatten().copied().collect::<Vec<_>>()));
        let p99 = |target| of(target, &|abused| abused.p99_us);
        let [alone, elsewhere, attacked] = [Target::Nobody, Target::Another, Target::Measured].map(p99);
        let mut cells = vec![abuse.title.to_owned()];
        cells.extend([&alone, &elsewhere, &attacked].map(|values| shown(values)));
        cells.push(cell(spread(&ratios(&attacked, &elsewhere))));
        let busy = |target| shown(&of(target, &|abused| abused.busy * 100.0));
        cells.extend([busy(Target::Nobody), busy(Target::Measured)]);
        let grown = found.iter().filter(|abused| abused.target == Target::Measured);
        let grown = grown.map(|abused| abused.peak.saturating_sub(abused.before)).max().unwrap_or(0);
        cells.push(number(grown as f64 / f64::from(1 << 20)));
        let did = |figure: &dyn Fn(&Account) -> u64| {
            let values = of(Target::Measured, &|abused| figure(&abused.attacker) as f64);
            spread(&values.into_iter().flatten().collect::<Vec<_>>()).map_or(0.0, |spread| spread.median)
        };
        cells.push(number(did(&|account| account.made)));
        cells.push(number(did(&|account| account.refused)));
        cells.push(number(did(&|account| account.ended)));
        cells.push(number(did(&|account| account.bytes) / 1024.0));
        table.row(cells);
    }
    table
}
