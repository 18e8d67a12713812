//! The endpoints of one port of a service, by nearness, and the choice among them.
//!
//! Made once for each version of the mesh and shared by its requests; a choice takes no lock and allocates nothing.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use model::route::{Reachable, Target};
use model::service::ServiceName;
use model::workload::WorkloadUid;

use super::maglev::Table;
use super::registry::Registry;
use super::state::State;

/// A locality takes its whole share while at least so much of it is up, as a fraction of what there is: endpoints have that
/// much room to spare. Below it the rest goes to the next locality.
const OVERPROVISIONED: f64 = 1.4;

/// Draws of an endpoint that was not tried yet, before all are looked at.
const DRAWS: usize = 8;

/// How one endpoint is chosen among those of a locality.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Strategy {
    /// By a hash that the request brings (Maglev). Without one, like `LeastRequest`.
    Hash,
    /// Of two random ones, the one with fewer requests under way.
    LeastRequest,
    /// Of two random ones, the one that is expected to answer sooner.
    #[default]
    PeakEwma,
    /// Any.
    Random,
    /// One after the other.
    RoundRobin,
}

/// What a choice depends on.
pub struct Ask<'a> {
    /// The time, as [`State`] counts it.
    pub now: u64,
    /// Of what the request is to stay with an endpoint by.
    pub hash: Option<u64>,
    /// Endpoints that were tried for this request already.
    pub tried: &'a [WorkloadUid],
    /// A uniformly random number below its argument, which is never 0.
    pub random: &'a mut dyn FnMut(usize) -> usize,
}

/// An endpoint.
#[derive(Debug)]
pub struct Endpoint {
    /// How it is reached; the alternatives are those to a first try.
    pub target: Arc<Target>,
    /// What is known of it.
    pub state: Arc<State>,
}

/// Endpoints of one nearness that are up.
#[derive(Debug)]
struct Tier {
    up: Vec<Endpoint>,
    /// The part of the requests that reach this tier which it takes; the rest goes on to the next.
    share: f64,
    table: OnceLock<Table>,
}

/// Endpoints, the nearest first.
#[derive(Debug)]
pub struct Set {
    tiers: Vec<Tier>,
    turn: AtomicUsize,
}

impl Set {
    /// Of what can be reached of a service.
    #[must_use]
    pub fn new(service: &ServiceName, mut reachable: Vec<Reachable>, registry: &Registry) -> Self {
        reachable.sort_by_key(|one| std::cmp::Reverse(one.rank));
        let alternatives = reachable.iter().filter(|one| one.up).count() > 1;
        let mut tiers: Vec<Tier> = Vec::new();
        let mut left = reachable.into_iter().peekable();
        while let Some(rank) = left.peek().map(|one| one.rank) {
            let mut all = 0;
            let mut up = Vec::new();
            while let Some(Reachable { target, up: is_up, .. }) = left.next_if(|one| one.rank == rank) {
                all += 1;
                if is_up {
                    let state = registry.state(service, &target.workload.uid);
                    up.push(Endpoint { target: Arc::new(Target { alternatives, ..target }), state });
                }
            }
            let share = (up.len() as f64 / f64::from(all) * OVERPROVISIONED).min(1.0);
            tiers.push(Tier { up, share, table: OnceLock::new() });
        }
        tiers.retain(|tier| !tier.up.is_empty());
        Self { tiers, turn: AtomicUsize::new(0) }
    }

    /// Endpoints that are up.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.tiers.iter().flat_map(|tier| &tier.up)
    }

    /// The endpoint for a request. `None` when none is up that was not tried.
    #[must_use]
    pub fn choose(&self, strategy: Strategy, ask: &mut Ask<'_>) -> Option<&Endpoint> {
        let first = self.tier(ask);
        // What the chosen tier has not left untried, nearer ones and then farther ones may have.
        let others = (0..self.tiers.len()).filter(|index| Some(*index) != first);
        first.into_iter().chain(others).find_map(|index| self.among(&self.tiers[index], strategy, ask))
    }

    /// The nearest tier, unless too little of it is up: then, by its share, the next.
    fn tier(&self, ask: &mut Ask<'_>) -> Option<usize> {
        const PARTS: usize = 1 << 20;
        let last = self.tiers.len().checked_sub(1)?;
        let stays = |tier: &Tier, ask: &mut Ask<'_>| {
            tier.share >= 1.0 || ((ask.random)(PARTS) as f64) < tier.share * PARTS as f64
        };
        Some(self.tiers.iter().position(|tier| stays(tier, ask)).unwrap_or(0).min(last))
    }

    fn among<'a>(&'a self, tier: &'a Tier, strategy: Strategy, ask: &mut Ask<'_>) -> Option<&'a Endpoint> {
        match (strategy, ask.hash) {
            (Strategy::Hash, Some(hash)) => {
                let names = || tier.up.iter().map(|endpoint| &*endpoint.target.workload.uid.0);
                let table = tier.table.get_or_init(|| Table::new(names()));
                let found = table.find(hash).map(|index| &tier.up[index]);
                found.filter(|found| !is_tried(found, ask)).or_else(|| draw(tier, ask, None))
            }
            (Strategy::Hash | Strategy::LeastRequest, _) => {
                of_two(tier, ask, |endpoint, _| f64::from(endpoint.state.under_way()) + 1.0)
            }
            (Strategy::PeakEwma, _) => of_two(tier, ask, |endpoint, now| endpoint.state.cost(now)),
            (Strategy::Random, _) => draw(tier, ask, None),
            (Strategy::RoundRobin, _) => {
                let turn = self.turn.fetch_add(1, Relaxed);
                untried_from(tier, turn, ask, None)
            }
        }
    }
}

