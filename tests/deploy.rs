//! The chart: it renders, refuses what it does not know, and the manifests in deploy/ are what it makes.
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
fn the_rendered_manifests_are_fresh() {
    for name in ["airglow", "airglow-uninstall"] {
        let made = run(Command::new("scripts/render").arg(name));
        assert!(made.status.success(), "{}", text(&made.stderr));
        let path = format!("deploy/{name}.yaml");
        let kept =
            std::fs::read_to_string(root().join(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let made = text(&made.stdout);
        let different = made.lines().zip(kept.lines()).find(|(made, kept)| made != kept);
        assert!(made == kept, "{path} is stale, run `make render`; first difference: {different:?}");
    }
}

#[test]
fn uninstalling_takes_one_job_per_node_with_the_folders_of_the_ztunnel_that_served_it() {
    let folders = "ztunnel.cni.confDir=/k3s/net.d,ztunnel.cni.binDir=/k3s/bin,ztunnel.netnsDir=/k3s/netns";
    let only = ["--set", folders, "--show-only"];
    let rendered = |more: &[&str]| {
        let rendered = template(&[&only, more].concat());
        assert!(rendered.status.success(), "{}", text(&rendered.stderr));
        text(&rendered.stdout)
    };
    let jobs = rendered(&["templates/uninstall.yaml", "--set", "uninstallFrom={n1,n2}"]);
    assert_eq!(jobs.matches("kind: Job").count(), 2);
    assert!(jobs.contains("nodeName: n1") && jobs.contains("nodeName: n2"), "{jobs}");
    let served = rendered(&["templates/ztunnel.yaml"]);
    for name in ["netns", "bpf", "cni-conf", "cni-bin"] {
        let volume = format!("- name: {name}\n        hostPath: ");
        let of = |text: &str| {
            let (_, after) = text.split_once(&volume)?;
            let path = after.split_once("path: ")?.1.split(',').next()?;
            Some(path.to_owned())
        };
        assert_eq!(of(&jobs).expect(name), of(&served).expect(name), "the folder of {name}");
    }
    let all = template(&[]);
    assert!(!text(&all.stdout).contains("kind: Job"), "nothing is uninstalled unasked");
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
fn monitors_are_there_on_request_with_the_ports_and_paths_that_the_annotations_name() {
    let rendered = |more: &[&str]| {
        let rendered = template(more);
        assert!(rendered.status.success(), "{}", text(&rendered.stderr));
        text(&rendered.stdout)
    };
    let plain = rendered(&[]);
    assert!(!plain.contains("monitoring.coreos.com"), "most clusters have no such definitions");
    let on = "monitoring.enabled=true,monitoring.labels.release=prometheus,monitoring.interval=10s";
    let monitored = rendered(&["--set", on, "--show-only", "templates/monitoring.yaml"]);
    assert_eq!(monitored.matches("release: prometheus").count(), 2, "{monitored}");
    assert_eq!(monitored.matches("interval: 10s").count(), 2, "{monitored}");
    for (annotations, monitor) in [
        (
            ["prometheus.io/port: \"15020\"", "prometheus.io/path: /stats/prometheus"],
            ["$1:15020", "path: /stats/prometheus"],
        ),
        (
            ["prometheus.io/port: \"15014\"", "prometheus.io/path: /metrics"],
            ["port: http-monitoring", "path: /metrics"],
        ),
    ] {
        assert!(annotations.iter().all(|line| plain.contains(line)), "{annotations:?}");
        assert!(monitor.iter().all(|line| monitored.contains(line)), "{monitor:?} in {monitored}");
    }
    assert!(plain.contains("{name: http-monitoring, port: 15014"), "the Service has the monitor's port");
}

#[test]
fn waypoints_can_be_made_unless_they_are_switched_off() {
    let parts =
        ["AIRGLOW_WAYPOINT_TEMPLATE", "name: airglow-waypoint", "resources: [deployments]", "/waypoint:"];
    let rendered = |more: &[&str]| text(&template(more).stdout);
    let (on, off) = (rendered(&[]), rendered(&["--set", "waypoint.enabled=false"]));
    for part in parts {
        assert!(on.contains(part) && !off.contains(part), "{part}");
    }
    assert!(off.contains("gateways/status"), "that nothing is made of a Gateway can be said");
}

#[test]
fn waypoints_tell_a_collector_in_tls_what_the_chart_says_it_is_verified_with() {
    let values = "waypoint.tracing.endpoint=https://collector:4317,waypoint.tracing.roots=a PEM\ntext";
    let rendered = template(&["--set", values, "--show-only", "templates/waypoint.yaml"]);
    assert!(rendered.status.success(), "{}", text(&rendered.stderr));
    let rendered = text(&rendered.stdout);
    for part in [
        "airglow.dev/tracing-roots: \"a PEM\\ntext\"",
        "{name: AIRGLOW_TRACING_ROOT_CERT, value: /var/run/tracing/roots.pem}",
        "{name: tracing, mountPath: /var/run/tracing, readOnly: true}",
        "fieldPath: \"metadata.annotations['airglow.dev/tracing-roots']\"",
    ] {
        assert!(rendered.contains(part), "no {part} in {rendered}");
    }
}

#[test]
fn definitions_are_apart_from_what_is_templated() {
    // So that neither an upgrade nor an uninstallation touches those of another mesh, or takes users' policies away.
    let named =
        |more: &[&str]| text(&template(more).stdout).matches("kind: CustomResourceDefinition").count();
    assert_eq!((named(&[]), named(&["--include-crds"])), (0, 5));
}

#[test]
fn values_that_the_chart_does_not_know_are_refused() {
    for wrong in [
        "ztunel.accessLog=false",
        "ztunnel.accesslog=false",
        "controller.replicas=0",
        "logFormat=xml",
        "monitoring.interval=often",
        "ztunnel.controllerAddress=http://x",
        "ztunnel.cni.confDir=relative",
        "waypoint.tracing.endpoint=collector:4317",
        "waypoint.tracing.endpoint=https://collector:4317",
        "waypoint.tracing.roots=PEM",
    ] {
        let refused = template(&["--set", wrong]);
        assert!(!refused.status.success(), "{wrong} is taken");
    }
}
