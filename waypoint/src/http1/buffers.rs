//! Recycled buffers, one free list per thread: a connection borrows one while it has bytes in hand and gives it back when
//! it has none, so that an idle connection holds no buffer.

use std::cell::RefCell;

/// What a quiet connection reads into: a head and a small body, or one TLS record.
pub(super) const SMALL: usize = 16 * 1024;

/// What a busy connection reads into, and the longest head: above it, the processor's caches cost more than calls do.
pub(super) const LARGE: usize = 64 * 1024;

/// Free buffers kept per thread: 1 MiB of the small, 2 MiB of the large ones. Who has more connections that are busy at
/// one moment pays the allocator for the rest.
const KEPT: [(usize, usize); 2] = [(SMALL, 64), (LARGE, 32)];

thread_local! {
    static FREE: RefCell<[Vec<Box<[u8]>>; KEPT.len()]> = const { RefCell::new([const { Vec::new() }; KEPT.len()]) };
}

/// A buffer, and the range of it that is filled and not yet used. Without bytes it may be without a buffer.
#[derive(Default)]
pub(super) struct Window {
    buffer: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

impl Window {
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether [`Window::spare`] can be anything.
    pub(super) fn has_room(&self) -> bool {
        self.end - self.start < LARGE
    }

    pub(super) fn filled(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer[self.start..self.end])
    }

    /// Free space behind the filled range, in a buffer of at least `size` if there is none yet. Where there is no space
    /// the bytes are moved to the front or to a larger buffer, up to `LARGE`.
    pub(super) fn spare(&mut self, size: usize) -> &mut [u8] {
        if self.buffer.as_ref().is_some_and(|buffer| buffer.len() < size) {
            self.release();
        }
        let full = self.buffer.as_ref().is_some_and(|buffer| self.end == buffer.len());
        if full && self.start > 0 {
            self.filled_to_front();
        } else if full {
            let mut larger = take(LARGE);
            larger[..self.end].copy_from_slice(self.filled());
            self.put_back();
            self.buffer = Some(larger);
        }
        let buffer = self.buffer.get_or_insert_with(|| take(size));
        &mut buffer[self.end..]
    }

    fn filled_to_front(&mut self) {
        if let Some(buffer) = &mut self.buffer {
            buffer.copy_within(self.start..self.end, 0);
        }
        (self.start, self.end) = (0, self.end - self.start);
    }

    /// `count` bytes of the spare space were filled.
    pub(super) fn grow(&mut self, count: usize) {
        self.end += count;
    }

    /// `count` bytes were used.
    pub(super) fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end, "more used than filled");
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Gives the buffer back if nothing is in it.
    pub(super) fn release(&mut self) {
        if self.is_empty() {
            self.put_back();
        }
    }

    fn put_back(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            give(buffer);
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.put_back();
    }
}

fn take(size: usize) -> Box<[u8]> {
    let class = usize::from(size > SMALL);
    let kept = FREE.try_with(|free| free.borrow_mut()[class].pop()).ok().flatten();
    kept.unwrap_or_else(|| vec![0; KEPT[class].0].into_boxed_slice())
}

fn give(buffer: Box<[u8]>) {
    let class = usize::from(buffer.len() > SMALL);
    // At the end of a thread the list may be gone already: then the memory goes back to the allocator.
    let _ = FREE.try_with(|free| {
        let list = &mut free.borrow_mut()[class];
        if list.len() < KEPT[class].1 {
            list.push(buffer);
        }
    });
}
