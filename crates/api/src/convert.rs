//! Wire to model and back, one file per resource, and the pieces that they share.
//!
//! Both directions destructure whole messages, so that a new field does not compile until it is decided on.

pub(crate) mod enrolment;
mod gateway;
pub(crate) mod l7;
mod policy;
mod service;
mod workload;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::invalid::Problem;

/// What an empty trust domain on the wire stands for.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// The prefix of an IPv4-mapped IPv6 address, in bits (RFC 4291, section 2.5.5.2).
const MAPPED_PREFIX: u32 = 96;

/// 4 or 16 bytes, with IPv4-mapped addresses as what they stand for.
fn ip(bytes: &[u8]) -> Result<IpAddr, Problem> {
    Ok(raw_ip(bytes)?.to_canonical())
}

fn raw_ip(bytes: &[u8]) -> Result<IpAddr, Problem> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(v4).into());
    }
    let v6 = <[u8; 16]>::try_from(bytes).map_err(|_| Problem::AddressLength { length: bytes.len() })?;
    Ok(Ipv6Addr::from(v6).into())
}

fn ip_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// A block of addresses with its host bits cleared. A block of IPv4-mapped addresses becomes one of IPv4 addresses.
fn block(bytes: &[u8], length: Option<u32>) -> Result<IpNet, Problem> {
    let raw = raw_ip(bytes)?;
    let canonical = raw.to_canonical();
    let Some(length) = length else { return Ok(IpNet::from(canonical)) };
    let bad = Problem::PrefixLength { length };
    let within =
        if raw.is_ipv6() && canonical.is_ipv4() { length.checked_sub(MAPPED_PREFIX) } else { Some(length) };
    let bits = within.and_then(|bits| u8::try_from(bits).ok());
    let net = bits.and_then(|bits| IpNet::new(canonical, bits).ok()).ok_or(bad)?;
    Ok(net.trunc())
}

/// A port that must be there.
fn port(value: u32) -> Result<u16, Problem> {
    optional_port(value)?.ok_or(Problem::Port { value })
}

/// A port where zero stands for none.
fn optional_port(value: u32) -> Result<Option<u16>, Problem> {
    let port = u16::try_from(value).map_err(|_| Problem::Port { value })?;
    Ok((port != 0).then_some(port))
}

/// The two halves of `namespace/name`, neither of them empty.
pub(crate) fn halves(value: &str) -> Result<(&str, &str), Problem> {
    match value.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace, name))
        }
        Some(_) | None => Err(Problem::Name { value: value.to_owned() }),
    }
}

/// A string that must say something.
fn required(value: String) -> Result<model::Str, Problem> {
    if value.is_empty() { Err(Problem::Missing) } else { Ok(value.into()) }
}

/// A generated enumeration's value, or the complaint that there is none of that number.
fn known<T: TryFrom<i32>>(number: i32) -> Result<T, Problem> {
    T::try_from(number).map_err(|_| Problem::Enum { number })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Result<IpNet, Problem> {
        Ok(text.parse().expect("a literal"))
    }

    #[test]
    fn addresses_are_canonical() {
        assert_eq!(ip(&[10, 0, 0, 1]), Ok("10.0.0.1".parse().expect("a literal")));
        let mapped = "::ffff:10.0.0.1".parse::<Ipv6Addr>().expect("a literal").octets();
        assert_eq!(ip(&mapped), Ok("10.0.0.1".parse().expect("a literal")));
        for length in [0, 3, 5, 15, 17] {
            assert_eq!(ip(&vec![0; length]), Err(Problem::AddressLength { length }));
        }
    }

    #[test]
    fn blocks_lose_host_bits_and_mapping() {
        let mapped = "::ffff:10.1.2.3".parse::<Ipv6Addr>().expect("a literal").octets();
        assert_eq!(block(&[10, 1, 2, 3], Some(8)), net("10.0.0.0/8"));
        assert_eq!(block(&[10, 1, 2, 3], None), net("10.1.2.3/32"));
        assert_eq!(block(&[10, 1, 2, 3], Some(0)), net("0.0.0.0/0"));
        assert_eq!(block(&mapped, Some(112)), net("10.1.0.0/16"));
        assert_eq!(block(&mapped, Some(16)), Err(Problem::PrefixLength { length: 16 }));
        assert_eq!(block(&[10, 1, 2, 3], Some(33)), Err(Problem::PrefixLength { length: 33 }));
        assert_eq!(block(&[0; 16], Some(129)), Err(Problem::PrefixLength { length: 129 }));
        assert_eq!(block(&[10, 1, 2, 3], Some(256 + 8)), Err(Problem::PrefixLength { length: 264 }));
    }

    #[test]
    fn ports_are_not_truncated() {
        assert_eq!(port(80), Ok(80));
        assert_eq!(port(0), Err(Problem::Port { value: 0 }));
        assert_eq!(port(65_536 + 80), Err(Problem::Port { value: 65_616 }));
        assert_eq!(optional_port(0), Ok(None));
    }

    #[test]
    fn names_have_two_halves() {
        assert_eq!(halves("shop/cart"), Ok(("shop", "cart")));
        for bad in ["", "/", "shop", "shop/", "/cart", "shop/cart/1"] {
            assert_eq!(halves(bad), Err(Problem::Name { value: bad.to_owned() }));
        }
    }
}
