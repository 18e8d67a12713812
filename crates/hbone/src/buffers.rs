//! Recycled byte buffers, one free list per thread. Owns nothing but memory: a tunnel or relay borrows a buffer while
//! it has bytes in hand and gives it back when it has none, so an idle tunnel holds no buffer at all.
//! Buffers are zeroed when made and never cleared again; only filled ranges may be read.

use std::cell::RefCell;

use bytes::Bytes;

/// A read of a quiet stream. Sixteen KiB is one TLS record and one HTTP/2 frame: less would split both.
pub(crate) const SMALL: usize = 16 * 1024;
/// The step between a quiet and a busy stream (each step is four times the last).
pub(crate) const MEDIUM: usize = 64 * 1024;
/// A read of a busy stream: measured, 64 KiB costs a fifth more processor time per byte and 1 MiB gains nothing.
pub(crate) const LARGE: usize = 256 * 1024;
/// What a tunnel reads or seals at once: `LARGE` and room for one more record, its overhead and pending alerts.
pub(crate) const TUNNEL: usize = LARGE + 32 * 1024;

/// Bytes that fill less of their buffer than one part in this many are copied out, so that they do not pin the rest.
const COPIED_PART: usize = 4;

/// Free buffers kept per thread and size, smallest size first. Together at most 8.5 MiB: a thread that serves
/// more busy streams than this at one moment pays the allocator for the rest.
const KEPT: [(usize, usize); 4] = [(SMALL, 64), (MEDIUM, 16), (LARGE, 8), (TUNNEL, 16)];

thread_local! {
    static FREE: RefCell<[Vec<Vec<u8>>; KEPT.len()]> = const { RefCell::new([const { Vec::new() }; KEPT.len()]) };
}

/// A buffer of fixed size whose contents are arbitrary until written.
pub(crate) struct Buffer {
    data: Vec<u8>,
}

impl Buffer {
    /// The smallest kept size that holds `size` bytes (or exactly `size`, above the largest).
    pub(crate) fn with_room(size: usize) -> Buffer {
        let Some(class) = KEPT.iter().position(|(class, _)| *class >= size) else {
            return Buffer { data: vec![0; size] };
        };
        let kept = FREE.try_with(|free| free.borrow_mut()[class].pop()).ok().flatten();
        Buffer { data: kept.unwrap_or_else(|| vec![0; KEPT[class].0]) }
    }

    /// Whether `len` bytes fill enough of it that it may be pinned for them.
    pub(crate) fn is_filled_by(&self, len: usize) -> bool {
        len.saturating_mul(COPIED_PART) >= self.data.len()
    }

    /// The first `len` bytes as shared bytes, without a copy. A buffer that is mostly empty is copied instead,
    /// so that a waiting message never pins more than four times its own size.
    pub(crate) fn into_bytes(self, len: usize) -> Bytes {
        if !self.is_filled_by(len) {
            return Bytes::copy_from_slice(&self.data[..len]);
        }
        Bytes::from_owner(self).slice(..len)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        let Some(class) = KEPT.iter().position(|(class, _)| *class == data.len()) else { return };
        // At thread exit the list may be gone already: then the memory simply goes back to the allocator.
        let _ = FREE.try_with(|free| {
            let list = &mut free.borrow_mut()[class];
            if list.len() < KEPT[class].1 {
                list.push(data);
            }
        });
    }
}

/// A buffer and the range of it that is filled and not yet used.
#[derive(Default)]
pub(crate) struct Window {
    buffer: Option<Buffer>,
    start: usize,
    end: usize,
}

impl Window {
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn filled(&mut self) -> &mut [u8] {
        match &mut self.buffer {
            Some(buffer) => &mut buffer.as_mut()[self.start..self.end],
            None => &mut [],
        }
    }

    /// Free space behind the filled range, after making `room` bytes of it if that can be had.
    pub(crate) fn spare(&mut self, room: usize) -> &mut [u8] {
        let buffer = self.buffer.get_or_insert_with(|| Buffer::with_room(TUNNEL));
        if self.start > 0 && buffer.as_ref().len() - self.end < room {
            buffer.as_mut().copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut buffer.as_mut()[self.end..]
    }

    /// `count` bytes of the spare space were filled.
    pub(crate) fn grow(&mut self, count: usize) {
        self.end += count;
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.spare(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Gives the buffer back when nothing is in it.
    pub(crate) fn release(&mut self) {
        if self.len() == 0 {
            *self = Window::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up_and_odd_ones_kept_exact() {
        assert_eq!(Buffer::with_room(1).as_ref().len(), SMALL);
        assert_eq!(Buffer::with_room(SMALL + 1).as_ref().len(), MEDIUM);
        assert_eq!(Buffer::with_room(TUNNEL + 1).as_ref().len(), TUNNEL + 1);
    }

    #[test]
    fn a_small_message_does_not_pin_a_large_buffer() {
        let mut buffer = Buffer::with_room(LARGE);
        buffer.as_mut()[..4].copy_from_slice(b"ping");
        let bytes = buffer.into_bytes(4);
        assert_eq!(&bytes[..], b"ping");
        // The buffer went back, so the next one asked for is the same memory with the same contents.
        assert_eq!(&Buffer::with_room(LARGE).as_ref()[..4], b"ping");
    }

    #[test]
    fn a_full_message_is_shared_not_copied() {
        let buffer = Buffer::with_room(SMALL);
        let address = buffer.as_ref().as_ptr();
        assert_eq!(buffer.into_bytes(SMALL).as_ptr(), address);
    }
}
