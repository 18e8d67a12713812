//! A ztunnel that is replaced, and one that is killed.

use std::time::{Duration, Instant};

use super::super::error::DemoError;
use super::super::ground::PORT;
use super::super::milliseconds;
use super::super::report::Stage;
use super::super::shop::{HBONE_PORT, Shop, card};
use super::super::traffic::Browse;
use super::wire::crowd;
use crate::term;

/// Attempts without a ztunnel. Each on an address, so that nothing is waited for but the connection.
const ATTEMPTS: u64 = 5;

/// A refusal is at once when nobody would call it a timeout: TCP repeats its first SYN after one second.
const AT_ONCE: Duration = Duration::from_millis(900);

/// A successor takes over; nobody notices.
pub(super) fn restart(stage: &mut Stage<'_>, shop: &mut Shop) -> Result<(), DemoError> {
    let node = shop.ground.node_of("shopper");
    let others = shop.browse(crowd(&card()))?;
    let held = Browse::new("http://payments/", &card()).keep().crowd(1, Duration::from_millis(10));
    let held = shop.browse(held)?;
    held.more(10)?;
    others.more(20)?;
    stage.doing("starting the successor on n1 and ending the old one");
    let clock = Instant::now();
    let handover = shop.ground.replace_ztunnel(&node)?;
    let took = clock.elapsed();
    stage.measured("handover_ms", milliseconds(took));
    stage.claim(true, format!("{} in {}", handover.text, term::duration(took)));
    others.more(60)?;
    held.more(20)?;
    let held = held.finish()?;
    stage.measured("held_requests", held.succeeded);
    stage.measured("held_connections", held.connections);
    stage.claim(
        held.failed == 0 && held.connections == 1,
        format!(
            "one connection from before carried {}, {} failed{}",
            term::count(held.succeeded, "request"),
            held.failed,
            held.complaint()
        ),
    );
    let done = others.finish()?;
    stage.measured("requests", done.succeeded);
    stage.measured("failed", done.failed);
    stage.measured("slowest_ms", milliseconds(done.slowest()));
    stage.claim(
        done.failed == 0,
        format!(
            "{} on new connections, {} failed (slowest {}){}",
            term::count(done.succeeded, "request"),
            done.failed,
            term::duration(done.slowest()),
            done.complaint()
        ),
    );
    stage.doing("waiting for the old process to end");
    let clock = Instant::now();
    let ended = shop.wait_for("the end of the old ztunnel", || match (handover.is_over)() {
        Ok(true) => Ok(()),
        Ok(false) => Err("it still runs".to_owned()),
        Err(error) => Err(error.to_string()),
    });
    match ended {
        Ok(()) => stage.claim(
            true,
            format!("the old process ended {} after its last connection", term::duration(clock.elapsed())),
        ),
        Err(DemoError::Late { last, .. }) => stage.claim(
            false,
            format!(
                "the old process ends after its last connection: {last} after {} s",
                shop.ground.patience().as_secs()
            ),
        ),
        Err(other) => return Err(other),
    }
    Ok(())
}

/// Nobody proxies: refused at once, and never in plaintext.
pub(super) fn kill(stage: &mut Stage<'_>, shop: &mut Shop) -> Result<(), DemoError> {
    let node = shop.ground.node_of("shopper");
    let (card, payments) = (card(), format!("http://{}:{PORT}/", shop.ground.ips("payments")[0]));
    let ask = || Browse::new(&payments, &card);
    let readable = shop.ground.wire().watch(&card);
    stage.doing("killing n1's ztunnel");
    shop.ground.kill_ztunnel(&node)?;
    let before = shop.ground.wire().stats()?;
    let refused = shop.browse(ask().requests(ATTEMPTS))?.wait()?;
    let after = shop.ground.wire().stats()?;
    let slowest = refused.failures.iter().map(|line| line.took()).max().unwrap_or_default();
    let reason = refused.failures.first().and_then(|line| line.error.clone()).unwrap_or_default();
    let sightings = readable.count()?;
    let plain = (after.pods_tcp.payload - before.pods_tcp.payload)
        - (after.pods_tcp_port(HBONE_PORT).payload - before.pods_tcp_port(HBONE_PORT).payload);
    stage.measured("refused", refused.failed);
    stage.measured("slowest_refusal_ms", milliseconds(slowest));
    stage.measured("sightings", sightings);
    stage.claim(
        refused.failed == ATTEMPTS && slowest < AT_ONCE,
        format!(
            "shopper -> payments: {} of {ATTEMPTS} refused, the slowest after {} ({reason})",
            refused.failed,
            term::duration(slowest)
        ),
    );
    stage.claim(
        sightings == 0 && plain == 0,
        format!(
            "nothing of it was sent in plaintext ({} of payload outside tunnels)",
            crate::flows::size(plain)
        ),
    );
    stage.doing("starting it again");
    let clock = Instant::now();
    shop.ground.start_ztunnel(&node)?;
    let traffic = shop.browse(ask())?;
    traffic.until_outcome(false, std::time::SystemTime::UNIX_EPOCH)?;
    let works = clock.elapsed();
    traffic.finish()?;
    stage.measured("works_again_ms", milliseconds(works));
    let done = shop.browse(crowd(&card).requests(50))?.wait()?;
    let sightings = readable.count()?;
    stage.claim(
        done.failed == 0 && sightings == 0,
        format!(
            "started again, it works after {}: {}, {} failed, {sightings} readable{}",
            term::duration(works),
            term::count(done.succeeded, "request"),
            done.failed,
            done.complaint()
        ),
    );
    Ok(())
}
