//! The authority of a `CONNECT` request (RFC 9110 section 7.1, RFC 9113 section 8.5): `ip:port`, `[ipv6]:port`, `host:port`.
//!
//! Parsing is strict and knows one spelling per meaning: a peer chooses this text, and what it names is dialled. Whether
//! it may be dialled is for `route` to say.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;

use crate::Str;

/// The longest hostname, in bytes of its text form (RFC 1035 section 2.3.4).
pub const MAX_HOSTNAME_LENGTH: usize = 253;

/// The longest label of a hostname, in bytes (RFC 1035 section 2.3.4).
pub const MAX_LABEL_LENGTH: usize = 63;

/// What a `CONNECT` names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Authority {
    /// The host part.
    pub host: Host,
    /// The port; never 0.
    pub port: u16,
}

/// The host part of an authority.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address, never an IPv4-mapped IPv6 one.
    Ip(IpAddr),
    /// A hostname, lower case, without a trailing dot.
    Name(Str),
}

impl From<SocketAddr> for Authority {
    /// The authority that names an address. Its port is expected not to be 0.
    fn from(addr: SocketAddr) -> Self {
        Self { host: Host::Ip(addr.ip().to_canonical()), port: addr.port() }
    }
}

/// The form that parsing accepts.
impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl FromStr for Authority {
    type Err = InvalidAuthority;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text.rsplit_once(':').ok_or(InvalidAuthority::NoPort)?;
        let host = match host.strip_prefix('[') {
            Some(rest) => Host::Ip(bracketed(rest)?),
            None => plain(host)?,
        };
        Ok(Self { host, port: parse_port(port)? })
    }
}

/// Why a text is not an authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAuthority {
    /// The host is neither an address nor a hostname.
    #[error("the authority's host is neither an IPv4 address, an IPv6 address in brackets, nor a hostname")]
    Host,
    /// No port.
    #[error("the authority names no port; the form is host:port")]
    NoPort,
    /// A port that is not one.
    #[error("the authority's port is not a decimal number from 1 to 65535 without leading zeros")]
    Port,
}

/// `Ipv6Addr` refuses zones; a socket address would accept `%1`, which names an interface of ours.
fn bracketed(rest: &str) -> Result<IpAddr, InvalidAuthority> {
    let inside = rest.strip_suffix(']').ok_or(InvalidAuthority::Host)?;
    let ip: Ipv6Addr = inside.parse().map_err(|_| InvalidAuthority::Host)?;
    Ok(IpAddr::V6(ip).to_canonical())
}

fn plain(host: &str) -> Result<Host, InvalidAuthority> {
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Ok(Host::Ip(ip.into()));
    }
    if is_hostname(host) {
        return Ok(Host::Name(host.to_ascii_lowercase().into()));
    }
    Err(InvalidAuthority::Host)
}

