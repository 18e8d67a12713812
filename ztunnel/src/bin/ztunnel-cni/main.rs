//! `ztunnel-cni`, the chained CNI plugin: no pod of the mesh starts before its traffic is captured.
//!
//! Hands sandboxes to the node's ztunnel and waits for its answer; passes the network that earlier plugins made on as it is.
//! Touches no network itself, asks no API server, and lives as short as it can: kubelet waits for it.

mod call;
mod decide;
mod error;
mod node;

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use daemon::config::Environment;
use serde_json::{Value, json};

use call::{Call, Sandbox, Settings, Work};
use decide::Decision;
use error::{CniError, Code};

/// How long a pod that must not start is tried again here before kubelet is told: a ztunnel that is replaced or restarted
/// is back within seconds, and kubelet's own next attempt would come later than that.
const PERSEVERE: Duration = Duration::from_secs(10);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(200);
/// A configuration is a few kilobytes; results of earlier plugins stay below a hundred. Ten times that is no input for us.
const MAX_INPUT: u64 = 1024 * 1024;

fn main() -> ExitCode {
    let mut input = Vec::new();
    let read = io::stdin().take(MAX_INPUT).read_to_end(&mut input);
    let outcome = match read {
        Err(error) => Err(CniError::new(Code::Io, format!("can't read the configuration: {error}"))),
        Ok(_) => call::parse(&Environment::read(), &input).and_then(act),
    };
    let (text, status) = match outcome {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(result)) => (result, ExitCode::SUCCESS),
        Err(error) => (error.to_json(&call::version(&input)), ExitCode::FAILURE),
    };
    // Nobody is left to tell if the runtime does not read.
    let _ = writeln!(io::stdout(), "{text}");
    status
}

/// Does what was asked; returns what is to be printed.
fn act(Call { settings, work }: Call) -> Result<Option<Value>, CniError> {
    match work {
        Work::Add { sandbox, result } => add(&settings, &sandbox).map(|()| Some(result)),
        Work::Check(sandbox) => check(&settings, &sandbox).map(|()| None),
        Work::Delete { uid, sandbox_id } => {
            delete(&settings.run_dir, &uid, &sandbox_id);
            Ok(None)
        }
        Work::Collect(valid) => {
            collect(&settings.run_dir, &valid);
            Ok(None)
        }
        // Pods that are never in the mesh start without a ztunnel, and a runtime that hears that we are not ready starts
        // none at all: which of them wait for one is decided for each.
        Work::Nothing | Work::Status => Ok(None),
        Work::Version => {
            let newest = call::SUPPORTED.last().expect("some version is supported");
            Ok(Some(json!({"cniVersion": newest, "supportedVersions": call::SUPPORTED})))
        }
    }
}

fn add(settings: &Settings, sandbox: &Sandbox) -> Result<(), CniError> {
    if settings.always_starts(&sandbox.namespace) {
        return Ok(());
    }
    let started = Instant::now();
    loop {
        let answer = node::add(&settings.run_dir, sandbox);
        let known = node::last_known(&settings.run_dir);
        match decide::add(sandbox, &answer, known.as_ref()) {
            Decision::Start => return Ok(()),
            Decision::Wait(why) if started.elapsed() >= PERSEVERE => {
                return Err(CniError::new(Code::TryAgainLater, why));
            }
            Decision::Wait(_) => thread::sleep(PAUSE),
        }
    }
}

fn check(settings: &Settings, sandbox: &Sandbox) -> Result<(), CniError> {
    if settings.always_starts(&sandbox.namespace) {
        return Ok(());
    }
    let pods =
        node::list(&settings.run_dir).map_err(|problem| CniError::new(Code::TryAgainLater, problem))?;
    decide::check(sandbox, &pods).map_err(|problem| CniError::new(Code::TryAgainLater, problem))
}

/// A pod's end is not held up: ztunnel forgets it now, or when it is back and neither its file nor its sandbox is there.
fn delete(run_dir: &Path, uid: &str, sandbox_id: &str) {
    if let Err(problem) = node::delete(run_dir, uid, sandbox_id) {
        eprintln!("ztunnel-cni: {problem}; it forgets the pod later");
        node::forget(run_dir, uid, sandbox_id);
    }
}

fn collect(run_dir: &Path, valid: &BTreeSet<String>) {
    let Ok(pods) = node::list(run_dir) else { return };
    for pod in decide::stale(&pods, valid, |netns| !netns.exists()) {
        delete(run_dir, &pod.uid, &pod.sandbox_id);
    }
}
