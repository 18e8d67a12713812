//! Who talks to whom on a node: the node's TCP metrics added up by pair of workloads. Pure.
//!
//! Reads Istio's metric names and labels only, so that it says the same as any dashboard made for them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::metrics_text::Sample;
use crate::term;

/// What all traffic metrics begin with.
pub(crate) const METRICS: &str = "istio_tcp_";

/// What metrics say of something that is not known.
pub(crate) const UNKNOWN: &str = "unknown";

/// A pair of workloads, as one node reports it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Pair {
    /// `out`: the source is a pod of the node. `in`: the destination is.
    pub(crate) direction: &'static str,
    /// `namespace/workload` of who opens connections, or `unknown`.
    pub(crate) source: String,
    /// `namespace/workload` of who answers, or `unknown`.
    pub(crate) destination: String,
    /// SPIFFE identity of the source; empty when not known.
    pub(crate) source_identity: String,
    /// SPIFFE identity of the destination; empty when not known.
    pub(crate) destination_identity: String,
    /// `hbone` (mutual TLS), `local` (within the node) or `plaintext`.
    pub(crate) transport: &'static str,
}

/// Counters of a pair since its ztunnel's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Totals {
    /// Connections opened.
    pub(crate) opened: u64,
    /// Connections ended.
    pub(crate) closed: u64,
    /// Connections refused or cut.
    pub(crate) failed: u64,
    /// Request bytes.
    pub(crate) bytes_to_server: u64,
    /// Response bytes.
    pub(crate) bytes_to_client: u64,
}

/// What a pair did between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Rates {
    /// Connections opened per second.
    pub(crate) opened_per_s: f64,
    /// Bytes per second, both ways.
    pub(crate) bytes_per_s: f64,
}

impl Totals {
    /// Connections open now.
    pub(crate) fn open(&self) -> u64 {
        self.opened.saturating_sub(self.closed)
    }

    /// Bytes both ways.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes_to_server + self.bytes_to_client
    }

    /// What happened since `before`, `passed` ago. A counter that went down began anew in between.
    pub(crate) fn since(&self, before: &Self, passed: Duration) -> Rates {
        let per_second = |now: u64, before: u64| {
            let grown = if now >= before { now - before } else { now };
            #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
            let grown = grown as f64;
            grown / passed.as_secs_f64().max(f64::EPSILON)
        };
        Rates {
            opened_per_s: per_second(self.opened, before.opened),
            bytes_per_s: per_second(self.bytes(), before.bytes()),
        }
    }
}

/// Adds a node's samples up by pair.
pub(crate) fn totals(samples: &[Sample]) -> BTreeMap<Pair, Totals> {
    let mut pairs: BTreeMap<Pair, Totals> = BTreeMap::new();
    for sample in samples {
        let Some(counter) = sample.name.strip_prefix(METRICS) else { continue };
        let totals = pairs.entry(pair(sample)).or_default();
        let field = match counter {
            "connections_opened" => &mut totals.opened,
            "connections_closed" => &mut totals.closed,
            "connections_failed" => &mut totals.failed,
            "received_bytes" => &mut totals.bytes_to_server,
            "sent_bytes" => &mut totals.bytes_to_client,
            _ => continue,
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counters are whole and positive"
        )]
        let value = sample.value as u64;
        *field += value;
    }
    pairs
}

/// A number of bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let bytes = bytes as f64;
    term::bytes(bytes)
}

/// An identity in the short form `namespace/account`, with the trust domain only where it is not the usual one.
pub(crate) fn short(identity: &str) -> String {
    let parts = || {
        let (domain, rest) = identity.strip_prefix("spiffe://")?.split_once("/ns/")?;
        let (namespace, account) = rest.split_once("/sa/")?;
        Some((domain, namespace, account))
    };
    match parts() {
        Some(("cluster.local", namespace, account)) => format!("{namespace}/{account}"),
        Some((domain, namespace, account)) => format!("{domain}:{namespace}/{account}"),
        None if identity.is_empty() => "-".to_owned(),
        None => identity.to_owned(),
    }
}

