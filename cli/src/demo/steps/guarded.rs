//! The shop behind a waypoint: how it opens, and that nobody gets around a waypoint that is gone.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::super::error::DemoError;
use super::super::milliseconds;
use super::super::report::Stage;
use super::super::shop::{REVIEWS, Shop, card};
use super::super::traffic::Browse;
use crate::interrupt::Interrupt;
use crate::term;

/// Requests that have to go one way, all of them.
const REQUESTS: u64 = 20;

/// Builds the shop with its mesh and its waypoint, and returns when requests pass it.
pub(in crate::demo) fn open(stage: &mut Stage<'_>, interrupt: &Interrupt) -> Result<Shop, DemoError> {
    stage.doing("building two nodes, the mesh, the waypoint and the shop");
    let began = Instant::now();
    let shop = Shop::open_guarded(interrupt)?;
    let waypoint = shop.waypoint.as_ref().expect("it was just opened with one").ips().to_vec();
    shop.wait_for("a request by way of the waypoint", || {
        let seen = shop.ground.look("shopper", &format!("curl -s -m 5 {REVIEWS}"));
        let text = seen.map_err(|error| error.to_string())?.stdout;
        let answer: Value = serde_json::from_str(&text).unwrap_or_default();
        let client: Option<SocketAddr> = answer["client"].as_str().and_then(|client| client.parse().ok());
        client.filter(|client| waypoint.contains(&client.ip())).ok_or(text)
    })?;
    stage.measured("shop_ms", milliseconds(began.elapsed()));
    stage.measured("pods", shop.size());
    stage.claim(
        true,
        format!(
            "{} on 2 nodes in the mesh, and a waypoint that their services are behind ({})",
            term::count(shop.size() as u64, "pod"),
            term::duration(began.elapsed())
        ),
    );
    stage.say("n1: shopper, partner, reviews-1, rates-1     n2: reviews-2, reviews-new, rates-2, waypoint-1");
    stage.say("shopper and partner -> waypoint -> reviews, rates; routes are files in a directory");
    Ok(shop)
}

/// Who needs a waypoint is refused without it, is told why, and served again with it.
pub(super) fn outage(stage: &mut Stage<'_>, shop: &mut Shop) -> Result<(), DemoError> {
    let ask = || Browse::new(REVIEWS, &card()).crowd(1, Duration::from_millis(2));
    let waypoint = |shop: &mut Shop| shop.waypoint.take().expect("this tour has one");
    stage.doing("killing the waypoint");
    let mut own = waypoint(shop);
    own.kill()?;
    let refused = shop.browse(ask().requests(REQUESTS))?.wait()?;
    stage.measured("refused", refused.failed);
    stage.claim(
        refused.succeeded == 0 && refused.failed == REQUESTS,
        format!("nobody gets around it: {} of {REQUESTS} refused", refused.failed),
    );
    explain(stage, shop)?;
    stage.doing("starting it again");
    let started = SystemTime::now();
    own.restart()?;
    let traffic = shop.browse(ask())?;
    let works = traffic.until_outcome(false, started)?.duration_since(started).unwrap_or_default();
    traffic.finish()?;
    shop.waypoint = Some(own);
    stage.measured("works_again_ms", milliseconds(works));
    let done = shop.browse(ask().requests(REQUESTS))?.wait()?;
    stage.claim(
        done.failed == 0,
        format!(
            "started again, it works after {}: {}, {} failed{}",
            term::duration(works),
            term::count(done.succeeded, "request"),
            done.failed,
            done.complaint()
        ),
    );
    Ok(())
}

/// What the client's ztunnel says about a refusal.
fn explain(stage: &mut Stage<'_>, shop: &Shop) -> Result<(), DemoError> {
    let node = shop.ground.node_of("shopper");
    let is_ours = |line: &Value| line["src.workload"] == "shopper" && !line["code"].is_null();
    let line = shop.wait_for("a refusal in the access log", || {
        let log = shop.access_log(&node).map_err(|error| error.to_string())?;
        log.into_iter().rfind(is_ours).ok_or_else(|| "no refusal of the shopper".to_owned())
    })?;
    let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
    let (code, reason) = (text("code"), text("error"));
    stage.measured("code", code.clone());
    stage.measured("reason", reason.clone());
    stage.claim(!reason.is_empty(), format!("{node}'s ztunnel says why: {code}: {reason}"));
    Ok(())
}
