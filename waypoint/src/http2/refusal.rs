//! Why a message is refused that the engine lets pass, and what the client is told.
//!
//! What is wrong with frames, windows, pseudo-fields or connection-specific fields the engine refuses by itself, with a reset.

use super::limits;

/// What is wrong with a message. Its `Display` is for logs; a client is told [`Refusal::status`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Who it is for is missing, malformed or said in two ways.
    #[error(":authority is missing or malformed, or Host says otherwise")]
    Authority,
    /// Too many fields.
    #[error("more than {} fields", limits::FIELDS_MAX)]
    FieldsTooMany,
    /// Too many responses precede the final one.
    #[error("more than {} responses precede the final one", limits::INTERIMS_MAX)]
    Interims,
    /// Content-Length is repeated.
    #[error("Content-Length is repeated")]
    Length,
    /// The engine found it.
    #[error("the frames break the protocol")]
    Protocol,
    /// The path is none, or does not suit the method.
    #[error("the path is malformed or does not suit the method")]
    Target,
    /// The trailers have fields that must not be there, or too many.
    #[error("a field must not be a trailer, or there are more than {}", limits::TRAILERS_MAX)]
    Trailers,
}

impl Refusal {
    /// What a client is answered whose request is refused.
    pub fn status(self) -> u16 {
        match self {
            Self::Authority
            | Self::Interims
            | Self::Length
            | Self::Protocol
            | Self::Target
            | Self::Trailers => 400,
            Self::FieldsTooMany => 431,
        }
    }

    /// A stable name of the reason.
    pub fn code(self) -> &'static str {
        match self {
            Self::Authority => "http2-authority",
            Self::FieldsTooMany => "http2-fields-too-many",
            Self::Interims => "http2-interim-responses",
            Self::Length => "http2-content-length",
            Self::Protocol => "http2-protocol",
            Self::Target => "http2-path",
            Self::Trailers => "http2-trailers",
        }
    }
}