fn pair(sample: &Sample) -> Pair {
    let workload = |end: &str| {
        let name = sample.label(&format!("{end}_workload"));
        let namespace = sample.label(&format!("{end}_workload_namespace"));
        if name.is_empty() || name == UNKNOWN { UNKNOWN.to_owned() } else { format!("{namespace}/{name}") }
    };
    let known = |label: &str| match sample.label(label) {
        UNKNOWN => String::new(),
        known => known.to_owned(),
    };
    let source_identity = known("source_principal");
    let destination_identity = known("destination_principal");
    // Within a node both identities are known without TLS; to and from outside the mesh only one is.
    let both = !source_identity.is_empty() && !destination_identity.is_empty();
    let transport = match sample.label("connection_security_policy") {
        "mutual_tls" => "hbone",
        _ if both => "local",
        _ => "plaintext",
    };
    Pair {
        direction: if sample.label("reporter") == "source" { "out" } else { "in" },
        source: workload("source"),
        destination: workload("destination"),
        source_identity,
        destination_identity,
        transport,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics_text::samples;

    const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

    /// A series of the pair from `source` (with that principal) to `pay`.
    fn line(
        metric: &str,
        (reporter, source, principal): (&str, &str, &str),
        flags: &str,
        value: u64,
    ) -> String {
        format!(
            "istio_tcp_{metric}_total{{reporter=\"{reporter}\",source_workload=\"{source}\",\
             source_workload_namespace=\"shop\",source_principal=\"{principal}\",destination_workload=\"pay\",\
             destination_workload_namespace=\"shop\",destination_principal=\"{CART}\",response_flags=\"{flags}\",\
             connection_security_policy=\"unknown\"}} {value}\n"
        )
    }

    #[test]
    fn series_of_one_pair_are_added_up() {
        let cart = ("source", "cart", CART);
        let text = [
            line("connections_opened", cart, "-", 7),
            line("connections_closed", cart, "-", 5),
            line("connections_failed", cart, "DENY", 2),
            line("connections_failed", cart, "CONNECT", 1),
            line("received_bytes", cart, "-", 100),
            line("sent_bytes", cart, "-", 50),
            line("connections_opened", ("destination", "unknown", "unknown"), "-", 1),
        ];
        let found = totals(&samples(&text.concat(), METRICS));
        let found: Vec<_> = found.into_iter().collect();
        assert_eq!(found.len(), 2);
        let (outside, _) = &found[0];
        assert_eq!(
            (outside.direction, outside.source.as_str(), outside.transport),
            ("in", "unknown", "plaintext")
        );
        let (pair, totals) = &found[1];
        assert_eq!((pair.direction, pair.source.as_str(), pair.transport), ("out", "shop/cart", "local"));
        assert_eq!((totals.open(), totals.failed, totals.bytes()), (2, 3, 150));
    }

    #[test]
    fn rates_are_per_second_and_survive_a_restart() {
        let before = Totals { opened: 10, bytes_to_server: 1000, ..Totals::default() };
        let after = Totals { opened: 14, bytes_to_server: 5000, ..before };
        let rates = after.since(&before, Duration::from_secs(2));
        assert_eq!((rates.opened_per_s, rates.bytes_per_s), (2.0, 2000.0));
        let restarted = Totals { opened: 2, ..Totals::default() };
        assert_eq!(restarted.since(&before, Duration::from_secs(1)).opened_per_s, 2.0);
    }

    #[test]
    fn identities_are_shortened_where_nothing_is_lost() {
        assert_eq!(short(CART), "shop/cart");
        assert_eq!(short("spiffe://other/ns/a/sa/b"), "other:a/b");
        assert_eq!(short("spiffe://other/x"), "spiffe://other/x");
        assert_eq!(short(""), "-");
    }
}
