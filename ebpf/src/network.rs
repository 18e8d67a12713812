//! What capture leaves in a pod's network namespace: policy routing rules, one local route per family, and `sysctl`.
//! Everything here runs inside the pod's namespace (`Netns::run`); it keeps no state and undoes only what is ours.

use std::io;
use std::net::IpAddr;

use thiserror::Error;

use crate::layout::{
    DNS_SOURCE_FIRST, DNS_SOURCE_LAST, FAMILY_V4, FAMILY_V6, MARK_CAPTURE, MARK_RETURN, TABLE,
};
use crate::netlink::{Body, CREATE_EXCLUSIVE, Netlink, attribute, number16, number32};
use crate::rtnetlink::{
    ADDRESS_HEAD, FR_ACT_TO_TBL, FRA_DPORT_RANGE, FRA_FWMARK, FRA_FWMASK, FRA_IP_PROTO, FRA_PRIORITY,
    FRA_SPORT_RANGE, FRA_TABLE, IFA_ADDRESS, IFA_F_TENTATIVE, IFA_FLAGS, IFA_LOCAL, ROUTE_HEAD,
    RT_SCOPE_HOST, RT_SCOPE_UNIVERSE, RTA_OIF, RTA_PREFSRC, RTA_TABLE, RTM_DELROUTE, RTM_DELRULE,
    RTM_GETADDR, RTM_GETROUTE, RTM_GETRULE, RTM_NEWROUTE, RTM_NEWRULE, RTN_LOCAL, RTPROT_STATIC,
};
use crate::sysctl;

/// Why a pod's network namespace could not be prepared.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// A netlink request failed.
    #[error("the pod's namespace refuses to {action} {what}: {source}")]
    Netlink {
        /// "add", "remove" or "list".
        action: &'static str,
        /// The rule or route, as `ip` writes it.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Somebody else's default route stands in our table.
    #[error(
        "routing table {TABLE} of the pod is in use: `{0}` cannot be added. Another network plugin owns the table; have it use another one"
    )]
    TableTaken(String),
    /// A sysctl cannot be read or written.
    #[error(
        "cannot set /proc/sys/{name} in the pod: {source}. /proc/sys must be writable for the proxy, and the kernel 5.14 or newer"
    )]
    Sysctl {
        /// Path below /proc/sys.
        name: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An address that the pod is said to have is not there.
    #[error("the pod's namespace has no address {0}: is it the namespace of another pod?")]
    AddressMissing(IpAddr),
    /// An address is there, but duplicate address detection is not through with it.
    #[error("address {0} of the pod is still being checked for duplicates; it is tried again")]
    AddressTentative(IpAddr),
}

/// What stands and what does not in a pod's namespace. Each fact as `ip` or `sysctl` would name it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkFacts {
    /// Rules, routes and sysctls that are not as capture needs them.
    pub missing: Vec<String>,
    /// Rules that lead DNS to the proxy and are not there.
    pub dns_missing: Vec<String>,
    /// Rules that lead DNS to the proxy and are there.
    pub dns_present: Vec<String>,
}

const TABLE_MAIN: u32 = 254;
const LOOPBACK_IFINDEX: u32 = 1;
const DNS_PORT: u16 = 53;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Selector {
    Mark(u32),
    /// UDP to port 53, from these ports.
    Dns(Option<Ports>),
}

/// A range of ports, both ends included.
type Ports = (u16, u16);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    selector: Selector,
    table: u32,
    priority: u32,
}

/// For TCP: what is marked in connect, and the replies of the application to the proxy.
const RULES: [Rule; 2] = [
    Rule { selector: Selector::Mark(MARK_CAPTURE), table: TABLE, priority: 10 },
    Rule { selector: Selector::Mark(MARK_RETURN), table: TABLE, priority: 10 },
];

