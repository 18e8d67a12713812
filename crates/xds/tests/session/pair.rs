//! Two cores and the wire between them. Messages of one type keep their order, as on one stream per type; the test says
//! which type moves next, what is doubled, and when the connection is lost.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use prost_types::Any;
use xds::client_core::{self, Action, DemandError, Mode, Sink, Subscription, Waiter};
use xds::message::{Request, Response};
use xds::server_core::{self, Step, TypeStatus, View};
use xds::{Rejection, Resource, Resources};

/// Wanted as a whole, and first in the server's order.
pub(crate) const ALL: &str = "all";
/// Wanted as a whole, and second.
pub(crate) const RULES: &str = "rules";
/// Wanted on demand.
pub(crate) const NAMED: &str = "named";

pub(crate) const TYPES: [&str; 3] = [ALL, RULES, NAMED];

const SUBSCRIPTIONS: [Subscription; 3] = [
    Subscription { type_url: ALL, mode: Mode::Wildcard },
    Subscription { type_url: RULES, mode: Mode::Wildcard },
    Subscription { type_url: NAMED, mode: Mode::OnDemand },
];

/// Content that the sink refuses.
pub(crate) const BAD: u8 = 0xff;

/// Far more messages than any of these tests needs: two cores that still talk then do so for ever.
const MAX_MESSAGES: usize = 20_000;

