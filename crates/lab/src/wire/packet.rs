//! From an Ethernet frame to addresses and payload. Pure; what it does not understand becomes opaque payload, never nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One IP packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Packet<'a> {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    pub(crate) transport: Transport<'a>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Transport<'a> {
    Tcp(Segment<'a>),
    Udp {
        from: u16,
        to: u16,
        payload: &'a [u8],
    },
    /// Other protocols, fragments and headers that do not parse.
    Other {
        payload: &'a [u8],
    },
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Segment<'a> {
    pub(crate) from: u16,
    pub(crate) to: u16,
    pub(crate) sequence: u32,
    pub(crate) syn: bool,
    /// FIN or RST: nothing follows.
    pub(crate) end: bool,
    pub(crate) payload: &'a [u8],
}

/// Nothing for frames that are not IP (ARP).
pub(crate) fn parse(frame: &[u8]) -> Option<Packet<'_>> {
    let (header, body) = frame.split_at_checked(14)?;
    match (header[12], header[13]) {
        (0x08, 0x00) => ipv4(body),
        (0x86, 0xdd) => ipv6(body),
        _ => None,
    }
}

fn ipv4(packet: &[u8]) -> Option<Packet<'_>> {
    let header = packet.get(..20)?;
    let header_length = usize::from(header[0] & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    // Zero in packets above 64 KiB, which exist only before the network card cuts them.
    let end = if total == 0 { packet.len() } else { total.min(packet.len()) };
    let body = packet.get(header_length..end)?;
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    let address =
        |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]).into();
    let transport = if fragment { Transport::Other { payload: body } } else { transport(header[9], body) };
    Some(Packet { from: address(12), to: address(16), transport })
}

fn ipv6(packet: &[u8]) -> Option<Packet<'_>> {
    let (header, rest) = packet.split_at_checked(40)?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let body = if length == 0 { rest } else { &rest[..length.min(rest.len())] };
    let address = |at: usize| {
        let octets: [u8; 16] = header[at..at + 16].try_into().expect("sixteen bytes");
        Ipv6Addr::from(octets).into()
    };
    Some(Packet { from: address(8), to: address(24), transport: after_extensions(header[6], body) })
}

/// Steps over hop-by-hop, routing and destination options (RFC 8200 section 4).
fn after_extensions(mut next: u8, mut body: &[u8]) -> Transport<'_> {
    while matches!(next, 0 | 43 | 60) {
        let Some(&[following, units]) = body.first_chunk() else { return Transport::Other { payload: body } };
        let Some(rest) = body.get((usize::from(units) + 1) * 8..) else {
            return Transport::Other { payload: body };
        };
        (next, body) = (following, rest);
    }
    transport(next, body)
}

fn transport(protocol: u8, body: &[u8]) -> Transport<'_> {
    let parsed = match protocol {
        6 => tcp(body),
        17 => udp(body),
        _ => None,
    };
    parsed.unwrap_or(Transport::Other { payload: body })
}

fn tcp(body: &[u8]) -> Option<Transport<'_>> {
    let header = body.get(..20)?;
    let payload = body.get(usize::from(header[12] >> 4) * 4..)?;
    Some(Transport::Tcp(Segment {
        from: u16::from_be_bytes([header[0], header[1]]),
        to: u16::from_be_bytes([header[2], header[3]]),
        sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
        syn: header[13] & 0x02 != 0,
        end: header[13] & 0x05 != 0,
        payload,
    }))
}

fn udp(body: &[u8]) -> Option<Transport<'_>> {
    let (header, payload) = body.split_at_checked(8)?;
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    Some(Transport::Udp { from: port(0), to: port(2), payload })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(ether_type: [u8; 2], parts: &[&[u8]]) -> Vec<u8> {
        [&[0; 12], ether_type.as_slice(), &parts.concat()].concat()
    }

    fn tcp_header(payload_follows: &[u8]) -> Vec<u8> {
        let mut header = vec![0x1f, 0x90, 0x3a, 0xa0, 0, 0, 0, 9, 0, 0, 0, 0, 0x50, 0x18];
        header.resize(20, 0);
        [header.as_slice(), payload_follows].concat()
    }

    fn segment(payload: &[u8]) -> Transport<'_> {
        Transport::Tcp(Segment { from: 8080, to: 15008, sequence: 9, syn: false, end: false, payload })
    }

    #[test]
    fn the_padding_of_short_frames_is_not_payload() {
        let mut header = vec![0x45, 0, 0, 42, 0, 0, 0x40, 0, 64, 6, 0, 0];
        header.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        let bytes = frame([8, 0], &[&header, &tcp_header(b"hi"), &[0; 4]]);
        let packet = parse(&bytes).expect("IPv4");
        assert_eq!(packet.transport, segment(b"hi"));
        assert_eq!(packet.to, IpAddr::from([10, 0, 0, 2]));
    }

    #[test]
    fn extension_headers_of_ipv6_are_stepped_over() {
        let mut header = vec![0x60, 0, 0, 0, 0, 30, 0, 64];
        header.extend([0; 32]);
        let hop_by_hop = [6, 0, 1, 4, 0, 0, 0, 0];
        let bytes = frame([0x86, 0xdd], &[&header, &hop_by_hop, &tcp_header(b"hi")]);
        assert_eq!(parse(&bytes).expect("IPv6").transport, segment(b"hi"));
    }

    #[test]
    fn a_fragment_is_searched_as_it_is() {
        let mut header = vec![0x45, 0, 0, 28, 0, 0, 0x20, 0, 64, 6, 0, 0];
        header.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        let bytes = frame([8, 0], &[&header, b"fragment"]);
        assert_eq!(parse(&bytes).expect("IPv4").transport, Transport::Other { payload: b"fragment" });
    }

    proptest! {
        #[test]
        fn no_frame_is_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..120), v6: bool) {
            let ether_type = if v6 { [0x86, 0xdd] } else { [8, 0] };
            let _ = parse(&frame(ether_type, &[&bytes]));
        }
    }
}