/// For DNS over UDP. The first exempts the proxy's own queries from the second, and their answers too: whether a source
/// is spoofed the kernel judges by routing the answer back, without the query's mark. Removed in the other order.
/// Separate from the others, because without a listener these lose queries.
const DNS_RULES: [Rule; 2] = [
    Rule {
        selector: Selector::Dns(Some((DNS_SOURCE_FIRST, DNS_SOURCE_LAST))),
        table: TABLE_MAIN,
        priority: 9,
    },
    Rule { selector: Selector::Dns(None), table: TABLE, priority: 11 },
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// `FAMILY_V4 | FAMILY_V6`: a family is captured when the pod has an address of it. Without an address the local
/// route cannot be made, and connect refuses the family.
pub(crate) fn families(addresses: &[IpAddr]) -> u32 {
    addresses.iter().fold(0, |flags, address| flags | if address.is_ipv4() { FAMILY_V4 } else { FAMILY_V6 })
}

/// Whether the namespace really has these addresses: the proof that it belongs to the pod.
pub(crate) fn check_addresses(addresses: &[IpAddr]) -> Result<(), NetworkError> {
    let present = list_addresses()?;
    for address in addresses {
        match present.iter().find(|(found, _)| found == address) {
            None => return Err(NetworkError::AddressMissing(*address)),
            Some((_, true)) => return Err(NetworkError::AddressTentative(*address)),
            Some((_, false)) => {}
        }
    }
    Ok(())
}

/// Adds the rules and routes of TCP; what is there already is a success.
pub(crate) fn add(addresses: &[IpAddr]) -> Result<(), NetworkError> {
    let netlink = open()?;
    for (family, source) in sources(addresses) {
        add_route(&netlink, family, source)?;
        RULES.into_iter().try_for_each(|rule| add_rule(&netlink, family, rule))?;
    }
    Ok(())
}

/// Adds the rules of DNS; what is there already is a success. From here on queries need a listener.
pub(crate) fn add_dns(addresses: &[IpAddr]) -> Result<(), NetworkError> {
    let netlink = open()?;
    sources(addresses).try_for_each(|(family, _)| {
        DNS_RULES.into_iter().try_for_each(|rule| add_rule(&netlink, family, rule))
    })
}

/// Removes the rules and routes of TCP; what is gone already is a success.
pub(crate) fn remove(addresses: &[IpAddr]) -> Result<(), NetworkError> {
    let netlink = open()?;
    for (family, source) in sources(addresses) {
        RULES.into_iter().try_for_each(|rule| remove_rule(&netlink, family, rule))?;
        let route = netlink.request(RTM_DELROUTE, 0, &route_body(family, source));
        gone(route).map_err(failed("remove", route_name(family, source)))?;
    }
    Ok(())
}

/// Removes the rules of DNS; what is gone already is a success.
pub(crate) fn remove_dns(addresses: &[IpAddr]) -> Result<(), NetworkError> {
    let netlink = open()?;
    sources(addresses).try_for_each(|(family, _)| {
        DNS_RULES.into_iter().rev().try_for_each(|rule| remove_rule(&netlink, family, rule))
    })
}

/// Compares the namespace with what [`add`], [`add_dns`] and [`sysctl::set`] leave.
pub(crate) fn observe(addresses: &[IpAddr]) -> Result<NetworkFacts, NetworkError> {
    let netlink = open()?;
    let mut facts = NetworkFacts::default();
    for (family, source) in sources(addresses) {
        let listed = netlink.dump(RTM_GETRULE, &Body::new(&head(family)));
        let rules = listed.map_err(failed("list", "rules".to_owned()))?;
        let stands = |rule: &Rule| rules.iter().any(|found| rule.is(found, family));
        let name = |rule: &Rule| rule.to_string(family);
        facts.missing.extend(RULES.iter().filter(|rule| !stands(rule)).map(name));
        facts.dns_missing.extend(DNS_RULES.iter().filter(|rule| !stands(rule)).map(name));
        facts.dns_present.extend(DNS_RULES.iter().filter(|rule| stands(rule)).map(name));
        if !has_route(&netlink, family, source)? {
            facts.missing.push(route_name(family, source));
        }
    }
    facts.missing.extend(sysctl::wrong()?);
    Ok(facts)
}

fn open() -> Result<Netlink, NetworkError> {
    Netlink::open(libc::NETLINK_ROUTE).map_err(failed("open", "a netlink socket".to_owned()))
}

/// Per family the pod has: its first address, which becomes the source of connections that choose none.
fn sources(addresses: &[IpAddr]) -> impl Iterator<Item = (Family, IpAddr)> {
    let first = |v4: bool| addresses.iter().copied().find(move |address| address.is_ipv4() == v4);
    let v4 = first(true).map(|source| (Family::V4, source));
    let v6 = first(false).map(|source| (Family::V6, source));
    v4.into_iter().chain(v6)
}

fn add_rule(netlink: &Netlink, family: Family, rule: Rule) -> Result<(), NetworkError> {
    match netlink.request(RTM_NEWRULE, CREATE_EXCLUSIVE, &rule.body(family)) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other.map_err(failed("add", rule.to_string(family))),
    }
}

