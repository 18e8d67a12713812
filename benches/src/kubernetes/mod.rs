//! `bench kubernetes`: enrolment on a real cluster, from the moment before a namespace's label is written.
//!
//! One cluster, one namespace that goes into the mesh and out of it again and again while one of its pods makes new connections
//! all the time. A pod that has left keeps nothing, its certificate included, so every time is a first time.

mod door;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};
use lab::{APP_IMAGE, Cluster, ClusterConfig, wait_looking_every, wait_until};
use serde::Serialize;

use crate::machine::{self, Machine};
use crate::stats::percentile;
use crate::table::{Table, number};
use door::{ApiServer, Pods};

/// Where the mesh is installed.
const SYSTEM: &str = "airglow-system";
/// The namespace that is labelled.
const TEAM: &str = "team";
/// The pods that are always there: one that calls and one that answers.
const TALKING: usize = 2;
/// Where the answering pod listens.
const ECHO_PORT: u16 = 8080;
/// Where tunnels lead.
const HBONE_PORT: u16 = 15008;
/// Between two connections of the calling pod. New ones come often enough not to blur what is measured, and leave the machine idle
/// enough for it.
const CALL_EVERY_MS: &str = "2";
/// How long each step may take.
const WITHIN: Duration = Duration::from_secs(180);
/// Between two looks at what the nodes' ztunnels know: both together take a part of a millisecond.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// How often the namespace is labelled
    #[arg(long, default_value_t = 60)]
    times: usize,
    /// How many pods are in it
    #[arg(long, default_value_t = 20)]
    pods: usize,
    /// Where to write everything that was measured, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Everything that was measured, and on what.
#[derive(Debug, Serialize)]
struct Results {
    machine: Machine,
    pods: usize,
    /// From the label to the first encrypted byte of a new connection.
    encrypted_us: Vec<u64>,
    /// From the label until every pod is enrolled.
    enrolled_us: Vec<u64>,
    /// What became of the connections that were made meanwhile.
    connections: serde_json::Value,
}

/// Measures and prints.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.times > 0, "--times must be at least 1");
    ensure!(args.pods >= TALKING, "--pods must be at least {TALKING}: one calls the other");
    let machine = machine::describe()?;
    say("starting a cluster with a mesh");
    let cluster = Cluster::start(ClusterConfig::default())?;
    cluster.load_app_image()?;
    cluster.load_mesh_images()?;
    // The mesh's programs find each other by name.
    cluster.start_dns()?;
    install(&cluster)?;
    let team = Team::start(&cluster, args.pods)?;
    say(&format!("labelling a namespace of {} pods {} times", args.pods, args.times));
    let (mut encrypted_us, mut enrolled_us) = (Vec::new(), Vec::new());
    for number in 0..args.times {
        let (encrypted, enrolled) = team.enrol().with_context(|| format!("label {number}"))?;
        encrypted_us.push(u64::try_from(encrypted.as_micros())?);
        enrolled_us.push(u64::try_from(enrolled.as_micros())?);
        team.leave().with_context(|| format!("label {number}"))?;
    }
    let results =
        Results { machine, pods: args.pods, encrypted_us, enrolled_us, connections: team.connections()? };
    print!("{}", results.to_markdown());
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&results)?;
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn install(cluster: &Cluster) -> anyhow::Result<()> {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart/airglow").display().to_string();
    let values = cluster.mesh_values();
    cluster.helm(&["install", "airglow", &chart, "-n", SYSTEM, "--create-namespace", "--set", &values])?;
    for workload in ["deployment/airglow-controller", "daemonset/ztunnel"] {
        cluster.rolled_out(SYSTEM, workload, WITHIN)?;
    }
    Ok(())
}

/// A namespace of pods, of which one calls another on the other node by ever new connections.
struct Team<'a> {
    cluster: &'a Cluster,
    api: ApiServer,
    nodes: Vec<Pods>,
    pods: usize,
    client: String,
}

