//! The cluster's DNS: names of services and pods, answered from the lab's state.
//!
//! Authoritative for `cluster.local` and a few names outside; recursion is not offered, everything else is NXDOMAIN.

use std::collections::BTreeMap;
use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};

use crate::state::State;

pub(crate) mod server;

/// Seconds an answer may be kept. Short, as pods come and go; CoreDNS's kubernetes plugin says 5, too.
const TTL: u32 = 5;

/// The largest UDP answer when the client allows more than 512 bytes: fits an IPv6 packet of 1280 bytes.
const MAX_UDP_ANSWER: u16 = 1232;

/// Names (lower case, without the last dot) and their addresses.
#[derive(Debug, Default)]
pub(crate) struct Zone(BTreeMap<String, Vec<IpAddr>>);

impl Zone {
    pub(crate) fn of(state: &State) -> Self {
        let mut names: BTreeMap<String, Vec<IpAddr>> = state.outside_names.clone();
        for service in state.services.values() {
            let spec = &service.spec;
            let name = format!("{}.{}.svc.cluster.local", spec.name, spec.namespace);
            if let Some(vips) = service.vips {
                names.insert(name, vips.ips(state.ipv6));
                continue;
            }
            for pod in state.serving(spec) {
                names.insert(format!("{}.{name}", pod.spec.name), pod.ips.clone());
                names.entry(name.clone()).or_default().extend(&pod.ips);
            }
        }
        for pod in state.pods.values() {
            for ip in &pod.ips {
                let dashed = ip.to_string().replace(['.', ':'], "-");
                names.insert(format!("{dashed}.{}.pod.cluster.local", pod.spec.namespace), vec![*ip]);
            }
        }
        Self(names)
    }
}

/// How a query came, which limits the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// The answer to one query; nothing for what is not a query at all.
pub(crate) fn answer(zone: &Zone, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
    // Shorter than a header, or itself a response: answering could make two servers talk for ever.
    if query.len() < 12 || query[2] & 0x80 != 0 {
        return None;
    }
    let Ok(query) = Message::from_vec(query) else {
        let id = u16::from_be_bytes([query[0], query[1]]);
        return Message::error_msg(id, OpCode::Query, ResponseCode::FormErr).to_vec().ok();
    };
    let mut reply = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_queries(query.queries.iter().cloned());
    reply.metadata.response_code = lookup(zone, &query, &mut reply);
    reply.metadata.authoritative = true;
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP_ANSWER);
        reply.set_edns(edns);
    }
    let bytes = reply.to_vec().ok()?;
    let limit = usize::from(query.max_payload().min(MAX_UDP_ANSWER));
    if transport == Transport::Udp && bytes.len() > limit {
        reply.truncate().to_vec().ok()
    } else {
        Some(bytes)
    }
}

