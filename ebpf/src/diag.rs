//! Listing and cutting TCP connections of a pod through sock_diag (linux/inet_diag.h), IPv4 and IPv6.
//! Listeners are never touched.

use std::io;
use std::mem::offset_of;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::layout::{MARK_CAPTURE, MARK_PROXY, MARK_RETURN};
use crate::netlink::{Body, Netlink, attribute, number32};
use crate::netns::Netns;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_MARK: u16 = 15;

/// What a listing asks for besides: `struct tcp_info`.
const WITH_INFO: u8 = 1 << (INET_DIAG_INFO - 1);

/// `struct inet_diag_msg` begins with four bytes, then `struct inet_diag_sockid`.
const SOCKET_ID: usize = 4;
const SOCKET_ID_SIZE: usize = 48;
const DIAG_HEAD: usize = 72;

/// Where `struct inet_diag_msg` has the owner's uid.
const DIAG_UID: usize = 64;

/// States of net/tcp_states.h to list: every one but LISTEN (10), CLOSE (7) and TIME_WAIT (6), which carry no data.
const STATES: u32 = 0xfff & !(1 << 10) & !(1 << 7) & !(1 << 6) & !1;

/// Any socket with the tuple, whatever its cookie.
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// Names a connection. Addresses are canonical.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// The end whose socket is meant.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

/// One end of a TCP connection in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Which.
    pub tuple: Tuple,
    /// Its mark: one of ours for all that the proxy has a part in.
    pub mark: u32,
    /// The smoothed round trip; `None` before anything was acknowledged.
    pub rtt: Option<Duration>,
    /// Segments sent again since it was opened.
    pub retransmits: u32,
    /// The kernel's name of the socket, as sock_diag gives it.
    id: [u8; SOCKET_ID_SIZE],
    family: u8,
}

impl Connection {
    /// Whether it is captured, or the proxy's own.
    pub fn is_ours(&self) -> bool {
        matches!(self.mark, MARK_PROXY | MARK_CAPTURE | MARK_RETURN)
    }

    /// Whether it never leaves the pod.
    pub fn is_within_pod(&self) -> bool {
        let Tuple { local, remote } = self.tuple;
        local.ip() == remote.ip() || local.ip().is_loopback() || remote.ip().is_loopback()
    }
}

/// Every TCP connection of the pod.
pub fn connections(netns: &Netns) -> io::Result<Vec<Connection>> {
    netns.run(|| {
        let netlink = Netlink::open(libc::NETLINK_SOCK_DIAG)?;
        let mut connections = Vec::new();
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            let answers = netlink
                .dump(SOCK_DIAG_BY_FAMILY, &request((family, WITH_INFO), STATES, &[0; SOCKET_ID_SIZE]))?;
            connections.extend(answers.iter().filter_map(|answer| parse(answer)));
        }
        Ok(connections)
    })?
}

/// Cuts one connection. The application sees ECONNABORTED, the other end ECONNRESET.
///
/// # Errors
/// `NotFound` when there is none; `Unsupported` on a kernel without CONFIG_INET_DIAG_DESTROY.
pub fn destroy(netns: &Netns, tuple: Tuple) -> io::Result<()> {
    netns.run(|| {
        let netlink = Netlink::open(libc::NETLINK_SOCK_DIAG)?;
        // An IPv4 connection may be an IPv6 socket's with mapped addresses; the kernel looks each up on its own.
        let mapped =
            tuple.local.is_ipv4().then(|| destroy_id(&netlink, libc::AF_INET6 as u8, &id_of(tuple, true)));
        let family = if tuple.local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8;
        match destroy_id(&netlink, family, &id_of(tuple, false)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => mapped.unwrap_or(Err(error)),
            other => other,
        }
    })?
}

