//! The packet socket: every frame that enters the bridge, once, with the kernel's time and the port it came by.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg,
    setsockopt, socket, sockopt,
};

/// Frames that wait to be read (the kernel doubles it). A gigabyte per second for a quarter of a second in which the
/// reader gets no processor; what does not fit is counted and reported.
const QUEUE_BYTES: usize = 256 << 20;

/// The largest frame: veth hands over what TCP would leave to a network card to cut, up to 512 KiB with BIG TCP.
const FRAME_BYTES: usize = 600 << 10;

#[derive(Debug)]
pub(crate) struct PacketSocket {
    fd: OwnedFd,
    frame: Vec<u8>,
}

/// A frame as it came.
pub(crate) struct Frame<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) interface: usize,
    pub(crate) at: SystemTime,
    /// Whether it was longer than we could take.
    pub(crate) cut: bool,
}

impl PacketSocket {
    /// Opens it for all interfaces of the caller's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
        // A frame would otherwise be seen again when it leaves by another port.
        ignore_outgoing(fd.as_fd())?;
        setsockopt(&fd, sockopt::RcvBufForce, &QUEUE_BYTES)?;
        setsockopt(&fd, sockopt::ReceiveTimestampns, &true)?;
        Ok(Self { fd, frame: vec![0; FRAME_BYTES] })
    }

    /// The next frame; nothing when none waits.
    pub(crate) fn receive(&mut self) -> io::Result<Option<Frame<'_>>> {
        let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
        let mut into = [IoSliceMut::new(&mut self.frame)];
        let fd = self.fd.as_raw_fd();
        let received = match recvmsg::<LinkAddr>(fd, &mut into, Some(&mut control), MsgFlags::MSG_TRUNC) {
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            other => other?,
        };
        let mut at = SystemTime::now();
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmTimestampns(stamp) = message {
                at = SystemTime::UNIX_EPOCH + Duration::from(stamp);
            }
        }
        let interface = received.address.map_or(0, |address| address.ifindex());
        let length = received.bytes;
        let cut = length > FRAME_BYTES;
        Ok(Some(Frame { bytes: &self.frame[..length.min(FRAME_BYTES)], interface, at, cut }))
    }

    /// Frames that the kernel dropped since the last question.
    pub(crate) fn take_lost(&self) -> io::Result<u64> {
        let mut counters = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length = libc::socklen_t::try_from(size_of_val(&counters)).expect("eight bytes");
        #[expect(unsafe_code, reason = "nix has no PACKET_STATISTICS")]
        // SAFETY: both pointers are to live locals, and `length` is the size of what the first points to.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut counters).cast(),
                &raw mut length,
            )
        };
        Errno::result(result)?;
        Ok(counters.tp_drops.into())
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn ignore_outgoing(fd: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).expect("four bytes");
    #[expect(unsafe_code, reason = "nix has no PACKET_IGNORE_OUTGOING")]
    // SAFETY: the pointer is to a live local of the size that is given.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_IGNORE_OUTGOING,
            (&raw const on).cast(),
            length,
        )
    };
    Errno::result(result)?;
    Ok(())
}
