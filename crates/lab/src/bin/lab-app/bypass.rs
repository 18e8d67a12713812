//! One connection by an unusual way, as a program would make it that wants past whatever captures its traffic.
//!
//! It says what became of the connection and judges nothing: an attempt that is refused is as good a result as one that is
//! answered. Only an attempt that could not be made is a failure.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{self, SetStruct};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

/// The pod's device towards the network.
const DEVICE: &str = "eth0";
/// linux/socket.h
const MSG_FASTOPEN: libc::c_int = 0x2000_0000;
/// The user without privileges, by tradition.
const NOBODY: u32 = 65_534;

#[derive(Clone, Copy, Debug)]
struct BindToIfindex;
nix::setsockopt_impl!(BindToIfindex, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, i32, SetStruct<i32>);

#[derive(Clone, Copy, Debug)]
struct UnicastIf;
nix::setsockopt_impl!(UnicastIf, libc::IPPROTO_IP, libc::IP_UNICAST_IF, i32, SetStruct<i32>);

#[derive(Clone, Copy, Debug)]
struct UnicastIf6;
nix::setsockopt_impl!(UnicastIf6, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_IF, i32, SetStruct<i32>);

#[derive(Args)]
pub(crate) struct Attempt {
    /// Where to.
    #[arg(long)]
    to: SocketAddr,
    /// How.
    #[arg(long, value_enum, default_value = "plain")]
    way: Way,
    /// What is sent; an echo server sends it back.
    #[arg(long)]
    canary: String,
    /// The source of the ways that choose one.
    #[arg(long)]
    from: Option<SocketAddr>,
    /// A server that may be connected to first, by the ways that do.
    #[arg(long)]
    first: Option<SocketAddr>,
    /// A mark for the ways that set one.
    #[arg(long, default_value_t = 0)]
    mark: u32,
    /// As a user without any privilege.
    #[arg(long)]
    unprivileged: bool,
    /// Enter this network namespace first, and stay in the cgroup.
    #[arg(long)]
    netns: Option<PathBuf>,
    /// How long the other end may stay silent.
    #[arg(long, default_value_t = 10_000)]
    patience_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Way {
    /// As every program does.
    Plain,
    /// Bound to `--from`.
    Bound,
    /// By a grandchild in a session of its own.
    Child,
    /// SO_BINDTODEVICE.
    Device,
    /// SO_BINDTODEVICE once the connection stands.
    DeviceLater,
    /// SO_BINDTOIFINDEX.
    DeviceIndex,
    /// SO_DONTROUTE.
    DontRoute,
    /// TCP_FASTOPEN_CONNECT.
    FastopenConnect,
    /// `sendto` with MSG_FASTOPEN.
    FastopenSend,
    /// The same without waiting.
    FastopenSendNonblocking,
    /// Bound to `--from`, which is not an address of this host (IP_TRANSPARENT, or IP_FREEBIND without privileges).
    Foreign,
    /// SO_BINDTODEVICE to the loopback device.
    Loopback,
    /// SO_MARK with `--mark`.
    Mark,
    /// The same once the connection stands.
    MarkLater,
    /// MPTCP.
    Mptcp,
    /// MPTCP and `sendto` with MSG_FASTOPEN.
    MptcpFastopenSend,
    /// Connected to `--first`, disconnected, and connected again.
    Reconnect,
    /// IP_UNICAST_IF and IPV6_UNICAST_IF.
    UnicastIf,
}

pub(crate) fn attempt(args: &Attempt) -> Result<()> {
    if let Some(netns) = &args.netns {
        enter(netns)?;
    }
    if args.way == Way::Child {
        return leave_to_a_child();
    }
    if args.unprivileged {
        drop_privileges()?;
    }
    let socket = open(args).with_context(|| format!("make a socket for {:?}", args.way))?;
    socket.set_read_timeout(Some(Duration::from_millis(args.patience_ms)))?;
    let outcome = match connect(args, &socket).and_then(|sent| exchange(socket, &args.canary, sent)) {
        Ok(()) => json!({"outcome": "answered"}),
        Err(error) if is_silence(&error) => json!({"outcome": "silent"}),
        Err(error) => json!({"outcome": "refused", "error": name_of(&error)}),
    };
    println!("{outcome}");
    Ok(())
}

fn enter(netns: &Path) -> Result<()> {
    let file = std::fs::File::open(netns).with_context(|| format!("open {}", netns.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", netns.display()))
}

fn drop_privileges() -> Result<()> {
    setgroups(&[])?;
    setgid(Gid::from_raw(NOBODY))?;
    setuid(Uid::from_raw(NOBODY))?;
    Ok(())
}

/// The same attempt, plainly, by a grandchild in a session of its own.
fn leave_to_a_child() -> Result<()> {
    let own = std::env::current_exe().context("find this program")?;
    let mut args: Vec<_> = std::env::args_os().skip(1).collect();
    let way = args.iter().position(|arg| arg == "child").context("--way child is among the arguments")?;
    args[way] = "plain".into();
    let status = Command::new("sh").args(["-c", "setsid -w \"$@\"", "sh"]).arg(own).args(args).status()?;
    ensure!(status.success(), "the child ended with {status}");
    Ok(())
}

fn open(args: &Attempt) -> Result<Socket> {
    let multipath = matches!(args.way, Way::Mptcp | Way::MptcpFastopenSend);
    let protocol = if multipath { Protocol::MPTCP } else { Protocol::TCP };
    let socket = Socket::new(Domain::for_address(args.to), Type::STREAM, Some(protocol))?;
    let from = || args.from.context("this way needs --from");
    match args.way {
        Way::Bound => socket.bind(&from()?.into())?,
        Way::Device => socket.bind_device(Some(DEVICE.as_bytes()))?,
        Way::DeviceIndex => setsockopt(&socket, BindToIfindex, &index()?)?,
        Way::DontRoute => setsockopt(&socket, sockopt::DontRoute, &true)?,
        Way::FastopenConnect => setsockopt(&socket, sockopt::TcpFastOpenConnect, &true)?,
        Way::Foreign => {
            claim(&socket, args)?;
            socket.bind(&from()?.into())?;
        }
        Way::Loopback => socket.bind_device(Some(b"lo"))?,
        Way::Mark => socket.set_mark(args.mark)?,
        Way::Reconnect => {
            let first = args.first.context("this way needs --first")?;
            socket.connect(&first.into()).with_context(|| format!("connect to {first} first"))?;
            disconnect(&socket)?;
        }
        Way::UnicastIf => {
            setsockopt(&socket, UnicastIf, &index()?.to_be())?;
            if args.to.is_ipv6() {
                setsockopt(&socket, UnicastIf6, &index()?.to_be())?;
            }
        }
        Way::Plain
        | Way::Child
        | Way::DeviceLater
        | Way::FastopenSend
        | Way::FastopenSendNonblocking
        | Way::MarkLater
        | Way::Mptcp
        | Way::MptcpFastopenSend => {}
    }
    Ok(socket)
}

/// Makes any source address good.
fn claim(socket: &Socket, args: &Attempt) -> io::Result<()> {
    match (args.to.is_ipv6(), args.unprivileged) {
        (false, false) => socket.set_ip_transparent_v4(true),
        (false, true) => socket.set_freebind_v4(true),
        (true, false) => socket.set_ip_transparent_v6(true).and_then(|()| socket.set_ip_transparent_v4(true)),
        (true, true) => socket.set_freebind_v6(true).and_then(|()| socket.set_freebind_v4(true)),
    }
}

fn index() -> Result<i32> {
    Ok(if_nametoindex(DEVICE)?.cast_signed())
}

/// connect(2): an address of the family AF_UNSPEC dissolves the connection.
fn disconnect(socket: &Socket) -> io::Result<()> {
    let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let length = size_of_val(&nowhere) as libc::socklen_t;
    #[expect(unsafe_code, reason = "no safe wrapper knows addresses without a family")]
    // SAFETY: the address is valid for the call, and its length is given.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Connects; true when the canary was sent along.
fn connect(args: &Attempt, socket: &Socket) -> io::Result<bool> {
    let to = args.to.into();
    if matches!(args.way, Way::FastopenSend | Way::MptcpFastopenSend) {
        let sent = socket.send_to_with_flags(args.canary.as_bytes(), &to, MSG_FASTOPEN)?;
        return Ok(sent == args.canary.len());
    }
    if args.way == Way::FastopenSendNonblocking {
        socket.set_nonblocking(true)?;
        let sent = socket.send_to_with_flags(args.canary.as_bytes(), &to, MSG_FASTOPEN);
        socket.set_nonblocking(false)?;
        return match sent {
            // Without a cookie of the server's nothing goes along; a write waits for the connection.
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(false),
            other => other.map(|sent| sent == args.canary.len()),
        };
    }
    if args.way == Way::FastopenConnect {
        return socket.connect(&to).map(|()| false);
    }
    socket.connect_timeout(&to, Duration::from_millis(args.patience_ms))?;
    if args.way == Way::DeviceLater {
        socket.bind_device(Some(DEVICE.as_bytes()))?;
    }
    if args.way == Way::MarkLater {
        socket.set_mark(args.mark)?;
    }
    Ok(false)
}

fn exchange(socket: Socket, canary: &str, sent: bool) -> io::Result<()> {
    let mut stream = TcpStream::from(socket);
    if !sent {
        stream.write_all(canary.as_bytes())?;
    }
    let mut echo = vec![0; canary.len()];
    stream.read_exact(&mut echo)?;
    match echo == canary.as_bytes() {
        true => Ok(()),
        false => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

fn name_of(error: &io::Error) -> String {
    let errno = error.raw_os_error().map(|errno| format!("{:?}", Errno::from_raw(errno)));
    errno.unwrap_or_else(|| format!("{:?}", error.kind()))
}
