//! The chart: it renders, refuses what it does not know, and deploy/airglow.yaml is what it makes.
//!
//! Needs helm, which scripts/cluster-binaries builds from its Go module if it was not built yet.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").to_owned()
}

fn run(command: &mut Command) -> Output {
    let output = command.current_dir(root()).output();
    output.unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn helm() -> PathBuf {
    let built = run(Command::new("scripts/cluster-binaries").arg("helm"));
    assert!(built.status.success(), "{}", text(&built.stderr));
    let listed = text(&run(Command::new("scripts/cluster-binaries").args(["--where", "helm"])).stdout);
    let path = listed.lines().find_map(|line| line.strip_prefix("helm\t"));
    path.unwrap_or_else(|| panic!("no helm in {listed:?}")).into()
}

fn template(more: &[&str]) -> Output {
    let chart = ["template", "airglow", "deploy/chart/airglow", "--namespace", "mesh"];
    run(Command::new(helm()).args(chart).args(more))
}

#[test]
fn the_rendered_manifest_is_fresh() {
    let made = run(&mut Command::new("scripts/render"));
    assert!(made.status.success(), "{}", text(&made.stderr));
    let kept = std::fs::read_to_string(root().join("deploy/airglow.yaml")).expect("deploy/airglow.yaml");
    let made = text(&made.stdout);
    let different = made.lines().zip(kept.lines()).find(|(made, kept)| made != kept);
    assert!(made == kept, "deploy/airglow.yaml is stale, run `make render`; first difference: {different:?}");
}

#[test]
fn the_chart_is_sound_and_has_no_hooks() {
    let linted = run(Command::new(helm()).args(["lint", "--strict", "deploy/chart/airglow"]));
    assert!(linted.status.success(), "{}{}", text(&linted.stdout), text(&linted.stderr));
    let rendered = template(&["--set", "ztunnel.env.AIRGLOW_THREADS=2,rootNamespace=istio-system"]);
    assert!(rendered.status.success(), "{}", text(&rendered.stderr));
    let rendered = text(&rendered.stdout);
    assert!(!rendered.contains("helm.sh/hook"), "uninstalling must not depend on a job that runs");
    for expected in [
        "{name: AIRGLOW_THREADS, value: \"2\"}",
        "{name: AIRGLOW_ROOT_NAMESPACE, value: \"istio-system\"}",
        "{name: AIRGLOW_CNI_ALWAYS_START, value: \"kube-system,mesh\"}",
        "{name: AIRGLOW_NODE_ACCOUNTS, value: mesh/ztunnel}",
    ] {
        assert!(rendered.contains(expected), "{expected} is missing");
    }
}

#[test]
fn values_that_the_chart_does_not_know_are_refused() {
    for wrong in [
        "ztunel.accessLog=false",
        "ztunnel.accesslog=false",
        "controller.replicas=0",
        "logFormat=xml",
        "ztunnel.controllerAddress=http://x",
        "ztunnel.cni.confDir=relative",
    ] {
        let refused = template(&["--set", wrong]);
        assert!(!refused.status.success(), "{wrong} is taken");
    }
}
