//! Whole types: what is sent when, what is acknowledged, and what a reconnect costs.

use std::time::Duration;

use xds::message::Request;
use xds::server_core::{Answer, Core, Step, View as _};

use crate::pair::{ALL, BAD, NAMED, Pair, RULES, TYPES};

const NO_LIMIT: usize = usize::MAX;

#[test]
fn a_type_is_synced_once_and_also_when_it_is_empty() {
    let mut pair = Pair::new(NO_LIMIT);
    pair.world.set(ALL, "a", 1);
    pair.connect();
    assert!(pair.store.synced.is_empty());
    pair.settle();
    assert_eq!(pair.store.synced, [ALL, RULES], "not the type on demand, of which everything is never known");
    assert_eq!(pair.said(), ["all: +a", "rules:"]);
    pair.connect();
    pair.settle();
    assert_eq!(pair.store.synced, [ALL, RULES]);
}

#[test]
fn changes_are_sent_and_nothing_else() {
    let mut pair = Pair::new(NO_LIMIT);
    pair.world.set(ALL, "a", 1);
    pair.world.set(ALL, "b", 1);
    let mut pair = pair.connected();
    pair.set(ALL, "b", 2);
    pair.settle();
    pair.remove(ALL, "a");
    pair.settle();
    pair.set(ALL, "b", 2);
    pair.settle();
    assert_eq!(pair.said(), ["all: +b", "all: -a"]);
    assert_eq!(pair.store.held[ALL], [("b".to_owned(), 2)].into());
}

#[test]
fn changes_are_merged_while_a_response_is_under_way() {
    let mut pair = Pair::new(NO_LIMIT).connected();
    pair.set(ALL, "a", 1);
    for content in 2..50 {
        pair.set(ALL, "a", content);
        pair.set(ALL, "b", content);
    }
    pair.remove(ALL, "b");
    pair.settle();
    assert_eq!(pair.said(), ["all: +a", "all: +a"]);
    assert_eq!(pair.store.held[ALL], [("a".to_owned(), 49)].into());
}

#[test]
fn addresses_come_before_the_rules_that_name_them() {
    let mut pair = Pair::new(NO_LIMIT);
    pair.world.set(RULES, "r", 1);
    pair.world.set(ALL, "a", 1);
    let mut server = Core::new(&TYPES.map(Step::whole), NO_LIMIT);
    for type_url in [RULES, ALL] {
        let request = Request { type_url: type_url.to_owned(), ..Request::default() };
        server.request(Duration::ZERO, request).expect("within limits");
    }
    let order = [server.poll(&pair.world), server.poll(&pair.world)].map(|r| r.expect("both pend").type_url);
    assert_eq!(order, [ALL, RULES]);
    assert_eq!(server.poll(&pair.world), None);
}

#[test]
fn what_is_held_is_not_sent_again_after_a_reconnect() {
    let mut pair = Pair::new(NO_LIMIT);
    for name in ["a", "b", "c"] {
        pair.world.set(ALL, name, 1);
    }
    let mut pair = pair.connected();
    pair.disconnect();
    pair.set(ALL, "b", 2);
    pair.remove(ALL, "c");
    pair.set(ALL, "d", 1);
    pair.connect();
    pair.settle();
    // What the client alone knows of is reported gone; "a" is not mentioned.
    assert_eq!(pair.said(), ["all: +b +d -c", "rules:"]);
    assert_eq!(pair.status(ALL).acknowledged("a").is_some(), pair.store.held[ALL].contains_key("a"));
}

#[test]
fn what_goes_before_its_part_was_sent_is_still_reported_to_a_client_that_holds_it() {
    let mut pair = Pair::new(100);
    pair.world.set(ALL, "z", 1);
    let mut pair = pair.connected();
    pair.disconnect();
    for name in ["a", "b", "z"] {
        pair.set(ALL, name, 2);
    }
    pair.connect();
    assert!(pair.step_to_server(ALL) && pair.step_to_client(ALL));
    assert_eq!(pair.said(), ["all: +a ..."], "the rest waits for its turn");
    // Only the client knows that it has an older "z".
    pair.remove(ALL, "z");
    pair.settle();
    assert!(!pair.store.held[ALL].contains_key("z"));
}

#[test]
fn a_bad_resource_rejects_only_itself_and_comes_again_after_a_reconnect() {
    let mut pair = Pair::new(NO_LIMIT);
    pair.world.set(ALL, "a", 1);
    pair.world.set(ALL, "b", BAD);
    pair.world.set(ALL, "c", 1);
    let mut pair = pair.connected();
    assert_eq!(pair.store.held[ALL], [("a".to_owned(), 1), ("c".to_owned(), 1)].into());
    assert_eq!(pair.client.held(ALL), 2);
    let status = pair.status(ALL);
    assert_eq!((status.acks, status.nacks), (0, 1));
    assert_eq!(status.last_nack.as_ref().map(|nack| nack.message.as_str()), Some("b: bad; it is: bad"));
    assert!(status.acknowledged("a").is_some() && status.acknowledged("c").is_some());
    assert_eq!(status.acknowledged("b"), None);
    let versions = ["a", "b"].map(|name| pair.world.lookup(ALL, name)[0].version.clone());
    assert_eq!(status.answer("a", &versions[0]), Some(Answer::Taken));
    assert_eq!(status.answer("b", &versions[1]), Some(Answer::Refused("bad; it is: bad")));
    assert_eq!(status.answer("b", "another"), None, "that was not answered yet");

    pair.connect();
    pair.settle();
    assert_eq!(
        pair.said(),
        ["all: +b", "rules:"],
        "it may have been mended, or this process may be a newer one"
    );
    pair.set(ALL, "b", 2);
    pair.settle();
    assert_eq!(pair.store.held[ALL]["b"], 2);
    assert!(pair.status(ALL).acknowledged("b").is_some());
    assert_eq!(pair.client.held(ALL), 3);
}

