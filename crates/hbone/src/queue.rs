//! What has come in a stream and waits to go on, held in the buffers that it came in unless those would cost more than it.
//!
//! Moves nothing by itself.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

/// While the application does not read, chunks smaller than this are copied together. A chunk pins the whole buffer
/// that it was received in (16 KiB and more), so a sender of tiny frames could pin far more than its window.
const TINY: usize = 8 * 1024;

/// What a copied-together chunk grows to.
const MERGED: usize = 64 * 1024;

/// Bytes on their way from a stream to whoever takes them.
#[derive(Default)]
pub(crate) struct Queue {
    chunks: VecDeque<Bytes>,
    /// Tiny chunks copied together; it follows `chunks`.
    tail: BytesMut,
    /// Who takes them does not keep up.
    blocked: bool,
}

impl Queue {
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.tail.is_empty()
    }

    pub(crate) fn extend(&mut self, chunks: impl Iterator<Item = Bytes>) {
        if !self.blocked {
            self.chunks.extend(chunks);
            return;
        }
        for chunk in chunks {
            if chunk.len() >= TINY || self.tail.len() + chunk.len() > MERGED {
                self.settle();
            }
            if chunk.len() >= TINY {
                self.chunks.push_back(chunk)
            } else {
                self.tail.extend_from_slice(&chunk)
            }
        }
    }

    /// From now on, until the queue is empty, tiny chunks are copied together, those that are here first. They
    /// would pin the buffers that they came in.
    pub(crate) fn pack(&mut self) {
        if !self.blocked {
            self.blocked = true;
            let chunks = std::mem::take(&mut self.chunks);
            self.extend(chunks.into_iter());
        }
    }

    fn settle(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }

    /// The first chunk, or as much of it as `most`; `None` when there is nothing.
    pub(crate) fn pop(&mut self, most: usize) -> Option<Bytes> {
        if self.chunks.is_empty() {
            self.settle();
        }
        let first = self.chunks.front_mut()?;
        if first.len() > most {
            return Some(first.split_to(most));
        }
        let taken = self.chunks.pop_front();
        if self.is_empty() {
            self.blocked = false;
        }
        taken
    }

    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let tail = (!self.tail.is_empty()).then_some(&self.tail[..]);
        let mut used = 0;
        for (slice, chunk) in slices.iter_mut().zip(self.chunks.iter().map(|chunk| &chunk[..]).chain(tail)) {
            *slice = IoSlice::new(chunk);
            used += 1;
        }
        used
    }

    pub(crate) fn advance(&mut self, mut count: usize) {
        while let Some(first) = self.chunks.front_mut() {
            if count < first.len() {
                first.advance(count);
                return;
            }
            count -= first.len();
            self.chunks.pop_front();
        }
        self.tail.advance(count);
        if self.tail.is_empty() {
            // The application has caught up; an empty queue holds no memory.
            *self = Queue::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(queue: &Queue) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); 1024];
        let used = queue.slices(&mut slices);
        slices[..used].iter().flat_map(|slice| slice.iter().copied()).collect()
    }

    #[test]
    fn packing_keeps_every_byte_in_order_and_merges_only_tiny_chunks() {
        let mut queue = Queue::default();
        let sizes = [1, 2, TINY, 3, 4, TINY - 1, TINY + 5, 1];
        let mut expected = Vec::new();
        for (index, size) in sizes.into_iter().enumerate() {
            let chunk = vec![index as u8; size];
            expected.extend_from_slice(&chunk);
            queue.extend(std::iter::once(Bytes::from(chunk)));
        }
        queue.pack();
        assert_eq!(contents(&queue), expected);
        assert_eq!(queue.chunks.len(), 4, "1+2 | TINY | 3+4+(TINY-1) | TINY+5 | and the tail");
        queue.advance(2);
        queue.extend(std::iter::once(Bytes::from_static(b"tail")));
        queue.advance(2);
        expected.extend_from_slice(b"tail");
        assert_eq!(contents(&queue), expected[4..]);
        let popped = queue.pop(1).unwrap();
        assert_eq!(popped[..], expected[4..5]);
        queue.advance(expected.len() - 5);
        assert!(queue.is_empty() && !queue.blocked);
    }

    #[test]
    fn a_hundred_thousand_tiny_chunks_become_a_few() {
        let mut queue = Queue::default();
        queue.pack();
        for _ in 0..100_000 {
            queue.extend(std::iter::once(Bytes::from_static(b"x")));
        }
        assert_eq!(queue.chunks.len(), 1);
        assert_eq!(contents(&queue).len(), 100_000);
    }
}