fn remove_rule(netlink: &Netlink, family: Family, rule: Rule) -> Result<(), NetworkError> {
    gone(netlink.request(RTM_DELRULE, 0, &rule.body(family)))
        .map_err(failed("remove", rule.to_string(family)))
}

fn add_route(netlink: &Netlink, family: Family, source: IpAddr) -> Result<(), NetworkError> {
    let name = route_name(family, source);
    match netlink.request(RTM_NEWROUTE, CREATE_EXCLUSIVE, &route_body(family, source)) {
        Ok(()) => Ok(()),
        // The place is taken: by our own route, or by one that would send captured packets elsewhere.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
            if has_route(netlink, family, source)? {
                Ok(())
            } else {
                Err(NetworkError::TableTaken(name))
            }
        }
        Err(error) => Err(failed("add", name)(error)),
    }
}

fn has_route(netlink: &Netlink, family: Family, source: IpAddr) -> Result<bool, NetworkError> {
    let listed = netlink.dump(RTM_GETROUTE, &Body::new(&head(family)));
    let routes = listed.map_err(failed("list", "routes".to_owned()))?;
    Ok(routes.iter().any(|found| is_route(found, family, source)))
}

fn is_route(found: &[u8], family: Family, source: IpAddr) -> bool {
    let number = |kind| attribute(found, ROUTE_HEAD, kind).and_then(|value| number32(value, 0));
    found.first() == Some(&family.number())
        && found.get(1) == Some(&0)
        && found.get(7) == Some(&RTN_LOCAL)
        && number(RTA_TABLE) == Some(TABLE)
        && number(RTA_OIF) == Some(LOOPBACK_IFINDEX)
        && attribute(found, ROUTE_HEAD, RTA_PREFSRC) == Some(&octets(source))
}

fn route_body(family: Family, source: IpAddr) -> Body {
    let mut head = head(family);
    head[4] = TABLE as u8;
    head[5] = RTPROT_STATIC;
    head[6] = if family == Family::V4 { RT_SCOPE_HOST } else { RT_SCOPE_UNIVERSE };
    head[7] = RTN_LOCAL;
    Body::new(&head)
        .with(RTA_OIF, &LOOPBACK_IFINDEX.to_ne_bytes())
        .with(RTA_PREFSRC, &octets(source))
        .with(RTA_TABLE, &TABLE.to_ne_bytes())
}

fn route_name(family: Family, source: IpAddr) -> String {
    format!("ip {} route local default dev lo src {source} table {TABLE}", family.flag())
}

impl Rule {
    fn body(self, family: Family) -> Body {
        let mut head = head(family);
        head[4] = self.table as u8;
        head[7] = FR_ACT_TO_TBL;
        let body = Body::new(&head)
            .with(FRA_PRIORITY, &self.priority.to_ne_bytes())
            .with(FRA_TABLE, &self.table.to_ne_bytes());
        match self.selector {
            Selector::Mark(mark) => {
                body.with(FRA_FWMARK, &mark.to_ne_bytes()).with(FRA_FWMASK, &u32::MAX.to_ne_bytes())
            }
            Selector::Dns(from) => {
                let body = body
                    .with(FRA_IP_PROTO, &[libc::IPPROTO_UDP as u8])
                    .with(FRA_DPORT_RANGE, &port_range((DNS_PORT, DNS_PORT)));
                from.into_iter().fold(body, |body, ports| body.with(FRA_SPORT_RANGE, &port_range(ports)))
            }
        }
    }

