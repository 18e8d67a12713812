//! One direction of a TCP connection, put in order far enough to search across the borders of segments. Pure.
//!
//! Every segment's own bytes are searched when it arrives; this finds which bytes are new and what lies across borders.

use std::collections::BTreeMap;

/// The longest pattern that can be searched for.
pub(crate) const MAX_PATTERN: usize = 256;

/// Bytes that wait for an earlier segment. veth loses and reorders next to nothing; a window's worth is plenty.
const MAX_HELD: usize = 4 << 20;

#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// The sequence number after the bytes that are in order; absent before the first segment.
    next: Option<u32>,
    /// The last bytes before `next`.
    tail: Vec<u8>,
    held: BTreeMap<u32, Vec<u8>>,
    held_bytes: usize,
}

/// Bytes on both sides of a border between segments.
#[derive(Debug)]
pub(crate) struct Border {
    bytes: Vec<u8>,
    at: usize,
}

impl Border {
    /// The part in which every match of a pattern of this length crosses the border.
    pub(crate) fn window(&self, pattern: usize) -> &[u8] {
        let reach = pattern.saturating_sub(1);
        &self.bytes[self.at.saturating_sub(reach)..(self.at + reach).min(self.bytes.len())]
    }
}

/// What a segment brought.
#[derive(Debug, Default)]
pub(crate) struct Brought<'a> {
    /// Its bytes that were not seen before.
    pub(crate) fresh: &'a [u8],
    /// Borders that are complete now.
    pub(crate) borders: Vec<Border>,
    /// Whether borders were given up because too much waited for a segment that never came.
    pub(crate) gave_up: bool,
}

impl Stream {
    /// A SYN: sequence numbers begin anew.
    pub(crate) fn begin(&mut self, sequence: u32) {
        *self = Self { next: Some(sequence.wrapping_add(1)), ..Self::default() };
    }

    pub(crate) fn take<'a>(&mut self, sequence: u32, payload: &'a [u8]) -> Brought<'a> {
        let mut brought = Brought::default();
        if payload.is_empty() {
            return brought;
        }
        let next = *self.next.get_or_insert(sequence);
        let ahead = sequence.wrapping_sub(next).cast_signed();
        if ahead > 0 {
            self.hold(sequence, payload, &mut brought);
            return brought;
        }
        let known = usize::try_from(ahead.unsigned_abs()).expect("a usize has 32 bits");
        let Some(fresh) = payload.get(known..).filter(|fresh| !fresh.is_empty()) else { return brought };
        brought.fresh = fresh;
        self.join(fresh, &mut brought.borders);
        self.join_held(&mut brought.borders);
        brought
    }

    /// Whether something still waits for an earlier segment.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.held.is_empty()
    }

    fn hold<'a>(&mut self, sequence: u32, payload: &'a [u8], brought: &mut Brought<'a>) {
        if self.held.get(&sequence).is_some_and(|held| held.len() >= payload.len()) {
            return;
        }
        brought.fresh = payload;
        self.held_bytes += payload.len();
        self.held_bytes -= self.held.insert(sequence, payload.to_vec()).map_or(0, |old| old.len());
        if self.held_bytes > MAX_HELD {
            brought.gave_up = true;
            self.next = self.earliest_held();
            self.tail.clear();
            self.join_held(&mut brought.borders);
        }
    }

    fn join_held(&mut self, borders: &mut Vec<Border>) {
        while let (Some(next), Some(sequence)) = (self.next, self.earliest_held()) {
            let ahead = sequence.wrapping_sub(next).cast_signed();
            if ahead > 0 {
                return;
            }
            let held = self.held.remove(&sequence).expect("it was found there");
            self.held_bytes -= held.len();
            let known = usize::try_from(ahead.unsigned_abs()).expect("a usize has 32 bits");
            if let Some(rest) = held.get(known..).filter(|rest| !rest.is_empty()) {
                self.join(rest, borders);
            }
        }
    }

    fn join(&mut self, bytes: &[u8], borders: &mut Vec<Border>) {
        const REACH: usize = MAX_PATTERN - 1;
        if !self.tail.is_empty() {
            let joined = [self.tail.as_slice(), &bytes[..bytes.len().min(REACH)]].concat();
            borders.push(Border { at: self.tail.len(), bytes: joined });
        }
        let length = u32::try_from(bytes.len()).expect("a segment is far below 4 GiB");
        self.next = self.next.map(|next| next.wrapping_add(length));
        self.tail.extend_from_slice(&bytes[bytes.len().saturating_sub(REACH)..]);
        self.tail.drain(..self.tail.len().saturating_sub(REACH));
    }

    /// The held segment that comes first, in sequence numbers that wrap around.
    fn earliest_held(&self) -> Option<u32> {
        let next = self.next?;
        self.held.keys().copied().min_by_key(|sequence| sequence.wrapping_sub(next).cast_signed())
    }
}

