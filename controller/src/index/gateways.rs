//! The Gateways that are ours to make into waypoints, and what their statuses should say.
//!
//! Derived from the objects whenever it is asked for: there are few of them. Owns no making and no writing.

use std::sync::Arc;

use super::Index;
use super::automatic::{self, Needing};
use super::cluster::{Name, within};
use super::service::service_name;
use super::waypoint::{self, CLASSES, CONTROLLER, GATEWAY_NAME};
use crate::source::objects::{Gateway, GatewayClass, GatewayStatus, Listener, Pod, StatusAddress};

/// A Gateway that is ours to make into a waypoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The Gateway.
    pub gateway: Arc<Gateway>,
    /// Its Service by its DNS name, and the addresses of that.
    pub service: (String, Vec<String>),
    /// How many of its pods are ready.
    pub ready: usize,
    /// The services that need it, if it is one that comes and goes by need.
    pub needed: Option<Vec<Needing>>,
}

/// One thing that a status says: type, whether it is so, why in a word and for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The type of the condition.
    pub kind: &'static str,
    /// Whether it is so.
    pub is_so: bool,
    /// Why, in a word.
    pub reason: &'static str,
    /// Why, for people.
    pub message: String,
}

impl Index {
    /// The Gateways that are ours to make, in the order of their names.
    #[must_use]
    pub fn wanted_waypoints(&self) -> Vec<Wanted> {
        let cluster = &self.cluster;
        let ours = cluster.gateways.iter().filter(|(_, gateway)| {
            waypoint::is_ours(cluster, gateway) && gateway.metadata.deletion_timestamp.is_none()
        });
        ours.map(|(name, gateway)| self.wanted(name, gateway)).collect()
    }

    /// Our classes that the source does not name, and those that name us as their controller.
    #[must_use]
    pub fn gateway_classes(&self) -> (Vec<&'static str>, Vec<Arc<GatewayClass>>) {
        let missing = CLASSES.into_iter().filter(|class| self.cluster.class(class).is_none()).collect();
        let classes = self.cluster.classes();
        let ours = classes.filter(|class| class.spec.controller_name == CONTROLLER).cloned().collect();
        (missing, ours)
    }

    fn wanted(&self, name: &Name, gateway: &Arc<Gateway>) -> Wanted {
        let (config, cluster) = (&self.config, &self.cluster);
        let service = cluster.services.get(name);
        let addresses = service.map(|service| super::cluster::cluster_ips(service)).into_iter().flatten();
        let mut addresses: Vec<String> = addresses.map(|ip| ip.to_string()).collect();
        addresses.dedup();
        let is_ready = |pod: &Pod| {
            pod.metadata.labels.get(GATEWAY_NAME) == Some(&name.1) && super::workload::is_ready(pod)
        };
        let ready = within(&cluster.pods, &name.0).filter(|(_, pod)| is_ready(pod)).count();
        let hostname = service_name(config, name).hostname.to_string();
        let is_automatic = automatic::is_one(&gateway.metadata);
        let needed = is_automatic.then(|| self.needing(&name.0));
        Wanted { gateway: gateway.clone(), service: (hostname, addresses), ready, needed }
    }
}

impl Wanted {
    /// Whether there is anything to make: a Gateway without a listener for tunnels is no waypoint.
    #[must_use]
    pub fn is_waypoint(&self) -> bool {
        waypoint::listener(&self.gateway).is_some()
    }

    /// Whether all that is made for it seems to be there, as far as there is anything to make.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        !self.is_waypoint() || (self.ready > 0 && !self.service.1.is_empty())
    }

    /// Where it is, once its Service is there.
    #[must_use]
    pub fn addresses(&self) -> Vec<StatusAddress> {
        let (hostname, ips) = &self.service;
        if ips.is_empty() || !self.is_waypoint() {
            return Vec::new();
        }
        let of = |kind: &str, value: &String| StatusAddress { kind: kind.to_owned(), value: value.clone() };
        ips.iter().map(|ip| of("IPAddress", ip)).chain([of("Hostname", hostname)]).collect()
    }

    /// What the status should say of the Gateway. `trouble`: why it could not be made.
    #[must_use]
    pub fn conditions(&self, trouble: Option<&str>) -> Vec<Said> {
        let accepted = match self.is_waypoint() {
            true => said("Accepted", true, "Accepted", "Handled by Airglow".to_owned()),
            false => said(
                "Accepted",
                false,
                "ListenersNotValid",
                "a waypoint has one listener, on port 15008 with protocol HBONE; this Gateway has none"
                    .to_owned(),
            ),
        };
        let programmed = self.programmed(trouble);
        let needed = self.needed.as_deref();
        let attached = needed.map(|needed| automatic::attached(&self.gateway, needed, programmed.is_so));
        [accepted, programmed].into_iter().chain(attached).collect()
    }

    /// What the status should say of a listener.
    #[must_use]
    pub fn conditions_of(&self, listener: &Listener, trouble: Option<&str>) -> [Said; 4] {
        let is_ours = waypoint::listener(&self.gateway).is_some_and(|ours| ours.name == listener.name);
        let accepted = match is_ours {
            true => said("Accepted", true, "Accepted", String::new()),
            false => {
                let message = "Expected a single listener on port 15008 with protocol \"HBONE\"".to_owned();
                said("Accepted", false, "UnsupportedProtocol", message)
            }
        };
        let programmed = match is_ours {
            true => self.programmed(trouble),
            false => said("Programmed", false, "Invalid", "it is not accepted".to_owned()),
        };
        [
            accepted,
            programmed,
            said("ResolvedRefs", true, "ResolvedRefs", String::new()),
            said("Conflicted", false, "NoConflicts", String::new()),
        ]
    }

    fn programmed(&self, trouble: Option<&str>) -> Said {
        let (hostname, ips) = &self.service;
        let no = |reason, message| said("Programmed", false, reason, message);
        if !self.is_waypoint() {
            return no("Invalid", "it has no listener of a waypoint".to_owned());
        }
        if let Some(trouble) = trouble {
            return no("NoResources", trouble.to_owned());
        }
        if ips.is_empty() {
            return no("AddressNotAssigned", format!("service {hostname} has no address yet"));
        }
        if self.ready == 0 {
            let metadata = &self.gateway.metadata;
            let message = format!(
                "no pod of it is ready, and what it guards is refused until one is; see kubectl -n {} describe deployment {}",
                metadata.namespace, metadata.name
            );
            return no("Pending", message);
        }
        let message = format!("Resource programmed, assigned to service(s) {hostname}:15008");
        said("Programmed", true, "Programmed", message)
    }
}

pub(super) fn said(kind: &'static str, is_so: bool, reason: &'static str, message: String) -> Said {
    Said { kind, is_so, reason, message }
}

/// Whether a Gateway is ready for what it guards, as its status says.
pub(super) fn is_ready(status: &GatewayStatus) -> bool {
    let programmed = status.conditions.iter().find(|condition| condition.kind == "Programmed");
    !status.addresses.is_empty() && programmed.is_none_or(|programmed| programmed.status == "True")
}
