//! Who is guarded by which waypoint: labels of the object, the account that it runs as, labels of its namespace, and a waypoint
//! that comes when it is needed, in that order.
//!
//! What names a waypoint is never reached without one: where the waypoint is absent or may not be used, the way leads
//! nowhere and is refused. Owns no waypoint; that is in `waypoint`.

use model::service::{GatewayAddress, WeightedWaypoint};

use super::Config;
use super::cluster::{Cluster, Name, name_of, selects, within};
use super::waypoint::{self, Guards};
use super::{automatic, gateways, workload, workload_entry};
use crate::source::objects::{Gateway, Labels, Metadata, Service};

const USE: &str = "istio.io/use-waypoint";
const USE_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
const CANARY: &str = "istio.io/use-waypoint-canary";
const CANARY_NAMESPACE: &str = "istio.io/use-waypoint-canary-namespace";
const CANARY_WEIGHT: &str = "istio.io/use-waypoint-canary-weight";
const INGRESS: &str = "istio.io/ingress-use-waypoint";

/// The name that stands for no waypoint.
const NONE: &str = "none";

/// What guards something.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Attachment {
    /// The waypoint.
    pub(crate) waypoint: Option<GatewayAddress>,
    /// The waypoint and its canary, with their shares.
    pub(crate) weighted: Vec<WeightedWaypoint>,
    /// What there is to say about it, if it was asked for.
    pub(crate) bound: Option<Bound>,
}

/// What became of the wish to be guarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Whether it is met.
    pub is_met: bool,
    /// Why, in a word of Istio's.
    pub reason: &'static str,
    /// Why, for people.
    pub message: String,
    /// Whether it holds from now on, whatever becomes of the waypoint: that one is made again.
    pub lasts: bool,
}

/// What is guarded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Service,
    Workload,
}

/// Where a wish comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    /// The object itself: it is to have what it names.
    Own,
    /// Its namespace, or a waypoint that is for its account: for some of what is there.
    Wider,
}

/// Why a waypoint does not guard what it should.
struct Fault {
    reason: &'static str,
    message: String,
    /// Where the way leads instead; `None`: straight on.
    instead: Option<GatewayAddress>,
}

/// Who speaks for something.
#[derive(Clone, Copy)]
enum Wish<'a> {
    /// Its own labels, or its namespace's.
    Labels(&'a Metadata, Level),
    /// A waypoint that is for its account.
    Account(&'a Gateway),
    /// Its namespace asks for what is needed, and it, a service, needs a waypoint.
    Automatic(&'a Service),
    /// Nobody.
    Nothing,
}

struct Attacher<'a> {
    config: &'a Config,
    cluster: &'a Cluster,
    /// Of what is to be guarded.
    namespace: &'a str,
    target: Target,
    /// If it is one that routes can be attached to.
    service: Option<&'a Service>,
}

/// What guards an entry. `accounts`: what the workloads behind it run as.
pub(crate) fn of_entry<'a>(
    config: &Config,
    cluster: &Cluster,
    metadata: &Metadata,
    accounts: impl IntoIterator<Item = &'a str>,
) -> Attachment {
    let namespace = &metadata.namespace;
    let attacher = Attacher { config, cluster, namespace, target: Target::Service, service: None };
    attacher.attach(metadata, cluster.gateway_for(accounts, namespace))
}

/// What guards a service. `accounts`: what the pods behind it run as.
pub(crate) fn of_service<'a>(
    config: &Config,
    cluster: &Cluster,
    service: &Service,
    accounts: impl IntoIterator<Item = &'a str>,
) -> Attachment {
    let namespace = &service.metadata.namespace;
    let attacher = Attacher { config, cluster, namespace, target: Target::Service, service: Some(service) };
    attacher.attach(&service.metadata, cluster.gateway_for(accounts, namespace))
}

/// Whether a service is to have the waypoint that comes when it is needed.
pub(crate) fn is_automatic<'a>(
    config: &Config,
    cluster: &Cluster,
    service: &Service,
    accounts: impl IntoIterator<Item = &'a str>,
) -> bool {
    let namespace = &service.metadata.namespace;
    let attacher = Attacher { config, cluster, namespace, target: Target::Service, service: Some(service) };
    let own = cluster.gateway_for(accounts, namespace);
    matches!(attacher.wish(&service.metadata, own), Wish::Automatic(_))
}

