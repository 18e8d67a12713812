//! Maglev's table: a hash finds its endpoint in one look, and most hashes keep theirs when endpoints come and go.
//!
//! After Eisenbud and others, "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4.

use twox_hash::XxHash64;

/// Entries of a table: a prime, and a hundred times as many as endpoints of one locality usually are, so that shares differ by
/// about a percent. Beyond [`MAX_ENDPOINTS`] shares are less even.
const ENTRIES: usize = 65_537;

/// Endpoints in one table: each has at least some thirty entries.
pub(super) const MAX_ENDPOINTS: usize = 2048;

/// Which endpoint, by index, each entry belongs to.
#[derive(Debug)]
pub(super) struct Table(Vec<u16>);

impl Table {
    /// The table of endpoints with these names; of those beyond [`MAX_ENDPOINTS`] there is none.
    pub(super) fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut turns: Vec<Turn> = names.take(MAX_ENDPOINTS).map(Turn::new).collect();
        if turns.is_empty() {
            return Self(Vec::new());
        }
        let mut entries: Vec<Option<u16>> = vec![None; ENTRIES];
        let mut left = ENTRIES;
        // Each in turn takes the first entry of its own order that is free.
        'all: loop {
            for (index, turn) in turns.iter_mut().enumerate() {
                let free = std::iter::repeat_with(|| turn.next()).find(|entry| entries[*entry].is_none());
                let free = free.expect("a step below a prime visits every entry");
                entries[free] = Some(u16::try_from(index).expect("at most MAX_ENDPOINTS"));
                left -= 1;
                if left == 0 {
                    break 'all;
                }
            }
        }
        Self(entries.into_iter().map(|entry| entry.expect("all were taken")).collect())
    }

    /// The endpoint of a hash, by index; `None` if there are none.
    pub(super) fn find(&self, hash: u64) -> Option<usize> {
        let entry = usize::try_from(hash % ENTRIES as u64).expect("below ENTRIES");
        self.0.get(entry).map(|index| usize::from(*index))
    }
}

/// An endpoint's own order of the entries.
struct Turn {
    next: usize,
    step: usize,
}

impl Turn {
    fn new(name: &str) -> Self {
        let below = |most: usize, seed: u64| {
            usize::try_from(XxHash64::oneshot(seed, name.as_bytes()) % most as u64).expect("below a usize")
        };
        Self { next: below(ENTRIES, 1), step: below(ENTRIES - 1, 2) + 1 }
    }

    fn next(&mut self) -> usize {
        let entry = self.next;
        self.next = (self.next + self.step) % ENTRIES;
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|index| format!("Kubernetes//Pod/shop/web-{index}")).collect()
    }

    fn table(names: &[String]) -> Table {
        Table::new(names.iter().map(String::as_str))
    }

    #[test]
    fn shares_are_even() {
        for count in [1, 2, 7, 100] {
            let table = table(&names(count));
            let mut shares = vec![0_usize; count];
            table.0.iter().for_each(|index| shares[usize::from(*index)] += 1);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 1, "{count}: {least} to {most}");
        }
        assert_eq!(table(&[]).find(7), None);
    }

    #[test]
    fn one_that_goes_moves_few_of_the_others() {
        let all = names(50);
        let (before, after) = (table(&all), table(&all[..49]));
        let moved = (0..ENTRIES as u64).filter(|hash| {
            let (before, after) = (before.find(*hash), after.find(*hash));
            before != Some(49) && before != after
        });
        let moved = moved.count();
        assert!(moved < ENTRIES / 20, "{moved} of {ENTRIES} moved without need");
    }
}