/// Everything there is. A resource `s/x` comes with all that are named `x/...`, as a service with its workloads, and every
/// resource has the alias `ip/<name>`.
#[derive(Default)]
pub(crate) struct World(pub(crate) BTreeMap<&'static str, Resources>);

impl World {
    pub(crate) fn set(&mut self, kind: &'static str, name: &str, content: u8) {
        let body = Any { type_url: kind.to_owned(), value: vec![content] };
        let resource = Resource::new(name.to_owned(), vec![format!("ip/{name}")], body);
        self.0.entry(kind).or_default().insert(resource);
    }

    pub(crate) fn remove(&mut self, kind: &'static str, name: &str) {
        self.0.entry(kind).or_default().remove(name);
    }
}

impl View for World {
    fn snapshot(&self, type_url: &str) -> Resources {
        self.0.get(type_url).cloned().unwrap_or_default()
    }

    fn lookup(&self, type_url: &str, key: &str) -> Vec<Arc<Resource>> {
        let all = self.snapshot(type_url);
        let Some(found) = all.get(key.strip_prefix("ip/").unwrap_or(key)) else { return Vec::new() };
        let group = found.name.strip_prefix("s/").map(|group| format!("{group}/"));
        let members = all.iter().filter(|r| group.as_ref().is_some_and(|group| r.name.starts_with(group)));
        members.chain([found]).cloned().collect()
    }
}

/// What the client's process has.
#[derive(Default)]
pub(crate) struct Store {
    pub(crate) held: BTreeMap<String, BTreeMap<String, u8>>,
    pub(crate) synced: Vec<String>,
}

impl Sink for Store {
    fn apply(&mut self, type_url: &str, added: Vec<Resource>, removed: Vec<String>) -> Vec<Rejection> {
        let held = self.held.entry(type_url.to_owned()).or_default();
        for name in removed {
            held.remove(&name);
        }
        let mut rejections = Vec::new();
        for Resource { name, body, .. } in added {
            assert_eq!(body.type_url, type_url);
            match body.value[0] {
                BAD => rejections.push(Rejection { name, reason: "bad; it is: bad".to_owned() }),
                content => drop(held.insert(name, content)),
            }
        }
        rejections
    }

    fn synced(&mut self, type_url: &str) {
        self.synced.push(type_url.to_owned());
    }
}

pub(crate) struct Pair {
    pub(crate) world: World,
    pub(crate) store: Store,
    pub(crate) client: client_core::Core,
    pub(crate) server: Option<server_core::Core>,
    pub(crate) to_server: BTreeMap<String, VecDeque<Request>>,
    pub(crate) to_client: BTreeMap<String, VecDeque<Response>>,
    pub(crate) now: Duration,
    /// Every lookup that ended, and how.
    pub(crate) woken: BTreeMap<u64, Result<(), DemandError>>,
    /// Lookups that were made.
    pub(crate) waiters: u64,
    /// Responses delivered, as `type: +name -name`, with `...` where more follow.
    pub(crate) log: Vec<String>,
    max_response_bytes: usize,
}

impl Pair {
    /// Not yet connected.
    pub(crate) fn new(max_response_bytes: usize) -> Self {
        Self {
            world: World::default(),
            store: Store::default(),
            client: client_core::Core::new(&SUBSCRIPTIONS),
            server: None,
            to_server: BTreeMap::new(),
            to_client: BTreeMap::new(),
            now: Duration::ZERO,
            woken: BTreeMap::new(),
            waiters: 0,
            log: Vec::new(),
            max_response_bytes,
        }
    }

    pub(crate) fn connected(mut self) -> Self {
        self.connect();
        self.settle();
        self.log.clear();
        self
    }

    pub(crate) fn connect(&mut self) {
        self.disconnect();
        self.server = Some(server_core::Core::new(&TYPES.map(Step::whole), self.max_response_bytes));
        for request in self.client.connected() {
            self.send(request);
        }
    }

    /// Whatever is on the wire is lost; a server keeps nothing of a session.
    pub(crate) fn disconnect(&mut self) {
        self.server = None;
        self.client.disconnected();
        self.to_server.clear();
        self.to_client.clear();
    }

    /// The client's process starts anew. Who waited in it is gone.
    pub(crate) fn restart_client(&mut self) {
        self.disconnect();
        self.client = client_core::Core::new(&SUBSCRIPTIONS);
        self.store = Store::default();
        self.woken = (1..=self.waiters).map(|waiter| (waiter, Ok(()))).collect();
    }

    pub(crate) fn set(&mut self, kind: &'static str, name: &str, content: u8) {
        self.world.set(kind, name, content);
        self.change();
    }

    pub(crate) fn remove(&mut self, kind: &'static str, name: &str) {
        self.world.remove(kind, name);
        self.change();
    }

    fn change(&mut self) {
        if let Some(server) = &mut self.server {
            server.changed();
        }
        self.pump();
    }

    /// Looks `key` up; the answer will be in `woken` under the number returned.
    pub(crate) fn demand(&mut self, kind: &str, key: &str) -> u64 {
        self.waiters += 1;
        let deadline = self.now + Duration::from_secs(5);
        let actions = self.client.demand(kind, key, Waiter(self.waiters), deadline);
        self.act(actions);
        self.waiters
    }

    pub(crate) fn advance(&mut self, by: Duration) {
        self.now += by;
        let actions = self.client.expire(self.now);
        self.act(actions);
    }

    /// Delivers one request of that type, if there is one.
    pub(crate) fn step_to_server(&mut self, kind: &str) -> bool {
        let Some(request) = self.to_server.get_mut(kind).and_then(VecDeque::pop_front) else { return false };
        let server = self.server.as_mut().expect("nothing is on the wire without a connection");
        server.request(self.now, request).expect("within limits");
        self.pump();
        true
    }

    /// Delivers one response of that type, if there is one.
    pub(crate) fn step_to_client(&mut self, kind: &str) -> bool {
        let Some(response) = self.to_client.get_mut(kind).and_then(VecDeque::pop_front) else { return false };
        self.log.push(line(&response));
        let actions = self.client.received(response, &mut self.store);
        self.act(actions);
        true
    }

    /// Delivers everything, until both ends are silent.
    pub(crate) fn settle(&mut self) {
        for _ in 0..MAX_MESSAGES {
            let moved = TYPES.iter().any(|kind| self.step_to_server(kind) || self.step_to_client(kind));
            if !moved {
                return;
            }
        }
        panic!("the cores still talk after {MAX_MESSAGES} messages; the last: {:?}", self.log.last());
    }

    pub(crate) fn status(&self, kind: &str) -> TypeStatus {
        let status = self.server.as_ref().expect("connected").status();
        status.into_iter().find(|status| status.type_url == kind).expect("asked for")
    }

    /// The log since the last call.
    pub(crate) fn said(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    fn send(&mut self, request: Request) {
        self.to_server.entry(request.type_url.clone()).or_default().push_back(request);
    }

    fn pump(&mut self) {
        let Some(server) = &mut self.server else { return };
        while let Some(response) = server.poll(&self.world) {
            self.to_client.entry(response.type_url.clone()).or_default().push_back(response);
        }
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(request) => self.send(request),
                Action::Wake(Waiter(waiter), outcome) => {
                    let before = self.woken.insert(waiter, outcome);
                    assert_eq!(before, None, "waiter {waiter} is woken once");
                }
            }
        }
    }
}

fn line(response: &Response) -> String {
    let added = response.resources.iter().map(|resource| format!(" +{}", resource.name));
    let removed = response.removed.iter().map(|name| format!(" -{name}"));
    let more = if response.more { " ..." } else { "" };
    format!("{}:{}{more}", response.type_url, added.chain(removed).collect::<String>())
}
