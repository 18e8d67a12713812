//! The steps of the demo, in their order.
//!
//! Each measures what it promises; none believes what a log says of itself where the wire or a customer can be asked.

mod canary;
mod guarded;
mod pods;
mod policy;
mod proxies;
mod replica;
mod telemetry;
mod user;
mod wire;

pub(super) use canary::route;
pub(super) use guarded::open as open_guarded;

use std::time::Instant;

use super::error::DemoError;
use super::milliseconds;
use super::report::Stage;
use super::shop::Shop;
use crate::interrupt::Interrupt;
use crate::term;

/// A step.
pub(crate) struct Entry {
    /// Stable across releases.
    pub(crate) id: &'static str,
    /// For people.
    pub(crate) title: &'static str,
    /// Shows it.
    pub(crate) run: fn(&mut Stage<'_>, &mut Shop) -> Result<(), DemoError>,
    /// Left out when the shop stays open afterwards.
    pub(crate) only_without_keep: bool,
}

const fn entry(
    id: &'static str,
    title: &'static str,
    run: fn(&mut Stage<'_>, &mut Shop) -> Result<(), DemoError>,
) -> Entry {
    Entry { id, title, run, only_without_keep: false }
}

/// All steps after the opening.
pub(crate) const ALL: [Entry; 9] = [
    entry("plaintext", "Without a mesh, the wire between the nodes is an open book", wire::plaintext),
    entry("label", "The namespace is labelled istio.io/dataplane-mode=ambient, under traffic", wire::label),
    entry("identity", "From now on nothing is readable, and everybody has a name", wire::encrypted),
    entry("policy", "A policy: customers must not talk to payments", policy::deny),
    entry("pods", "A pod joins and leaves", pods::join_and_leave),
    entry("restart", "A ztunnel is replaced by its successor, under traffic", proxies::restart),
    entry("kill", "A ztunnel is killed", proxies::kill),
    entry("telemetry", "Who talked to whom, from each node's metrics", telemetry::flows),
    Entry { only_without_keep: true, ..entry("unlabel", "The label is taken away", wire::unlabel) },
];

/// All steps after the opening, where the shop is behind a waypoint.
pub(crate) const GUARDED: [Entry; 5] = [
    entry("canary", "A canary gets a tenth of the requests, then half", canary::shift),
    entry("ab", "A/B: customers whose cookie says so get the new edition", canary::by_cookie),
    entry("fault", "A fault for one user, and nobody else", user::fault),
    entry("retry", "A replica that fails now and then, and a retry that hides it", replica::hide),
    entry("outage", "The waypoint is killed", guarded::outage),
];

/// Builds the shop, and the mesh beside it.
pub(crate) fn open(
    stage: &mut Stage<'_>,
    kubernetes: bool,
    interrupt: &Interrupt,
) -> Result<Shop, DemoError> {
    stage.doing("building two nodes and opening the shop");
    let began = Instant::now();
    let mut shop = Shop::open(kubernetes, interrupt)?;
    let opened = began.elapsed();
    stage.measured("shop_ms", milliseconds(opened));
    stage.measured("pods", shop.size());
    stage.claim(
        true,
        format!(
            "{} on 2 nodes{}, real HTTP between them ({})",
            term::count(shop.size() as u64, "pod"),
            if kubernetes { " of a Kubernetes" } else { "" },
            term::duration(opened)
        ),
    );
    stage.say("n1: shopper, frontend, cart-1     n2: cart-2, reviews, payments");
    stage.say(
        "shopper -> frontend -> cart -> payments, frontend -> reviews; every request carries a card number",
    );
    stage.doing("starting the controller and a ztunnel per node");
    let began = Instant::now();
    shop.install_mesh()?;
    stage.measured("mesh_ms", milliseconds(began.elapsed()));
    stage.claim(
        true,
        format!(
            "controller and two ztunnels are ready; no pod is in the mesh yet ({})",
            term::duration(began.elapsed())
        ),
    );
    Ok(shop)
}