/// Of two random ones, the one that costs less for what it can take.
fn of_two<'a>(
    tier: &'a Tier,
    ask: &mut Ask<'_>,
    cost: impl Fn(&Endpoint, u64) -> f64,
) -> Option<&'a Endpoint> {
    let first = draw(tier, ask, None)?;
    let Some(second) = draw(tier, ask, Some(first)) else { return Some(first) };
    let weighed =
        |endpoint: &Endpoint| cost(endpoint, ask.now) / f64::from(endpoint.target.workload.capacity.max(1));
    Some(if weighed(second) < weighed(first) { second } else { first })
}

/// A random one that was not tried and is not `other`.
fn draw<'a>(tier: &'a Tier, ask: &mut Ask<'_>, other: Option<&Endpoint>) -> Option<&'a Endpoint> {
    for _ in 0..DRAWS {
        let drawn = &tier.up[(ask.random)(tier.up.len())];
        if may_be(drawn, ask, other) {
            return Some(drawn);
        }
    }
    let from = (ask.random)(tier.up.len());
    untried_from(tier, from, ask, other)
}

/// The first, from one on and around, that was not tried and is not `other`.
fn untried_from<'a>(
    tier: &'a Tier,
    from: usize,
    ask: &Ask<'_>,
    other: Option<&Endpoint>,
) -> Option<&'a Endpoint> {
    let count = tier.up.len();
    (0..count).map(|step| &tier.up[(from % count + step) % count]).find(|found| may_be(found, ask, other))
}

fn may_be(endpoint: &Endpoint, ask: &Ask<'_>, other: Option<&Endpoint>) -> bool {
    !is_tried(endpoint, ask) && other.is_none_or(|other| !std::ptr::eq(other, endpoint))
}

