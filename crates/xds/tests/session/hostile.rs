//! Ends that do not keep to the protocol: no message panics the other end, and it goes on serving.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use prost_types::Any;
use xds::Resource;
use xds::client_core;
use xds::message::{Request, Response};
use xds::server_core::{Core, Step};

use crate::pair::{ALL, BAD, NAMED, Pair, Store, TYPES};

fn word() -> impl Strategy<Value = String> {
    let likely = ["", "*", "a", "b", "s/web", "web/1", "ip/a", "1", "2", ALL, NAMED, "newer"];
    prop_oneof![9 => prop::sample::select(likely.to_vec()).prop_map(str::to_owned), 1 => ".{0,9}"]
}

fn words() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(word(), 0..4)
}

fn request() -> impl Strategy<Value = Request> {
    let held = prop::collection::btree_map(word(), word(), 0..4);
    (word(), words(), words(), held, word(), prop::option::of(word())).prop_map(
        |(type_url, subscribe, unsubscribe, held, nonce, error)| Request {
            type_url,
            subscribe,
            unsubscribe,
            held,
            nonce,
            error,
        },
    )
}

/// Of a known type, so that the sink's own check of it holds.
fn response() -> impl Strategy<Value = Response> {
    let kind = prop::sample::select(TYPES.to_vec());
    let parts = prop::collection::vec((word(), words(), prop_oneof![Just(1), Just(BAD)]), 0..4);
    (kind, word(), parts, words(), any::<bool>()).prop_map(|(kind, nonce, parts, removed, more)| {
        let resource = |(name, aliases, content)| {
            let body = Any { type_url: kind.to_owned(), value: vec![content] };
            Arc::new(Resource::new(name, aliases, body))
        };
        let resources = parts.into_iter().map(resource).collect();
        Response { type_url: kind.to_owned(), nonce, resources, removed, more }
    })
}

proptest! {
    #[test]
    fn a_server_survives_any_requests(requests in prop::collection::vec(request(), 0..40), limit in 1..400usize) {
        let mut pair = Pair::new(limit);
        for name in ["a", "b", "s/web", "web/1"] {
            pair.world.set(ALL, name, 1);
            pair.world.set(NAMED, name, 1);
        }
        let mut server = Core::new(&TYPES.map(Step::whole), limit);
        for request in requests {
            server.request(Duration::ZERO, request).expect("within limits");
            // One response per type may be under way, so this ends.
            let sent = std::iter::from_fn(|| server.poll(&pair.world)).count();
            prop_assert!(sent <= TYPES.len());
        }
    }

    #[test]
    fn a_client_survives_any_responses(responses in prop::collection::vec(response(), 0..40)) {
        let mut pair = Pair::new(usize::MAX);
        pair.demand(NAMED, "a");
        pair.demand(NAMED, "ip/a");
        let mut store = Store::default();
        for response in responses {
            let nonce = response.nonce.clone();
            let actions = pair.client.received(response, &mut store);
            let client_core::Action::Send(answer) = &actions[0] else { panic!("answered first: {actions:?}") };
            prop_assert_eq!(&answer.nonce, &nonce);
        }
    }
}