fn lookup(zone: &Zone, query: &Message, reply: &mut Message) -> ResponseCode {
    if query.metadata.op_code != OpCode::Query {
        return ResponseCode::NotImp;
    }
    let [question] = query.queries.as_slice() else { return ResponseCode::FormErr };
    let name = question.name().to_ascii().to_ascii_lowercase();
    let Some(ips) = zone.0.get(name.trim_end_matches('.')) else { return ResponseCode::NXDomain };
    if question.query_class() != DNSClass::IN {
        return ResponseCode::NoError;
    }
    let mut matching: Vec<_> = ips
        .iter()
        .filter(|ip| {
            let kind = question.query_type();
            kind == RecordType::ANY || kind == if ip.is_ipv4() { RecordType::A } else { RecordType::AAAA }
        })
        .collect();
    // Clients take the first address; without a shuffle one pod of a headless service would get everything.
    fastrand::shuffle(&mut matching);
    for ip in matching {
        reply.add_answer(Record::from_rdata(question.name().clone(), TTL, RData::from(*ip)));
    }
    ResponseCode::NoError
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;
    use hickory_proto::rr::Name;
    use proptest::prelude::*;

    use super::*;
    use crate::spec::{PodSpec, ServiceSpec};
    use crate::state::{PodRecord, ServiceRecord};
    use crate::topology;

    fn shop(pods: u8) -> Zone {
        let mut state = State { ipv6: true, ..State::default() };
        for host in 2..2 + pods {
            let name = format!("web-{host}");
            let record = PodRecord {
                uid: name.clone(),
                spec: PodSpec::new("shop", &name).label("app", "web"),
                node: 0,
                ips: topology::pod(1, host).ips(true),
                ready: host != 3,
                deleted_at: None,
            };
            state.pods.insert(("shop".into(), name), record);
        }
        let web = ServiceSpec::new("shop", "web").selector("app", "web");
        let vips = Some(topology::service(0).expect("the first"));
        let each = ServiceSpec { name: "each".into(), ..web.clone() }.headless();
        state.services.insert(("shop".into(), "web".into()), ServiceRecord { spec: web, vips });
        state.services.insert(("shop".into(), "each".into()), ServiceRecord { spec: each, vips: None });
        Zone::of(&state)
    }

    fn ask(zone: &Zone, name: &str, kind: RecordType, transport: Transport) -> Message {
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
        let answer = answer(zone, &query.to_vec().expect("a query"), transport).expect("an answer");
        let answer = Message::from_vec(&answer).expect("our own message");
        assert_eq!(answer.metadata.id, query.metadata.id);
        answer
    }

    fn check(name: &str, kind: RecordType, code: ResponseCode, expected: &[&str]) {
        let answer = ask(&shop(3), name, kind, Transport::Udp);
        let mut ips: Vec<_> = answer.answers.iter().map(|record| record.data.to_string()).collect();
        ips.sort();
        assert_eq!(
            (answer.metadata.response_code, ips.as_slice()),
            (code, expected.map_strings().as_slice())
        );
    }

    trait MapStrings {
        fn map_strings(&self) -> Vec<String>;
    }

    impl MapStrings for &[&str] {
        fn map_strings(&self) -> Vec<String> {
            self.iter().map(ToString::to_string).collect()
        }
    }

    #[test]
    fn services_and_pods_have_names() {
        use ResponseCode::{NXDomain, NoError};
        check("web.shop.svc.cluster.local.", RecordType::A, NoError, &["10.96.1.0"]);
        check("WEB.shop.svc.Cluster.local.", RecordType::AAAA, NoError, &["fd00:10:96::100"]);
        check("each.shop.svc.cluster.local.", RecordType::A, NoError, &["10.244.1.2", "10.244.1.4"]);
        check("web-4.each.shop.svc.cluster.local.", RecordType::A, NoError, &["10.244.1.4"]);
        check("10-244-1-3.shop.pod.cluster.local.", RecordType::A, NoError, &["10.244.1.3"]);
        check("web.shop.svc.cluster.local.", RecordType::TXT, NoError, &[]);
        check("web.shop.svc.cluster.local.svc.cluster.local.", RecordType::A, NXDomain, &[]);
        check("example.com.", RecordType::A, NXDomain, &[]);
    }

    #[test]
    fn an_answer_that_does_not_fit_a_datagram_is_cut_and_whole_over_tcp() {
        let zone = shop(60);
        let cut = ask(&zone, "each.shop.svc.cluster.local.", RecordType::A, Transport::Udp);
        assert!(cut.metadata.truncation && cut.answers.is_empty());
        let whole = ask(&zone, "each.shop.svc.cluster.local.", RecordType::A, Transport::Tcp);
        assert_eq!(whole.answers.len(), 59);
    }

    proptest! {
        #[test]
        fn no_datagram_is_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let reply = answer(&shop(1), &bytes, Transport::Udp);
            prop_assert!(reply.is_none() || bytes.len() >= 12);
        }
    }
}