    fn is(self, found: &[u8], family: Family) -> bool {
        let value = |kind| attribute(found, ROUTE_HEAD, kind);
        let number = |kind| value(kind).and_then(|value| number32(value, 0));
        let ports = |kind| value(kind).and_then(|ports| Some((number16(ports, 0)?, number16(ports, 2)?)));
        let selected = match self.selector {
            Selector::Mark(mark) => number(FRA_FWMARK) == Some(mark) && ports(FRA_DPORT_RANGE).is_none(),
            Selector::Dns(from) => {
                value(FRA_IP_PROTO) == Some(&[libc::IPPROTO_UDP as u8])
                    && ports(FRA_DPORT_RANGE) == Some((DNS_PORT, DNS_PORT))
                    && ports(FRA_SPORT_RANGE) == from
            }
        };
        selected
            && found.first() == Some(&family.number())
            && number(FRA_PRIORITY) == Some(self.priority)
            && number(FRA_TABLE) == Some(self.table)
    }

    fn to_string(self, family: Family) -> String {
        let Self { selector, table, priority } = self;
        let selector = match selector {
            Selector::Mark(mark) => format!("fwmark {mark:#x}"),
            Selector::Dns(None) => format!("ipproto udp dport {DNS_PORT}"),
            Selector::Dns(Some((first, last))) => {
                format!("ipproto udp sport {first}-{last} dport {DNS_PORT}")
            }
        };
        format!("ip {} rule {selector} lookup {table} pref {priority}", family.flag())
    }
}

impl Family {
    fn number(self) -> u8 {
        match self {
            Self::V4 => libc::AF_INET as u8,
            Self::V6 => libc::AF_INET6 as u8,
        }
    }

    fn flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }
}

/// `struct fib_rule_port_range`
fn port_range((first, last): Ports) -> Vec<u8> {
    [first, last].into_iter().flat_map(u16::to_ne_bytes).collect()
}

/// Zeroes but for the family: matches everything in a dump.
fn head(family: Family) -> [u8; ROUTE_HEAD] {
    let mut head = [0; ROUTE_HEAD];
    head[0] = family.number();
    head
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Every address of the namespace, and whether it is tentative.
fn list_addresses() -> Result<Vec<(IpAddr, bool)>, NetworkError> {
    let listed = open()?.dump(RTM_GETADDR, &Body::new(&[0; ADDRESS_HEAD]));
    let messages = listed.map_err(failed("list", "addresses".to_owned()))?;
    Ok(messages.iter().filter_map(|message| parse_address(message)).collect())
}

fn parse_address(message: &[u8]) -> Option<(IpAddr, bool)> {
    let value = |kind| attribute(message, ADDRESS_HEAD, kind);
    let bytes = value(IFA_LOCAL).or_else(|| value(IFA_ADDRESS))?;
    let address = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    let flags = value(IFA_FLAGS).and_then(|flags| number32(flags, 0)).unwrap_or_default();
    Some((address, flags & IFA_F_TENTATIVE != 0))
}

fn failed(action: &'static str, what: String) -> impl FnOnce(io::Error) -> NetworkError {
    move |source| NetworkError::Netlink { action, what, source }
}

/// ENOENT: no such rule; ESRCH: no such route; EAFNOSUPPORT: no such family.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::EAFNOSUPPORT)) =>
        {
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_captured_when_the_pod_has_an_address_of_it() {
        let v4: IpAddr = "10.0.0.1".parse().expect("an address");
        let v6: IpAddr = "fd00::1".parse().expect("an address");
        assert_eq!(families(&[]), 0);
        assert_eq!(families(&[v4, v4]), FAMILY_V4);
        assert_eq!(families(&[v6]), FAMILY_V6);
        assert_eq!(families(&[v6, v4]), FAMILY_V4 | FAMILY_V6);
    }

    #[test]
    fn rules_are_named_as_ip_writes_them() {
        let names: Vec<String> =
            DNS_RULES.iter().chain(&RULES).map(|rule| rule.to_string(Family::V4)).collect();
        assert_eq!(
            names,
            [
                "ip -4 rule ipproto udp sport 512-1023 dport 53 lookup 254 pref 9",
                "ip -4 rule ipproto udp dport 53 lookup 100 pref 11",
                "ip -4 rule fwmark 0x53a lookup 100 pref 10",
                "ip -4 rule fwmark 0x53b lookup 100 pref 10",
            ]
        );
    }
}
