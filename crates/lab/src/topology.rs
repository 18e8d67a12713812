//! Which address is whose. Pure: the same in every lab, since each lab has network namespaces of its own.
//!
//! Every node is a hop on one bridge and routes the pod addresses behind it, like kind's nodes do.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::error::LabError;

/// Nodes a lab can have. Node numbers are one byte of an address; more than this does not fit one machine anyway.
pub const MAX_NODES: usize = 64;

/// Addresses of the namespace on the bridge where the controller and the cluster's DNS run.
pub(crate) const CONTROL: Pair =
    Pair { v4: Ipv4Addr::new(10, 210, 0, 2), v6: Ipv6Addr::new(0xfd00, 0x10, 0x210, 0, 0, 0, 0, 2) };

/// Addresses outside the cluster (documentation ranges) that live in the control namespace, for traffic that
/// leaves the mesh.
pub const OUTSIDE: Pair =
    Pair { v4: Ipv4Addr::new(203, 0, 113, 10), v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10) };

/// The ClusterIP of the cluster's DNS, where pods' resolv.conf points, as in most clusters.
pub const DNS_VIP: Pair =
    Pair { v4: Ipv4Addr::new(10, 96, 0, 10), v6: Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 10) };

/// The ClusterIPs that services get, in the order of their creation.
const FIRST_SERVICE: u32 = 256;
const SERVICES: u32 = 60_000;

/// The last host number of a pod network: .1 is the gateway, .255 would be the broadcast address.
const LAST_POD: u8 = 254;

/// One address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Pair {
    /// The addresses that a lab with or without IPv6 uses, IPv4 first.
    pub fn ips(self, ipv6: bool) -> Vec<IpAddr> {
        let mut ips = vec![IpAddr::V4(self.v4)];
        ips.extend(ipv6.then_some(IpAddr::V6(self.v6)));
        ips
    }
}

/// The addresses of node `number` (from 1) on the bridge.
pub(crate) fn node(number: u8) -> Pair {
    let host = 10 + number;
    Pair {
        v4: Ipv4Addr::new(10, 210, 0, host),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x210, 0, 0, 0, 0, host.into()),
    }
}

/// Host number `host` in the pod network of node `number`. Number 1 is the gateway, which is the node itself.
pub(crate) fn pod(number: u8, host: u8) -> Pair {
    Pair {
        v4: Ipv4Addr::new(10, 244, number, host),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, number.into(), 0, 0, 0, host.into()),
    }
}

/// The pod networks of node `number` in CIDR notation.
pub(crate) fn pod_cidrs(number: u8) -> (String, String) {
    (format!("10.244.{number}.0/24"), format!("fd00:10:244:{number:x}::/64"))
}

/// Whether an address belongs to a pod of any node.
pub(crate) fn is_pod(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..2] == [10, 244],
        IpAddr::V6(ip) => ip.segments()[..3] == [0xfd00, 0x10, 0x244],
    }
}

/// The ClusterIPs of the `n`th service of a lab.
pub(crate) fn service(n: u32) -> Result<Pair, LabError> {
    if n >= SERVICES {
        return Err(LabError::Refused(format!("a lab has addresses for {SERVICES} services, no more")));
    }
    let number = FIRST_SERVICE + n;
    let [_, _, high, low] = number.to_be_bytes();
    let wide = u16::from_be_bytes([high, low]);
    Ok(Pair { v4: Ipv4Addr::new(10, 96, high, low), v6: Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, wide) })
}

/// Hands out host numbers of one pod network. A freed number is used again only when the others were (as host-local
/// does), so that a late packet rarely finds a stranger.
#[derive(Debug)]
pub(crate) struct Pool {
    used: [bool; 256],
    next: u8,
}

impl Pool {
    pub(crate) fn new() -> Self {
        Self { used: [false; 256], next: 2 }
    }

    pub(crate) fn take(&mut self) -> Result<u8, LabError> {
        let candidates = (self.next..=LAST_POD).chain(2..self.next);
        let Some(host) = candidates.into_iter().find(|&host| !self.used[usize::from(host)]) else {
            return Err(LabError::Refused(format!(
                "a node has addresses for {} pods, no more",
                LAST_POD - 1
            )));
        };
        self.used[usize::from(host)] = true;
        self.next = if host == LAST_POD { 2 } else { host + 1 };
        Ok(host)
    }

    /// Takes a number of the caller's choice, for tests of address reuse.
    pub(crate) fn take_exactly(&mut self, host: u8) -> Result<u8, LabError> {
        if !(2..=LAST_POD).contains(&host) || self.used[usize::from(host)] {
            return Err(LabError::Refused(format!("pod address number {host} is in use or not a pod's")));
        }
        self.used[usize::from(host)] = true;
        Ok(host)
    }

    pub(crate) fn free(&mut self, host: u8) {
        self.used[usize::from(host)] = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_reused_only_after_the_others() {
        let mut pool = Pool::new();
        assert_eq!(pool.take().expect("empty"), 2);
        pool.free(2);
        assert_eq!(pool.take().expect("room"), 3);
        for _ in 0..251 {
            pool.take().expect("room");
        }
        assert_eq!(pool.take().expect("2 is free again and the last one"), 2);
        assert!(pool.take().is_err());
        pool.free(77);
        assert!(pool.take_exactly(78).is_err());
        assert_eq!(pool.take_exactly(77).expect("free"), 77);
    }

    #[test]
    fn pods_are_told_from_nodes_and_services() {
        for ip in pod(3, 9).ips(true) {
            assert!(is_pod(ip), "{ip}");
        }
        for pair in [node(1), CONTROL, OUTSIDE, DNS_VIP, service(300).expect("in range")] {
            for ip in pair.ips(true) {
                assert!(!is_pod(ip), "{ip}");
            }
        }
    }
}
