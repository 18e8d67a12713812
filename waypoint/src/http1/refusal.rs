//! Why a message is not forwarded: the rules of RFC 9112 that it breaks, or a limit. The only place where such a reason
//! becomes a status and a code.

use super::limits;

/// What is wrong with a message. `Display` says it for logs; the peer learns the status only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A line ends with LF alone.
    #[error("a line ends without CR")]
    BareLineFeed,
    /// The framing of a chunk is broken.
    #[error("a chunk's size or end is malformed")]
    Chunk,
    /// The extensions of chunks are too long or hold control characters.
    #[error("chunk extensions are malformed or take more than {} bytes", limits::EXTENSION_BYTES_MAX)]
    ChunkExtension,
    /// A transfer coding that we don't know.
    #[error("a transfer coding other than chunked")]
    CodingUnknown,
    /// Transfer-Encoding where it must not be, or chunked not once and last.
    #[error("Transfer-Encoding is malformed, repeated, or not allowed here")]
    Coding,
    /// Both ways of saying where the body ends.
    #[error("Content-Length and Transfer-Encoding together")]
    CodingAndLength,
    /// Connection has too many options, or malformed ones.
    #[error("Connection is malformed or has more than {} options", limits::CONNECTION_OPTIONS_MAX)]
    Connection,
    /// A field's name has a byte that is no token character, or space before its colon.
    #[error("a field's name is malformed or followed by a space")]
    FieldName,
    /// A field's value has a control character.
    #[error("a field's value has a control character")]
    FieldValue,
    /// Too many fields.
    #[error("more than {} fields", limits::FIELDS_MAX)]
    FieldsTooMany,
    /// A field is continued on the next line.
    #[error("a field is folded over two lines")]
    Folded,
    /// The head did not arrive in time.
    #[error("the head did not arrive in time")]
    HeadTimeout,
    /// The head is too long.
    #[error("the head takes more than {} bytes", limits::HEAD_BYTES_MAX)]
    HeadTooLarge,
    /// Not exactly one well-formed Host.
    #[error("Host is missing, repeated or malformed")]
    Host,
    /// Content-Length is repeated or not a number.
    #[error("Content-Length is repeated or malformed")]
    Length,
    /// The first line cannot be read.
    #[error("the first line is malformed")]
    StartLine,
    /// The target is no URI of a form that suits the method.
    #[error("the request target is malformed or does not suit the method")]
    Target,
    /// The first line is too long.
    #[error("the first line takes more than {} bytes", limits::START_LINE_MAX)]
    TargetTooLong,
    /// The trailer section cannot be read, or has fields that must not be there.
    #[error("a trailer is malformed or must not be a trailer")]
    Trailers,
    /// The trailer section is too long.
    #[error("trailers take more than {} bytes", limits::TRAILER_BYTES_MAX)]
    TrailersTooLarge,
    /// A version other than 1.0 and 1.1.
    #[error("a version other than HTTP/1.0 and HTTP/1.1")]
    Version,
}

impl Refusal {
    /// What a client is answered whose request is refused.
    pub fn status(self) -> u16 {
        match self {
            Self::BareLineFeed
            | Self::Chunk
            | Self::ChunkExtension
            | Self::Coding
            | Self::CodingAndLength
            | Self::Connection
            | Self::FieldName
            | Self::FieldValue
            | Self::Folded
            | Self::Host
            | Self::Length
            | Self::StartLine
            | Self::Target
            | Self::Trailers => 400,
            Self::HeadTimeout => 408,
            Self::TargetTooLong => 414,
            Self::FieldsTooMany | Self::HeadTooLarge | Self::TrailersTooLarge => 431,
            Self::CodingUnknown => 501,
            Self::Version => 505,
        }
    }

    /// A stable name of the reason.
    pub fn code(self) -> &'static str {
        match self {
            Self::BareLineFeed => "http1-bare-line-feed",
            Self::Chunk => "http1-chunk",
            Self::ChunkExtension => "http1-chunk-extension",
            Self::Coding => "http1-transfer-encoding",
            Self::CodingAndLength => "http1-length-and-transfer-encoding",
            Self::CodingUnknown => "http1-transfer-encoding-unknown",
            Self::Connection => "http1-connection",
            Self::FieldName => "http1-field-name",
            Self::FieldValue => "http1-field-value",
            Self::FieldsTooMany => "http1-fields-too-many",
            Self::Folded => "http1-folded",
            Self::HeadTimeout => "http1-head-timeout",
            Self::HeadTooLarge => "http1-head-too-large",
            Self::Host => "http1-host",
            Self::Length => "http1-content-length",
            Self::StartLine => "http1-start-line",
            Self::Target => "http1-target",
            Self::TargetTooLong => "http1-target-too-long",
            Self::Trailers => "http1-trailers",
            Self::TrailersTooLarge => "http1-trailers-too-large",
            Self::Version => "http1-version",
        }
    }
}
