//! What a tunnel's request and its answer say beside who is asked for: `baggage`, `forwarded`, `traceparent`.
//!
//! For telemetry only, in Istio's keys and order. Never read for a decision: a peer can write what it likes.

use http::{HeaderMap, HeaderName, HeaderValue};
use model::Str;
use model::address::ClientAddr;
use model::workload::Workload;

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What a request says: who the client is, where it connects from, and which host it dialled.
#[must_use]
pub fn request(source: Option<&Workload>, client: ClientAddr, host: Option<&Str>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(3);
    let host = host.map(|host| format!(";host={host}")).unwrap_or_default();
    let trace =
        format!("00-{:016x}{:016x}-{:016x}-00", fastrand::u64(1..), fastrand::u64(..), fastrand::u64(1..));
    for (name, value) in [
        (BAGGAGE, source.map(baggage).unwrap_or_default()),
        (FORWARDED, format!("for=\"{client}\"{host}")),
        (TRACEPARENT, trace),
    ] {
        // Names from discovery that no header can carry are left out: the peer needs none of this.
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    headers
}

/// What a 200 says: who answered.
#[must_use]
pub fn answer(destination: Option<&Workload>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(Ok(value)) = destination.map(|workload| HeaderValue::from_str(&baggage(workload))) {
        headers.insert(BAGGAGE, value);
    }
    headers
}

/// The address that a request says its client connects from; `None` if it says none that can be read.
#[must_use]
pub fn forwarded_for(headers: &HeaderMap) -> Option<ClientAddr> {
    let text = headers.get(FORWARDED)?.to_str().ok()?;
    let node = text.split([';', ',']).find_map(|part| part.trim().strip_prefix("for="))?;
    node.trim_matches('"').parse().ok().map(ClientAddr)
}

/// What `workload` says of itself; parts that are unknown are left out.
fn baggage(workload: &Workload) -> String {
    let owner = format!("k8s.{}.name", workload.workload_type.as_str());
    let parts = [
        ("k8s.cluster.name", &workload.cluster_id),
        ("k8s.namespace.name", workload.namespace()),
        (owner.as_str(), &workload.workload_name),
        ("service.name", &workload.canonical_name),
        ("service.version", &workload.canonical_revision),
        ("cloud.region", &workload.locality.region),
        ("cloud.availability_zone", &workload.locality.zone),
    ];
    let mut text = String::with_capacity(160);
    for (key, value) in parts {
        // A value that could be taken for the next entry is left out rather than escaped: readers do not unescape.
        if value.is_empty() || !value.bytes().all(|b| b.is_ascii_graphic() && !b",;=\"\\".contains(&b)) {
            continue;
        }
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(key);
        text.push('=');
        text.push_str(value);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_client_connects_from_is_read_as_it_is_written() {
        for client in ["10.0.0.1:1234", "[fd00::1]:1234"] {
            let client = ClientAddr(client.parse().unwrap());
            for host in [None, Some(&Str::from("web.shop.svc.cluster.local"))] {
                assert_eq!(forwarded_for(&request(None, client, host)), Some(client));
            }
        }
        let forged = |text: &str| {
            let headers = [(FORWARDED, HeaderValue::from_str(text).unwrap())].into_iter().collect();
            forwarded_for(&headers)
        };
        for nonsense in ["", "for=", "for=unknown", "host=a;for", "by=10.0.0.1:1"] {
            assert_eq!(forged(nonsense), None, "{nonsense:?}");
        }
        assert_eq!(forwarded_for(&HeaderMap::new()), None);
    }
}