/// What guards a workload that runs as `account`.
pub(crate) fn of_workload(
    config: &Config,
    cluster: &Cluster,
    metadata: &Metadata,
    account: &str,
) -> Attachment {
    let namespace = &metadata.namespace;
    let attacher = Attacher { config, cluster, namespace, target: Target::Workload, service: None };
    let own = cluster.gateway_for([account], &metadata.namespace);
    attacher.attach(metadata, own)
}

/// What the workloads of these labels run as, as far as it matters to a service of theirs.
pub(crate) fn accounts<'a>(cluster: &'a Cluster, namespace: &str, selector: &'a Labels) -> Vec<&'a str> {
    if selector.is_empty() || !cluster.has_gateways_for_accounts(namespace) {
        return Vec::new();
    }
    let pods = within(&cluster.pods, namespace).filter(|(_, pod)| selects(selector, &pod.metadata.labels));
    let machines = within(&cluster.machines, namespace)
        .filter(|(_, entry)| selects(selector, &workload_entry::labels(entry)));
    let of_machines = machines.map(|(_, entry)| workload_entry::account(&entry.spec));
    pods.map(|(_, pod)| workload::account(pod)).chain(of_machines).collect()
}

/// Whether what comes in from outside the mesh passes the waypoint of a service too.
pub(crate) fn ingress_uses_waypoint(cluster: &Cluster, metadata: &Metadata) -> bool {
    let namespace = cluster.namespace(&metadata.namespace);
    let said = metadata.labels.get(INGRESS).or_else(|| namespace.and_then(|of| of.labels.get(INGRESS)));
    said.is_some_and(|said| matches!(said.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"))
}

/// Whether an object of `namespace` names a waypoint of the namespace `of`.
pub(crate) fn names_waypoint_in(labels: &Labels, namespace: &str, of: &str) -> bool {
    let names = |label, place| {
        labels.contains_key(label) && labels.get(place).map_or(namespace, String::as_str) == of
    };
    names(USE, USE_NAMESPACE) || names(CANARY, CANARY_NAMESPACE)
}

impl<'a> Attacher<'a> {
    fn attach(&self, metadata: &'a Metadata, account: Option<&'a Gateway>) -> Attachment {
        match self.wish(metadata, account) {
            Wish::Labels(metadata, level) => self.named_by(metadata, level),
            Wish::Account(gateway) => self.to(&name_of(&gateway.metadata), Level::Wider),
            Wish::Automatic(service) => self.to_automatic(service),
            Wish::Nothing => Attachment::default(),
        }
    }

    fn wish(&self, metadata: &'a Metadata, account: Option<&'a Gateway>) -> Wish<'a> {
        if waypoint::is_instance(self.cluster, metadata) {
            return Wish::Nothing;
        }
        if metadata.labels.contains_key(USE) {
            return Wish::Labels(metadata, Level::Own);
        }
        if let Some(gateway) = account {
            return Wish::Account(gateway);
        }
        let Some(namespace) = self.cluster.namespace(self.namespace) else { return Wish::Nothing };
        if namespace.labels.contains_key(USE) {
            return Wish::Labels(namespace, Level::Wider);
        }
        let needing = self.service.filter(|service| automatic::is_needed(self.cluster, service));
        match needing.filter(|_| automatic::is_marked(&namespace.labels)) {
            Some(service) => Wish::Automatic(service),
            None => Wish::Nothing,
        }
    }

    /// Guarded by the waypoint that comes when it is needed, as far as that is there or was.
    fn to_automatic(&self, service: &Service) -> Attachment {
        let mut attachment = match automatic::state(self.cluster, service) {
            automatic::State::Attached(name) => self.to(&name, Level::Wider),
            automatic::State::Closed(name, bound) => Attachment {
                waypoint: Some(waypoint::nowhere(&name)),
                bound: Some(bound),
                ..Attachment::default()
            },
            automatic::State::Not(bound) => Attachment { bound: Some(bound), ..Attachment::default() },
        };
        if let Some(bound) = &mut attachment.bound {
            bound.lasts = attachment.waypoint.is_some();
        }
        attachment
    }

    /// The waypoint, and its canary, that the labels of `metadata` name.
    fn named_by(&self, metadata: &Metadata, level: Level) -> Attachment {
        let named = |label, place| {
            let name = metadata.labels.get(label).filter(|name| !name.is_empty())?;
            let namespace = metadata.labels.get(place).map_or(self.namespace, String::as_str);
            Some((namespace.to_owned(), name.clone()))
        };
        let Some(primary) = named(USE, USE_NAMESPACE).filter(|name| name.1 != NONE) else {
            return Attachment::default();
        };
        let mut attachment = self.to(&primary, level);
        let canary = named(CANARY, CANARY_NAMESPACE).filter(|_| self.target == Target::Service);
        if let (Some(canary), Some(address)) = (canary, attachment.waypoint.clone())
            && let Some(bound) = attachment.bound.as_mut().filter(|bound| bound.is_met)
        {
            match self.canary(&primary, &canary, metadata) {
                Ok((destination, weight)) => {
                    let primary = WeightedWaypoint { destination: address, weight: 100 - weight };
                    attachment.weighted = vec![primary, WeightedWaypoint { destination, weight }];
                }
                Err(why) => bound.message.push_str(&format!(". Canary waypoint not attached: {why}")),
            }
        }
        attachment
    }

    /// Where the canary is, and its share of a hundred. Without one that can be used, the primary has all.
    fn canary(
        &self,
        primary: &Name,
        canary: &Name,
        metadata: &Metadata,
    ) -> Result<(GatewayAddress, u32), String> {
        if primary == canary {
            return Err("it is the waypoint itself".to_owned());
        }
        let weight = metadata.annotations.get(CANARY_WEIGHT).map_or("0", String::as_str);
        let weight = weight.parse().ok().filter(|weight| (0..=100).contains(weight));
        let weight = weight.ok_or(format!("annotation {CANARY_WEIGHT} is no number from 0 to 100"))?;
        match self.usable(canary, Level::Own) {
            Ok((address, true)) => Ok((address, weight)),
            Ok((_, false)) => Err(format!("waypoint {:?} is not ready", spelt(canary))),
            Err(fault) => Err(fault.message),
        }
    }

    /// Guarded by that waypoint, or by what stands in for it.
    fn to(&self, name: &Name, level: Level) -> Attachment {
        let (waypoint, bound) = match self.usable(name, level) {
            Ok((address, true)) => {
                let message = format!("Successfully attached to waypoint {}", spelt(name));
                (Some(address), Bound { is_met: true, reason: "WaypointAccepted", message, lasts: false })
            }
            Ok((address, false)) => (Some(address), not_ready(name)),
            Err(Fault { reason, message, instead }) => (instead, unmet(reason, message)),
        };
        // A waypoint that is not for workloads is no news to each of them.
        let is_said = self.target == Target::Service || level == Level::Own || waypoint.is_some();
        Attachment { waypoint, weighted: Vec::new(), bound: Some(bound).filter(|_| is_said) }
    }

    /// Where a waypoint is that may be used, and whether it is ready as far as anyone has said.
    fn usable(&self, name: &Name, level: Level) -> Result<(GatewayAddress, bool), Fault> {
        let found = self.cluster.gateways.get(name);
        let guards = found.map_or(Guards { services: true, workloads: level == Level::Own }, |gateway| {
            waypoint::guards(self.cluster, gateway)
        });
        let (is_guarded, kind) = match self.target {
            Target::Service => (guards.services, "service"),
            Target::Workload => (guards.workloads, "workload"),
        };
        if !is_guarded {
            let message = format!(
                "attempting to bind to traffic type {kind:?} which the waypoint {:?} does not support; see its label \
                 istio.io/waypoint-for",
                spelt(name)
            );
            // A wider wish is for what the waypoint is for; what names one itself has to get it.
            let instead = (level == Level::Own).then(|| waypoint::nowhere(name));
            return Err(Fault { reason: "UnsupportedTrafficType", message, instead });
        }
        let Some(gateway) = found.filter(|gateway| waypoint::listener(gateway).is_some()) else {
            let Bound { reason, message, .. } = not_ready(name);
            return Err(Fault { reason, message, instead: Some(waypoint::expected(self.config, name)) });
        };
        if !waypoint::admits(self.cluster, gateway, self.namespace) {
            let message = format!(
                "we are not permitted to attach to waypoint {:?} (missing allowedRoutes?); until we are, connections are refused",
                spelt(name)
            );
            return Err(Fault {
                reason: "AttachmentDenied",
                message,
                instead: Some(waypoint::nowhere(name)),
            });
        }
        let address = waypoint::location(self.config, self.cluster, gateway);
        Ok((address, gateways::is_ready(&gateway.status)))
    }
}

fn not_ready(name: &Name) -> Bound {
    let message = format!("waypoint {:?} is not ready; until it is, connections are refused", spelt(name));
    unmet("WaypointIsNotReady", message)
}

/// It is not met, for this reason.
pub(super) fn unmet(reason: &'static str, message: String) -> Bound {
    Bound { is_met: false, reason, message, lasts: false }
}

fn spelt((namespace, name): &Name) -> String {
    format!("{namespace}/{name}")
}
