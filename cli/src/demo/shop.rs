//! The shop: two nodes, six pods, real HTTP between them. And what the steps ask of it.
//!
//! frontend calls cart and reviews, cart calls payments. Knows how the shop is built and how to look at the mesh around it; what
//! is promised about either is the steps' business.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use lab::{Env, Lab, LabConfig, Node, Pod, PodSpec, Program, ServiceSpec, Wire};
use serde::Deserialize;
use serde_json::Value;

use super::error::DemoError;
use super::traffic::{Browse, Traffic};
use crate::flows::{self, Pair, Totals};
use crate::interrupt::Interrupt;
use crate::metrics_text::samples;
use crate::{admin_client, show};

/// The namespace of the shop.
pub(crate) const NAMESPACE: &str = "shop";

/// The label of a namespace whose pods are in the mesh, and its value.
pub(crate) const MODE: (&str, &str) = ("istio.io/dataplane-mode", "ambient");

/// Where the shop's programs listen.
pub(crate) const PORT: u16 = 8080;

/// The port of tunnels between nodes.
pub(crate) const HBONE_PORT: u16 = 15008;

/// How long the mesh may take to follow a change before the demo gives up. It takes milliseconds; a debug build on a busy machine
/// takes seconds.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Name, node (by index), the services that it calls.
const PODS: [(&str, usize, &[&str]); 6] = [
    ("frontend", 0, &["cart", "reviews"]),
    ("cart-1", 0, &["payments"]),
    ("cart-2", 1, &["payments"]),
    ("reviews", 1, &[]),
    ("payments", 1, &[]),
    ("shopper", 0, &[]),
];

/// The services; `shopper` only asks.
const SERVICES: [&str; 4] = ["frontend", "cart", "reviews", "payments"];

/// What is in a pod that the mesh could have put there.
const LOOK_AROUND: &str = "
for family in 4 6; do ip -$family rule show; ip -$family route show table all; done
cat /proc/sys/net/ipv4/tcp_fwmark_accept /proc/sys/net/ipv4/fwmark_reflect /proc/sys/net/ipv6/fwmark_reflect
ss -Hltnu | awk '{ print $1, $5 }' | sort";

/// Counters by node and pair of workloads.
pub(crate) type Flows = BTreeMap<String, BTreeMap<Pair, Totals>>;

/// The running shop. Dropping it removes everything.
#[derive(Debug)]
pub(crate) struct Shop {
    pub(crate) lab: Lab,
    pods: BTreeMap<&'static str, Pod>,
    /// A process in each pod of the shop, whose mount namespace has the pod's /etc files.
    pub(crate) processes: BTreeMap<&'static str, u32>,
    program: Program,
    /// What pods and pins were like when the mesh was there and the shop not in it.
    pub(crate) before: Untouched,
    pub(crate) interrupt: Interrupt,
}

/// What a pod and its node's pins are like. Equal before enrolment and after, or something was left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Untouched {
    pods: BTreeMap<String, String>,
    pins: BTreeMap<String, Vec<PathBuf>>,
}

/// How a node's ztunnel sends to a workload.
#[derive(Debug, Deserialize)]
struct KnownWorkload {
    namespace: String,
    name: String,
    protocol: String,
}

impl Shop {
    /// Builds nodes and pods and starts the shop's programs. There is no mesh yet.
    pub(crate) fn open(interrupt: &Interrupt) -> Result<Self, DemoError> {
        let own = std::env::current_exe().unwrap_or_default();
        let program = own.with_file_name("airglow-shop");
        if !program.is_file() {
            return Err(DemoError::MissingShop(program.parent().unwrap_or(Path::new("/")).to_owned()));
        }
        let lab = Lab::start(LabConfig::default())?;
        interrupt.check()?;
        for service in SERVICES {
            let spec = ServiceSpec::new(NAMESPACE, service).selector("app", service).port("http", 80, PORT);
            lab.add_service(spec)?;
        }
        let mut shop = Self {
            lab,
            pods: BTreeMap::new(),
            processes: BTreeMap::new(),
            program: Program::new(program),
            before: Untouched::default(),
            interrupt: interrupt.clone(),
        };
        for (name, node, calls) in PODS {
            let app = name.split('-').next().unwrap_or(name);
            let spec = PodSpec::new(NAMESPACE, name).service_account(app).label("app", app);
            let pod = shop.lab.node(node).add_pod(spec)?;
            let process = shop.serve(&pod, calls)?;
            shop.processes.insert(name, process);
            shop.pods.insert(name, pod);
            interrupt.check()?;
        }
        Ok(shop)
    }

