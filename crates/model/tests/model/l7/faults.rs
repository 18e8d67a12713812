//! Faults: for whom, how often, until when.

use std::time::Duration;

use model::l7::{Abort, AbortAnswer, Client, Delay, Fault, Fraction, Injected, Moment, Trigger};

use super::make::{fields, matching};
use crate::make::identity;

const NOW: Moment = Moment(1_000);

/// Half of the requests wait, all are answered with 503.
fn fault(triggers: Vec<Trigger>) -> Fault {
    let half = Fraction::new(1, 2).expect("a share");
    Fault {
        triggers,
        delay: Some(Delay { share: half, duration: Duration::from_secs(1) }),
        abort: Some(Abort { share: Fraction::ALL, answer: AbortAnswer::Http(503) }),
        until: Moment(2_000),
    }
}

#[test]
fn a_fault_is_for_those_that_it_names() {
    let header = |text| matching(text).headers;
    let namespace = |name: &str| Client::Namespace(name.into());
    let account = Client::ServiceAccount { namespace: "shop".into(), name: "cart".into() };
    let of = |headers, clients| Trigger { headers, clients };
    let rows = [
        (vec![], "", None, true),
        (vec![of(header("user:jo"), vec![])], "user=jo", None, true),
        (vec![of(header("user:jo"), vec![])], "user=al", None, false),
        (vec![of(header("user:jo b:1"), vec![])], "user=jo", None, false),
        (vec![of(vec![], vec![namespace("shop")])], "", Some(("shop", "cart")), true),
        (vec![of(vec![], vec![namespace("club")])], "", Some(("shop", "cart")), false),
        (vec![of(vec![], vec![namespace("shop")])], "", None, false),
        (vec![of(vec![], vec![account.clone()])], "", Some(("shop", "cart")), true),
        (vec![of(vec![], vec![account.clone()])], "", Some(("shop", "pay")), false),
        (
            vec![of(vec![], vec![Client::Identity(identity("shop", "cart"))])],
            "",
            Some(("shop", "cart")),
            true,
        ),
        (
            vec![of(vec![], vec![Client::Identity(identity("shop", "pay"))])],
            "",
            Some(("shop", "cart")),
            false,
        ),
        (vec![of(vec![], vec![namespace("club"), account.clone()])], "", Some(("shop", "cart")), true),
        // All conditions of a trigger, any trigger of several.
        (vec![of(header("user:jo"), vec![account.clone()])], "user=jo", Some(("shop", "pay")), false),
        (
            vec![of(header("user:al"), vec![]), of(vec![], vec![account])],
            "user=jo",
            Some(("shop", "cart")),
            true,
        ),
    ];
    for (triggers, headers, client, meant) in rows {
        let client = client.map(|(namespace, account)| identity(namespace, account));
        let injected = fault(triggers.clone()).inject(&fields(headers), client.as_ref(), NOW, [u64::MAX; 2]);
        assert_eq!(injected.abort.is_some(), meant, "{triggers:?} {headers}");
    }
}

#[test]
fn delay_and_abort_are_drawn_apart() {
    let delay = Some(Duration::from_secs(1));
    let abort = Some(AbortAnswer::Http(503));
    let inject = |fault: &Fault, now, random| fault.inject(&fields(""), None, now, random);
    assert_eq!(inject(&fault(vec![]), NOW, [0, u64::MAX]), Injected { delay, abort });
    assert_eq!(inject(&fault(vec![]), NOW, [u64::MAX, 0]), Injected { delay: None, abort });
    let never = Fraction::new(0, 100).expect("a share");
    let mut delayed = fault(vec![]);
    delayed.abort = Some(Abort { share: never, answer: AbortAnswer::Reset });
    assert_eq!(inject(&delayed, NOW, [0, 0]), Injected { delay, abort: None });
}

#[test]
fn a_fault_ends_by_itself() {
    let at = |now| fault(vec![]).inject(&fields(""), None, Moment(now), [0, 0]);
    assert_ne!(at(1_999), Injected::default());
    assert_eq!(at(2_000), Injected::default());
    assert_eq!(at(u64::MAX), Injected::default());
}
