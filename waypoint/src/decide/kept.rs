//! What passes of a request's body: kept for another attempt, and told to whoever decides.

use super::REPLAY_BYTES_MAX;

/// What is kept of a body; nothing, once it is more than may be.
pub(crate) struct Kept {
    bytes: Vec<u8>,
    most: usize,
    whole: bool,
}

impl Kept {
    pub(crate) fn new(most: usize) -> Self {
        Self { bytes: Vec::new(), most: most.min(REPLAY_BYTES_MAX), whole: true }
    }

    /// Whether nothing is missing.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Copies: a small piece would pin all that it arrived with.
    pub(crate) fn keep(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.whole && self.bytes.len() + bytes.len() <= self.most {
            self.bytes.extend_from_slice(bytes);
        } else {
            *self = Self { bytes: Vec::new(), most: 0, whole: false };
        }
    }
}

/// Looks at a request's body for the hooks and for another attempt.
pub(crate) struct Watch<'a, X> {
    pub(crate) hooks: &'a mut X,
    pub(crate) kept: &'a mut Kept,
}