    /// Starts the controller and a ztunnel on each node. The shop is not in the mesh yet.
    pub(crate) fn install_mesh(&mut self) -> Result<(), DemoError> {
        self.lab.start_controller(Env::new())?;
        self.interrupt.check()?;
        thread::scope(|scope| {
            let starts: Vec<_> =
                self.lab.nodes().map(|node| scope.spawn(move || node.start_ztunnel(ztunnel_env()))).collect();
            starts.into_iter().try_for_each(|start| {
                start.join().expect("starting a ztunnel does not panic").map(drop).map_err(DemoError::from)
            })
        })?;
        self.before = self.look_around()?;
        Ok(())
    }

    /// Starts a service of the shop in a pod and waits until it listens. Its process id.
    pub(crate) fn serve(&self, pod: &Pod, calls: &[&str]) -> Result<u32, DemoError> {
        let calls = calls.iter().flat_map(|service| ["--call".to_owned(), format!("http://{service}/")]);
        let program = self.program.clone().args(["serve", "--name", pod.name()]).args(calls);
        let process = pod.spawn(program)?;
        process.wait_for_line("listening on", SOON)?;
        Ok(process.pid())
    }

    /// A pod of the shop.
    ///
    /// # Panics
    /// When it was not opened with one of that name.
    pub(crate) fn pod(&self, name: &str) -> &Pod {
        self.pods.get(name).expect("the shop's pods are named in PODS")
    }

    /// Number of pods.
    pub(crate) fn size(&self) -> usize {
        self.pods.len()
    }

    /// What crosses between nodes.
    pub(crate) fn wire(&self) -> &Wire {
        self.lab.wire()
    }

    /// Sends customers into the pod `shopper`.
    pub(crate) fn browse(&self, browse: Browse) -> Result<Traffic, DemoError> {
        self.browse_from(self.pod("shopper"), browse)
    }

    /// Sends customers into any pod.
    pub(crate) fn browse_from(&self, pod: &Pod, browse: Browse) -> Result<Traffic, DemoError> {
        Traffic::start(pod, &self.program, browse, &self.interrupt)
    }

    /// Puts the namespace into the mesh, or takes it out.
    pub(crate) fn label(&self, into_mesh: bool) -> Result<(), DemoError> {
        Ok(self.lab.label_namespace(NAMESPACE, MODE.0, into_mesh.then_some(MODE.1))?)
    }

    /// Waits until every node's ztunnel sends to every pod of the shop as it should: `HBONE` or `TCP`.
    pub(crate) fn wait_for_protocol(&self, protocol: &str) -> Result<(), DemoError> {
        self.wait_for(&format!("{protocol} to every pod of the shop"), || {
            for node in self.lab.nodes() {
                let known = known_workloads(&node)?;
                for name in self.pods.keys() {
                    let found =
                        known.iter().find(|known| known.name == **name && known.namespace == NAMESPACE);
                    let found = found.map_or("unknown", |known| known.protocol.as_str());
                    if found != protocol {
                        return Err(format!("to {}, {name} is {found}", node.name()));
                    }
                }
            }
            Ok(())
        })
    }

    /// Waits until every node's ztunnel says that of its pods' enrolment.
    pub(crate) fn wait_for_state(&self, state: &str) -> Result<(), DemoError> {
        self.wait_for(&format!("state `{state}` of every pod of the shop"), || {
            for node in self.lab.nodes() {
                let pods: Vec<show::Pod> =
                    admin_client::get_json(&node.run_dir().join("admin.sock"), "/pods")
                        .map_err(|error| error.to_string())?;
                let own = |pod: &&show::Pod| pod.pod.starts_with("shop/");
                if let Some(pod) = pods.iter().filter(own).find(|pod| pod.state != state) {
                    return Err(format!("{} is `{}` {}", pod.pod, pod.state, pod.message));
                }
            }
            Ok(())
        })
    }

    /// Looks until there is no complaint, and gives up at [`SOON`] or Ctrl-C.
    pub(crate) fn wait_for<T>(
        &self,
        what: &str,
        mut look: impl FnMut() -> Result<T, String>,
    ) -> Result<T, DemoError> {
        let mut last = String::new();
        let found = self.interrupt.wait_for(SOON, || look().map_err(|complaint| last = complaint).ok())?;
        found.ok_or_else(|| DemoError::Late { what: what.into(), within: SOON, last })
    }

