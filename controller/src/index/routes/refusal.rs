//! Why a rule can't be carried out, in the Gateway API's words and in ours.

use model::l7::{InvalidDuration, InvalidText};

use crate::source::objects::Unknown;

/// Why a rule can't be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// For machines.
    pub(crate) reason: &'static str,
    /// For people.
    pub(crate) message: String,
}

impl Refusal {
    /// A value that can't be understood or acted on.
    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self { reason: "UnsupportedValue", message: message.into() }
    }

    /// Filters that exclude each other.
    pub(crate) fn incompatible(message: impl Into<String>) -> Self {
        Self { reason: "IncompatibleFilters", message: message.into() }
    }
}

impl From<InvalidText> for Refusal {
    fn from(why: InvalidText) -> Self {
        Self::unsupported(why.to_string())
    }
}

impl From<InvalidDuration> for Refusal {
    fn from(why: InvalidDuration) -> Self {
        Self::unsupported(why.to_string())
    }
}

/// Refuses what has parts that are not known.
pub(super) fn known(Unknown(names): &Unknown) -> Result<(), Refusal> {
    match names.first() {
        None => Ok(()),
        Some(name) => Err(Refusal::unsupported(format!("field {name:?} is not known"))),
    }
}
