//! Bytes that both ends know without talking, and their checksum.

use std::sync::LazyLock;

use aws_lc_rs::digest::{Context, SHA256};

/// The pattern repeats after a prime number of bytes, so that a lost or doubled buffer of any usual size shifts it.
const PERIOD: usize = 65_521;

/// Two periods, so that a period's worth can be taken from any place in the first.
static BLOCK: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = fastrand::Rng::with_seed(7);
    let period: Vec<u8> = (0..PERIOD).map(|_| random.u8(..)).collect();
    [period.clone(), period].concat()
});

/// At most `length` bytes of the pattern from `offset` on; at least one if `length` is not zero.
pub(crate) fn at(offset: u64, length: u64) -> &'static [u8] {
    let start = usize::try_from(offset % PERIOD as u64).expect("below the period");
    let length = usize::try_from(length).unwrap_or(usize::MAX).min(PERIOD);
    &BLOCK[start..start + length]
}

/// The SHA-256 of the first `length` bytes of the pattern, in hexadecimal.
pub(crate) fn checksum(length: u64) -> String {
    let mut sum = Sum::new();
    let mut done = 0;
    while done < length {
        let part = at(done, length - done);
        sum.add(part);
        done += part.len() as u64;
    }
    sum.finish().1
}

/// A running count and checksum.
pub(crate) struct Sum {
    context: Context,
    bytes: u64,
}

impl Sum {
    pub(crate) fn new() -> Self {
        Self { context: Context::new(&SHA256), bytes: 0 }
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// How many bytes, and their SHA-256 in hexadecimal.
    pub(crate) fn finish(self) -> (u64, String) {
        let digest = self.context.finish();
        (self.bytes, digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_is_the_same_however_it_is_cut() {
        let mut sum = Sum::new();
        let mut done = 0;
        while done < 300_000 {
            let part = at(done, 777.min(300_000 - done));
            sum.add(part);
            done += part.len() as u64;
        }
        assert_eq!(sum.finish(), (300_000, checksum(300_000)));
    }
}
