//! The proxy's sockets in pods' namespaces: listeners, connections to the application and to the network, DNS, and the
//! cutting of connections. Every socket comes back non-blocking and close-on-exec; nothing here waits.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

pub use crate::diag::{Connection, Tuple, connections, destroy, destroy_uncaptured, owner};
pub use crate::dns::{DnsQuery, DnsReplier, receive_query};

use crate::Kind;
use crate::layout::{DNS_SOURCE_FIRST, DNS_SOURCE_LAST, MARK_CAPTURE, MARK_PROXY, MARK_RETURN};
use crate::netns::Netns;

/// Connections waiting to be accepted, per listener. The kernel's own default for the largest queue (somaxconn): the
/// kernel cuts it down to the namespace's value.
const BACKLOG: i32 = 4096;

/// Source ports of connections to applications with a client's address: below those that clients are given by default
/// (32768 to 60999), and not the privileged ones, which some protocols trust.
const APP_SOURCE_FIRST: u16 = 1024;
/// The last of them: 31,744 connections of one client to one pod at once; beyond that the kernel chooses.
const APP_SOURCE_LAST: u16 = 32_767;
/// Random ports tried before the kernel is asked: with half of them taken, 16 fail once in 65,536 times.
const APP_SOURCE_ATTEMPTS: usize = 16;

/// Opens a listener of one kind in a pod. Any number may stand beside each other, also of another process: the kernel
/// spreads connections over them (`SO_REUSEPORT`), and those in the queue of one that closes move to another.
///
/// Connections that it accepts carry one of our marks, so that they can be told from connections that were never
/// captured. IPv4 peers show as `::ffff:a.b.c.d`; call [`IpAddr::to_canonical`].
///
/// # Errors
/// `AddrInUse` when an application of the pod has taken the port.
pub fn listen(netns: &Netns, kind: Kind) -> io::Result<OwnedFd> {
    netns.run(|| open_listener(kind))?.map(OwnedFd::from)
}

/// A TCP socket for connecting to an application of the pod as if `client` did: the application sees the client's
/// address. Connect it to `app`. For a pod that reaches itself through the mesh `client` is the address of `app`, also
/// if the connection came from another address of the pod.
pub fn to_app(netns: &Netns, client: IpAddr, app: SocketAddr) -> io::Result<Socket> {
    netns.run(|| {
        let socket = open(app, Type::STREAM, MARK_RETURN)?;
        let client = client.to_canonical();
        // Between own addresses the kernel delivers without our route, and names the device that has the address: a
        // socket bound to lo would never hear the answer. The source that the kernel chooses is the right one.
        if client != app.ip().to_canonical() {
            socket.bind_device(Some(b"lo"))?;
            transparent(&socket, app)?;
            bind_client(&socket, client, app)?;
        }
        Ok(socket)
    })?
}

/// A TCP socket for connecting to the network from the pod, with its address and its routes. Connect it to `to`.
pub fn to_network(netns: &Netns, source: IpAddr, to: SocketAddr) -> io::Result<Socket> {
    netns.run(|| {
        let socket = open(to, Type::STREAM, MARK_PROXY)?;
        bind_source(&socket, source.to_canonical(), to)?;
        Ok(socket)
    })?
}

/// A UDP socket for asking a resolver from the pod, exempt from the capture of DNS. Connect it to `to`.
/// It is bound to one of few ports: share it among queries, and draw their ids at random.
///
/// # Errors
/// `AddrInUse` when all those ports are taken.
pub fn to_resolver(netns: &Netns, source: IpAddr, to: SocketAddr) -> io::Result<Socket> {
    let any =
        if to.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let source = Some(source.to_canonical()).filter(|source| source.is_ipv4() == to.is_ipv4()).unwrap_or(any);
    netns.run(|| {
        let socket = open(to, Type::DGRAM, MARK_PROXY)?;
        bind_dns_port(&socket, source)?;
        Ok(socket)
    })?
}

/// Takes a free port of ours, beginning at a random one: whoever forges answers has to guess it.
fn bind_dns_port(socket: &Socket, source: IpAddr) -> io::Result<()> {
    let count = u64::from(DNS_SOURCE_LAST - DNS_SOURCE_FIRST + 1);
    let start = random();
    for attempt in 0..count {
        let port = DNS_SOURCE_FIRST + (start.wrapping_add(attempt) % count) as u16;
        match socket.bind(&SocketAddr::new(source, port).into()) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
    Err(io::Error::from(io::ErrorKind::AddrInUse))
}

/// Binds the client's address and a port that the client itself does not use: a connection of its own to the same
/// application, past the proxy (a probe, or one from before enrolment) or as far as the proxy, would be taken for ours.
/// The kernel sees the two from different ends, and would not notice.
fn bind_client(socket: &Socket, client: IpAddr, app: SocketAddr) -> io::Result<()> {
    let count = u64::from(APP_SOURCE_LAST - APP_SOURCE_FIRST + 1);
    for _ in 0..APP_SOURCE_ATTEMPTS {
        let port = APP_SOURCE_FIRST + (random() % count) as u16;
        match socket.bind(&SocketAddr::new(client, port).into()) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
    bind_source(socket, client, app)
}

/// The keys of a RandomState come from the kernel's random numbers.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn open_listener(kind: Kind) -> io::Result<Socket> {
    // One dual-stack socket serves both families; a kernel without IPv6 has only the other.
    match open_listener_on(kind, IpAddr::V6(Ipv6Addr::UNSPECIFIED)) {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            open_listener_on(kind, IpAddr::V4(Ipv4Addr::UNSPECIFIED))
        }
        other => other,
    }
}

fn open_listener_on(kind: Kind, any: IpAddr) -> io::Result<Socket> {
    let datagrams = kind == Kind::Dns;
    let address = SocketAddr::new(any, kind.port());
    let mark = if kind == Kind::Outbound { MARK_CAPTURE } else { MARK_PROXY };
    let socket = open(address, if datagrams { Type::DGRAM } else { Type::STREAM }, mark)?;
    socket.set_reuse_port(true)?;
    socket.set_ip_transparent_v4(true)?;
    if any.is_ipv6() {
        socket.set_only_v6(false)?;
        socket.set_ip_transparent_v6(true)?;
    }
    if datagrams {
        // IP_ORIGDSTADDR is IP_RECVORIGDSTADDR: each query comes with the resolver's address.
        setsockopt(&socket, sockopt::Ipv4OrigDstAddr, &true)?;
        if any.is_ipv6() {
            setsockopt(&socket, sockopt::Ipv6OrigDstAddr, &true)?;
        }
    } else {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    if !datagrams {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}

fn open(peer: SocketAddr, kind: Type, mark: u32) -> io::Result<Socket> {
    let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(Domain::for_address(peer), kind.nonblocking(), Some(protocol))?;
    socket.set_mark(mark)?;
    Ok(socket)
}

fn transparent(socket: &Socket, peer: SocketAddr) -> io::Result<()> {
    if peer.is_ipv4() { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) }
}

/// Binds the source address and leaves the port to connect, which knows the peer: 28,000 ports per peer, not in all.
/// A source of the other family than the peer is left to the kernel.
fn bind_source(socket: &Socket, source: IpAddr, peer: SocketAddr) -> io::Result<()> {
    if source.is_ipv4() != peer.is_ipv4() {
        return Ok(());
    }
    setsockopt(socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(&SocketAddr::new(source, 0).into())
}
