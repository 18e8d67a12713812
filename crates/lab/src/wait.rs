//! Waiting for a condition that nobody announces, with a deadline and a sentence for its failure.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::LabError;

/// Between two looks. Short beside what is waited for (process starts, handshakes), long beside a look.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Looks until `condition` gives a value. Its last error becomes part of the failure after `within`.
pub fn wait_until<T, E: Display>(
    what: &str,
    within: Duration,
    condition: impl FnMut() -> Result<T, E>,
) -> Result<T, LabError> {
    wait_looking_every(LOOK_EVERY, what, within, condition)
}

/// The same for a condition whose look is dear, such as a process of its own.
pub fn wait_looking_every<T, E: Display>(
    pause: Duration,
    what: &str,
    within: Duration,
    mut condition: impl FnMut() -> Result<T, E>,
) -> Result<T, LabError> {
    let deadline = Instant::now() + within;
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() >= deadline => {
                return Err(LabError::Deadline { what: what.to_owned(), within, last: last.to_string() });
            }
            Err(_) => thread::sleep(pause),
        }
    }
}
