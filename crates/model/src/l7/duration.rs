//! Durations as the Gateway API writes them (GEP-2257): `1h30m`, `500ms`, `0s`.

use std::time::Duration;

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a duration: one to four of a number (up to 5 digits) with h, m, s or ms, such as 1h30m"
)]
pub struct InvalidDuration(String);

/// Numbers with a unit in a duration (GEP-2257).
const MAX_GROUPS: usize = 4;

/// Digits of a number in a duration (GEP-2257).
const MAX_DIGITS: usize = 5;

/// The units, in milliseconds, largest first.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads a duration. Units may come in any order and several times, as in Go.
///
/// # Errors
/// When it is anything else. The grammar has neither signs nor fractions.
pub fn duration(text: &str) -> Result<Duration, InvalidDuration> {
    let invalid = || InvalidDuration(text.to_owned());
    let (mut rest, mut groups, mut total) = (text, 0, 0);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let letters = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
        let (number, unit) = (&rest[..digits], &rest[digits..digits + letters]);
        let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| factor);
        groups += 1;
        if digits > MAX_DIGITS || groups > MAX_GROUPS {
            return Err(invalid());
        }
        // No digits at all are no number either.
        total += number.parse::<u64>().map_err(|_| invalid())? * factor.ok_or_else(invalid)?;
        rest = &rest[digits + letters..];
    }
    if groups == 0 { Err(invalid()) } else { Ok(Duration::from_millis(total)) }
}

/// Writes a duration, from the largest unit to the smallest. What is shorter than a millisecond is left out, and what has
/// more than 99,999 hours has more digits than [`duration`] reads.
#[must_use]
pub fn duration_text(duration: Duration) -> String {
    let mut rest = duration.as_millis();
    let mut text = String::new();
    for (unit, factor) in UNITS {
        let (count, left) = (rest / u128::from(factor), rest % u128::from(factor));
        if count > 0 {
            text += &format!("{count}{unit}");
        }
        rest = left;
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}
