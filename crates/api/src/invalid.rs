//! Why a resource is refused. Every error names the field and the value, so that the other end can mend it.
//!
//! Owns no reaction: the caller rejects that one resource and keeps the others.

use model::identity::InvalidIdentity;
use model::l7::{InvalidText, RuleKey};
use model::policy::PolicyName;
use model::store::Update;

/// Why one resource, as it came in a discovery response, is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Invalid {
    /// The message says nothing: its `oneof` is unset, by a newer kind of resource or by mistake.
    #[error("{message} holds none of the kinds of resource that this version knows")]
    Empty {
        /// Which message.
        message: &'static str,
    },
    /// One of its fields.
    #[error(transparent)]
    Field(#[from] InvalidField),
    /// It is filed under another name than its own.
    #[error("the resource is sent under the name {sent:?} but calls itself {own:?}")]
    Name {
        /// The discovery resource's name.
        sent: String,
        /// What its body says.
        own: String,
    },
    /// Something in it is encoded by fields that this version does not know, and must not ignore.
    #[error("{message} holds something that this version does not know and must not ignore")]
    NotUnderstood {
        /// Which message.
        message: &'static str,
    },
    /// It is of another type than the response it came in.
    #[error("expected a resource of type {expected}, got {got:?}")]
    Type {
        /// What the response is of.
        expected: &'static str,
        /// What the `Any` says.
        got: String,
    },
    /// Not protobuf, or not of this shape.
    #[error("not a valid {message}: {why}")]
    Undecodable {
        /// Which message was expected.
        message: &'static str,
        /// What the decoder says.
        why: prost::DecodeError,
    },
    /// A field that this version does not know, in a message where ignoring it could allow more than was meant.
    #[error("{message} has field {number}, which this version does not know and must not ignore")]
    UnknownField {
        /// Which message.
        message: &'static str,
        /// The field's number.
        number: u32,
    },
}

/// A field and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidField {
    /// The field, as the .proto file spells it; `identity` for the fields that make one together.
    pub field: &'static str,
    /// What is wrong.
    pub problem: Problem,
}

/// What can be wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Neither an IPv4 nor an IPv6 address.
    #[error("an address has 4 or 16 bytes, this one has {length}")]
    AddressLength {
        /// In bytes.
        length: usize,
    },
    /// A number that the enumeration does not have, or that an ambient proxy can't act on.
    #[error("{number} is not a value that this version can act on")]
    Enum {
        /// What was sent.
        number: i32,
    },
    /// More than all of something, or a part of nothing.
    #[error("{numerator} of {denominator} is not a share")]
    Fraction {
        /// The part.
        numerator: u32,
        /// The whole.
        denominator: u32,
    },
    /// The parts do not make a SPIFFE ID.
    #[error(transparent)]
    Identity(#[from] InvalidIdentity),
    /// Nothing was sent.
    #[error("must be set")]
    Missing,
    /// Not of the form `namespace/name`.
    #[error("{value:?} is not of the form namespace/name")]
    Name {
        /// What was sent.
        value: String,
    },
    /// Not a TCP port.
    #[error("{value} is not a port (1 to 65535)")]
    Port {
        /// What was sent.
        value: u32,
    },
    /// Longer than the address, or shorter than the prefix that marks an IPv4-mapped address.
    #[error("/{length} is not a prefix length of this address")]
    PrefixLength {
        /// In bits.
        length: u32,
    },
    /// A status that can't stand there.
    #[error("{value} is not a status that can be used here")]
    Status {
        /// What was sent.
        value: u32,
    },
    /// A text that would do harm in a request or a response.
    #[error(transparent)]
    Text(#[from] InvalidText),
}

impl Problem {
    /// Says where.
    pub(crate) fn of(self, field: &'static str) -> InvalidField {
        InvalidField { field, problem: self }
    }
}

/// A policy that is refused. It has to go on guarding what it may guard, so it keeps its name.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{why}")]
pub struct InvalidPolicy {
    /// Which policy, as far as either the resource's name or its body tells.
    pub name: Option<PolicyName>,
    /// Why it is refused.
    pub why: Invalid,
}

impl InvalidPolicy {
    /// What the store must be told: whatever this policy may guard is refused until it is mended.
    #[must_use]
    pub fn update(&self) -> Option<Update> {
        let name = self.name.clone()?;
        Some(Update::PolicyUnenforceable(name, self.why.to_string().into()))
    }
}

/// A rule that is refused whole. What it may have matched before is to be refused as well, so it keeps its key.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{why}")]
pub struct InvalidRule {
    /// Which rule, as far as the resource's name tells.
    pub key: Option<RuleKey>,
    /// Why it is refused.
    pub why: Invalid,
}
