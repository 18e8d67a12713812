//! Captured DNS queries over UDP: received with the resolver's address, answered from it.
//! Replies leave through a raw socket, which occupies no port: a DNS server of the pod can still bind its own.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;

/// What a UDP packet can carry beside its headers (RFC 768, RFC 791).
const MAX_PAYLOAD: usize = 65_507;

/// Where captured queries go.
const DNS_PORT: u16 = 53;

const UDP_HEADER: usize = 8;
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const UDP: u8 = libc::IPPROTO_UDP as u8;

/// Hops a reply may take. It takes none: it arrives on `lo`.
const HOPS: u8 = 64;

/// A query as it was captured. Addresses are canonical: no mapped ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsQuery {
    /// Bytes of the buffer that the query fills. As many as the buffer has: it may have been cut.
    pub length: usize,
    /// Who asked.
    pub client: SocketAddr,
    /// Whom it asked.
    pub resolver: SocketAddr,
}

/// Receives one query from a listener of [`crate::Kind::Dns`].
///
/// # Errors
/// `WouldBlock` when none waits; `InvalidData` for a packet that is to be ignored: one that was not captured but sent to
/// the listener's own port, by anyone who can reach the pod, or one without addresses.
pub fn receive_query(listener: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<DnsQuery> {
    let mut control = nix::cmsg_space!(libc::sockaddr_in6, libc::sockaddr_in);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(
        listener.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let resolver = message.cmsgs()?.find_map(original);
    let client = message.address.as_ref().and_then(socket_address);
    let (Some(client), Some(resolver)) = (client, resolver) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a query without addresses"));
    };
    if resolver.port() != DNS_PORT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a query of the pod's"));
    }
    Ok(DnsQuery { length: message.bytes, client: canonical(client), resolver: canonical(resolver) })
}

/// Answers queries of one pod.
#[derive(Debug)]
pub struct DnsReplier {
    v4: Socket,
    /// None on a kernel without IPv6.
    v6: Option<Socket>,
}

impl DnsReplier {
    /// Opens the raw sockets in the pod.
    pub fn open(netns: &Netns) -> io::Result<Self> {
        netns.run(|| {
            let v6 = match raw(Domain::IPV6) {
                Ok(socket) => Some(socket),
                Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
                Err(error) => return Err(error),
            };
            Ok(Self { v4: raw(Domain::IPV4)?, v6 })
        })?
    }

    /// Sends an answer from the resolver to the client, as the resolver would. Does not wait.
    ///
    /// # Errors
    /// `InvalidInput` for an answer too long for a packet, or addresses of different families; `WouldBlock` when the
    /// queue is full: the client will ask again.
    pub fn reply(&self, query: &DnsQuery, answer: &[u8]) -> io::Result<()> {
        let invalid = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
        if answer.len() > MAX_PAYLOAD {
            return Err(invalid("the answer does not fit a UDP packet"));
        }
        match (query.resolver, query.client) {
            (SocketAddr::V4(from), SocketAddr::V4(to)) => {
                let to_host = SocketAddrV4::new(*to.ip(), 0);
                self.v4.send_to(&packet_v4(from, to, answer), &to_host.into())
            }
            (SocketAddr::V6(from), SocketAddr::V6(to)) => {
                let v6 = self.v6.as_ref().ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
                let to_host = SocketAddrV6::new(*to.ip(), 0, 0, to.scope_id());
                v6.send_to(&packet_v6(from, to, answer), &to_host.into())
            }
            _ => return Err(invalid("client and resolver are of different families")),
        }
        .map(drop)
    }
}

/// Such a socket receives nothing, and what is sent through it brings its own IP header (raw(7), ipv6(7)).
fn raw(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::RAW.nonblocking(), Some(Protocol::from(libc::IPPROTO_RAW)))
}

