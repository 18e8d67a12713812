//! Nothing stays behind, however the owner of a cluster ends, and neighbours do not notice.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lab::{Cluster, ClusterConfig};

use crate::{Namespace, eventually, shared};

/// All that a run leaves on the machine, looked for without the lab's help.
fn traces(run: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut look = |what: &str, there: bool| found.extend(there.then(|| what.to_owned()));
    look("its directory", Path::new("/run/airglow-lab").join(run).exists());
    let groups = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(groups).expect("control groups").flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([groups.to_owned()]) {
        look(&format!("a group in {}", hierarchy.display()), hierarchy.join(run).exists());
    }
    look("a mount", fs::read_to_string("/proc/self/mountinfo").expect("our mounts").contains(run));
    for process in fs::read_dir("/proc").expect("processes").flatten() {
        let read = |name: &str| fs::read_to_string(process.path().join(name)).unwrap_or_default();
        let is_zombie = read("stat").contains(") Z ");
        look(&format!("process {:?}", process.file_name()), !is_zombie && read("cgroup").contains(run));
    }
    found
}

/// Settings and places of the machine that kubelets and container runtimes like to write to.
fn machine() -> Vec<(String, String)> {
    let settings = ["vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"];
    let read = |name: &str| fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap_or_default();
    let mut found: Vec<_> = settings.iter().map(|name| ((*name).to_owned(), read(name))).collect();
    for path in [
        "/etc/cni",
        "/etc/kubernetes",
        "/opt/cni",
        "/var/lib/kubelet",
        "/var/lib/containerd",
        "/run/containerd",
    ] {
        found.push((path.to_owned(), Path::new(path).exists().to_string()));
    }
    found
}

#[test]
fn two_clusters_side_by_side_do_not_meet_and_one_goes_without_a_trace() {
    let before = machine();
    let first = Namespace::new(shared(), "neighbours");
    first.deploy_web(2);
    let second =
        Cluster::start(ClusterConfig { nodes: 1, ..ClusterConfig::default() }).expect("a second cluster");
    second.load_app_image().expect("the image for pods of tests");
    let namespace = Namespace::new(&second, "neighbours");
    namespace.deploy_web(1);
    let secret = shared().wire().watch("only-in-the-second-cluster");
    let [(pod, _, address)] = &namespace.pods()[..] else { panic!("one pod") };
    let answer = namespace.curl(pod, &format!("http://{address}:8080/only-in-the-second-cluster"));
    assert_eq!(answer["name"], *pod, "whatever has that address in the first cluster");
    assert_eq!(secret.sightings().expect("a complete capture"), []);
    let name = second.name().to_owned();
    assert!(!traces(&name).is_empty());
    drop(namespace);
    drop(second);
    without_a_trace(&name);
    assert_eq!(machine(), before);
    let (client, ..) = &first.pods()[0];
    let (server, _, address) = &first.pods()[1];
    assert_eq!(
        first.curl(client, &format!("http://{address}:8080/"))["name"],
        *server,
        "the other one lives on"
    );
}

#[test]
fn after_the_owner_is_killed_nothing_is_left() {
    let mut owner = Command::new(lab_run())
        .args(["cluster", "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("an owner of a cluster");
    let mut lines = BufReader::new(owner.stdout.take().expect("stdout is piped")).lines();
    let name = lines.next().expect("a line").expect("text");
    // The pipe stays open: an owner that cannot print would end in good order.
    let kubeconfig = lines.by_ref().map(|line| line.expect("text")).find(|line| line.contains("KUBECONFIG="));
    assert!(kubeconfig.expect("it comes up").contains(&name));
    assert!(!traces(&name).is_empty());
    owner.kill().expect("SIGKILL");
    owner.wait().expect("its end");
    without_a_trace(&name);
}

#[test]
fn a_cluster_that_can_not_start_says_so_and_leaves_nothing() {
    // With a launcher that can only clean up.
    let folder = std::env::temp_dir().join(format!("airglow-broken-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let launcher = format!("#!/bin/sh\n[ \"$1\" = reap ] || exit 7\nexec {} \"$@\"\n", lab_run().display());
    for (name, text) in [("lab-run", launcher.as_str()), ("lab-app", "")] {
        fs::write(folder.join(name), text).expect("a program");
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755)).expect("executable");
    }
    let config = ClusterConfig { nodes: 1, binaries: Some(folder.clone()), ..ClusterConfig::default() };
    let error = Cluster::start(config).expect_err("nothing can be started").to_string();
    let run = error.split("/run/airglow-lab/").nth(1).and_then(|rest| rest.get(..10));
    without_a_trace(run.unwrap_or_else(|| panic!("no run in {error:?}")));
    fs::remove_dir_all(&folder).expect("removed");
}

/// Waits until nothing is left of a run: by its reaper, or of processes that were killed and are not quite dead.
fn without_a_trace(run: &str) {
    eventually("removal of all traces", || match traces(run) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    });
}

/// Cargo builds it into the directory above the one that tests run from.
fn lab_run() -> PathBuf {
    let own = std::env::current_exe().expect("the running executable");
    own.parent().and_then(Path::parent).expect("a target directory").join("lab-run")
}
