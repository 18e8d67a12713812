//! What was out of the ordinary with a request, in the abbreviations that readers of Envoy's logs know.

use std::fmt;

/// Any of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Flags(u16);

impl Flags {
    /// Nothing.
    pub(crate) const NONE: Self = Self(0);
    /// A fault delayed it.
    pub(crate) const DELAYED: Self = Self(1);
    /// A policy denies the client.
    pub(crate) const DENIED: Self = Self(1 << 1);
    /// A fault answered or cut it.
    pub(crate) const FAULT: Self = Self(1 << 2);
    /// The client left.
    pub(crate) const CLIENT_GONE: Self = Self(1 << 3);
    /// It broke the rules of its protocol.
    pub(crate) const MALFORMED: Self = Self(1 << 4);
    /// The backend is not known.
    pub(crate) const NO_BACKEND: Self = Self(1 << 5);
    /// No rule matches.
    pub(crate) const NO_ROUTE: Self = Self(1 << 6);
    /// No endpoint is up.
    pub(crate) const UNHEALTHY: Self = Self(1 << 7);
    /// No connection to an endpoint.
    pub(crate) const UNREACHED: Self = Self(1 << 8);
    /// The connection to the endpoint broke.
    pub(crate) const LOST: Self = Self(1 << 9);
    /// The endpoint broke the rules of its protocol.
    pub(crate) const UPSTREAM_MALFORMED: Self = Self(1 << 10);
    /// It took too long.
    pub(crate) const LATE: Self = Self(1 << 11);
    /// Every attempt that there may be has failed.
    pub(crate) const RETRIES_SPENT: Self = Self(1 << 12);
    /// Nothing moved for too long.
    pub(crate) const IDLE: Self = Self(1 << 13);
    /// Ended by us.
    pub(crate) const LOCAL: Self = Self(1 << 14);

    /// In the order of their bits.
    const NAMES: [&str; 15] =
        ["DI", "DENY", "FI", "DC", "DPE", "NC", "NR", "UH", "UF", "UC", "UPE", "UT", "URX", "SI", "LR"];

    /// Both.
    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This, if so.
    pub(crate) const fn when(self, so: bool) -> Self {
        if so { self } else { Self::NONE }
    }
}

/// `DI,UT` for one; `-` for none.
impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NONE {
            return f.write_str("-");
        }
        let names = Self::NAMES.iter().enumerate().filter(|(bit, _)| self.0 & (1 << bit) != 0);
        for (count, (_, name)) in names.enumerate() {
            let separator = if count == 0 { "" } else { "," };
            write!(f, "{separator}{name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_written_in_one_order() {
        assert_eq!(Flags::NONE.to_string(), "-");
        assert_eq!(Flags::LATE.and(Flags::DELAYED).to_string(), "DI,UT");
        assert_eq!(Flags::LOCAL.to_string(), "LR");
        assert_eq!(Flags::NO_ROUTE.when(false), Flags::NONE);
    }
}
