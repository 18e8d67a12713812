//! Types that name one another: whatever is changed, and whenever it is answered, a client never holds what leads to something that
//! it does not hold, nor a service to guard without the rules about it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use prost_types::Any;
use xds::message::{Request, Response};
use xds::server_core::{Core, Part, Step, View};
use xds::{Resource, Resources};

const PLACES: &str = "places";
const RULES: &str = "rules";

const STEPS: [Step; 5] = [
    Step { type_url: PLACES, part: Part::Early },
    Step { type_url: RULES, part: Part::Changes },
    Step { type_url: PLACES, part: Part::Changes },
    Step { type_url: RULES, part: Part::Removals },
    Step { type_url: PLACES, part: Part::Removals },
];

const SERVICES: usize = 3;

/// More messages than any run needs.
const MAX_MESSAGES: usize = 10_000;

/// Services, each perhaps with a rule, of which a client is told while it guards the service, and with a place that the rule leads to.
#[derive(Clone, Copy, Debug, Default)]
struct World([Service; SERVICES]);

#[derive(Clone, Copy, Debug, Default)]
struct Service {
    is_guarded: bool,
    /// Which rule there is, and which place it leads to; 0: none.
    rule: u8,
}

fn place(service: usize, rule: u8) -> String {
    format!("place-{service}-{rule}")
}

impl View for World {
    fn snapshot(&self, type_url: &str) -> Resources {
        let resource = |name: String, value: Vec<u8>| {
            Resource::new(name, Vec::new(), Any { type_url: type_url.to_owned(), value })
        };
        let mut all = Resources::default();
        for (index, Service { is_guarded, rule }) in self.0.into_iter().enumerate() {
            let is_told = is_guarded && rule > 0;
            if type_url == PLACES {
                all.insert(resource(format!("service-{index}"), vec![u8::from(is_guarded), rule]));
                if is_told {
                    all.insert(resource(place(index, rule), vec![rule]));
                }
            } else if is_told {
                all.insert(resource(format!("rule-{index}"), vec![rule]));
            }
        }
        all
    }

    fn lookup(&self, _: &str, _: &str) -> Vec<Arc<Resource>> {
        Vec::new()
    }

    fn waits(&self, type_url: &str, name: &str) -> bool {
        let index = name.strip_prefix("service-").and_then(|index| index.parse::<usize>().ok());
        type_url == PLACES && index.is_some_and(|index| self.0[index].is_guarded)
    }
}

#[derive(Clone, Debug)]
enum Event {
    Guard(usize, bool),
    Rule(usize, bool),
    /// The client reads the next response.
    Read,
    /// The server reads the next answer.
    Answer,
    Reconnect,
}

fn event() -> impl Strategy<Value = Event> {
    let service = || 0..SERVICES;
    prop_oneof![
        3 => (service(), any::<bool>()).prop_map(|(service, is_so)| Event::Guard(service, is_so)),
        4 => (service(), prop::bool::weighted(0.8)).prop_map(|(service, is_so)| Event::Rule(service, is_so)),
        6 => Just(Event::Read),
        5 => Just(Event::Answer),
        1 => Just(Event::Reconnect),
    ]
}

/// A server, a client that holds what it is told, and one stream each way.
struct Run {
    world: World,
    server: Core,
    limit: usize,
    /// Counts rules, so that a later one is a greater one.
    rules: u8,
    held: BTreeMap<String, BTreeMap<String, (String, Vec<u8>)>>,
    responses: VecDeque<Response>,
    answers: VecDeque<Request>,
}

impl Run {
    fn new(limit: usize) -> Self {
        let mut run = Self {
            world: World::default(),
            server: Core::new(&STEPS, limit),
            limit,
            rules: 0,
            held: BTreeMap::new(),
            responses: VecDeque::new(),
            answers: VecDeque::new(),
        };
        run.connect();
        run
    }

    fn connect(&mut self) {
        self.server = Core::new(&STEPS, self.limit);
        self.responses.clear();
        self.answers.clear();
        for type_url in [RULES, PLACES] {
            let held = self.held.get(type_url).into_iter().flatten();
            let held = held.map(|(name, (version, _))| (name.clone(), version.clone())).collect();
            self.answers.push_back(Request { type_url: type_url.to_owned(), held, ..Request::default() });
        }
    }

