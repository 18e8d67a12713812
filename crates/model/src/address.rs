//! Addresses, each meaning with a type of its own, so that one can't be taken for another; and the proxy's own ports.
//!
//! Owns no resolution and no sockets. `CONNECT` authorities are in `authority`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::Str;

/// The port on which a pod's captured outbound connections are accepted.
pub const OUTBOUND_PORT: u16 = 15001;

/// The port on which connections that come to an enrolled pod outside a tunnel are accepted.
pub const PLAINTEXT_PORT: u16 = 15006;

/// The port on which tunnels are accepted (HBONE).
pub const HBONE_PORT: u16 = 15008;

/// The port on which a pod's captured name queries are accepted.
pub const DNS_PORT: u16 = 15053;

/// Ports inside a pod's network namespace that are the proxy's: nobody may ask a tunnel to connect to one.
pub const PROXY_PORTS: [u16; 4] = [OUTBOUND_PORT, PLAINTEXT_PORT, HBONE_PORT, DNS_PORT];

/// An address within a named network. Pods of different networks may share an IP.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// The network's name; empty for the default network.
    pub network: Str,
    /// The address, never an IPv4-mapped IPv6 one (see [`canonical`]).
    pub ip: IpAddr,
}

/// `network/ip`, the form in which discovery asks for an address.
impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.ip)
    }
}

/// What the application dialled: the address on the captured socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OriginalDst(pub SocketAddr);

/// The far end of a tunnel's TCP connection (`pod:15008`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TunnelPeer(pub SocketAddr);

/// Where a workload's application listens: pod IP and target port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AppAddr(pub SocketAddr);

/// The address and port from which a client connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddr(pub SocketAddr);

macro_rules! display_as_inner {
    ($($name:ident)*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
display_as_inner!(OriginalDst TunnelPeer AppAddr ClientAddr);

/// Turns an IPv4-mapped IPv6 address (`::ffff:a.b.c.d`) into the IPv4 address it stands for; leaves others alone.
#[must_use]
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_become_what_they_stand_for() {
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:80".parse().expect("a literal");
        assert_eq!(canonical(mapped), "10.0.0.1:80".parse().expect("a literal"));
        let v6: SocketAddr = "[fd00::1]:80".parse().expect("a literal");
        assert_eq!(canonical(v6), v6);
    }
}