/// Cuts the connections that go past the proxy: those from before enrolment. Strict mode calls it once after capture,
/// with `keep` sparing what must live, such as probes. Returns how many were cut.
pub fn destroy_uncaptured(netns: &Netns, keep: impl Fn(&Connection) -> bool) -> io::Result<usize> {
    let victims: Vec<Connection> = connections(netns)?
        .into_iter()
        .filter(|connection| !connection.is_ours() && !connection.is_within_pod() && !keep(connection))
        .collect();
    netns.run(|| {
        let netlink = Netlink::open(libc::NETLINK_SOCK_DIAG)?;
        let mut cut = 0;
        for victim in victims {
            match destroy_id(&netlink, victim.family, &victim.id) {
                Ok(()) => cut += 1,
                // It ended by itself meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(cut)
    })?
}

/// The user that owns the socket `tuple.local` of a connection, in the calling thread's network namespace and as this
/// process's user namespace counts.
///
/// # Errors
/// `NotFound` when there is no such socket.
pub fn owner(tuple: Tuple) -> io::Result<u32> {
    let netlink = Netlink::open(libc::NETLINK_SOCK_DIAG)?;
    let family = if tuple.local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8;
    let answer = netlink.ask(SOCK_DIAG_BY_FAMILY, &request((family, 0), STATES, &id_of(tuple, false)))?;
    // Where there is no such connection, the kernel answers with a listener that would take one.
    if parse(&answer).is_none_or(|found| found.tuple != tuple) {
        return Err(io::ErrorKind::NotFound.into());
    }
    number32(&answer, DIAG_UID).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn destroy_id(netlink: &Netlink, family: u8, id: &[u8; SOCKET_ID_SIZE]) -> io::Result<()> {
    match netlink.request(SOCK_DESTROY, 0, &request((family, 0), STATES, id)) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel lacks CONFIG_INET_DIAG_DESTROY"))
        }
        other => other,
    }
}

/// `struct inet_diag_req_v2`
fn request((family, more): (u8, u8), states: u32, id: &[u8; SOCKET_ID_SIZE]) -> Body {
    let mut head = vec![family, libc::IPPROTO_TCP as u8, more, 0];
    head.extend_from_slice(&states.to_ne_bytes());
    head.extend_from_slice(id);
    Body::new(&head)
}

/// `struct inet_diag_sockid`: ports and addresses in network order, interface, cookie.
fn id_of(tuple: Tuple, mapped: bool) -> [u8; SOCKET_ID_SIZE] {
    let mut id = [0; SOCKET_ID_SIZE];
    id[0..2].copy_from_slice(&tuple.local.port().to_be_bytes());
    id[2..4].copy_from_slice(&tuple.remote.port().to_be_bytes());
    put_address(&mut id[4..20], tuple.local.ip(), mapped);
    put_address(&mut id[20..36], tuple.remote.ip(), mapped);
    id[40..48].copy_from_slice(&NO_COOKIE);
    id
}

fn put_address(place: &mut [u8], address: IpAddr, mapped: bool) {
    match address {
        IpAddr::V4(v4) if mapped => place.copy_from_slice(&v4.to_ipv6_mapped().octets()),
        IpAddr::V4(v4) => place[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => place.copy_from_slice(&v6.octets()),
    }
}

fn parse(message: &[u8]) -> Option<Connection> {
    let family = *message.first()?;
    let id: [u8; SOCKET_ID_SIZE] = message.get(SOCKET_ID..)?.first_chunk().copied()?;
    let port = |at: usize| u16::from_be_bytes([id[at], id[at + 1]]);
    let address = |at: usize| -> IpAddr {
        if i32::from(family) == libc::AF_INET {
            IpAddr::from([id[at], id[at + 1], id[at + 2], id[at + 3]])
        } else {
            let octets: [u8; 16] = std::array::from_fn(|byte| id[at + byte]);
            IpAddr::from(octets).to_canonical()
        }
    };
    let tuple =
        Tuple { local: SocketAddr::new(address(4), port(0)), remote: SocketAddr::new(address(20), port(2)) };
    let mark = attribute(message, DIAG_HEAD, INET_DIAG_MARK).and_then(|mark| number32(mark, 0)).unwrap_or(0);
    let info = attribute(message, DIAG_HEAD, INET_DIAG_INFO);
    let info = |field: usize| info.and_then(|info| number32(info, field)).unwrap_or(0);
    let rtt = Some(info(offset_of!(libc::tcp_info, tcpi_rtt))).filter(|rtt| *rtt > 0);
    let rtt = rtt.map(|micros| Duration::from_micros(micros.into()));
    let retransmits = info(offset_of!(libc::tcp_info, tcpi_total_retrans));
    Some(Connection { tuple, mark, rtt, retransmits, id, family })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tuple_is_read_back() {
        let tuple = Tuple {
            local: "10.0.0.1:80".parse().expect("an address"),
            remote: "10.0.0.2:4000".parse().expect("an address"),
        };
        let mut message = vec![libc::AF_INET as u8, 1, 0, 0];
        message.extend_from_slice(&id_of(tuple, false));
        message.resize(DIAG_HEAD, 0);
        assert_eq!(parse(&message).expect("a connection").tuple, tuple);
        message[0] = libc::AF_INET6 as u8;
        message[SOCKET_ID..SOCKET_ID + SOCKET_ID_SIZE].copy_from_slice(&id_of(tuple, true));
        assert_eq!(parse(&message).expect("a connection").tuple, tuple);
    }

    #[test]
    fn the_owner_of_a_socket_is_known() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let remote = listener.local_addr().expect("it has one");
        let socket = std::net::TcpStream::connect(remote).expect("it listens");
        let local = socket.local_addr().expect("it has one");
        let all = connections(&Netns::current().expect("we are in one")).expect("a list");
        let own = all.iter().find(|connection| connection.tuple == Tuple { local, remote });
        assert!(own.is_some_and(|own| own.rtt.is_some()), "the handshake was a round trip: {own:?}");
        assert_eq!(owner(Tuple { local, remote }).expect("it is there"), nix::unistd::geteuid().as_raw());
        let nobody = Tuple { local: remote, remote: "127.0.0.1:1".parse().expect("an address") };
        assert_eq!(owner(nobody).expect_err("nobody").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn cut_messages_are_survived() {
        assert!(parse(&[]).is_none());
        assert!(parse(&[2; 20]).is_none());
    }
}