fn original(message: ControlMessageOwned) -> Option<SocketAddr> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "only the options that were asked for can arrive")]
    match message {
        ControlMessageOwned::Ipv4OrigDstAddr(address) => {
            let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
            Some(SocketAddr::new(ip.into(), u16::from_be(address.sin_port)))
        }
        ControlMessageOwned::Ipv6OrigDstAddr(address) => {
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            Some(SocketAddr::new(ip.into(), u16::from_be(address.sin6_port)))
        }
        _ => None,
    }
}

fn socket_address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|v4| SocketAddr::V4(SocketAddrV4::from(*v4)));
    v4.or_else(|| storage.as_sockaddr_in6().map(|v6| SocketAddr::V6(SocketAddrV6::from(*v6))))
}

fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::new(v4.into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// RFC 791. The kernel fills length, checksum and identification in.
fn packet_v4(from: SocketAddrV4, to: SocketAddrV4, answer: &[u8]) -> Vec<u8> {
    let (from_ip, to_ip) = (from.ip().octets(), to.ip().octets());
    let datagram = datagram((&from_ip, from.port()), (&to_ip, to.port()), answer);
    let length = (V4_HEADER + datagram.len()) as u16;
    let mut packet = Vec::with_capacity(usize::from(length));
    packet.extend_from_slice(&[0x45, 0]);
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0, 0, HOPS, UDP, 0, 0]);
    packet.extend_from_slice(&from_ip);
    packet.extend_from_slice(&to_ip);
    packet.extend_from_slice(&datagram);
    packet
}

/// RFC 8200.
fn packet_v6(from: SocketAddrV6, to: SocketAddrV6, answer: &[u8]) -> Vec<u8> {
    let (from_ip, to_ip) = (from.ip().octets(), to.ip().octets());
    let datagram = datagram((&from_ip, from.port()), (&to_ip, to.port()), answer);
    let mut packet = Vec::with_capacity(V6_HEADER + datagram.len());
    packet.extend_from_slice(&[0x60, 0, 0, 0]);
    packet.extend_from_slice(&(datagram.len() as u16).to_be_bytes());
    packet.extend_from_slice(&[UDP, HOPS]);
    packet.extend_from_slice(&from_ip);
    packet.extend_from_slice(&to_ip);
    packet.extend_from_slice(&datagram);
    packet
}

/// RFC 768, with the checksum that IPv6 demands.
fn datagram(from: (&[u8], u16), to: (&[u8], u16), answer: &[u8]) -> Vec<u8> {
    let length = (UDP_HEADER + answer.len()) as u16;
    let mut datagram = Vec::with_capacity(usize::from(length));
    datagram.extend_from_slice(&from.1.to_be_bytes());
    datagram.extend_from_slice(&to.1.to_be_bytes());
    datagram.extend_from_slice(&length.to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(answer);
    let pseudo = sum(from.0) + sum(to.0) + u64::from(UDP) + u64::from(length);
    let checksum = match fold(pseudo + sum(&datagram)) {
        // Zero would mean "no checksum"; its other form is the same number (RFC 768).
        0 => u16::MAX,
        other => other,
    };
    datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
    datagram
}

/// RFC 1071: the sum of 16-bit words, an odd last byte padded with zero.
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0))).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A receiver sums pseudo header and datagram and must get all ones.
        #[test]
        fn checksums_verify(
            from in any::<SocketAddrV4>(), to in any::<SocketAddrV4>(), answer in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            let (from_ip, to_ip) = (from.ip().octets(), to.ip().octets());
            let datagram = datagram((&from_ip, from.port()), (&to_ip, to.port()), &answer);
            let pseudo = sum(&from_ip) + sum(&to_ip) + u64::from(UDP) + datagram.len() as u64;
            prop_assert_eq!(fold(pseudo + sum(&datagram)), 0);
            prop_assert_ne!(&datagram[6..8], &[0, 0][..]);
        }
    }

    #[test]
    fn mapped_addresses_become_plain() {
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:53".parse().expect("an address");
        assert_eq!(canonical(mapped), "10.0.0.1:53".parse().expect("an address"));
    }
}
