//! A fault that one user meets, told by a header and by who asks, and that ends by itself.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::super::error::DemoError;
use super::super::milliseconds;
use super::super::report::Stage;
use super::super::shop::{REVIEWS, Shop, card};
use super::super::traffic::{Browse, Traffic};
use crate::term;

/// Requests that have to go one way, all of them.
const REQUESTS: u64 = 30;

/// The user who meets it.
const JANE: &str = "x-user: jane";

/// How long it goes on once its end is set.
const REST: Duration = Duration::from_secs(1);

fn policy(until: SystemTime) -> String {
    let until = OffsetDateTime::from(until).replace_nanosecond(0).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let until = until.format(&Rfc3339).unwrap_or_default();
    format!(
        "\
apiVersion: airglow.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: jane, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, name: reviews}}]
  fault:
    until: \"{until}\"
    matches:
    - headers: [{{name: x-user, value: jane}}]
      clients: [{{serviceAccount: shopper}}]
    abort: {{httpStatus: 503}}
"
    )
}

/// Jane in `shopper` meets it; john there and jane in `partner` don't.
pub(super) fn fault(stage: &mut Stage<'_>, shop: &mut Shop) -> Result<(), DemoError> {
    let as_user =
        |user: &str| Browse::new(REVIEWS, &card()).header(user).keep().crowd(1, Duration::from_millis(5));
    let john = shop.browse(as_user("x-user: john"))?;
    let elsewhere = shop.browse_from("partner", as_user(JANE))?;
    let jane = shop.browse(as_user(JANE))?;
    jane.more(REQUESTS)?;
    let written = SystemTime::now();
    let lasting = policy(written + Duration::from_secs(3600));
    for line in lasting.lines() {
        stage.say(line);
    }

    stage.doing("applying the policy");
    shop.ground.apply(&lasting)?;
    let met = jane.until_outcome(true, written)?.duration_since(written).unwrap_or_default();
    stage.measured("applied_ms", milliseconds(met));
    stage.claim(true, format!("jane met it {} after the policy was written", term::duration(met)));
    let during = shop.browse(as_user(JANE).requests(REQUESTS))?.wait()?;
    stage.measured("aborted", during.failed);
    stage.claim(
        during.failed == REQUESTS && during.errors.keys().all(|error| error.contains("status 503")),
        format!(
            "from then on {} of {REQUESTS} requests of hers were aborted{}",
            during.failed,
            during.complaint()
        ),
    );

    stage.doing("setting its end");
    let end = SystemTime::now() + REST;
    shop.ground.apply(&policy(end))?;
    let over = jane.until_outcome(false, end - REST)?;
    jane.finish()?;
    let after = shop.browse(as_user(JANE).requests(REQUESTS))?.wait()?;
    // The policy names whole seconds.
    stage.measured("ended_after_ms", milliseconds(over.duration_since(end - REST).unwrap_or_default()));
    stage.claim(
        after.failed == 0,
        format!(
            "told to end within a second, it ended by itself: {} of {REQUESTS} aborted{}",
            after.failed,
            after.complaint()
        ),
    );
    undisturbed(stage, "john", john)?;
    undisturbed(stage, "jane elsewhere (partner)", elsewhere)?;
    shop.ground.withdraw(&lasting)
}

fn undisturbed(stage: &mut Stage<'_>, who: &str, traffic: Traffic) -> Result<(), DemoError> {
    traffic.more(REQUESTS)?;
    let done = traffic.finish()?;
    stage.measured(&format!("others_failed_{}", who.split(' ').next().unwrap_or(who)), done.failed);
    stage.claim(
        done.failed == 0,
        format!(
            "{who} noticed nothing: {}, {} failed{}",
            term::count(done.succeeded, "request"),
            done.failed,
            done.complaint()
        ),
    );
    Ok(())
}
