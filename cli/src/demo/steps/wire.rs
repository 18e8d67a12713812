//! What can be read between the nodes: before, during and after membership of the mesh.

use std::time::{Duration, Instant, SystemTime};

use lab::Watch;

use super::super::error::DemoError;
use super::super::milliseconds;
use super::super::report::Stage;
use super::super::shop::{FRONTEND, Flows, HBONE_PORT, Shop, card};
use super::super::traffic::Browse;
use crate::flows::{Pair, Totals};
use crate::term::{self, Table};

/// Requests that have to be readable before anything is claimed about it.
const READABLE_REQUESTS: u64 = 60;

/// Requests of which not one byte may be readable.
const SECRET_REQUESTS: u64 = 300;

/// A few customers who do not overload a small machine: what is shown is correctness, not speed.
pub(super) fn crowd(card: &str) -> Browse {
    Browse::new(FRONTEND, card).crowd(4, Duration::from_millis(5))
}

/// Card numbers can be read.
pub(super) fn plaintext(stage: &mut Stage<'_>, shop: &mut Shop) -> Result<(), DemoError> {
    let card = card();
    let seen = shop.ground.wire().watch(&card);
    stage.doing("customers are shopping");
    let done = shop.browse(crowd(&card).requests(READABLE_REQUESTS))?.wait()?;
    let sightings = seen.count()?;
    stage.measured("requests", done.succeeded);
    stage.measured("failed", done.failed);
    stage.measured("sightings", sightings);
    stage.claim(
        done.failed == 0,
        format!(
            "{} shopped, {} failed{}",
            term::count(done.succeeded, "request"),
            done.failed,
            done.complaint()
        ),
    );
    stage.claim(
        sightings > 0,
        format!("the card number was read {} on the wire between n1 and n2", term::count(sightings, "time")),
    );
    if let Some(first) = seen.sightings()?.first() {
        stage.say(&format!("for example: {card} from {} to {}", first.from, first.to));
    }
    Ok(())
}

/// From the label's write to the first encrypted byte, and until the whole shop is in the mesh.
pub(super) fn label(stage: &mut Stage<'_>, shop: &mut Shop) -> Result<(), DemoError> {
    let card = card();
    let (readable, tunnels) = (shop.ground.wire().watch(&card), shop.ground.wire().watch_port(HBONE_PORT));
    let traffic = shop.browse(crowd(&card))?;
    traffic.more(20)?;
    stage.doing("waiting for the first encrypted byte");
    let (written, clock) = (SystemTime::now(), Instant::now());
    shop.ground.label(true)?;
    let first = first_sighting(shop, &tunnels)?;
    let encrypted = first.duration_since(written).unwrap_or_default();
    stage.measured("first_encrypted_byte_ms", milliseconds(encrypted));
    stage.claim(
        true,
        format!("first encrypted byte {} after the label was written", term::duration(encrypted)),
    );
    stage.doing("waiting until every pod is enrolled and every node knows it");
    shop.wait_for_state("enrolled")?;
    shop.wait_for_protocol("HBONE")?;
    let whole = clock.elapsed();
    traffic.more(40)?;
    let done = traffic.finish()?;
    stage.measured("whole_shop_ms", milliseconds(whole));
    stage.claim(
        true,
        format!(
            "all {} pods are in the mesh after {}; none was restarted",
            shop.size(),
            term::duration(whole)
        ),
    );
    if let Some(last) = readable.sightings()?.last() {
        let last = last.at.duration_since(written).unwrap_or_default();
        stage.measured("last_plaintext_byte_ms", milliseconds(last));
        stage.say(&format!("last readable card number {} after the label was written", term::duration(last)));
    }
    stage.measured("requests", done.succeeded);
    stage.measured("failed", done.failed);
    stage.claim(
        done.failed == 0,
        format!(
            "{} went on while this happened, {} failed (slowest {}){}",
            term::count(done.succeeded, "request"),
            done.failed,
            term::duration(done.slowest()),
            done.complaint()
        ),
    );
    Ok(())
}

/// A card number that is used from now on only is never seen, and all who talk are known.
pub(super) fn encrypted(stage: &mut Stage<'_>, shop: &mut Shop) -> Result<(), DemoError> {
    let card = card();
    let readable = shop.ground.wire().watch(&card);
    let (before, flows_before) = (shop.ground.wire().stats()?, shop.flows()?);
    stage.doing("customers are shopping");
    let done = shop.browse(crowd(&card).requests(SECRET_REQUESTS))?.wait()?;
    let (after, sightings) = (shop.ground.wire().stats()?, readable.count()?);
    let tunnelled = after.pods_tcp_port(HBONE_PORT).payload - before.pods_tcp_port(HBONE_PORT).payload;
    let other = after.pods_tcp.payload - before.pods_tcp.payload - tunnelled;
    stage.measured("requests", done.succeeded);
    stage.measured("failed", done.failed);
    stage.measured("sightings", sightings);
    stage.measured("encrypted_bytes", tunnelled);
    stage.measured("other_tcp_bytes", other);
    stage.claim(
        done.failed == 0 && done.succeeded == SECRET_REQUESTS,
        format!(
            "{} shopped, {} failed{}",
            term::count(done.succeeded, "request"),
            done.failed,
            done.complaint()
        ),
    );
    stage.claim(
        sightings == 0,
        format!("the card number was read {} on the wire", term::count(sightings, "time")),
    );
    stage.claim(
        other == 0 && tunnelled > 0,
        format!(
            "{} between pods of the two nodes, all of it in mutual TLS ({} of it not)",
            crate::flows::size(tunnelled),
            crate::flows::size(other)
        ),
    );
    identities(stage, shop, &flows_before)
}

