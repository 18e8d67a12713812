//! Retries: which failures, how long a wait, and what may be spent on them.

use std::time::Duration;

use model::l7::{
    Attempt, Failure, MAX_PUSHBACK, Pushback, Retry, RetryBudget, RetryLedger, SAFE_RETRIES, again,
};
use proptest::prelude::*;

use super::make::fields;

const MS: Duration = Duration::from_millis(1);

fn retry() -> Retry {
    Retry { attempts: 3, backoff: Some(100 * MS), statuses: [503].into(), grpc_codes: [14].into() }
}

fn attempt(failure: Failure, method: &str) -> Attempt<'_> {
    Attempt { failure, method, replayable: true, made: 1, pushback: Pushback::None }
}

#[test]
fn which_failures_are_tried_again() {
    let lost = |reused| Failure::Lost { reused };
    // Failure, method, without a rule, with one.
    let rows = [
        (Failure::NotSent, "POST", true, true),
        (Failure::Unprocessed, "POST", true, true),
        (lost(true), "GET", true, true),
        (lost(true), "PUT", true, true),
        (lost(true), "POST", false, false),
        (lost(true), "PATCH", false, false),
        (lost(false), "GET", false, true),
        (lost(false), "POST", false, false),
        (Failure::Started, "GET", false, false),
        (Failure::Status(503), "POST", false, true),
        (Failure::Status(500), "GET", false, false),
        (Failure::Grpc(14), "POST", false, true),
        (Failure::Grpc(13), "POST", false, false),
        (Failure::Deadline, "GET", false, true),
        (Failure::Overload, "GET", false, false),
    ];
    for (failure, method, without, with) in rows {
        let attempt = attempt(failure, method);
        assert_eq!(again(None, &attempt, 0).is_some(), without, "{failure:?} {method}");
        assert_eq!(again(Some(&retry()), &attempt, 0).is_some(), with, "{failure:?} {method} by rule");
        let gone = Attempt { replayable: false, ..attempt };
        assert_eq!(again(Some(&retry()), &gone, 0), None, "without its body: {failure:?}");
    }
}

#[test]
fn attempts_end() {
    let made = |failure, made| Attempt { made, ..attempt(failure, "GET") };
    let status = Failure::Status(503);
    assert!(again(Some(&retry()), &made(status, 3), 0).is_some());
    assert_eq!(again(Some(&retry()), &made(status, 4), 0), None);
    assert!(again(None, &made(Failure::NotSent, SAFE_RETRIES), 0).is_some());
    assert_eq!(again(None, &made(Failure::NotSent, SAFE_RETRIES + 1), 0), None);
    let once = Retry { attempts: 1, ..retry() };
    assert!(
        again(Some(&once), &made(Failure::NotSent, SAFE_RETRIES), 0).is_some(),
        "no less than without a rule"
    );
    assert_eq!(again(Some(&once), &made(status, 2), 0), None);
}

#[test]
fn waits_grow_and_have_jitter() {
    let wait = |made, random| {
        let patient = Retry { attempts: 100, ..retry() };
        again(Some(&patient), &Attempt { made, ..attempt(Failure::Status(503), "GET") }, random)
            .expect("a retry")
    };
    for (made, millis) in [(1, 100), (2, 200), (3, 400), (4, 800), (5, 1_000), (40, 1_000)] {
        assert_eq!(wait(made, 0), millis * MS);
        let longest = wait(made, u64::MAX);
        assert!(longest > millis * MS * 14 / 10 && longest <= millis * MS * 3 / 2, "{longest:?}");
    }
    assert_eq!(
        again(None, &attempt(Failure::NotSent, "GET"), u64::MAX),
        Some(Duration::ZERO),
        "elsewhere at once"
    );
    let second = Attempt { made: 2, ..attempt(Failure::NotSent, "GET") };
    assert!(again(None, &second, 0) > Some(Duration::ZERO));
}

#[test]
fn servers_push_back() {
    let rows = [
        ("", Pushback::None),
        ("retry-after=2", Pushback::After(2_000 * MS)),
        ("retry-after=soon", Pushback::None),
        ("retry-after=-1", Pushback::None),
        ("grpc-retry-pushback-ms=150", Pushback::After(150 * MS)),
        ("grpc-retry-pushback-ms=-1", Pushback::Never),
        ("grpc-retry-pushback-ms=x", Pushback::Never),
        ("retry-after=2 grpc-retry-pushback-ms=150", Pushback::After(150 * MS)),
    ];
    for (headers, expected) in rows {
        assert_eq!(Pushback::of(&fields(headers)), expected, "{headers}");
    }
    let wait =
        |pushback| again(Some(&retry()), &Attempt { pushback, ..attempt(Failure::Status(503), "GET") }, 0);
    assert_eq!(wait(Pushback::After(2_000 * MS)), Some(2_000 * MS));
    assert_eq!(wait(Pushback::After(MS)), Some(100 * MS), "the rule's own wait is longer");
    assert_eq!(wait(Pushback::After(MAX_PUSHBACK + MS)), None);
    assert_eq!(wait(Pushback::Never), None);
}

fn spent(ledger: &RetryLedger, now: Duration) -> usize {
    (0..1_000).take_while(|_| ledger.spend(now)).count()
}

#[test]
fn a_budget_is_a_share_of_the_requests_and_a_least_rate() {
    let ledger = RetryLedger::new(RetryBudget::default());
    assert_eq!(spent(&ledger, Duration::ZERO), 10, "the least rate");
    assert_eq!(spent(&ledger, 500 * MS), 0);
    assert_eq!(spent(&ledger, 1_000 * MS), 10, "each second");
    let busy = RetryLedger::new(RetryBudget::default());
    (0..1_000).for_each(|_| busy.request(Duration::ZERO));
    assert_eq!(spent(&busy, Duration::ZERO), 200, "a fifth");
    assert_eq!(spent(&busy, 5_000 * MS), 10, "then the least rate");
    assert_eq!(spent(&busy, 60_000 * MS), 10, "requests of long ago count for nothing");
    let none = RetryLedger::new(RetryBudget { percent: 0, min_retries: 0, ..RetryBudget::default() });
    none.request(Duration::ZERO);
    assert!(!none.spend(Duration::ZERO));
}

proptest! {
    /// Whatever the order of requests and retries: never more in a window than the budget of that window.
    #[test]
    fn a_budget_holds_in_every_window(steps in prop::collection::vec((0..700_u32, 0..20_u32), 1..60)) {
        let budget = RetryBudget { percent: 50, interval: 10_000 * MS, min_retries: 3, min_interval: 1_000 * MS };
        let ledger = RetryLedger::new(budget);
        let (mut now, mut requests, mut retries) = (Duration::ZERO, Vec::new(), Vec::new());
        for (gap, count) in steps {
            now += gap * MS;
            (0..count).for_each(|_| {
                ledger.request(now);
                requests.push(now);
            });
            let within = |times: &[Duration], window: Duration| times.iter().filter(|then| now - **then < window).count();
            while ledger.spend(now) {
                // Slots forget a tenth of a window early, never late: then at least one of the two allowances was left.
                let share = within(&requests, budget.interval) / 2;
                let kept = |window: Duration| within(&retries, window * 9 / 10);
                prop_assert!(kept(budget.interval) < share || kept(budget.min_interval) < 3);
                retries.push(now);
            }
        }
    }
}
