//! Responses of our own.

use bytes::Bytes;

use super::edits::FieldEdits;

/// A response of our own.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// 200 to 599.
    pub status: u16,
    /// Fields beside those that frame it.
    pub fields: FieldEdits,
    /// All of it; kept small by whoever makes it.
    pub body: Bytes,
    /// The connection ends with it, where it carries one request at a time.
    pub close: bool,
}

impl Answer {
    /// A status alone.
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }
}
