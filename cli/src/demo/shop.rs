//! The shop: two nodes, pods, real HTTP between them. And what the steps ask of it.
//!
//! frontend calls cart and reviews, cart calls payments; the shop behind a waypoint has reviews and rates only. Knows who is in the shop and how to look at the mesh around it, wherever
//! it stands (`ground`); what is promised about either is the steps' business.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::error::DemoError;
use super::ground::{Ground, Hosts, Kubernetes, Member, NAMESPACE, Place, Waypoint};
use super::traffic::{Browse, Traffic};
use crate::flows::{self, Pair, Totals};
use crate::interrupt::Interrupt;
use crate::metrics_text::samples;
use crate::{admin_client, show};

/// The port of tunnels between nodes.
pub(crate) const HBONE_PORT: u16 = 15008;

/// The pods. `shopper` only asks.
const PODS: [Member; 6] = [
    member("frontend", 0, "frontend", &["cart", "reviews"]),
    member("cart-1", 0, "cart", &["payments"]),
    member("cart-2", 1, "cart", &["payments"]),
    member("reviews", 1, "reviews", &[]),
    member("payments", 1, "payments", &[]),
    member("shopper", 0, "shopper", &[]),
];

/// The services.
const SERVICES: [&str; 4] = ["frontend", "cart", "reviews", "payments"];

/// Who there is: each pod acts for one of them.
const ACCOUNTS: [&str; 5] = ["frontend", "cart", "reviews", "payments", "shopper"];

/// The pods of the shop behind a waypoint. `shopper` and `partner` only ask.
const GUARDED_PODS: [Member; 7] = [
    member("reviews-1", 0, "reviews", &[]),
    member("reviews-2", 1, "reviews", &[]),
    member("reviews-new", 1, "reviews-new", &[]),
    member("rates-1", 0, "rates", &[]),
    Member { fails_every: Some(8), ..member("rates-2", 1, "rates", &[]) },
    member("shopper", 0, "shopper", &[]),
    member("partner", 0, "partner", &[]),
];

/// The services there.
const GUARDED_SERVICES: [&str; 3] = ["reviews", "reviews-new", "rates"];

/// What is in a pod that the mesh could have put there.
const LOOK_AROUND: &str = "
for family in 4 6; do ip -$family rule show; ip -$family route show table all; done
cat /proc/sys/net/ipv4/tcp_fwmark_accept /proc/sys/net/ipv4/fwmark_reflect /proc/sys/net/ipv6/fwmark_reflect
ss -Hltnu | awk '{ print $1, $5 }' | sort";

/// Where customers shop; behind a waypoint, what they read.
pub(crate) const FRONTEND: &str = "http://frontend/";
pub(crate) const REVIEWS: &str = "http://reviews/";

/// Counters by node and pair of workloads.
pub(crate) type Flows = BTreeMap<String, BTreeMap<Pair, Totals>>;

/// The running shop. Dropping it removes everything.
#[derive(Debug)]
pub(crate) struct Shop {
    pub(crate) ground: Box<dyn Ground>,
    /// The names of its pods.
    pods: Vec<&'static str>,
    /// What pods and pins were like when the mesh was there and the shop not in it.
    pub(crate) before: Untouched,
    /// The one that its services are behind, if any.
    pub(crate) waypoint: Option<Waypoint>,
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

const fn member(
    name: &'static str,
    node: usize,
    app: &'static str,
    calls: &'static [&'static str],
) -> Member {
    Member { name, node, app, is_found: true, calls, fails_every: None }
}

impl Shop {
    /// Makes nodes and pods and starts the shop's programs, on a Kubernetes or on hosts. There is no mesh yet.
    pub(crate) fn open(kubernetes: bool, interrupt: &Interrupt) -> Result<Self, DemoError> {
        let program = program()?;
        let ground: Box<dyn Ground> = if kubernetes {
            Box::new(Kubernetes::start(&program, &SERVICES, &ACCOUNTS, interrupt)?)
        } else {
            Box::new(Hosts::start(&program, &SERVICES)?)
        };
        interrupt.check()?;
        let shop = Self::on(ground, &PODS, interrupt)?;
        interrupt.check()?;
        Ok(shop)
    }

    /// The same on hosts, in the mesh and behind a waypoint.
    pub(crate) fn open_guarded(interrupt: &Interrupt) -> Result<Self, DemoError> {
        let mut hosts = Hosts::start(&program()?, &GUARDED_SERVICES)?;
        hosts.start_mesh(interrupt)?;
        let waypoint = hosts.start_waypoint()?;
        hosts.label(true)?;
        interrupt.check()?;
        let mut shop = Self::on(Box::new(hosts), &GUARDED_PODS, interrupt)?;
        shop.waypoint = Some(waypoint);
        shop.wait_for_state("enrolled")?;
        shop.wait_for_protocol("HBONE")?;
        Ok(shop)
    }

    fn on(mut ground: Box<dyn Ground>, members: &[Member], interrupt: &Interrupt) -> Result<Self, DemoError> {
        ground.add(members)?;
        let pods = members.iter().map(|member| member.name).collect();
        let interrupt = interrupt.clone();
        Ok(Self { ground, pods, before: Untouched::default(), waypoint: None, interrupt })
    }

    /// Starts the mesh. The shop is not in it yet.
    pub(crate) fn install_mesh(&mut self) -> Result<(), DemoError> {
        self.ground.start_mesh(&self.interrupt)?;
        self.before = self.look_around()?;
        Ok(())
    }

