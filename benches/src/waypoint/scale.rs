//! What many connections, routes and endpoints cost, and how soon a changed route is followed.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use lab::Process;
use serde::Serialize;

use super::ground::{Ground, Kind, Proxy, Scale};
use super::manifests::Routes;
use super::measure::{self, Slot};
use super::say;
use super::shapes::Shape;
use crate::resident;
use crate::stats::percentile;

/// Tunnels that are open and silent.
const TUNNELS: usize = 1000;
/// Routes and endpoints of the figures about memory.
const ROUTES: usize = 1000;
const ENDPOINTS: usize = 10_000;
/// Routes beside the one that is followed.
const ROUTES_PER_HOST: [usize; 4] = [10, 100, 1000, 10_000];
/// How often a route is changed.
const CHANGES: usize = 20;

/// How long anything of this may take on a busy machine.
const WITHIN: Duration = Duration::from_secs(120);

/// The resident set of a proxy, in bytes.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Memory {
    pub(crate) proxy: Kind,
    pub(crate) idle: u64,
    pub(crate) tunnels: usize,
    pub(crate) connected: u64,
    /// The same when each has a stream that was used once.
    pub(crate) used: u64,
    pub(crate) routes: u64,
    pub(crate) endpoints: u64,
}

/// A shape beside so many routes.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Crowded {
    pub(crate) routes: usize,
    pub(crate) slots: Vec<Slot>,
}

/// Memory of every proxy. To be measured before any load.
pub(crate) fn memory(ground: &Ground, shape: &Shape) -> anyhow::Result<Vec<Memory>> {
    let mut all = Vec::new();
    for proxy in ground.taking(shape.mesh) {
        say(&format!("memory of {:?}", proxy.kind));
        let idle = settled(ground, proxy)?;
        let holding = |streams| {
            let many = Shape { connections: TUNNELS, streams, ..*shape };
            let held = measure::start(ground, proxy, &many, &|args| args.push("--hold".into()))?;
            held.wait_for_line("holding", WITHIN).inspect_err(|_| drop(held.kill()))?;
            let bytes = settled(ground, proxy)?;
            held.kill()?;
            anyhow::Ok(bytes)
        };
        let (connected, used) = (holding(0)?, holding(1)?);
        let with = |scale: Scale| at_scale(ground, proxy, scale);
        let routes = with(Scale { routes: ROUTES, endpoints: 0 })?;
        let endpoints = with(Scale { routes: 0, endpoints: ENDPOINTS })?;
        all.push(Memory { proxy: proxy.kind, idle, tunnels: TUNNELS, connected, used, routes, endpoints });
    }
    Ok(all)
}

/// The memory of one that was started anew and knows so much.
fn at_scale(ground: &Ground, proxy: &Proxy, scale: Scale) -> anyhow::Result<u64> {
    if scale.routes > 0 {
        ground.route(&Routes { others: scale.routes, mark: None })?;
    }
    if scale.endpoints > 0 {
        ground.gather(scale.endpoints)?;
    }
    let other = ground.start_another(proxy, scale)?;
    let bytes = settled(ground, &other)?;
    other.process.kill()?;
    other.pod.remove()?;
    if scale.routes > 0 {
        ground.route(&Routes::default())?;
    }
    if scale.endpoints > 0 {
        ground.disperse(scale.endpoints)?;
    }
    Ok(bytes)
}

fn settled(ground: &Ground, proxy: &Proxy) -> anyhow::Result<u64> {
    let controller = ground.lab.controller().context("the controller has gone")?;
    resident::settle(&format!("{:?}", proxy.kind), &[proxy.process.pid(), controller.pid()])?;
    resident::bytes(&[proxy.process.pid()])
}

/// A shape beside many routes of the same host.
pub(crate) fn crowded(
    ground: &mut Ground,
    shape: &Shape,
    (rounds, length): (usize, Duration),
) -> anyhow::Result<Vec<Crowded>> {
    let mut all = Vec::new();
    for routes in ROUTES_PER_HOST {
        say(&format!("{routes} routes"));
        ground.route(&Routes { others: routes, mark: None })?;
        let others = ground.replace_envoy(Scale { routes, endpoints: 0 })?;
        ground.settle()?;
        let slots = measure::rounds(ground, &[*shape], rounds, length)?;
        ground.put_back(others)?;
        all.push(Crowded { routes, slots });
    }
    ground.route(&Routes::default())?;
    Ok(all)
}

/// From the moment before a route is written until the first answer that follows it, in microseconds: median and longest.
pub(crate) fn changes(ground: &Ground, shape: &Shape) -> anyhow::Result<(u64, u64)> {
    say(&format!("{CHANGES} changes of a route"));
    let ours = ground.taking(shape.mesh).find(|proxy| proxy.kind == Kind::Airglow);
    let ours = ours.context("ours does not run")?;
    let one = Shape { connections: 1, streams: 1, rate: None, ..*shape };
    let mut before = super::load::message::WEIGHTS.1.to_owned();
    let mut times = Vec::with_capacity(CHANGES);
    for number in 0..CHANGES {
        let mark = format!("change-{number}");
        let client = measure::start(ground, ours, &one, &|args| {
            args.extend(["--mark".into(), before.clone(), "--until".into(), mark.clone()]);
        })?;
        client.wait_for_line("asking", WITHIN).inspect_err(|_| drop(client.kill()))?;
        let began = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        ground.route(&Routes { others: 0, mark: Some(mark.clone()) })?;
        let followed = followed(&client)?;
        times.push(followed.saturating_sub(u64::try_from(began.as_micros())?));
        before = mark;
    }
    ground.route(&Routes::default())?;
    let [median, longest] = [0.5, 1.0].map(|share| percentile(&mut times, share).unwrap_or_default());
    Ok((median, longest))
}

fn followed(client: &Process) -> anyhow::Result<u64> {
    let line = client.wait_for_line("followed at", WITHIN).inspect_err(|_| drop(client.kill()))?;
    let time = line.trim().strip_prefix("followed at ").context("another line")?;
    time.parse().with_context(|| format!("read {line:?}"))
}
