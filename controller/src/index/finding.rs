//! What the mesh made of an object: taken, taken with a reservation, or refused, and why.
//!
//! Plain data; the text is for the person who wrote the object and says how to mend it.

use std::fmt;

/// One remark about one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// What became of the object.
    pub outcome: Outcome,
    /// Stable, for machines.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// In force as written.
    Accepted,
    /// In force, but not in every detail as written; never less strict.
    Partial,
    /// Without effect.
    Refused,
}

/// Why, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Nothing to remark.
    Accepted,
    /// A value that can't be understood.
    Invalid,
    /// Something is missing that the object needs.
    Incomplete,
    /// A value that only a waypoint can act on, or that nothing acts on.
    UnsupportedValue,
}

macro_rules! words {
    ($type:ident: $($variant:ident)*) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => stringify!($variant)),* })
            }
        }
    };
}
words!(Outcome: Accepted Partial Refused);
words!(Reason: Accepted Invalid Incomplete UnsupportedValue);

impl Finding {
    /// In force as written.
    pub(crate) fn accepted(message: impl Into<String>) -> Self {
        Self { outcome: Outcome::Accepted, reason: Reason::Accepted, message: message.into() }
    }

    /// In force with a reservation.
    pub(crate) fn partial(reason: Reason, message: impl Into<String>) -> Self {
        Self { outcome: Outcome::Partial, reason, message: message.into() }
    }

    /// Without effect.
    pub(crate) fn refused(reason: Reason, message: impl Into<String>) -> Self {
        Self { outcome: Outcome::Refused, reason, message: message.into() }
    }
}