    /// The counters of every node, by pair of workloads.
    pub(crate) fn flows(&self) -> Result<Flows, DemoError> {
        let of_node = |node: Node| {
            let text = admin_client::get(&node.run_dir().join("admin.sock"), "/metrics")?;
            Ok((node.name().to_owned(), flows::totals(&samples(&text, flows::METRICS))))
        };
        self.lab.nodes().map(of_node).collect()
    }

    /// The access log of a node's current ztunnel, the newest thousand lines or so.
    pub(crate) fn access_log(&self, node: &Node) -> Vec<Value> {
        let Some(ztunnel) = node.ztunnel() else { return Vec::new() };
        let output = ztunnel.output().stdout;
        let lines = output.lines().filter(|line| line.contains("\"scope\":\"access\""));
        lines.filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// What the pods and the nodes' pins are like now.
    pub(crate) fn look_around(&self) -> Result<Untouched, DemoError> {
        let mut pods = BTreeMap::new();
        for (name, pod) in &self.pods {
            let output = pod.run(["sh", "-ec", LOOK_AROUND])?;
            if !output.success() {
                return Err(DemoError::Silent {
                    command: format!("ip and ss in {name}"),
                    said: output.stderr,
                });
            }
            pods.insert((*name).to_owned(), output.stdout);
        }
        let pins = self.lab.nodes().map(|node| (node.name().to_owned(), files(&node.pins()))).collect();
        Ok(Untouched { pods, pins })
    }
}

impl Untouched {
    /// What is there now and was not before, or the other way round, as lines for people.
    pub(crate) fn differences(&self, now: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (name, before) in &self.pods {
            let after = now.pods.get(name).map_or("", String::as_str);
            let missing = |a: &str, b: &str| {
                let lines = a.lines().filter(|line| !b.lines().any(|other| other == *line));
                lines.map(str::to_owned).collect::<Vec<_>>()
            };
            found.extend(missing(after, before).into_iter().map(|line| format!("{name} still has: {line}")));
            found.extend(missing(before, after).into_iter().map(|line| format!("{name} has lost: {line}")));
        }
        for (node, before) in &self.pins {
            let after = now.pins.get(node).into_iter().flatten();
            found.extend(
                after
                    .filter(|pin| !before.contains(pin))
                    .map(|pin| format!("{node} still has: {}", pin.display())),
            );
        }
        found
    }
}

/// Access logs as JSON, so that they can be read.
pub(crate) fn ztunnel_env() -> Env {
    Env::from([("AIRGLOW_LOG_FORMAT".to_owned(), "json".to_owned())])
}

/// A card number that nobody else has: what must not be seen on the wire.
pub(crate) fn card() -> String {
    let block = || format!("{:04}", fastrand::u16(..10_000));
    format!("4000-{}-{}-{}-{}", block(), block(), block(), block())
}

fn known_workloads(node: &Node) -> Result<Vec<KnownWorkload>, String> {
    let dump: Result<Value, _> = admin_client::get_json(&node.run_dir().join("admin.sock"), "/config_dump");
    let mut dump = dump.map_err(|error| error.to_string())?;
    serde_json::from_value(dump["workloads"].take()).map_err(|error| error.to_string())
}

/// All files below a directory, sorted; none when it does not exist.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn untouched(pod: &str, pins: &[&str]) -> Untouched {
        Untouched {
            pods: BTreeMap::from([("cart".to_owned(), pod.to_owned())]),
            pins: BTreeMap::from([("n1".to_owned(), pins.iter().map(PathBuf::from).collect())]),
        }
    }

    #[test]
    fn what_was_left_behind_is_named() {
        let before = untouched("rule 1\nrule 2", &["/a"]);
        assert_eq!(before.differences(&before.clone()), Vec::<String>::new());
        let after = untouched("rule 2\nrule 9", &["/a", "/b"]);
        let expected = ["cart still has: rule 9", "cart has lost: rule 1", "n1 still has: /b"];
        assert_eq!(before.differences(&after), expected);
    }

    #[test]
    fn cards_are_no_two_alike() {
        assert_ne!(card(), card());
        assert_eq!(card().len(), 24);
    }
}
