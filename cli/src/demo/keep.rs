//! `--keep`: the shop stays open with customers in it, and the user is told how to look around.

use std::time::Duration;

use super::error::DemoError;
use super::report::Stage;
use super::shop::{Shop, card};
use super::steps::route;
use super::traffic::Browse;

/// Few enough to leave the machine alone for hours.
const EVERY: Duration = Duration::from_millis(200);

/// Keeps customers in the shop until Ctrl-C, which is not an error.
pub(super) fn hold(stage: &mut Stage<'_>, shop: &Shop) -> Result<(), DemoError> {
    let airglow = std::env::current_exe().unwrap_or_else(|_| "airglow".into());
    let ways = shop.ground.ways(&airglow, shop.front())?;
    if shop.waypoint.is_some() {
        shop.ground.apply(&route([90, 10]))?;
    }
    let traffic = shop.browse(Browse::new(shop.front(), &card()).crowd(2, EVERY))?;
    for (what, command) in ways {
        stage.say(&format!("{what:<25} {command}"));
    }
    stage.doing("customers are shopping; Ctrl-C ends and removes everything");
    while !shop.interrupt.asked() {
        shop.interrupt.pause(Duration::from_secs(1))?;
    }
    traffic.finish().map(drop)
}