    /// Number of pods.
    pub(crate) fn size(&self) -> usize {
        self.pods.len()
    }

    /// Sends customers into the pod `shopper`.
    pub(crate) fn browse(&self, browse: Browse) -> Result<Traffic, DemoError> {
        self.browse_from("shopper", browse)
    }

    /// Sends customers into any pod.
    pub(crate) fn browse_from(&self, pod: &str, browse: Browse) -> Result<Traffic, DemoError> {
        Ok(Traffic::new(self.ground.spawn(pod, &browse.args())?, &self.interrupt))
    }

    /// Waits until every node's ztunnel sends to every pod of the shop as it should: `HBONE` or `TCP`.
    pub(crate) fn wait_for_protocol(&self, protocol: &str) -> Result<(), DemoError> {
        let places = self.ground.places()?;
        self.wait_for(&format!("{protocol} to every pod of the shop"), || {
            for place in &places {
                let known = known_workloads(place)?;
                for name in &self.pods {
                    let found =
                        known.iter().find(|known| known.name == **name && known.namespace == NAMESPACE);
                    let found = found.map_or("unknown", |known| known.protocol.as_str());
                    if found != protocol {
                        return Err(format!("to {}, {name} is {found}", place.name));
                    }
                }
            }
            Ok(())
        })
    }

    /// Waits until every node's ztunnel says that of its pods' enrolment.
    pub(crate) fn wait_for_state(&self, state: &str) -> Result<(), DemoError> {
        self.pods.iter().try_for_each(|pod| self.wait_for_state_of(pod, state))
    }

    /// Waits until its node's ztunnel says that of a pod's enrolment.
    pub(crate) fn wait_for_state_of(&self, pod: &str, state: &str) -> Result<(), DemoError> {
        let node = self.ground.node_of(pod);
        let places = self.ground.places()?;
        let place = places.iter().find(|place| place.name == node).expect("a pod is on a node");
        let pod = format!("{NAMESPACE}/{pod}");
        self.wait_for(&format!("state `{state}` of {pod}"), || {
            let pods: Vec<show::Pod> =
                admin_client::get_json(&place.admin, "/pods").map_err(|error| error.to_string())?;
            match pods.iter().find(|known| known.pod == pod) {
                Some(known) if known.state == state => Ok(()),
                Some(known) => Err(format!("it is `{}` {}", known.state, known.message)),
                None => Err(format!("{node} does not know it")),
            }
        })
    }

    /// Looks until there is no complaint, and gives up when that takes too long or at Ctrl-C.
    pub(crate) fn wait_for<T>(
        &self,
        what: &str,
        mut look: impl FnMut() -> Result<T, String>,
    ) -> Result<T, DemoError> {
        let (mut last, within) = (String::new(), self.ground.patience());
        let found = self.interrupt.wait_for(within, || look().map_err(|complaint| last = complaint).ok())?;
        found.ok_or_else(|| DemoError::Late { what: what.into(), within, last })
    }

    /// The counters of every node, by pair of workloads.
    pub(crate) fn flows(&self) -> Result<Flows, DemoError> {
        let of_node = |place: Place| {
            let text = admin_client::get(&place.admin, "/metrics")?;
            Ok((place.name, flows::totals(&samples(&text, flows::METRICS))))
        };
        self.ground.places()?.into_iter().map(of_node).collect()
    }

    /// Where customers shop.
    pub(crate) fn front(&self) -> &'static str {
        if self.waypoint.is_some() { REVIEWS } else { FRONTEND }
    }

    /// The access log of a node's current ztunnel, the newest thousand lines or so.
    pub(crate) fn access_log(&self, node: &str) -> Result<Vec<Value>, DemoError> {
        let log = self.ground.ztunnel_log(node)?;
        let lines = log.lines().filter(|line| line.contains("\"scope\":\"access\""));
        Ok(lines.filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// What the pods and the nodes' pins are like now.
    pub(crate) fn look_around(&self) -> Result<Untouched, DemoError> {
        let mut pods = BTreeMap::new();
        for name in &self.pods {
            let output = self.ground.look(name, LOOK_AROUND)?;
            if !output.success() {
                return Err(DemoError::Silent {
                    command: format!("ip and ss in {name}"),
                    said: output.stderr,
                });
            }
            pods.insert((*name).to_owned(), output.stdout);
        }
        let places = self.ground.places()?;
        let pins = places.into_iter().map(|place| (place.name, files(&place.pins))).collect();
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

/// A card number that nobody else has: what must not be seen on the wire.
pub(crate) fn card() -> String {
    let block = || format!("{:04}", fastrand::u16(..10_000));
    format!("4000-{}-{}-{}-{}", block(), block(), block(), block())
}

/// What pods of the shop run, beside this program.
fn program() -> Result<PathBuf, DemoError> {
    let own = std::env::current_exe().unwrap_or_default();
    let program = own.with_file_name("airglow-shop");
    if program.is_file() {
        Ok(program)
    } else {
        Err(DemoError::MissingShop(program.parent().unwrap_or(Path::new("/")).to_owned()))
    }
}

fn known_workloads(place: &Place) -> Result<Vec<KnownWorkload>, String> {
    let dump: Result<Value, _> = admin_client::get_json(&place.admin, "/config_dump");
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