impl<'a> Team<'a> {
    fn start(cluster: &'a Cluster, pods: usize) -> anyhow::Result<Self> {
        let pod = |name: &str, node: &str, args: &[&str]| {
            let args = serde_json::to_string(args).unwrap_or_default();
            format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {TEAM}}}\n\
                 spec: {{nodeName: {node}, terminationGracePeriodSeconds: 0, restartPolicy: Never,\n  \
                 containers: [{{name: app, image: {APP_IMAGE}, args: {args}}}]}}\n"
            )
        };
        let others = pods - TALKING;
        let crowd = format!(
            "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: crowd, namespace: {TEAM}}}\n\
             spec:\n  replicas: {others}\n  selector: {{matchLabels: {{app: crowd}}}}\n  template:\n    \
             metadata: {{labels: {{app: crowd}}}}\n    spec:\n      \
             containers: [{{name: app, image: {APP_IMAGE}, args: [echo]}}]\n"
        );
        cluster.kubectl(&["create", "namespace", TEAM])?;
        cluster.apply(&(pod("server", "n2", &["echo"]) + &crowd))?;
        cluster.rolled_out(TEAM, "deployment/crowd", WITHIN)?;
        let ready = |name: &str| {
            let within = format!("--timeout={}s", WITHIN.as_secs());
            cluster.kubectl(&["-n", TEAM, "wait", "pod", name, "--for=condition=Ready", &within])?;
            cluster.kubectl(&["-n", TEAM, "get", "pod", name, "-o", "jsonpath={.status.podIP}"])
        };
        let to = format!("{}:{ECHO_PORT}", ready("server")?);
        let load =
            ["load", "--mode", "new", "--connections", "1", "--interval-ms", CALL_EVERY_MS, "--to", &to];
        cluster.apply(&pod("client", "n1", &load))?;
        let client = ready("client")?;
        let nodes = cluster.nodes().map(|node| Pods::of(&node)).collect::<Result<_, _>>()?;
        let team = Self { cluster, api: ApiServer::reach(cluster)?, nodes, pods, client };
        team.until("not wanted")?;
        Ok(team)
    }

    /// Labels the namespace; the times until a new connection is encrypted, and until every pod is enrolled.
    fn enrol(&self) -> anyhow::Result<(Duration, Duration)> {
        let encrypted = self.cluster.wire().watch_port(HBONE_PORT);
        let labelled = SystemTime::now();
        self.api.label(TEAM, Some("ambient"))?;
        let first = wait_until("the first encrypted byte", WITHIN, || {
            let sightings = encrypted.sightings()?;
            match sightings.iter().find(|sighting| sighting.from.ip().to_string() == self.client) {
                Some(first) => anyhow::Ok(first.at),
                None => bail!("{} segments of others", sightings.len()),
            }
        })?;
        self.until("enrolled")?;
        let enrolled = SystemTime::now();
        let since = |then: SystemTime| then.duration_since(labelled).context("it came before the label");
        Ok((since(first)?, since(enrolled)?))
    }

    /// Takes the label away, and waits until nothing is left of the enrolment.
    fn leave(&self) -> anyhow::Result<()> {
        self.api.label(TEAM, None)?;
        self.until("not wanted")
    }

    fn until(&self, state: &str) -> anyhow::Result<()> {
        wait_looking_every(LOOK_EVERY, &format!("every pod is {state}"), WITHIN, || {
            let mut so = 0;
            for node in &self.nodes {
                so += node.count(TEAM, state)?;
            }
            ensure!(so == self.pods, "{so} of {} are", self.pods);
            Ok(())
        })?;
        Ok(())
    }

    /// Ends the calling pod; its account of all its connections.
    fn connections(&self) -> anyhow::Result<serde_json::Value> {
        // The shell ends with its container's first process, so kubectl may complain although all is well.
        drop(self.cluster.kubectl(&["-n", TEAM, "exec", "client", "--", "sh", "-c", "kill -TERM 1"]));
        let account = wait_until("the account of connections", WITHIN, || {
            let log = self.cluster.kubectl(&["-n", TEAM, "logs", "client", "--tail=1"])?;
            serde_json::from_str(&log).with_context(|| log)
        })?;
        Ok(account)
    }
}

impl Results {
    fn to_markdown(&self) -> String {
        let Self { machine, pods, encrypted_us, enrolled_us, connections } = self;
        let all_enrolled = format!("until all {pods} pods are enrolled");
        let mut table = Table::new(["from the label, ms", "p50", "p90", "p99", "longest"]);
        for (what, times) in [
            ("to the first encrypted byte of a new connection", encrypted_us),
            (all_enrolled.as_str(), enrolled_us),
        ] {
            let mut times = times.clone();
            let mut at = |p| number(percentile(&mut times, p).unwrap_or(0) as f64 / 1e3);
            table.row(vec![what.into(), at(0.5), at(0.9), at(0.99), at(1.0)]);
        }
        format!(
            "{machine}.\n\n### Enrolment of a namespace of {pods} pods on two nodes, {} times\n\n{}\n\
             Of {} connections meanwhile {} failed.\n",
            encrypted_us.len(),
            table.to_markdown(),
            connections["started"],
            connections["failed"],
        )
    }
}

/// Says what is being done, beside the results on stdout.
fn say(text: &str) {
    eprintln!("bench: {text}");
}
