//! The types a setting can have, and how their text looks.
//!
//! Strict on purpose: no trimming, no fractions, no ambiguous units, because a setting that is read differently from how it
//! was meant is worse than one that is refused.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// A type that a setting can have.
pub trait Value: Sized {
    /// Completes the sentence "expected …".
    const EXPECTED: &'static str;
    /// The text must not appear in errors.
    const SECRET: bool = false;
    /// `None`: the text is not a value of this type.
    fn parse(text: &str) -> Option<Self>;
}

/// A number of bytes, written `4096`, `64KiB`, `16MiB` or `1GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself. Do not log it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(<hidden>)")
    }
}

impl Value for Secret {
    const EXPECTED: &'static str = "a text that is not blank";
    const SECRET: bool = true;

    fn parse(text: &str) -> Option<Self> {
        (!text.trim().is_empty()).then(|| Self(text.to_owned()))
    }
}

impl Value for ByteSize {
    const EXPECTED: &'static str = "a number of bytes such as \"4096\", \"64KiB\" or \"16MiB\"";

    fn parse(text: &str) -> Option<Self> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let factor = match &text[digits..] {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return None,
        };
        text[..digits].parse::<u64>().ok()?.checked_mul(factor).map(Self)
    }
}

impl Value for Duration {
    const EXPECTED: &'static str = "a duration such as \"5s\", \"150ms\" or \"1m30s\"";

    fn parse(text: &str) -> Option<Self> {
        let mut rest = text;
        let mut total_ms = 0_u64;
        let mut previous_unit_ms = u64::MAX;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let unit = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
            let unit_ms = match &rest[digits..digits + unit] {
                "ms" => 1,
                "s" => 1_000,
                "m" => 60_000,
                "h" => 3_600_000,
                _ => return None,
            };
            // Largest first and each once: `30s1m` is more likely a mistake than a wish.
            if unit_ms >= previous_unit_ms {
                return None;
            }
            previous_unit_ms = unit_ms;
            let amount_ms = rest[..digits].parse::<u64>().ok()?.checked_mul(unit_ms)?;
            total_ms = total_ms.checked_add(amount_ms)?;
            rest = &rest[digits + unit..];
        }
        (!text.is_empty()).then(|| Self::from_millis(total_ms))
    }
}

impl Value for bool {
    const EXPECTED: &'static str = "\"true\" or \"false\"";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Value for String {
    const EXPECTED: &'static str = "a text";

    fn parse(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

impl Value for PathBuf {
    const EXPECTED: &'static str = "a path";

    fn parse(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self::from(text))
    }
}

impl Value for IpAddr {
    const EXPECTED: &'static str = "an IP address such as \"10.0.0.1\" or \"fd00::1\"";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Value for SocketAddr {
    const EXPECTED: &'static str = "an IP address and port such as \"10.0.0.1:15012\" or \"[fd00::1]:15012\"";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

macro_rules! whole_numbers {
    ($($number:ty),*) => {$(
        impl Value for $number {
            const EXPECTED: &'static str = "a whole number";

            fn parse(text: &str) -> Option<Self> {
                text.parse().ok()
            }
        }
    )*};
}

whole_numbers!(u8, u16, u32, u64, usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let ms = |text| Duration::parse(text).map(|d| d.as_millis());
        assert_eq!(ms("150ms"), Some(150));
        assert_eq!(ms("5s"), Some(5_000));
        assert_eq!(ms("1h2m3s4ms"), Some(3_723_004));
        assert_eq!(ms("0s"), Some(0));
        for bad in ["", "5", "s", "5 s", "-5s", "1.5s", "30s1m", "5s5s", "5d", "99999999999999999999s", "ß"]
        {
            assert_eq!(ms(bad), None, "{bad}");
        }
    }

    #[test]
    fn byte_sizes() {
        let bytes = |text| ByteSize::parse(text).map(|size| size.0);
        assert_eq!(bytes("4096"), Some(4096));
        assert_eq!(bytes("1B"), Some(1));
        assert_eq!(bytes("64KiB"), Some(65_536));
        assert_eq!(bytes("2GiB"), Some(2_147_483_648));
        for bad in ["", "KiB", "1KB", "1k", "1 KiB", "-1", "99999999999GiB"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn booleans_are_spelled_out() {
        assert_eq!(bool::parse("true"), Some(true));
        assert_eq!(bool::parse("false"), Some(false));
        for bad in ["", "1", "yes", "True"] {
            assert_eq!(bool::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_empty_path_is_no_path() {
        assert_eq!(PathBuf::parse(""), None);
        assert_eq!(PathBuf::parse("/x"), Some(PathBuf::from("/x")));
    }
}