fn is_tried(endpoint: &Endpoint, ask: &Ask<'_>) -> bool {
    ask.tried.contains(&endpoint.target.workload.uid)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use model::route;
    use model::workload::Workload;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::*;
    use crate::balance::Outcome;
    use crate::made;

    const ALL: [Strategy; 5] =
        [Strategy::Hash, Strategy::LeastRequest, Strategy::PeakEwma, Strategy::Random, Strategy::RoundRobin];

    fn reachable(name: &str, rank: usize, up: bool) -> Reachable {
        let workload =
            Workload { uid: WorkloadUid(name.into()), ..made::pod(name, "web", "10.0.0.1", "web") };
        let target = route::direct(&Arc::new(workload), "10.0.0.1:80".parse().unwrap());
        Reachable { target, rank, up }
    }

    fn set(endpoints: &[(&str, usize, bool)]) -> Set {
        let service = made::service_name("web");
        let all = endpoints.iter().map(|(name, rank, up)| reachable(name, *rank, *up)).collect();
        Set::new(&service, all, &Registry::default())
    }

    fn name(endpoint: &Endpoint) -> &str {
        &endpoint.target.workload.uid.0
    }

    /// How often each endpoint is chosen in `times` choices.
    fn count(set: &Set, strategy: Strategy, times: u64) -> BTreeMap<String, u64> {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut counted = BTreeMap::new();
        for hash in 0..times {
            let random = &mut |below| rng.usize(..below);
            let hash = Some(hash.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut ask = Ask { now: 0, hash, tried: &[], random };
            let chosen = set.choose(strategy, &mut ask).expect("there are endpoints");
            *counted.entry(name(chosen).to_owned()).or_default() += 1;
        }
        counted
    }

    #[test]
    fn every_strategy_uses_all_that_are_equal_and_none_that_is_down() {
        let set = set(&[("a", 0, true), ("b", 0, true), ("c", 0, true), ("down", 0, false)]);
        for strategy in ALL {
            let counted = count(&set, strategy, 9000);
            assert_eq!(counted.keys().collect::<Vec<_>>(), ["a", "b", "c"], "{strategy:?}");
            assert!(counted.values().all(|times| (2600..3400).contains(times)), "{strategy:?}: {counted:?}");
        }
    }

    #[test]
    fn who_is_slow_or_overloaded_is_left_alone() {
        let set = set(&[("slow", 0, true), ("fast", 0, true), ("other", 0, true)]);
        for endpoint in set.iter() {
            let millis = if name(endpoint) == "slow" { 100 } else { 1 };
            endpoint.state.learn(Outcome::Answered(std::time::Duration::from_millis(millis)), 0);
        }
        let counted = count(&set, Strategy::PeakEwma, 3000);
        assert_eq!(counted.get("slow"), None, "with two choices it is never the better one: {counted:?}");
        for endpoint in set.iter().filter(|endpoint| name(endpoint) == "fast") {
            endpoint.state.learn(Outcome::Overloaded(None), 0);
        }
        let counted = count(&set, Strategy::PeakEwma, 3000);
        assert_eq!(counted.get("fast"), None, "{counted:?}");
    }

    #[test]
    fn one_that_nothing_is_known_of_is_tried_beside_the_quickest() {
        let set = set(&[("known", 0, true), ("new", 0, true)]);
        let known = set.iter().find(|endpoint| name(endpoint) == "known").unwrap();
        known.state.learn(Outcome::Answered(std::time::Duration::from_micros(50)), 0);
        assert_eq!(count(&set, Strategy::PeakEwma, 100).get("known"), None);
        let new = set.iter().find(|endpoint| name(endpoint) == "new").unwrap();
        let _first = new.state.begin();
        assert_eq!(count(&set, Strategy::PeakEwma, 100).get("new"), None, "once, until it has answered");
    }

    #[test]
    fn requests_under_way_count() {
        let set = set(&[("busy", 0, true), ("idle", 0, true)]);
        let busy = set.iter().find(|endpoint| name(endpoint) == "busy").unwrap();
        let leases: Vec<_> = (0..5).map(|_| busy.state.begin()).collect();
        for strategy in [Strategy::LeastRequest, Strategy::PeakEwma] {
            assert_eq!(count(&set, strategy, 100).get("busy"), None, "{strategy:?}");
        }
        drop(leases);
        assert!(count(&set, Strategy::LeastRequest, 100).contains_key("busy"));
    }

    #[test]
    fn a_near_locality_gives_away_what_its_endpoints_can_not_take() {
        let near = [("n1", 1, true), ("n2", 1, true), ("n3", 1, true), ("n4", 1, true)];
        let far = [("far", 0, true)];
        let with = |down: usize| {
            let mut all = [&near[..], &far[..]].concat();
            all.iter_mut().take(down).for_each(|one| one.2 = false);
            let times = count(&set(&all), Strategy::Random, 10_000).remove("far").unwrap_or_default();
            times as f64 / 10_000.0
        };
        assert_eq!(with(0), 0.0);
        assert_eq!(with(1), 0.0, "three of four can take all");
        assert!((with(2) - 0.3).abs() < 0.02, "{}", with(2));
        assert!((with(3) - 0.65).abs() < 0.02, "{}", with(3));
        assert_eq!(with(4), 1.0);
    }

    #[test]
    fn a_hash_stays_with_its_endpoint() {
        let endpoints: Vec<_> = ["a", "b", "c", "d", "e"].into_iter().map(|name| (name, 0, true)).collect();
        let (whole, without) = (set(&endpoints), set(&endpoints[..4]));
        let find = |set: &Set, hash: u64, tried: &[WorkloadUid]| {
            let random = &mut |_: usize| 0;
            let mut ask = Ask { now: 0, hash: Some(hash), tried, random };
            name(set.choose(Strategy::Hash, &mut ask).unwrap()).to_owned()
        };
        let mut moved = 0;
        for hash in (0..1000).map(|i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
            let found = find(&whole, hash, &[]);
            assert_eq!(found, find(&whole, hash, &[]));
            assert_ne!(find(&whole, hash, &[WorkloadUid(found.as_str().into())]), found, "another try");
            moved += usize::from(found != "e" && find(&without, hash, &[]) != found);
        }
        assert!(moved < 150, "{moved} of 1000 moved although their endpoint stayed");
    }

    proptest! {
        /// Whatever is up, down and tried: what is chosen is up and was not tried, and something is whenever it can be.
        #[test]
        fn something_untried_is_found_whenever_there_is_something(
            endpoints in proptest::collection::vec((0_usize..3, any::<bool>(), any::<bool>()), 0..8),
            strategy in 0_usize..5,
            hash in any::<Option<u64>>(),
            seed in any::<u64>(),
        ) {
            let names: Vec<String> = (0..endpoints.len()).map(|index| format!("e{index}")).collect();
            let all: Vec<_> =
                names.iter().zip(&endpoints).map(|(name, (rank, up, _))| (name.as_str(), *rank, *up)).collect();
            let uid = |name: &String| WorkloadUid(name.as_str().into());
            let tried: Vec<_> =
                names.iter().zip(&endpoints).filter(|(_, one)| one.2).map(|(name, _)| uid(name)).collect();
            let mut rng = fastrand::Rng::with_seed(seed);
            let random = &mut |below| rng.usize(..below);
            let set = set(&all);
            let chosen = set.choose(ALL[strategy], &mut Ask { now: 0, hash, tried: &tried, random });
            let possible = endpoints.iter().any(|(_, up, tried)| *up && !*tried);
            prop_assert_eq!(chosen.is_some(), possible);
            if let Some(chosen) = chosen {
                prop_assert!(!tried.contains(&chosen.target.workload.uid));
                prop_assert!(all.contains(&(name(chosen), all.iter().find(|one| one.0 == name(chosen)).unwrap().1, true)));
            }
        }
    }
}
