//! Where a body ends: RFC 9112, section 6.

/// How the end of a body is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// After the last chunk and the trailers.
    Chunked,
    /// After so many bytes.
    Length(u64),
    /// There is none.
    None,
    /// When the connection ends.
    UntilClose,
}
