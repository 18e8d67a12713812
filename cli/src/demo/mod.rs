//! `airglow demo`: the whole system on this machine, step by step, each promise measured as it is made.
//!
//! Runs the steps in their order, keeps what they found, removes everything. What a step does is in `steps`.

mod error;
mod ground;
mod keep;
mod report;
mod shop;
mod steps;
mod traffic;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;

use crate::interrupt::{INTERRUPTED, Interrupt};
use crate::progress::{Progress, To, print};
use crate::{Terminal, term};

use error::DemoError;
use report::{Report, Stage, Step};
use shop::Shop;

#[derive(Args, Debug)]
pub(crate) struct Demo {
    /// Leave it running with customers in the shop until Ctrl-C, and say how to look around.
    #[arg(long)]
    keep: bool,
    /// Print one JSON document with everything that was measured; progress goes to standard error.
    #[arg(long, conflicts_with = "keep")]
    json: bool,
    /// On a Kubernetes of two nodes, which is made for it. Needs what `make cluster` builds.
    #[arg(long)]
    kubernetes: bool,
    /// What a waypoint does for the shop: a canary, A/B, a fault for one user, retries.
    #[arg(long, conflicts_with = "kubernetes")]
    waypoint: bool,
}

/// Runs the demo. Success only if every promise held.
pub(crate) fn run(
    args: &Demo,
    stdout: Terminal,
    stderr: Terminal,
    interrupt: &Interrupt,
) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let (to, terminal) = if args.json { (To::Stderr, stderr) } else { (To::Stdout, stdout) };
    let progress = Progress::new(to, terminal.live, terminal.style);
    let mut tour = Tour { progress: &progress, live: terminal.live, steps: Vec::new(), interrupted: false };
    let name = tour.run(args, interrupt)?;
    let (steps, interrupted) = (tour.steps, tour.interrupted);
    progress.rest();
    let ok = !interrupted && steps.iter().all(Step::ok);
    let took = began.elapsed();
    let report =
        Report { ok, lab: name, took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX), steps };
    progress.line("");
    progress.line(&verdict(&report, interrupted, took, &progress));
    if args.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&report)?))?;
    }
    Ok(match (interrupted, ok) {
        (true, _) => ExitCode::from(INTERRUPTED),
        (_, true) => ExitCode::SUCCESS,
        (_, false) => ExitCode::FAILURE,
    })
}

/// The way through the steps.
struct Tour<'a> {
    progress: &'a Progress,
    live: bool,
    steps: Vec<Step>,
    interrupted: bool,
}

impl Tour<'_> {
    /// The lab's name. An error only if there was no lab to show anything in.
    fn run(&mut self, args: &Demo, interrupt: &Interrupt) -> Result<String, DemoError> {
        let &Demo { keep, kubernetes, waypoint, .. } = args;
        let title = match waypoint {
            true => "A web shop on two nodes, in a mesh and behind a waypoint",
            false => "A web shop on two nodes, without a mesh",
        };
        let mut stage = Stage::begin(self.progress, self.live, "start", title);
        let opened = if waypoint {
            steps::open_guarded(&mut stage, interrupt)
        } else {
            steps::open(&mut stage, kubernetes, interrupt)
        };
        let mut shop = match opened {
            Ok(shop) => shop,
            // What fails after Ctrl-C, fails because of it: it reached the lab's tools too.
            Err(_) if interrupt.asked() => {
                self.interrupted = true;
                self.steps.push(stage.end(Some("interrupted".to_owned())));
                return Ok(String::new());
            }
            Err(error) => return Err(error),
        };
        self.steps.push(stage.end(None));
        let name = shop.ground.name().to_owned();
        let all: &[steps::Entry] = if waypoint { &steps::GUARDED } else { &steps::ALL };
        let all = all.iter().filter(|step| !(keep && step.only_without_keep));
        let went_through = all.into_iter().all(|step| self.step(step, &mut shop));
        if keep && went_through {
            let mut stage = Stage::begin(self.progress, self.live, "keep", "The shop stays open");
            let error = keep::hold(&mut stage, &shop).err();
            let error = error.filter(|error| !matches!(error, DemoError::Interrupted(_)));
            self.steps.push(stage.end(error.map(|error| error.to_string())));
        }
        self.remove(shop);
        Ok(name)
    }

    /// Whether the next step makes sense.
    fn step(&mut self, step: &steps::Entry, shop: &mut Shop) -> bool {
        let mut stage = Stage::begin(self.progress, self.live, step.id, step.title);
        match (step.run)(&mut stage, shop) {
            Ok(()) => {
                self.steps.push(stage.end(None));
                true
            }
            Err(_) if shop.interrupt.asked() => {
                self.interrupted = true;
                self.steps.push(stage.end(Some("interrupted".to_owned())));
                false
            }
            Err(error) => {
                self.steps.push(stage.end(Some(error.to_string())));
                false
            }
        }
    }

    fn remove(&mut self, shop: Shop) {
        let mut stage = Stage::begin(self.progress, self.live, "removal", "Everything is removed");
        stage.doing("ending all programs, removing namespaces, cgroups, pins and files");
        let began = Instant::now();
        let complaint = shop.ground.remove().join("; ");
        stage.measured("took_ms", milliseconds(began.elapsed()));
        stage.claim(
            complaint.is_empty(),
            match complaint.as_str() {
                "" => format!(
                    "no process, namespace, cgroup, BPF program or file is left ({})",
                    term::duration(began.elapsed())
                ),
                complaint => format!("left behind: {complaint}"),
            },
        );
        self.steps.push(stage.end(None));
    }
}

fn verdict(report: &Report, interrupted: bool, took: Duration, progress: &Progress) -> String {
    let claims = || report.steps.iter().flat_map(|step| &step.claims);
    let (all, held) = (claims().count(), claims().filter(|claim| claim.holds).count());
    let text = format!("{held} of {all} promises held; {}", term::duration(took));
    let style = progress.style;
    match (interrupted, report.ok) {
        (true, _) => style.yellow(&format!("interrupted; {text}")),
        (_, true) => style.bold(&style.green(&text)),
        (_, false) => {
            let errors = report.steps.iter().filter(|step| step.error.is_some()).count();
            let stopped =
                if errors > 0 { "; a step could not be run, and those after it were left out" } else { "" };
            style.bold(&style.red(&format!("{text}{stopped}")))
        }
    }
}

/// Milliseconds with a tenth, for scripts.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}
