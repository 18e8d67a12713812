//! What is asked and what is answered: numbered requests, and bodies that say which request they answer. Pure.
//!
//! A body begins with its request's number and goes on with a pattern, so that a byte of another answer is noticed.

use anyhow::ensure;

/// Digits of a request's number in its header and at the head of each body; a body is at least this long.
pub(crate) const NUMBER: usize = 16;
/// The header that carries the number.
pub(crate) const NUMBER_HEADER: &str = "x-number";
/// The header that says how long a body is wanted.
pub(crate) const BYTES_HEADER: &str = "x-bytes";
/// The longest body that is asked for.
pub(crate) const BODY_MAX: usize = 1 << 20;
/// The path of every request: below the prefix that routes match.
pub(crate) const PATH: &str = "/bench/items/4711?view=full";
/// The path of a call of gRPC, below the same prefix.
pub(crate) const CALL: &str = "/bench/Get";
/// What routes set in requests and in answers, so that both ends can tell that they were followed.
pub(crate) const RULE: (&str, &str) = ("x-rule", "bench");
pub(crate) const WEIGHTS: (&str, &str) = ("x-weights", "90-10");
/// What routes take out of requests.
pub(crate) const SECRET: &str = "x-secret";
/// What an ordinary client says beside what it wants.
pub(crate) const FIELDS: [(&str, &str); 8] = [
    ("user-agent", "bench/1.0 (a client of the waypoint's bench)"),
    ("accept", "application/json, text/plain;q=0.9, */*;q=0.1"),
    ("accept-language", "en-GB, en;q=0.7"),
    ("cache-control", "no-cache"),
    ("cookie", "session=0f8fad5b-d9cb-469f-a165-70867728950e; theme=dark"),
    ("x-request-id", "7c9e6679-7425-40de-944b-e07fc1f90ae7"),
    ("x-tenant", "blue"),
    (SECRET, "not for the server"),
];

/// A request's number in its fixed form.
pub(crate) fn digits(number: u64) -> [u8; NUMBER] {
    let mut digits = [b'0'; NUMBER];
    let mut rest = number;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(rest % 10).expect("a digit");
        rest /= 10;
    }
    digits
}

/// The bodies of every length: all begin differently and go on alike.
#[derive(Debug)]
pub(crate) struct Pattern(Vec<u8>);

impl Pattern {
    /// For bodies of up to [`BODY_MAX`].
    pub(crate) fn new() -> Self {
        Self((0..BODY_MAX).map(|at| b"abcdefghijklmnopqrstuvwxyz0123456789\n"[at % 37]).collect())
    }

    /// Appends the body of `bytes` bytes that answers the request of that number.
    pub(crate) fn append(&self, number: &[u8], bytes: usize, to: &mut Vec<u8>) {
        to.extend_from_slice(number);
        to.extend_from_slice(&self.0[NUMBER..bytes]);
    }

    /// Whether `body` is that body.
    pub(crate) fn check(&self, number: &[u8], bytes: usize, body: &[u8]) -> anyhow::Result<()> {
        ensure!(body.len() == bytes, "a body of {} bytes instead of {bytes}", body.len());
        ensure!(body.starts_with(number), "the body is another request's");
        ensure!(body[NUMBER..] == self.0[NUMBER..bytes], "the body was changed on the way");
        Ok(())
    }
}

/// A length that was asked for, if it can be had.
pub(crate) fn length(text: &[u8]) -> Option<usize> {
    let length = std::str::from_utf8(text).ok()?.parse().ok()?;
    (NUMBER..=BODY_MAX).contains(&length).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_told_from_another_requests_and_from_a_changed_one() {
        let pattern = Pattern::new();
        let mut body = Vec::new();
        pattern.append(&digits(42), 100, &mut body);
        assert!(body.starts_with(b"0000000000000042"));
        pattern.check(&digits(42), 100, &body).expect("the right one");
        assert!(pattern.check(&digits(43), 100, &body).is_err());
        assert!(pattern.check(&digits(42), 101, &body).is_err());
        body[99] ^= 1;
        assert!(pattern.check(&digits(42), 100, &body).is_err());
    }

    #[test]
    fn lengths_have_room_for_the_number_and_an_end() {
        assert_eq!(length(b"16"), Some(16));
        assert_eq!(length(b"15"), None);
        assert_eq!(length(b"1048577"), None);
        assert_eq!(length(b"x"), None);
    }
}
