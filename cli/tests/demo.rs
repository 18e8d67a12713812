//! The demo as a user runs it: its promises, its exit status, and that it leaves nothing behind, however it ends.
//!
//! Needs root and the other programs of this workspace beside `airglow`; fails when it cannot run.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const AIRGLOW: &str = env!("CARGO_BIN_EXE_airglow");

/// The steps without a waypoint.
const MESH: &[&str] = &[
    "start",
    "plaintext",
    "label",
    "identity",
    "policy",
    "pods",
    "restart",
    "kill",
    "telemetry",
    "unlabel",
    "removal",
];

#[test]
fn every_promise_of_the_demo_holds() {
    every_promise_holds(&["demo", "--json"], MESH);
}

#[test]
fn every_promise_of_the_waypoint_holds() {
    let steps = ["start", "canary", "ab", "fault", "retry", "outage", "removal"];
    let report = every_promise_holds(&["demo", "--json", "--waypoint"], &steps);
    let measured = |step: usize, name: &str| {
        let value = &report["steps"][step]["measured"][name];
        value.as_u64().unwrap_or_else(|| panic!("{name} of step {step} is {value}"))
    };
    assert!(measured(1, "requests_90_10") >= 600 && measured(1, "requests_50_50") >= 600);
    assert!(measured(1, "canary_90_10") < measured(1, "canary_50_50"));
    assert_eq!([measured(2, "a_new"), measured(2, "b_new")], [0, 40]);
    assert_eq!(measured(3, "aborted"), 30);
    assert!(measured(4, "failed_without") > 0 && measured(4, "hidden") > 0);
    assert_eq!([measured(4, "failed_with"), measured(5, "refused")], [0, 20]);
}

/// Needs the programs that `scripts/cluster-binaries` builds, too.
#[test]
fn every_promise_holds_on_kubernetes() {
    every_promise_holds(&["demo", "--json", "--kubernetes"], MESH);
}

fn every_promise_holds(args: &[&str], expected: &[&str]) -> Value {
    let output = Command::new(AIRGLOW).args(args).output().expect("airglow runs");
    let progress = String::from_utf8_lossy(&output.stderr);
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {progress}"));
    assert_eq!(output.status.code(), Some(0), "{progress}");
    assert_eq!(report["ok"], true, "{progress}");
    let steps: Vec<_> =
        report["steps"].as_array().expect("steps").iter().map(|step| step["id"].as_str()).collect();
    assert_eq!(steps, expected.iter().copied().map(Some).collect::<Vec<_>>());
    assert!(!progress.contains('\x1b'), "colours without a terminal: {progress}");
    assert_gone(report["lab"].as_str().expect("the lab's name"));
    report
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    let mut demo = Command::new(AIRGLOW)
        .arg("demo")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("airglow runs");
    let mut lines = BufReader::new(demo.stdout.take().expect("stdout is piped")).lines();
    let seen = lines
        .by_ref()
        .map_while(Result::ok)
        .find(|line| line.contains("controller and two ztunnels are ready"));
    assert!(seen.is_some(), "the mesh was never ready");
    let labs = labs_of(demo.id());
    assert_eq!(labs.len(), 1, "{labs:?}");
    let pid = Pid::from_raw(demo.id().try_into().expect("a pid fits"));
    kill(pid, Signal::SIGINT).expect("it runs");
    let rest: Vec<_> = lines.map_while(Result::ok).collect();
    let status = demo.wait().expect("our own child");
    assert_eq!(status.code(), Some(130), "{rest:#?}");
    assert!(rest.last().is_some_and(|line| line.starts_with("interrupted")), "{rest:#?}");
    assert_gone(&labs[0]);
}

#[test]
fn asking_nobody_says_so() {
    let output =
        Command::new(AIRGLOW).args(["top", "--once", "--run-dir", "/none"]).output().expect("airglow runs");
    assert_eq!(output.status.code(), Some(2));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(complaint.contains("/none"), "{complaint}");
}

/// The labs whose lock a process holds open.
fn labs_of(pid: u32) -> Vec<String> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").flatten();
    let files = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    let locks = files.filter(|file| file.starts_with("/run/airglow-lab") && file.ends_with("lock"));
    locks.filter_map(|lock| Some(lock.parent()?.file_name()?.to_string_lossy().into_owned())).collect()
}

fn assert_gone(lab: &str) {
    assert!(lab.starts_with("ag"), "{lab}");
    for dir in ["/run/airglow-lab", "/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/bpf/airglow"] {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            assert!(!name.to_string_lossy().starts_with(lab), "{dir}/{} is left", name.to_string_lossy());
        }
    }
    let mounts = std::fs::read_to_string("/proc/mounts").expect("every process has mounts");
    assert!(!mounts.contains(lab), "a namespace of {lab} is still mounted");
}
