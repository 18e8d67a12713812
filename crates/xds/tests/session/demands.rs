//! Lookups: everyone who waits is answered, once, in time.

use std::time::Duration;

use xds::client_core::DemandError;

use crate::pair::{ALL, BAD, NAMED, Pair};

const NO_LIMIT: usize = usize::MAX;

#[test]
fn several_waiters_of_one_key_share_a_question_and_all_get_the_answer() {
    let mut pair = Pair::new(NO_LIMIT).connected();
    pair.world.set(NAMED, "a", 1);
    let waiters: Vec<u64> = (0..5).map(|_| pair.demand(NAMED, "a")).collect();
    assert_eq!(pair.to_server[NAMED].len(), 1, "one question");
    pair.settle();
    assert_eq!(pair.said(), ["named: +a"]);
    for waiter in waiters {
        assert_eq!(pair.woken[&waiter], Ok(()));
    }
    let later = pair.demand(NAMED, "a");
    assert_eq!(pair.woken[&later], Ok(()), "subscribed: what is held is current");
}

#[test]
fn what_does_not_exist_is_an_answer_too() {
    let mut pair = Pair::new(NO_LIMIT).connected();
    let waiter = pair.demand(NAMED, "ip/a");
    pair.settle();
    assert_eq!(pair.said(), ["named: -ip/a"]);
    assert_eq!(pair.woken[&waiter], Ok(()));
    // The key stays subscribed, so it appears by itself.
    pair.set(NAMED, "a", 1);
    pair.settle();
    assert_eq!(pair.store.held[NAMED]["a"], 1);
}

#[test]
fn a_key_whose_resource_goes_before_its_part_was_sent_is_answered() {
    for key in ["z", "ip/z"] {
        let mut pair = Pair::new(100);
        for name in ["a", "z"] {
            pair.set(NAMED, name, 1);
        }
        pair.demand(NAMED, "a");
        let waiter = pair.demand(NAMED, key);
        pair.connect();
        assert!(pair.step_to_server(NAMED) && pair.step_to_client(NAMED));
        assert_eq!(pair.said(), ["named: +a ..."], "the rest waits for its turn");
        pair.remove(NAMED, "z");
        pair.settle();
        assert_eq!(pair.woken.get(&waiter), Some(&Ok(())), "{key}: there is no such thing any more");
    }
}

#[test]
fn aliases_answer_as_names_do() {
    let mut pair = Pair::new(NO_LIMIT).connected();
    pair.set(NAMED, "a", 1);
    let first = pair.demand(NAMED, "a");
    pair.settle();
    // The resource is here already, but the client can't know that this key stands for it.
    let second = pair.demand(NAMED, "ip/a");
    pair.settle();
    assert_eq!((&pair.woken[&first], &pair.woken[&second]), (&Ok(()), &Ok(())));
    assert_eq!(pair.said(), ["named: +a", "named: +a"]);
}

#[test]
fn a_service_answers_when_all_its_workloads_are_here() {
    let mut pair = Pair::new(200).connected();
    for name in ["s/web", "web/1", "web/2", "web/3", "other/1"] {
        pair.world.set(NAMED, name, 1);
    }
    let waiter = pair.demand(NAMED, "s/web");
    assert!(pair.step_to_server(NAMED) && pair.step_to_client(NAMED));
    assert!(pair.store.held[NAMED].contains_key("s/web"));
    assert!(!pair.woken.contains_key(&waiter), "a service without its workloads would refuse the connection");
    pair.settle();
    assert_eq!(pair.woken[&waiter], Ok(()));
    assert_eq!(pair.store.held[NAMED].len(), 4);
    // Whoever joins the service later comes by itself, and leaves by itself.
    pair.set(NAMED, "web/4", 1);
    pair.remove(NAMED, "web/1");
    pair.settle();
    let names: Vec<&str> = pair.store.held[NAMED].keys().map(String::as_str).collect();
    assert_eq!(names, ["s/web", "web/2", "web/3", "web/4"]);
}

