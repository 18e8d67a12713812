//! A replica that is broken now and then: with and without a retry.

use std::time::Duration;

use super::super::error::DemoError;
use super::super::report::Stage;
use super::super::shop::{Shop, card};
use super::super::traffic::Browse;
use crate::term;

const RATES: &str = "http://rates/";

/// The broken one. What it fails is less than the budget of retries, a fifth of the requests.
const REPLICA: &str = "rates-2";

/// Requests that are counted without the retry and with it.
const REQUESTS: u64 = 300;

const RETRY: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: rates, namespace: shop}
spec:
  parentRefs: [{group: \"\", kind: Service, name: rates}]
  rules:
  - retry: {codes: [500], attempts: 2, backoff: 10ms}
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-shop-edition, value: retried}]}}
    backendRefs: [{name: rates, port: 80}]
";

/// They keep their connections: nothing but the replica fails.
fn clerks() -> Browse {
    Browse::new(RATES, &card()).keep().crowd(2, Duration::from_millis(20))
}

/// Counts failures without a retry and with one, and how often the replica was broken.
pub(super) fn hide(stage: &mut Stage<'_>, shop: &mut Shop) -> Result<(), DemoError> {
    let broken =
        |broken: &std::collections::BTreeMap<String, u64>| broken.get(REPLICA).copied().unwrap_or_default();
    stage.doing("asking for rates, without a retry");
    let without = shop.browse(clerks().requests(REQUESTS))?.wait()?;
    stage.measured("failed_without", without.failed);
    stage.claim(
        without.failed > 0,
        format!(
            "{REPLICA} fails every eighth request: {} of {REQUESTS} failed{}",
            without.failed,
            without.complaint()
        ),
    );
    for line in RETRY.lines() {
        stage.say(line);
    }
    stage.doing("applying the retry");
    shop.ground.apply(RETRY)?;
    let first = shop.browse(clerks())?;
    first.until_edition("retried")?;
    first.more(20)?;
    let before = broken(&first.finish()?.broken);
    let with = shop.browse(clerks().requests(REQUESTS))?.wait()?;
    let hidden = broken(&with.broken).saturating_sub(before);
    stage.measured("failed_with", with.failed);
    stage.measured("hidden", hidden);
    stage.claim(
        with.failed == 0,
        format!("with the retry, {} of {REQUESTS} failed{}", with.failed, with.complaint()),
    );
    stage.claim(
        hidden > 0,
        format!("and {REPLICA} was still broken: it failed {} meanwhile", term::count(hidden, "request")),
    );
    shop.ground.withdraw(RETRY)
}