fn is_hostname(host: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let label_is_good = |label: &str| {
        (1..=MAX_LABEL_LENGTH).contains(&label.len())
            && label.bytes().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.len() <= MAX_HOSTNAME_LENGTH
        && host.split('.').all(label_is_good)
        && !host.rsplit('.').next().is_some_and(is_number)
}

/// Resolvers read `127.1`, `2130706433` and `0x7f000001` as addresses; so a name may not end in a number
/// (WHATWG URL, "ends in a number checker").
fn is_number(label: &str) -> bool {
    let hexadecimal = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    match hexadecimal {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => label.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

fn parse_port(text: &str) -> Result<u16, InvalidAuthority> {
    // The number parser alone would accept "+80" and "080".
    if !text.bytes().all(|byte| byte.is_ascii_digit()) || text.starts_with('0') {
        return Err(InvalidAuthority::Port);
    }
    text.parse::<NonZeroU16>().map(NonZeroU16::get).map_err(|_| InvalidAuthority::Port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, expected: Result<&str, InvalidAuthority>) {
        let parsed = text.parse::<Authority>().map(|authority| authority.to_string());
        assert_eq!(parsed.as_deref().map_err(|error| *error), expected, "{text:?}");
    }

    #[test]
    fn addresses_and_hostnames() {
        check("10.1.2.3:80", Ok("10.1.2.3:80"));
        check("10.1.2.3:65535", Ok("10.1.2.3:65535"));
        check("[fd00::1]:8080", Ok("[fd00::1]:8080"));
        check("[FD00:0::1]:8080", Ok("[fd00::1]:8080"));
        check("[::ffff:10.0.0.1]:80", Ok("10.0.0.1:80"));
        check("cart.shop.svc.cluster.local:80", Ok("cart.shop.svc.cluster.local:80"));
        check("Cart.Shop:80", Ok("cart.shop:80"));
        check("a:1", Ok("a:1"));
        check("0xyz.example:1", Ok("0xyz.example:1"));
    }

    #[test]
    fn everything_else_is_refused() {
        for text in ["", "cart", "10.0.0.1", "[fd00::1]"] {
            let refused = text.parse::<Authority>();
            assert!(matches!(
                refused,
                Err(InvalidAuthority::NoPort | InvalidAuthority::Host | InvalidAuthority::Port)
            ));
        }
        let bad_ports = [
            "a:",
            "a:0",
            "a:00",
            "a:080",
            "a:+80",
            "a:-1",
            "a:65536",
            "a:8 0",
            "a: 80",
            "a:80 ",
            "a:0x50",
            "a:99999999999",
            "a:٨٠",
            "[::1]:",
            "a:http",
        ];
        for text in bad_ports {
            check(text, Err(InvalidAuthority::Port));
        }
        let bad_hosts = [
            ":80",
            "[]:80",
            "[::1:80",
            "::1:80",
            "fd00::1:80",
            "[10.0.0.1]:80",
            "[fe80::1%eth0]:80",
            "[fe80::1%1]:80",
            "[::1]x:80",
            "x[::1]:80",
            "[[::1]]:80",
            "user@a:80",
            "user:pw@a:80",
            "http://a:80",
            "a/b:80",
            "a?b:80",
            "a#b:80",
            "a%2eb:80",
            "a b:80",
            "a\0b:80",
            "a..b:80",
            ".a:80",
            "a.:80",
            "-a:80",
            "a-:80",
            "a_b:80",
            "*.a:80",
            "ü:80",
            "127.1:80",
            "2130706433:80",
            "0x7f.1:80",
            "0x7f000001:80",
            "a.0x:80",
            "010.0.0.1:80",
            "1.2.3.4.5:80",
            "a:1:80",
            "a\r\nb:80",
        ];
        for text in bad_hosts {
            check(text, Err(InvalidAuthority::Host));
        }
    }

    #[test]
    fn names_have_a_length() {
        let label = "l".repeat(MAX_LABEL_LENGTH);
        check(&format!("{label}:1"), Ok(&format!("{label}:1")));
        check(&format!("l{label}:1"), Err(InvalidAuthority::Host));
        let longest = format!("{label}.{label}.{label}.{}", "l".repeat(61));
        assert_eq!(longest.len(), MAX_HOSTNAME_LENGTH);
        check(&format!("{longest}:1"), Ok(&format!("{longest}:1")));
        check(&format!("l{longest}:1"), Err(InvalidAuthority::Host));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(addr: SocketAddr) {
            prop_assume!(addr.port() != 0);
            let authority = Authority::from(SocketAddr::new(addr.ip(), addr.port()));
            prop_assert_eq!(authority.to_string().parse::<Authority>(), Ok(authority));
        }

        /// Reading is idempotent, and never panics.
        #[test]
        fn any_text_is_safe(text in "[\\[\\]:0-9a-fA-Fx.%@-]{0,24}|\\PC{0,24}") {
            if let Ok(authority) = text.parse::<Authority>() {
                prop_assert_eq!(authority.to_string().parse::<Authority>(), Ok(authority));
            }
        }
    }
}