#[test]
fn a_resource_that_is_rejected_fails_its_lookup() {
    let mut pair = Pair::new(NO_LIMIT).connected();
    pair.set(NAMED, "a", BAD);
    let waiter = pair.demand(NAMED, "ip/a");
    pair.settle();
    let rejected = Err(DemandError::Rejected { reason: "bad; it is: bad".to_owned() });
    assert_eq!(pair.woken[&waiter], rejected, "\"not there\" would be a lie that lets plaintext through");
    let later = pair.demand(NAMED, "ip/a");
    assert_eq!(pair.woken[&later], rejected);
    pair.set(NAMED, "a", 1);
    pair.settle();
    let mended = pair.demand(NAMED, "ip/a");
    assert_eq!(pair.woken[&mended], Ok(()));
}

#[test]
fn a_lookup_ends_at_its_deadline_and_its_answer_still_counts() {
    let mut pair = Pair::new(NO_LIMIT);
    pair.set(NAMED, "a", 1);
    let waiter = pair.demand(NAMED, "a");
    assert_eq!(pair.client.next_deadline(), Some(Duration::from_secs(5)));
    pair.advance(Duration::from_millis(4999));
    assert!(pair.woken.is_empty());
    pair.advance(Duration::from_millis(1));
    assert_eq!(pair.woken[&waiter], Err(DemandError::Timeout));
    assert_eq!(pair.client.next_deadline(), None);
    pair.connect();
    pair.settle();
    assert_eq!(pair.store.held[NAMED]["a"], 1);
}

#[test]
fn lookups_survive_a_lost_connection() {
    let mut pair = Pair::new(NO_LIMIT).connected();
    pair.set(NAMED, "a", 1);
    let known = pair.demand(NAMED, "a");
    pair.settle();
    let waiters = [pair.demand(NAMED, "ip/a"), pair.demand(NAMED, "b")];
    pair.disconnect();
    pair.connect();
    pair.settle();
    assert_eq!(pair.woken[&known], Ok(()));
    for waiter in waiters {
        assert_eq!(pair.woken[&waiter], Ok(()), "also where the resource was held already");
    }
}

#[test]
fn answered_keys_stay_subscribed_across_connections_and_cost_nothing() {
    let mut pair = Pair::new(NO_LIMIT).connected();
    pair.set(NAMED, "a", 1);
    pair.demand(NAMED, "ip/a");
    pair.settle();
    pair.said();
    pair.connect();
    pair.settle();
    assert_eq!(pair.said(), ["all:", "rules:"], "nothing of the type on demand has changed");
    pair.set(NAMED, "a", 2);
    pair.settle();
    assert_eq!(pair.store.held[NAMED]["a"], 2);
}

#[test]
fn of_a_whole_type_only_the_first_answer_is_waited_for() {
    let mut pair = Pair::new(NO_LIMIT);
    let early = pair.demand(ALL, "a");
    let impatient = pair.demand(ALL, "a");
    pair.connect();
    assert!(pair.woken.is_empty());
    pair.settle();
    assert_eq!((&pair.woken[&early], &pair.woken[&impatient]), (&Ok(()), &Ok(())));
    pair.disconnect();
    let late = pair.demand(ALL, "b");
    assert_eq!(pair.woken[&late], Ok(()));
    let unknown = pair.demand("newer", "b");
    assert_eq!(pair.woken[&unknown], Err(DemandError::Unavailable));
}

#[test]
fn keys_that_stand_for_nothing_are_given_up_for_new_ones() {
    const KEYS: u64 = 32_768;
    let mut pair = Pair::new(NO_LIMIT);
    pair.set(NAMED, "real", 1);
    pair.demand(NAMED, "real");
    for i in 1..KEYS {
        pair.demand(NAMED, &format!("outside/{i}"));
    }
    let one_too_many = pair.demand(NAMED, "outside/0");
    assert_eq!(pair.woken[&one_too_many], Err(DemandError::Unavailable), "nothing is known to be given up");
    let mut pair = pair.connected();
    pair.demand(NAMED, "outside/0");
    pair.settle();
    assert_eq!(pair.status(NAMED).names, usize::try_from(KEYS).expect("small"));
    assert_eq!(pair.store.held[NAMED]["real"], 1);
}
