//! Durations, by the rules and examples of GEP-2257.

use std::time::Duration;

use model::l7::{duration, duration_text};
use proptest::prelude::*;

#[test]
fn durations_are_numbers_with_units() {
    let rows = [
        ("0h", 0),
        ("0s", 0),
        ("0h0m0s", 0),
        ("1h", 3_600_000),
        ("30m", 1_800_000),
        ("10s", 10_000),
        ("500ms", 500),
        ("2h30m", 9_000_000),
        ("150m", 9_000_000),
        ("7230s", 7_230_000),
        ("1h30m10s", 5_410_000),
        ("10s30m1h", 5_410_000),
        ("100ms200ms300ms", 600),
        ("99999h59m59s999ms", 359_999_999_999),
    ];
    for (text, millis) in rows {
        assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
    }
}

#[test]
fn anything_else_is_none() {
    let rows = [
        "",
        "1",
        "1d",
        "m",
        "ms",
        "1h30m10s20ms50h",
        "999999h",
        "1.5h",
        "-15m",
        "+1s",
        "1 s",
        " 1s",
        "1S",
        "1h-30m",
        "1sms",
        "1u",
        "1ns",
        "１s",
        "1s\n",
    ];
    for text in rows {
        assert!(duration(text).is_err(), "{text:?}");
    }
}

#[test]
fn durations_are_written_from_the_largest_unit_down() {
    let rows = [
        (0, "0s"),
        (1, "1ms"),
        (600, "600ms"),
        (1_500, "1s500ms"),
        (9_000_000, "2h30m"),
        (359_999_999_999, "99999h59m59s999ms"),
    ];
    for (millis, text) in rows {
        assert_eq!(duration_text(Duration::from_millis(millis)), text);
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_the_same(millis in 0..=359_999_999_999_u64) {
        let length = Duration::from_millis(millis);
        prop_assert_eq!(duration(&duration_text(length)), Ok(length));
    }
}
