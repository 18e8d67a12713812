//! A pod that comes and a pod that goes, while customers are shopping.

use std::time::{Instant, SystemTime};

use lab::PodSpec;

use super::super::error::DemoError;
use super::super::milliseconds;
use super::super::report::Stage;
use super::super::shop::{HBONE_PORT, NAMESPACE, SOON, Shop, card};
use super::super::traffic::Browse;
use super::wire::crowd;
use crate::term;

/// The newcomer.
const NAME: &str = "cart-3";

/// Requests without the leaving pod, after which all that were under way have been answered.
const QUIET: u64 = 60;

/// Adds a third cart and removes it again.
pub(super) fn join_and_leave(stage: &mut Stage<'_>, shop: &Shop) -> Result<(), DemoError> {
    let others = shop.browse(crowd(&card()))?;
    others.more(20)?;
    stage.doing("adding a pod");
    let clock = Instant::now();
    // Without the label that the service selects by, until its program listens: as a readiness probe would have it.
    let pod = shop.lab.node(0).add_pod(PodSpec::new(NAMESPACE, NAME).service_account("cart"))?;
    pod.wait_for_state("enrolled", SOON)?;
    let enrolled = clock.elapsed();
    let card = card();
    let (readable, tunnels) = (shop.wire().watch(&card), shop.wire().watch_port(HBONE_PORT));
    let first = shop.browse_from(&pod, Browse::new("http://payments/", &card).requests(1))?.wait()?;
    let (sightings, tunnelled) = (readable.count()?, tunnels.sightings()?);
    let own = tunnelled.iter().filter(|seen| pod.ips().contains(&seen.from.ip())).count();
    stage.measured("enrolled_ms", milliseconds(enrolled));
    stage.measured("first_request_sightings", sightings);
    stage.claim(true, format!("{NAME} was in the mesh {} after it was asked for", term::duration(enrolled)));
    stage.claim(
        first.succeeded == 1 && sightings == 0 && own > 0,
        format!(
            "its first program's first request crossed the wire encrypted ({sightings} readable, {} from its address){}",
            term::count(own as u64, "TLS segment"),
            first.complaint()
        ),
    );

    stage.doing("waiting until customers are served by it");
    shop.serve(&pod, &["payments"])?;
    let ready = SystemTime::now();
    pod.label("app", Some("cart"))?;
    let served = others.until_answered_by(NAME)?.duration_since(ready).unwrap_or_default();
    stage.measured("serving_ms", milliseconds(served));
    stage
        .claim(true, format!("it answered its first customer {} after it was ready", term::duration(served)));

    stage.doing("taking it away");
    pod.start_deletion()?;
    others.until_unused(NAME, QUIET)?;
    pod.remove()?;
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
