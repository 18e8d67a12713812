//! Nothing stays behind, however the owner of a lab ends.

use std::fs;
use std::io::{BufRead, BufReader};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lab::{Lab, LabConfig, PodSpec, wait_until};

use crate::{SOON, get, serve, start};

/// All that a run leaves on the machine, looked for without the lab's help.
fn traces(run: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut look = |what: &str, there: bool| found.extend(there.then(|| what.to_owned()));
    look("its directory", Path::new("/run/airglow-lab").join(run).exists());
    let hierarchies = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    look("its cgroup", hierarchies.iter().any(|root| Path::new(root).join(run).exists()));
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("our mounts");
    look("a mount", mounts.contains(run));
    let pins = fs::read_dir("/sys/fs/bpf/airglow").into_iter().flatten().flatten();
    look("pins", pins.map(|pin| pin.file_name()).any(|name| name.to_string_lossy().starts_with(run)));
    for process in fs::read_dir("/proc").expect("processes").flatten() {
        let read = |name: &str| fs::read_to_string(process.path().join(name)).unwrap_or_default();
        let is_zombie = read("stat").contains(") Z ");
        look(&format!("process {:?}", process.file_name()), !is_zombie && read("cgroup").contains(run));
    }
    found
}

fn pin_something(run: &str) -> PathBuf {
    let pins = PathBuf::from(format!("/sys/fs/bpf/airglow/{run}-n1/links"));
    fs::create_dir_all(&pins).expect("a directory on the BPF file system");
    pins
}

fn occupied() -> Lab {
    let lab = start(LabConfig::default());
    let pod = lab.node(0).add_pod(PodSpec::new("shop", "a")).expect("a pod");
    // A program with a child, in a session of its own, that ignores polite signals.
    let script = "trap '' TERM HUP; sleep 1000 & echo started; wait";
    let stubborn = pod.spawn(["setsid", "sh", "-c", script]).expect("a program");
    stubborn.wait_for_line("started", SOON).expect("its child");
    serve(&pod, &["echo"]);
    pin_something(lab.name());
    assert_eq!(traces(lab.name()).iter().filter(|trace| trace.starts_with("process")).count(), 3);
    lab
}

#[test]
fn after_a_drop_nothing_is_left_even_if_handles_are_held() {
    let lab = occupied();
    let (name, pod) = (lab.name().to_owned(), lab.node(1).add_pod(PodSpec::new("shop", "b")).expect("a pod"));
    drop(lab);
    assert_eq!(traces(&name), Vec::<String>::new());
    pod.spawn(["true"]).map(|process| process.wait(SOON)).expect_err("there is nowhere to run");
}

#[test]
fn after_a_panic_nothing_is_left() {
    let name = std::sync::Mutex::new(String::new());
    catch_unwind(|| {
        let lab = occupied();
        lab.name().clone_into(&mut name.lock().expect("nobody panics with it"));
        panic!("as a failing test does");
    })
    .expect_err("it panics");
    let name = name.into_inner().expect("nobody panics with it");
    assert_eq!(traces(&name), Vec::<String>::new());
}

#[test]
fn after_the_owner_is_killed_nothing_is_left() {
    let mut owner = Command::new(env!("CARGO_BIN_EXE_lab-run"))
        .arg("up")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("an owner of a lab");
    let mut lines = BufReader::new(owner.stdout.take().expect("stdout is piped")).lines();
    let name = lines.next().expect("a line").expect("text");
    assert!(lines.any(|line| line.expect("text").contains("Ctrl-D")), "it comes up");
    pin_something(&name);
    assert!(!traces(&name).is_empty());
    owner.kill().expect("SIGKILL");
    owner.wait().expect("its end");
    wait_until("removal by the reaper", SOON, || match traces(&name) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    })
    .expect("nothing is left");
}

#[test]
fn two_labs_side_by_side_do_not_meet() {
    let labs = [start(LabConfig::default()), start(LabConfig::default())];
    let secret = labs[1].wire().watch("only-in-the-first-lab");
    for (number, lab) in labs.iter().enumerate() {
        let server = lab.node(1).add_pod(PodSpec::new("shop", "web")).expect("a pod");
        serve(&server, &["http", "--name", &format!("lab-{number}")]);
    }
    let clients: Vec<_> =
        labs.iter().map(|lab| lab.node(0).add_pod(PodSpec::new("shop", "client")).expect("a pod")).collect();
    assert_eq!(get(&clients[0], "http://10.244.2.2:8080/only-in-the-first-lab")["name"], "lab-0");
    assert_eq!(get(&clients[1], "http://10.244.2.2:8080/")["name"], "lab-1");
    assert_eq!(secret.sightings().expect("a complete capture"), []);
    let [first, second] = labs;
    drop(first);
    assert_eq!(get(&clients[1], "http://10.244.2.2:8080/")["name"], "lab-1", "the other one lives on");
    drop(second);
}

#[test]
fn without_root_it_says_so() {
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", env!("CARGO_BIN_EXE_lab-run"), "up"])
        .output()
        .expect("setpriv of util-linux");
    let said = String::from_utf8_lossy(&output.stderr);
    let unreadable = said.contains("Permission denied"); // The tree may be out of nobody's reach.
    assert!(!output.status.success() && (unreadable || said.contains("needs root")), "{said}");
}
