//! The part of kube-proxy: nftables rules that lead service addresses to pods. Pure text, applied whole on each node.
//!
//! Endpoints are chosen at random per connection. No session affinity, node ports or traffic policies.

use std::fmt::Write;
use std::net::IpAddr;

use crate::spec::{Protocol, ServicePort};
use crate::state::{ServiceRecord, State};
use crate::topology::{CONTROL, DNS_VIP};

/// The whole table as one transaction for `nft -f -`.
pub(crate) fn ruleset(state: &State) -> String {
    let mut rules = Rules::default();
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        for (vip, server) in DNS_VIP.ips(state.ipv6).into_iter().zip(CONTROL.ips(state.ipv6)) {
            rules.service(vip, (protocol, 53), &[(server, 53)]);
        }
    }
    for service in state.services.values() {
        for port in &service.spec.ports {
            for vip in service.vips.iter().flat_map(|vips| vips.ips(state.ipv6)) {
                let endpoints = endpoints(state, service, port, vip.is_ipv4());
                rules.service(vip, (port.protocol, port.port), &endpoints);
            }
        }
    }
    let own_addresses = state.pods.values().filter(|pod| !pod.spec.host_network).flat_map(|pod| &pod.ips);
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = own_addresses.copied().partition(IpAddr::is_ipv4);
    let mut text =
        String::from("add table inet services\ndelete table inet services\ntable inet services {\n");
    text += &set("hairpin4", "ipv4_addr", &v4);
    text += &set("hairpin6", "ipv6_addr", &v6);
    text += &chain("vips", &rules.translate);
    text += &chain("without_endpoints", &rules.refuse);
    text += &chain("from_network", "type nat hook prerouting priority dstnat\njump vips\n");
    text += &chain("from_node", "type nat hook output priority -100\njump vips\n");
    text += &chain("forwarded", "type filter hook forward priority 0\njump without_endpoints\n");
    text += &chain("local", "type filter hook output priority 0\njump without_endpoints\n");
    // A pod that reaches itself through a service would drop a packet from its own address.
    let hairpin = "type nat hook postrouting priority srcnat\n\
                   ip saddr . ip daddr @hairpin4 masquerade\nip6 saddr . ip6 daddr @hairpin6 masquerade\n";
    text += &chain("to_network", hairpin);
    text + "}\n"
}

#[derive(Default)]
struct Rules {
    translate: String,
    refuse: String,
}

impl Rules {
    fn service(&mut self, vip: IpAddr, (protocol, port): (Protocol, u16), endpoints: &[(IpAddr, u16)]) {
        let family = if vip.is_ipv4() { "ip" } else { "ip6" };
        let transport = match protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        let matched = format!("{family} daddr {vip} {transport} dport {port}");
        if endpoints.is_empty() {
            let how = if protocol == Protocol::Tcp { " with tcp reset" } else { "" };
            writeln!(self.refuse, "{matched} reject{how}").expect("writing to a string");
            return;
        }
        let choices: Vec<_> =
            endpoints.iter().enumerate().map(|(i, (ip, port))| format!("{i} : {ip} . {port}")).collect();
        writeln!(
            self.translate,
            "{matched} dnat {family} to numgen random mod {} map {{ {} }}",
            choices.len(),
            choices.join(", ")
        )
        .expect("writing to a string");
    }
}

fn endpoints(state: &State, service: &ServiceRecord, port: &ServicePort, v4: bool) -> Vec<(IpAddr, u16)> {
    let of_pods = state.serving(&service.spec).filter_map(|pod| {
        let ip = *pod.ips.iter().find(|ip| ip.is_ipv4() == v4)?;
        Some((ip, pod.target(port)?))
    });
    of_pods.collect()
}

/// Pairs of an address with itself.
fn set(name: &str, kind: &str, ips: &[IpAddr]) -> String {
    let pairs: Vec<_> = ips.iter().map(|ip| format!("{ip} . {ip}")).collect();
    let elements =
        if pairs.is_empty() { String::new() } else { format!("elements = {{ {} }}\n", pairs.join(", ")) };
    format!("set {name} {{\ntype {kind} . {kind}\n{elements}}}\n")
}

fn chain(name: &str, body: &str) -> String {
    format!("chain {name} {{\n{body}}}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{PodSpec, ServiceSpec};
    use crate::state::PodRecord;
    use crate::topology;

    fn pod(name: &str, host: u8, ready: bool) -> PodRecord {
        PodRecord {
            uid: name.into(),
            spec: PodSpec::new("shop", name).label("app", "web").port("http", 8080 + u16::from(host)),
            node: 0,
            ips: topology::pod(1, host).ips(true),
            ready,
            deleted_at: None,
        }
    }

    fn check(pods: &[PodRecord], service: ServiceSpec, expected: &[&str], absent: &[&str]) {
        let mut state = State { ipv6: true, ..State::default() };
        for pod in pods {
            state.pods.insert((pod.spec.namespace.clone(), pod.spec.name.clone()), pod.clone());
        }
        let vips = (!service.headless).then(|| topology::service(0).expect("the first"));
        state.services.insert(("shop".into(), "web".into()), ServiceRecord { spec: service, vips });
        let text = ruleset(&state);
        for line in expected {
            assert!(text.lines().any(|found| found == *line), "{line} not in:\n{text}");
        }
        for part in absent {
            assert!(!text.contains(part), "{part} in:\n{text}");
        }
    }

    #[test]
    fn a_service_leads_to_its_ready_pods_in_both_families() {
        let web = ServiceSpec::new("shop", "web").selector("app", "web").port("http", 80, "http");
        check(
            &[pod("a", 2, true), pod("b", 3, true), pod("c", 4, false)],
            web,
            &[
                "ip daddr 10.96.1.0 tcp dport 80 dnat ip to numgen random mod 2 \
                 map { 0 : 10.244.1.2 . 8082, 1 : 10.244.1.3 . 8083 }",
                "ip6 daddr fd00:10:96::100 tcp dport 80 dnat ip6 to numgen random mod 2 \
                 map { 0 : fd00:10:244:1::2 . 8082, 1 : fd00:10:244:1::3 . 8083 }",
            ],
            &["10.244.1.4 . 80", "reject"],
        );
    }

    #[test]
    fn a_service_without_endpoints_refuses() {
        let web = ServiceSpec::new("shop", "web").selector("app", "web").port("http", 80, 8080);
        let reset = "ip daddr 10.96.1.0 tcp dport 80 reject with tcp reset";
        check(&[pod("a", 2, false)], web, &[reset], &["10.96.1.0 tcp dport 80 dnat"]);
    }

    #[test]
    fn a_headless_service_has_no_rules() {
        let web = ServiceSpec::new("shop", "web").selector("app", "web").port("http", 80, 8080).headless();
        check(&[pod("a", 2, true)], web, &[], &["dport 80"]);
    }
}