#[test]
fn the_last_good_version_stays_until_the_resource_is_gone() {
    let mut pair = Pair::new(NO_LIMIT);
    pair.world.set(ALL, "a", 1);
    let mut pair = pair.connected();
    pair.set(ALL, "a", BAD);
    pair.settle();
    assert_eq!(pair.store.held[ALL]["a"], 1);
    // Gone while nobody was connected: the server has to say so although it never saw the good version accepted.
    pair.disconnect();
    pair.remove(ALL, "a");
    pair.connect();
    pair.settle();
    assert!(pair.store.held[ALL].is_empty());
}

#[test]
fn words_that_name_no_resource_refuse_the_whole_response() {
    let mut pair = Pair::new(NO_LIMIT);
    pair.world.set(ALL, "a", 1);
    let mut server = Core::new(&TYPES.map(Step::whole), NO_LIMIT);
    let request = Request { type_url: ALL.to_owned(), ..Request::default() };
    server.request(Duration::ZERO, request.clone()).expect("within limits");
    let nonce = server.poll(&pair.world).expect("the first answer").nonce;
    let nack = Request { nonce: nonce.clone(), error: Some("I can't".to_owned()), ..request.clone() };
    server.request(Duration::from_secs(3), nack).expect("within limits");
    assert_eq!(server.poll(&pair.world), None, "the same again would be refused again");
    let status = &server.status()[0];
    assert_eq!(status.acknowledged("a"), None);
    assert_eq!(status.last_nack.as_ref().map(|nack| nack.at), Some(Duration::from_secs(3)));

    pair.world.set(ALL, "b", 1);
    server.changed();
    let second = server.poll(&pair.world).expect("the change").nonce;
    for stale in [nonce, "no such".to_owned()] {
        server.request(Duration::ZERO, Request { nonce: stale, ..request.clone() }).expect("within limits");
    }
    assert!(server.status()[0].in_flight, "late answers say nothing");
    server.request(Duration::ZERO, Request { nonce: second, ..request }).expect("within limits");
    let status = &server.status()[0];
    assert!(!status.in_flight && status.acknowledged("b").is_some());
    assert_eq!(status.acknowledged("a"), None, "it was not in the response that was accepted");
}

#[test]
fn a_large_change_comes_in_parts_and_counts_when_the_last_one_is_here() {
    let mut pair = Pair::new(200);
    for name in ["a", "b", "c", "d", "e"] {
        pair.world.set(ALL, name, 1);
    }
    pair.connect();
    assert!(pair.step_to_server(ALL) && pair.step_to_client(ALL));
    assert!(!pair.store.held[ALL].is_empty() && pair.store.synced.is_empty(), "half a mesh is not one");
    pair.settle();
    assert_eq!(pair.said(), ["all: +a +b ...", "all: +c +d ...", "all: +e", "rules:"]);
    assert_eq!(pair.store.synced, [ALL, RULES]);
}

#[test]
fn the_last_part_comes_even_if_nothing_is_left_of_it() {
    let mut pair = Pair::new(200);
    for name in ["a", "b", "c"] {
        pair.world.set(ALL, name, 1);
    }
    pair.connect();
    pair.step_to_server(ALL);
    pair.remove(ALL, "c");
    pair.settle();
    assert_eq!(pair.said(), ["all: +a +b ...", "all:", "rules:"]);
    assert!(pair.store.synced.contains(&ALL.to_owned()));
}

#[test]
fn a_resource_larger_than_a_response_still_arrives() {
    let mut pair = Pair::new(1);
    pair.world.set(ALL, "a", 1);
    pair.world.set(ALL, "b", 1);
    let pair = pair.connected();
    assert_eq!(pair.store.held[ALL].len(), 2);
}

#[test]
fn types_that_the_other_end_does_not_know_disturb_nothing() {
    let mut pair = Pair::new(NO_LIMIT).connected();
    let server = pair.server.as_mut().expect("connected");
    let unknown = Request { type_url: "newer".to_owned(), ..Request::default() };
    server.request(Duration::ZERO, unknown).expect("ignored");
    assert_eq!(server.poll(&pair.world), None, "an empty answer would say that there is nothing");

    let unasked =
        xds::message::Response { type_url: "newer".to_owned(), nonce: "7".to_owned(), ..Default::default() };
    let actions = pair.client.received(unasked, &mut pair.store);
    let [xds::client_core::Action::Send(nack)] = actions.as_slice() else {
        panic!("one answer: {actions:?}")
    };
    assert_eq!(nack.nonce, "7");
    assert!(nack.error.as_ref().is_some_and(|error| error.contains("newer")));
}

#[test]
fn a_session_has_a_limited_number_of_names() {
    let mut server = Core::new(&TYPES.map(Step::whole), NO_LIMIT);
    let subscribe = (0..=xds::server_core::MAX_NAMES).map(|i| i.to_string()).collect();
    let request = Request { type_url: NAMED.to_owned(), subscribe, ..Request::default() };
    let error = server.request(Duration::ZERO, request).expect_err("too many");
    assert!(error.to_string().contains(NAMED), "{error}");
}