/// Plaintext again, and pods as they were before they were enrolled.
pub(super) fn unlabel(stage: &mut Stage<'_>, shop: &mut Shop) -> Result<(), DemoError> {
    let traffic = shop.browse(crowd(&card()))?;
    traffic.more(20)?;
    stage.doing("waiting until every pod has left the mesh");
    let clock = Instant::now();
    shop.ground.label(false)?;
    shop.wait_for_state("not wanted")?;
    shop.wait_for_protocol("TCP")?;
    let whole = clock.elapsed();
    traffic.more(40)?;
    let done = traffic.finish()?;
    stage.measured("whole_shop_ms", milliseconds(whole));
    stage.measured("requests", done.succeeded);
    stage.measured("failed", done.failed);
    stage.claim(
        done.failed == 0,
        format!(
            "all pods have left after {}; {} went on meanwhile, {} failed{}",
            term::duration(whole),
            term::count(done.succeeded, "request"),
            done.failed,
            done.complaint()
        ),
    );
    let card = card();
    let readable = shop.ground.wire().watch(&card);
    let done = shop.browse(crowd(&card).requests(READABLE_REQUESTS))?.wait()?;
    let sightings = readable.count()?;
    stage.measured("sightings", sightings);
    stage.claim(
        done.failed == 0 && sightings > 0,
        format!(
            "the wire is an open book again: {} in {}{}",
            term::count(sightings, "sighting"),
            term::count(done.succeeded, "request"),
            done.complaint()
        ),
    );
    stage.doing("looking for what was left behind");
    let clean = shop.wait_for("a pod without traces", || {
        let now = shop.look_around().map_err(|error| error.to_string())?;
        match shop.before.differences(&now) {
            left if left.is_empty() => Ok(()),
            left => Err(left.join("; ")),
        }
    });
    let left = match clean {
        Err(DemoError::Late { last, .. }) => last,
        other => other.map(|()| String::new())?,
    };
    stage.claim(
        left.is_empty(),
        match left.as_str() {
            "" => "nothing of the mesh is left in the pods: rules, routes, sysctls, sockets and BPF pins are as before".to_owned(),
            left => format!("left behind: {left}"),
        },
    );
    Ok(())
}

/// Who talked to whom since `before`, and whether all of them were who their service account says.
fn identities(stage: &mut Stage<'_>, shop: &Shop, before: &Flows) -> Result<(), DemoError> {
    let mut table = Table::new(["FROM", "AS", "TO", "AS", "HOW", ">CONNECTIONS"]);
    let mut list = Vec::new();
    let mut wrong = Vec::new();
    for (node, pairs) in shop.flows()? {
        let known = before.get(&node);
        for (pair, totals) in pairs.into_iter().filter(|(pair, _)| pair.direction == "in") {
            let earlier = known.and_then(|known| known.get(&pair)).map_or(0, |totals: &Totals| totals.opened);
            let opened = totals.opened.saturating_sub(earlier);
            if opened == 0 {
                continue;
            }
            if !is_who_it_should_be(&pair) {
                wrong.push(format!(
                    "{} as {:?}, {} as {:?}",
                    pair.source, pair.source_identity, pair.destination, pair.destination_identity
                ));
            }
            list.push(serde_json::json!({ "pair": pair, "connections": opened }));
            let Pair { source, destination, source_identity, destination_identity, transport, .. } = pair;
            table.row([
                source,
                source_identity,
                destination,
                destination_identity,
                transport.to_owned(),
                opened.to_string(),
            ]);
        }
    }
    stage.measured("pairs", list.clone());
    stage.claim(
        wrong.is_empty() && !list.is_empty(),
        match wrong.as_slice() {
            [] => format!(
                "{} talked, each under the SPIFFE identity of its service account",
                term::count(list.len() as u64, "pair")
            ),
            wrong => format!("not who they should be: {}", wrong.join("; ")),
        },
    );
    stage.table(&table);
    Ok(())
}

/// Workloads of the shop are called after their service account, with a number at most.
fn is_who_it_should_be(pair: &Pair) -> bool {
    let is = |workload: &str, identity: &str| {
        let Some((namespace, name)) = workload.split_once('/') else { return false };
        let account = name.split('-').next().unwrap_or(name);
        identity == format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
    };
    pair.transport != "plaintext"
        && is(&pair.source, &pair.source_identity)
        && is(&pair.destination, &pair.destination_identity)
}

fn first_sighting(shop: &Shop, watch: &Watch) -> Result<SystemTime, DemoError> {
    let short = Duration::from_millis(20);
    let seen = shop.interrupt.wait_for(shop.ground.patience(), || watch.wait(short).ok())?;
    // Asked once more for the reason, which names what was waited for.
    seen.map_or_else(|| Ok(watch.wait(short)?.at), |sighting| Ok(sighting.at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_belongs_to_its_workload() {
        let check = |workload: &str, account: &str, transport: &'static str| {
            let identity = format!("spiffe://cluster.local/ns/shop/sa/{account}");
            is_who_it_should_be(&Pair {
                direction: "in",
                source: workload.to_owned(),
                destination: workload.to_owned(),
                source_identity: identity.clone(),
                destination_identity: identity,
                transport,
            })
        };
        assert!(check("shop/cart-1", "cart", "hbone"));
        assert!(check("shop/frontend", "frontend", "local"));
        assert!(!check("shop/cart-1", "frontend", "hbone"));
        assert!(!check("shop/cart-1", "cart", "plaintext"));
        assert!(!check("unknown", "cart", "hbone"));
    }
}
