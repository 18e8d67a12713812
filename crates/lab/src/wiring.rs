//! Links, addresses, routes and sysctls of the lab's namespaces: pure lists of commands, and applying them.
//!
//! Node and pod are joined as the ptp CNI plugin does it: the pod has one address without a network, its gateway is the
//! node's end of the veth pair, and the node has one route per pod.

use std::net::IpAddr;

use crate::error::LabError;
use crate::netns::Netns;
use crate::tool;
use crate::topology::{self, CONTROL, OUTSIDE, Pair};

/// TCP settings of the lab's namespaces. The default leaves them as this machine has them.
#[derive(Clone, Debug, Default)]
pub struct Tuning {
    /// `net.ipv4.tcp_congestion_control`. A namespace may only name those in `tcp_allowed_congestion_control`.
    pub congestion_control: Option<String>,
    /// `net.ipv4.tcp_max_tw_buckets`.
    pub max_tw_buckets: Option<u32>,
    /// `net.ipv4.ip_local_port_range`.
    pub port_range: Option<(u16, u16)>,
}

impl Tuning {
    /// What benches use. `reno` does not pace with timers, which are dear in virtual machines; few TIME_WAIT sockets and
    /// many ports keep a client that opens a connection per request from running out of ports.
    pub fn bench() -> Self {
        Self {
            congestion_control: Some("reno".into()),
            max_tw_buckets: Some(64),
            port_range: Some((10_000, 65_001)),
        }
    }
}

/// What a namespace is for, which decides its sysctls.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Switch,
    Router,
    Pod,
}

/// The settings of a new namespace; they come before its devices, which copy some of them.
pub(crate) fn sysctls(role: Role, ipv6: bool, tuning: &Tuning) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    let mut set = |name: &str, value: String| settings.push((name.to_owned(), value));
    for scope in ["all", "default"] {
        set(&format!("net.ipv4.conf.{scope}.rp_filter"), "0".into());
        set(&format!("net.ipv4.conf.{scope}.accept_local"), "0".into());
        if ipv6 {
            // Otherwise addresses are useless for a second after a device appears.
            set(&format!("net.ipv6.conf.{scope}.accept_dad"), "0".into());
        } else {
            set(&format!("net.ipv6.conf.{scope}.disable_ipv6"), "1".into());
        }
    }
    if role == Role::Router {
        set("net.ipv4.ip_forward", "1".into());
        if ipv6 {
            set("net.ipv6.conf.all.forwarding", "1".into());
        }
    }
    if role == Role::Switch {
        return settings;
    }
    if let Some(name) = &tuning.congestion_control {
        set("net.ipv4.tcp_congestion_control", name.clone());
    }
    if let Some(buckets) = tuning.max_tw_buckets {
        set("net.ipv4.tcp_max_tw_buckets", buckets.to_string());
    }
    if let Some((low, high)) = tuning.port_range {
        set("net.ipv4.ip_local_port_range", format!("{low} {high}"));
    }
    settings
}

/// The bridge and a port, with the name of the member, for each namespace on it.
pub(crate) fn switch(netns: &Netns, members: &[(&str, &Netns)]) -> Result<(), LabError> {
    let mut lines = vec![
        "link set lo up".to_owned(),
        // Without spanning tree a port forwards from its first moment on; without snooping no neighbour
        // discovery is lost while groups are learnt.
        "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0".to_owned(),
        "link set br0 up".to_owned(),
    ];
    for (name, member) in members {
        lines.push(format!("link add {name} type veth peer name eth0 netns {}", member.path().display()));
        lines.push(format!("link set {name} master br0 up"));
    }
    tool::ip(netns, &lines)
}

/// The addresses and routes of a node; `others` are the numbers of the other nodes.
pub(crate) fn node(netns: &Netns, number: u8, others: &[u8], ipv6: bool) -> Result<(), LabError> {
    let mut lines = on_the_bridge(topology::node(number), ipv6);
    lines.extend(CONTROL.ips(ipv6).into_iter().map(|ip| format!("route add default via {ip}")));
    lines.extend(others.iter().flat_map(|other| to_pods_of(*other, ipv6)));
    tool::ip(netns, &lines)
}

/// The addresses and routes of the control namespace, which is also everybody's way out.
pub(crate) fn control(netns: &Netns, nodes: &[u8], ipv6: bool) -> Result<(), LabError> {
    let mut lines = on_the_bridge(CONTROL, ipv6);
    lines.extend(OUTSIDE.ips(ipv6).into_iter().map(|ip| format!("addr add {ip} dev lo{}", nodad(ip))));
    lines.extend(nodes.iter().flat_map(|node| to_pods_of(*node, ipv6)));
    tool::ip(netns, &lines)
}

/// Joins a pod to its node. `device` is the name of the node's end.
pub(crate) fn pod(
    pod: &Netns,
    node: &Netns,
    device: &str,
    ips: &[IpAddr],
    number: u8,
) -> Result<(), LabError> {
    let gateways = topology::pod(number, 1).ips(true);
    let gateway = |ip: &IpAddr| if ip.is_ipv4() { gateways[0] } else { gateways[1] };
    let mut lines = vec![
        "link set lo up".to_owned(),
        format!("link add eth0 type veth peer name {device} netns {}", node.path().display()),
        "link set eth0 up".to_owned(),
    ];
    for ip in ips {
        let gateway = gateway(ip);
        lines.push(format!("addr add {ip} dev eth0{}", nodad(*ip)));
        lines.push(format!("route add {gateway} dev eth0"));
        lines.push(format!("route add default via {gateway} dev eth0 src {ip}"));
    }
    tool::ip(pod, &lines)?;
    let mut lines = vec![format!("link set {device} up")];
    for ip in ips {
        let gateway = gateway(ip);
        lines.push(format!("addr add {gateway} dev {device}{}", nodad(gateway)));
        lines.push(format!("route add {ip} dev {device} src {gateway}"));
    }
    tool::ip(node, &lines)
}

/// Takes a pod's link away at once. Its namespace would do so too, but only some time after it was removed.
pub(crate) fn unplug(node: &Netns, device: &str) -> Result<(), LabError> {
    tool::ip(node, &[format!("link del {device}")])
}

fn on_the_bridge(own: Pair, ipv6: bool) -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
    lines.push(format!("addr add {}/24 dev eth0", own.v4));
    if ipv6 {
        lines.push(format!("addr add {}/64 dev eth0 nodad", own.v6));
    }
    lines
}

fn to_pods_of(number: u8, ipv6: bool) -> Vec<String> {
    let (cidr4, cidr6) = topology::pod_cidrs(number);
    let via = topology::node(number);
    let mut lines = vec![format!("route add {cidr4} via {}", via.v4)];
    lines.extend(ipv6.then(|| format!("route add {cidr6} via {}", via.v6)));
    lines
}

fn nodad(ip: IpAddr) -> &'static str {
    if ip.is_ipv6() { " nodad" } else { "" }
}