#[cfg(test)]
mod tests {
    use memchr::memmem;
    use proptest::prelude::*;

    use super::*;

    /// How often `pattern` is found in segments (offset, length) of `text`, in the order given.
    fn count(text: &[u8], pattern: &[u8], start: u32, segments: &[(usize, usize)]) -> usize {
        let mut stream = Stream::default();
        stream.begin(start.wrapping_sub(1));
        let mut found = 0;
        for &(offset, length) in segments {
            let sequence = start.wrapping_add(u32::try_from(offset).expect("a short text"));
            let brought = stream.take(sequence, &text[offset..offset + length]);
            found += memmem::find_iter(brought.fresh, pattern).count();
            for border in &brought.borders {
                found += memmem::find_iter(border.window(pattern.len()), pattern).count();
            }
        }
        found
    }

    #[test]
    fn a_pattern_in_single_bytes_is_found() {
        let segments: Vec<_> = (0..20).map(|i| (i, 1)).collect();
        assert_eq!(count(b"....canary..canary..", b"canary", 7, &segments), 2);
    }

    #[test]
    fn retransmissions_are_not_counted_again() {
        assert_eq!(count(b"..canary..", b"canary", 7, &[(0, 10), (0, 10), (2, 8), (0, 4)]), 1);
    }

    #[test]
    fn a_gap_that_never_fills_is_given_up_and_said() {
        let mut stream = Stream::default();
        stream.begin(0);
        let chunk = vec![b'x'; 1 << 20];
        let gave_up =
            (0..6).map(|i: u32| stream.take(1000 + (i << 20), &chunk).gave_up).filter(|gave| *gave).count();
        assert_eq!(gave_up, 1);
        assert!(!stream.is_waiting());
    }

    proptest! {
        /// Cut anywhere, swapped, with sequence numbers that wrap: what is in the stream is found exactly once.
        #[test]
        fn segmentation_and_order_do_not_matter(
            noise in prop::collection::vec(prop::sample::select(b"can".to_vec()), 0..60),
            at in 0..60_usize,
            cuts in prop::collection::btree_set(1..66_usize, 0..20),
            swaps in prop::collection::vec((0..20_usize, 0..20_usize), 0..10),
            start in prop::sample::select(vec![0_u32, 1 << 31, u32::MAX - 20]),
        ) {
            let at = at.min(noise.len());
            let text = [&noise[..at], b"canary", &noise[at..]].concat();
            let mut borders: Vec<_> = std::iter::once(0).chain(cuts.into_iter().filter(|c| *c < text.len())).collect();
            borders.push(text.len());
            let mut segments: Vec<_> = borders.windows(2).map(|pair| (pair[0], pair[1] - pair[0])).collect();
            let number = segments.len();
            for (a, b) in swaps {
                segments.swap(a % number, b % number);
            }
            prop_assert_eq!(count(&text, b"canary", start, &segments), 1);
        }
    }
}