    fn step(&mut self, event: &Event) {
        match *event {
            Event::Guard(service, is_so) => self.change(|world, _| world.0[service].is_guarded = is_so),
            Event::Rule(service, is_so) => {
                self.change(|world, next| world.0[service].rule = if is_so { next } else { 0 })
            }
            Event::Read => drop(self.read()),
            Event::Answer => drop(self.answer()),
            Event::Reconnect => self.connect(),
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut World, u8)) {
        self.rules += 1;
        change(&mut self.world, self.rules);
        self.server.changed();
        self.pump();
    }

    fn pump(&mut self) {
        while let Some(response) = self.server.poll(&self.world) {
            self.responses.push_back(response);
        }
    }

    fn answer(&mut self) -> bool {
        let Some(answer) = self.answers.pop_front() else { return false };
        self.server.request(Duration::ZERO, answer).expect("within limits");
        self.pump();
        true
    }

    fn read(&mut self) -> bool {
        let Some(Response { type_url, nonce, resources, removed, .. }) = self.responses.pop_front() else {
            return false;
        };
        let held = self.held.entry(type_url.clone()).or_default();
        for name in removed {
            held.remove(&name);
        }
        for resource in resources {
            held.insert(resource.name.clone(), (resource.version.clone(), resource.body.value.clone()));
        }
        self.answers.push_back(Request { type_url, nonce, ..Request::default() });
        self.check();
        true
    }

    fn holds(&self, type_url: &str, name: &str) -> Option<&[u8]> {
        Some(&self.held.get(type_url)?.get(name)?.1)
    }

    fn check(&self) {
        for index in 0..SERVICES {
            let rule = self.holds(RULES, &format!("rule-{index}")).map(|value| value[0]);
            if let Some(&[1, needed]) = self.holds(PLACES, &format!("service-{index}"))
                && needed > 0
            {
                assert!(
                    rule >= Some(needed),
                    "guards service {index} without its rule {needed}, but with {rule:?}"
                );
            }
            if let Some(rule) = rule {
                assert!(
                    self.holds(PLACES, &place(index, rule)).is_some(),
                    "rule {rule} of {index} leads nowhere"
                );
            }
        }
    }

    fn settle(&mut self) {
        for _ in 0..MAX_MESSAGES {
            if !(self.read() || self.answer()) {
                return;
            }
        }
        panic!("they still talk");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16 * ProptestConfig::default().cases))]

    #[test]
    fn nothing_is_told_before_what_it_needs(
        events in prop::collection::vec(event(), 0..120),
        small_responses in any::<bool>(),
    ) {
        let mut run = Run::new(if small_responses { 100 } else { usize::MAX });
        for event in &events {
            run.step(event);
        }
        run.settle();
        for type_url in [PLACES, RULES] {
            let expected: Vec<_> = run.world.snapshot(type_url).iter().map(|it| (it.name.clone(), it.body.value.clone())).collect();
            let held = run.held.get(type_url).into_iter().flatten();
            let held: Vec<_> = held.map(|(name, (_, value))| (name.clone(), value.clone())).collect();
            prop_assert_eq!(held, expected, "{}", type_url);
        }
    }
}

#[test]
fn what_comes_later_waits_for_an_answer_that_something_earlier_waits_for() {
    let mut run = Run::new(usize::MAX);
    run.settle();
    run.change(|world, rule| world.0[0] = Service { is_guarded: true, rule });
    // All of it is under way in order; the rule changes again before anybody has answered.
    let kinds =
        |run: &Run| run.responses.iter().map(|response| response.type_url.clone()).collect::<Vec<_>>();
    assert_eq!(kinds(&run), [PLACES, RULES], "the service follows when the place was answered");
    run.change(|world, rule| world.0[1] = Service { is_guarded: true, rule });
    assert_eq!(kinds(&run), [PLACES, RULES]);
    run.settle();
    assert_eq!(run.holds(PLACES, "service-1"), Some(&[1, 2][..]));
}
