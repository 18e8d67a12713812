//! `--keep`: the shop stays open with customers in it, and the user is told how to look around.
//!
//! Writes one small script into the lab's directory, which goes with it.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use super::error::DemoError;
use super::report::Stage;
use super::shop::{MODE, NAMESPACE, Shop, card};
use super::steps::FRONTEND;
use super::traffic::Browse;

/// Few enough to leave the machine alone for hours.
const EVERY: Duration = Duration::from_millis(200);

/// Keeps customers in the shop until Ctrl-C, which is not an error.
pub(super) fn hold(stage: &mut Stage<'_>, shop: &Shop) -> Result<(), DemoError> {
    let dir = shop.lab.dir().display().to_string();
    let inside =
        script(shop).map_err(|source| lab::LabError::System { doing: format!("write {dir}/in"), source })?;
    let inside = inside.display();
    let airglow = std::env::current_exe().unwrap_or_else(|_| "airglow".into());
    let airglow = airglow.display();
    let traffic = shop.browse(Browse::new(FRONTEND, &card()).crowd(2, EVERY))?;
    for (what, command) in [
        ("flows of both nodes", format!("{airglow} top --run-dir {dir}")),
        ("pods, certificates", format!("{airglow} pods --run-dir {dir}; {airglow} certs --run-dir {dir}")),
        ("a request from a pod", format!("{inside} shopper curl -s http://frontend/")),
        ("metrics of a node", format!("{inside} n1 curl -s http://localhost:15020/metrics")),
        ("what a ztunnel knows", format!("curl -s --unix-socket {dir}/n1/admin.sock http://n1/config_dump")),
        ("the wire", format!("{inside} n1 tcpdump -ni any tcp")),
        ("policies", format!("write YAML files into {dir}/manifests/")),
        (
            "into and out of the mesh",
            format!("edit the label {} in {dir}/manifests/namespace_{NAMESPACE}.yaml", MODE.0),
        ),
    ] {
        stage.say(&format!("{what:<25} {command}"));
    }
    stage.doing("customers are shopping; Ctrl-C ends and removes everything");
    while !shop.interrupt.asked() {
        shop.interrupt.pause(Duration::from_secs(1))?;
    }
    traffic.finish().map(drop)
}

/// A script that runs a program in a pod or on a node: in its cgroup, which is what the mesh knows it by, and its namespaces.
fn script(shop: &Shop) -> io::Result<PathBuf> {
    let mut text = String::from(
        "#!/bin/sh\n# Runs a program inside: in POD|NODE COMMAND...\nwhere=$1; shift\ncase $where in\n",
    );
    let mut case = |name: &str, cgroup: String, enter: String| {
        writeln!(text, "{name}) cgroup={cgroup}; enter='{enter}';;")
            .expect("writing to a String cannot fail");
    };
    for (name, process) in &shop.processes {
        let pod = shop.pod(name);
        let cgroup = pod.node().cgroup().join("kubepods").join(format!("pod{}", pod.uid()));
        case(name, cgroup.display().to_string(), format!("--target {process} --mount --net --uts"));
    }
    for node in shop.lab.nodes() {
        let cgroup = node.cgroup().join("system");
        case(node.name(), cgroup.display().to_string(), format!("--net={}", node.netns().path().display()));
    }
    text.push_str("*) echo \"in: no pod or node is called '$where'\" >&2; exit 2;;\nesac\n");
    text.push_str("echo $$ >$cgroup/cgroup.procs && exec nsenter $enter -- \"$@\"\n");
    let path = shop.lab.dir().join("in");
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}
