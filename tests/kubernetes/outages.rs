//! The controller is away for a while, and a node loses its power, while pods come and go: the mesh goes on with what it knows,
//! nobody starts outside of it, and afterwards all is as it should be.

use std::time::{Duration, Instant};

use daemon::config::{Environment, Vars as _};

use crate::faults::World;
use crate::install::{SYSTEM, start};
use crate::system::kubectl;
use crate::{Namespace, eventually};

/// For how many seconds the controller is away at least. `scripts/soak` sets it; else it is away for one round.
const CONTROLLER_AWAY: &str = "SOAK_CONTROLLER_AWAY";

#[test]
fn controllers_are_away_and_a_node_loses_its_power() {
    let cluster = start();
    let shop = Namespace::new(&cluster, "shop");
    let mut world = World::start(&cluster, &shop);
    controllers_are_away(&world, at_least());
    a_node_loses_its_power(&mut world);
}

fn at_least() -> Duration {
    let seconds =
        Environment::read().get(CONTROLLER_AWAY).map(|text| text.parse().expect("a number of seconds"));
    Duration::from_secs(seconds.unwrap_or(0))
}

fn controllers_are_away(world: &World<'_>, at_least: Duration) {
    let World { cluster, shop, .. } = world;
    let scale = |replicas: &str| {
        kubectl(cluster, &["-n", SYSTEM, "scale", "deployment/airglow-controller", "--replicas", replicas]);
    };
    let since = world.traffic.now();
    scale("0");
    eventually("no controller is left", || {
        match kubectl(cluster, &["-n", SYSTEM, "get", "pods", "-l", "app=airglow-controller", "-o", "name"]) {
            none if none.is_empty() => Ok(()),
            left => Err(left),
        }
    });
    world.traffic.progress();
    assert_eq!(world.traffic.failures(&since), Vec::<String>::new(), "nobody needs a controller to talk");
    let [(stays, ..), (leaves, ..)] = &shop.pods()[..] else { panic!("two servers") };
    let began = Instant::now();
    loop {
        // Pods come on both nodes, which start when there is a controller to say whether they belong into the mesh, and go: first
        // one that was there before, then those that have never started.
        shop.kubectl(&["scale", "deployment/web", "--replicas=6"]);
        world.is_said("ztunnel does not know whether it is in the mesh");
        let others = shop.pods().into_iter().map(|(name, ..)| name).filter(|name| name != stays);
        let gone = others.min_by_key(|name| name != leaves).expect("more are wanted");
        shop.kubectl(&["delete", "pod", &gone, "--wait=false"]);
        world.traffic.progress();
        shop.kubectl(&["scale", "deployment/web", "--replicas=4"]);
        if began.elapsed() >= at_least {
            break;
        }
    }
    scale("2");
    shop.rolled_out();
    world.is_whole("the controllers were away");
}

fn a_node_loses_its_power(world: &mut World<'_>) {
    let node = world.cluster.node(1);
    node.power_off().expect("a power cut");
    node.power_on().expect("power");
    // The API server hears later that pods are not ready, and that they are again.
    let started = "jsonpath={.status.containerStatuses[0].restartCount}";
    eventually("a new start of a pod", || match world.shop.kubectl(&["get", "pod", "echo", "-o", started]) {
        count if count == "1" => Ok(()),
        count => Err(count),
    });
    world.shop.rolled_out();
    // Its pods have other addresses now.
    world.talk_anew();
    world.is_whole("a node had lost its power");
}
