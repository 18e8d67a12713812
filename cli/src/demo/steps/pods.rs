//! A pod that comes and a pod that goes, while customers are shopping.

use std::time::{Instant, SystemTime};

use super::super::error::DemoError;
use super::super::ground::Member;
use super::super::milliseconds;
use super::super::report::Stage;
use super::super::shop::{HBONE_PORT, Shop, card};
use super::super::traffic::Browse;
use super::wire::crowd;
use crate::term;

/// The newcomer. No service finds it at first.
const NAME: &str = "cart-3";
const NEWCOMER: Member =
    Member { name: NAME, node: 0, app: "cart", is_found: false, calls: &["payments"], fails_every: None };

/// Requests without the leaving pod, after which all that were under way have been answered.
const QUIET: u64 = 60;

/// Adds a third cart and removes it again.
pub(super) fn join_and_leave(stage: &mut Stage<'_>, shop: &mut Shop) -> Result<(), DemoError> {
    let others = shop.browse(crowd(&card()))?;
    others.more(20)?;
    stage.doing("adding a pod");
    let clock = Instant::now();
    shop.ground.add(&[NEWCOMER])?;
    shop.wait_for_state_of(NAME, "enrolled")?;
    let enrolled = clock.elapsed();
    let card = card();
    let (readable, tunnels) = (shop.ground.wire().watch(&card), shop.ground.wire().watch_port(HBONE_PORT));
    let first = shop.browse_from(NAME, Browse::new("http://payments/", &card).requests(1))?.wait()?;
    let (sightings, tunnelled) = (readable.count()?, tunnels.sightings()?);
    let ips = shop.ground.ips(NAME);
    let own = tunnelled.iter().filter(|seen| ips.contains(&seen.from.ip())).count();
    stage.measured("enrolled_ms", milliseconds(enrolled));
    stage.measured("first_request_sightings", sightings);
    stage.claim(true, format!("{NAME} was in the mesh {} after it was asked for", term::duration(enrolled)));
    stage.claim(
        first.succeeded == 1 && sightings == 0 && own > 0,
        format!(
            "its first request crossed the wire encrypted ({sightings} readable, {} from its address){}",
            term::count(own as u64, "TLS segment"),
            first.complaint()
        ),
    );

    stage.doing("waiting until customers are served by it");
    let ready = SystemTime::now();
    shop.ground.present(NAME, NEWCOMER.app)?;
    let served = others.until_answered_by(NAME)?.duration_since(ready).unwrap_or_default();
    stage.measured("serving_ms", milliseconds(served));
    stage
        .claim(true, format!("it answered its first customer {} after it was ready", term::duration(served)));

    stage.doing("taking it away");
    shop.ground.dismiss(NAME)?;
    others.until_unused(NAME, QUIET)?;
    shop.ground.take_away(NAME)?;
    others.more(20)?;
    let done = others.finish()?;
    let answered = done.answered_by.get(NAME).copied().unwrap_or_default();
    stage.measured("answered_by_newcomer", answered);
    stage.measured("requests", done.succeeded);
    stage.measured("failed", done.failed);
    stage.claim(
        done.failed == 0,
        format!(
            "it answered {} and left; of {} in all {} failed{}",
            term::count(answered, "request"),
            term::count(done.succeeded, "request"),
            done.failed,
            done.complaint()
        ),
    );
    Ok(())
}
