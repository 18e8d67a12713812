//! Requests that are shared out by weight, and by what they carry.

use std::time::{Duration, SystemTime};

use super::super::error::DemoError;
use super::super::milliseconds;
use super::super::report::Stage;
use super::super::shop::{REVIEWS, Shop, card};
use super::super::traffic::{Browse, Summary};
use crate::term;

/// Requests that are counted for each pair of weights.
const SAMPLE: u64 = 600;

/// Requests of each group of customers, all of which have to go one way.
const GROUP: u64 = 40;

/// Who answers for the canary.
const CANARY: &str = "reviews-new";

/// Customers who keep their connections: what is shared out is requests.
fn readers() -> Browse {
    Browse::new(REVIEWS, &card()).keep().crowd(4, Duration::from_millis(2))
}

/// The canary's route. What is marked with `x-shop-edition` came by it.
pub(in crate::demo) fn route([old, new]: [u32; 2]) -> String {
    format!(
        "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: reviews, namespace: shop}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: reviews}}]
  rules:
  - filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {{set: [{{name: x-shop-edition, value: \"{old}/{new}\"}}]}}
    backendRefs:
    - {{name: reviews, port: 80, weight: {old}}}
    - {{name: {CANARY}, port: 80, weight: {new}}}
"
    )
}

/// 90/10, then 50/50, under traffic.
pub(super) fn shift(stage: &mut Stage<'_>, shop: &mut Shop) -> Result<(), DemoError> {
    let (first, then) = ([90, 10], [50, 50]);
    for line in route(first).lines() {
        stage.say(line);
    }
    stage.doing("customers are reading reviews");
    shop.ground.apply(&route(first))?;
    let traffic = shop.browse(readers())?;
    traffic.until_edition("90/10")?;
    traffic.more(SAMPLE)?;
    stage.doing("editing the route");
    let written = SystemTime::now();
    shop.ground.apply(&route(then))?;
    let followed = traffic.until_edition("50/50")?.duration_since(written).unwrap_or_default();
    traffic.more(SAMPLE)?;
    let done = traffic.finish()?;
    shares(stage, &done, first);
    stage.measured("followed_ms", milliseconds(followed));
    stage.claim(
        true,
        format!("the first request by 50/50 came {} after the file was written", term::duration(followed)),
    );
    shares(stage, &done, then);
    stage.measured("requests", done.succeeded);
    stage.measured("failed", done.failed);
    stage.claim(
        done.failed == 0,
        format!(
            "{} on {}, {} failed{}",
            term::count(done.succeeded, "request"),
            term::count(done.connections, "connection"),
            done.failed,
            done.complaint()
        ),
    );
    shop.ground.withdraw(&route(then))
}

/// Whether the canary's share of what came by these weights is what chance allows.
fn shares(stage: &mut Stage<'_>, done: &Summary, [old, new]: [u32; 2]) {
    let (all, canary) = done.by_edition(&format!("{old}/{new}"), CANARY);
    let (least, most) = bounds(all, f64::from(new) / f64::from(old + new));
    stage.measured(&format!("requests_{old}_{new}"), all);
    stage.measured(&format!("canary_{old}_{new}"), canary);
    stage.claim(
        all > 0 && (least..=most).contains(&canary),
        format!("by {old}/{new}, {canary} of {all} went to the canary (chance allows {least} to {most})"),
    );
}

/// How often something of this probability happens in so many draws, but for one run in a million: five standard deviations to
/// either side.
fn bounds(draws: u64, probability: f64) -> (u64, u64) {
    #[expect(clippy::cast_precision_loss, reason = "a demo makes thousands of requests")]
    let draws = draws as f64;
    let (mean, deviation) = (draws * probability, (draws * probability * (1.0 - probability)).sqrt());
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the draws")]
    let whole = |value: f64| value.clamp(0.0, draws) as u64;
    (whole((mean - 5.0 * deviation).ceil()), whole((mean + 5.0 * deviation).floor()))
}

/// Two editions, by cookie.
const BY_COOKIE: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: reviews, namespace: shop}
spec:
  parentRefs: [{group: \"\", kind: Service, name: reviews}]
  rules:
  - matches: [{headers: [{name: cookie, type: RegularExpression, value: '(.*; )?group=b(;.*)?'}]}]
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-shop-edition, value: b}]}}
    backendRefs: [{name: reviews-new, port: 80}]
  - filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-shop-edition, value: a}]}}
    backendRefs: [{name: reviews, port: 80}]
";

/// Who has the cookie gets the new edition, always, and nobody else does.
pub(super) fn by_cookie(stage: &mut Stage<'_>, shop: &mut Shop) -> Result<(), DemoError> {
    for line in BY_COOKIE.lines() {
        stage.say(line);
    }
    stage.doing("customers of both groups are reading reviews");
    shop.ground.apply(BY_COOKIE)?;
    let first = shop.browse(readers())?;
    first.until_edition("a")?;
    first.finish()?;
    let mut group = |cookie: &str, edition: &str, new: u64| -> Result<(), DemoError> {
        let done = shop.browse(readers().header(&format!("cookie: {cookie}")).requests(GROUP))?.wait()?;
        let (all, canary) = done.by_edition(edition, CANARY);
        stage.measured(&format!("{edition}_new"), canary);
        stage.claim(
            done.failed == 0 && all == GROUP && canary == new,
            format!(
                "with the cookie `{cookie}`, {canary} of {all} got the new edition, {} failed{}",
                done.failed,
                done.complaint()
            ),
        );
        Ok(())
    };
    group("theme=dark; group=a", "a", 0)?;
    group("theme=dark; group=b", "b", GROUP)?;
    shop.ground.withdraw(BY_COOKIE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_has_bounds() {
        assert_eq!(bounds(600, 0.1), (24, 96));
        assert_eq!(bounds(600, 0.5), (239, 361));
        assert_eq!(bounds(0, 0.5), (0, 0));
        assert_eq!(bounds(10, 0.1), (0, 5));
    }
}
