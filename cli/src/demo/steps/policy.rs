//! A DENY policy: who is refused, with which reason, how soon; and who is not.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::super::error::DemoError;
use super::super::milliseconds;
use super::super::report::Stage;
use super::super::shop::{Shop, card};
use super::super::traffic::Browse;
use super::wire::crowd;
use crate::term;

/// Customers may go to the frontend. Payments are the cart's business.
const POLICY: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: payments-are-not-for-customers
  namespace: shop
spec:
  selector:
    matchLabels:
      app: payments
  action: DENY
  rules:
  - from:
    - source:
        principals: [cluster.local/ns/shop/sa/shopper]
";

/// The policy's name in explanations.
const NAME: &str = "payments-are-not-for-customers";

/// Requests that have to go one way, all of them.
const REQUESTS: u64 = 30;

/// Applies the policy and takes it away again.
pub(super) fn deny(stage: &mut Stage<'_>, shop: &mut Shop) -> Result<(), DemoError> {
    let card = card();
    let payments = || Browse::new("http://payments/", &card).crowd(1, Duration::from_millis(2));
    let before = shop.browse(payments().requests(REQUESTS))?.wait()?;
    stage.claim(
        before.failed == 0,
        format!(
            "before: shopper asked payments directly {}, {} refused{}",
            term::count(before.succeeded, "time"),
            before.failed,
            before.complaint()
        ),
    );
    let others = shop.browse(crowd(&card))?;
    let nosy = shop.browse(payments())?;
    nosy.more(10)?;
    for line in POLICY.lines() {
        stage.say(line);
    }

    stage.doing("applying the policy");
    let written = SystemTime::now();
    shop.ground.apply(POLICY)?;
    let bitten = nosy.until_outcome(true, written)?.duration_since(written).unwrap_or_default();
    stage.measured("applied_ms", milliseconds(bitten));
    stage.claim(
        true,
        format!("the first refusal came {} after the policy was written", term::duration(bitten)),
    );
    let refused = shop.browse(payments().requests(REQUESTS))?.wait()?;
    stage.measured("refused", refused.failed);
    stage.claim(
        refused.succeeded == 0 && refused.failed == REQUESTS,
        format!("from then on shopper was refused {} of {REQUESTS} times", refused.failed),
    );
    explain(stage, shop)?;

    stage.doing("taking the policy away");
    let written = SystemTime::now();
    shop.ground.withdraw(POLICY)?;
    let lifted = nosy.until_outcome(false, written)?.duration_since(written).unwrap_or_default();
    nosy.finish()?;
    stage.measured("lifted_ms", milliseconds(lifted));
    let after = shop.browse(payments().requests(REQUESTS))?.wait()?;
    stage.claim(
        after.failed == 0,
        format!(
            "without the policy it works again, {} after it was deleted{}",
            term::duration(lifted),
            after.complaint()
        ),
    );
    others.more(20)?;
    let others = others.finish()?;
    stage.measured("others", others.succeeded);
    stage.measured("others_failed", others.failed);
    stage.claim(
        others.failed == 0,
        format!(
            "all the while others went on, cart -> payments included: {}, {} failed{}",
            term::count(others.succeeded, "request"),
            others.failed,
            others.complaint()
        ),
    );
    Ok(())
}

/// What the destination's ztunnel says about a refusal.
fn explain(stage: &mut Stage<'_>, shop: &Shop) -> Result<(), DemoError> {
    let node = shop.ground.node_of("payments");
    let is_ours = |line: &Value| {
        line["code"] == "policy-denied"
            && line["dst.workload"] == "payments"
            && line["direction"] == "inbound"
    };
    let found = shop.wait_for("a refusal in the access log", || {
        let log = shop.access_log(&node).map_err(|error| error.to_string())?;
        log.into_iter().rfind(is_ours).ok_or_else(|| "no line with `policy-denied`".to_owned())
    });
    let line = match found {
        Err(DemoError::Late { last, .. }) => {
            stage.claim(false, format!("{node}'s ztunnel says why: {last}"));
            return Ok(());
        }
        other => other?,
    };
    let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
    let (code, reason, who) = (text("code"), text("error"), text("src.identity"));
    stage.measured("code", code.clone());
    stage.measured("reason", reason.clone());
    stage.measured("refused_identity", who.clone());
    stage.claim(reason.contains(NAME), format!("{node}'s ztunnel says why: {code}: {reason}"));
    stage.claim(who == "spiffe://cluster.local/ns/shop/sa/shopper", format!("and whom it refused: {who}"));
    Ok(())
}
