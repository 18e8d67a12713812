//! The CNI's side of ZDS, the protocol by which a ztunnel of Istio is told of the pods of its node.
//!
//! Introduces a fixed set of pods once and keeps the connection. Unix SEQPACKET, one protobuf message per packet, a pod's
//! network namespace as a file descriptor beside its message.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, listen,
    recv, sendmsg, socket,
};
use prost::Message;

/// The only version that there is: `Version::V1`.
const VERSION: i32 = 1;

/// The peer's own limit of a packet; its answers are far smaller.
const PACKET: usize = 1024;

/// How long the peer may take to connect, and for each answer.
const WITHIN: Duration = Duration::from_secs(60);

/// A pod as the peer gets to know it.
#[derive(Clone, Debug)]
pub(crate) struct Introduction<'a> {
    pub(crate) uid: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) service_account: &'a str,
    pub(crate) netns: &'a Path,
}

/// The socket that the peer will connect to.
#[derive(Debug)]
pub(crate) struct Listener(OwnedFd);

/// The connection; the peer keeps its pods when it ends, but is no longer ready.
#[derive(Debug)]
pub(crate) struct Connection(OwnedFd);

#[derive(Clone, PartialEq, Message)]
struct Hello {
    #[prost(int32, tag = "1")]
    version: i32,
}

#[derive(Clone, PartialEq, Message)]
struct WorkloadInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(string, tag = "3")]
    service_account: String,
}

#[derive(Clone, PartialEq, Message)]
struct AddWorkload {
    #[prost(string, tag = "1")]
    uid: String,
    #[prost(message, optional, tag = "2")]
    workload_info: Option<WorkloadInfo>,
}

#[derive(Clone, PartialEq, Message)]
struct SnapshotSent {}

/// Exactly one of its fields is set; on the wire that is what a `oneof` is.
#[derive(Clone, PartialEq, Message)]
struct WorkloadRequest {
    #[prost(message, optional, tag = "1")]
    add: Option<AddWorkload>,
    #[prost(message, optional, tag = "3")]
    snapshot_sent: Option<SnapshotSent>,
}

#[derive(Clone, PartialEq, Message)]
struct Ack {
    #[prost(string, tag = "1")]
    error: String,
}

#[derive(Clone, PartialEq, Message)]
struct WorkloadResponse {
    #[prost(message, optional, tag = "1")]
    ack: Option<Ack>,
}

impl Listener {
    /// Listens at a path.
    pub(crate) fn bind(path: &Path) -> anyhow::Result<Self> {
        let at = || format!("listen at {}", path.display());
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
            .with_context(at)?;
        bind(fd.as_raw_fd(), &UnixAddr::new(path)?).with_context(at)?;
        listen(&fd, Backlog::new(1)?).with_context(at)?;
        Ok(Self(fd))
    }

    /// Waits for the peer and tells it of the pods; done when it has taken the whole snapshot.
    pub(crate) fn introduce(&self, pods: &[Introduction<'_>]) -> anyhow::Result<Connection> {
        let connection = self.accept().context("wait for the proxy to connect")?;
        let hello = Hello::decode(connection.receive()?.as_slice()).context("read its hello")?;
        ensure!(hello.version == VERSION, "it speaks version {} of ZDS, not {VERSION}", hello.version);
        for pod in pods {
            let netns = File::open(pod.netns).with_context(|| format!("open {}", pod.netns.display()))?;
            let request = WorkloadRequest { add: Some(pod.to_message()), snapshot_sent: None };
            connection.ask(&request, Some(&netns)).with_context(|| format!("introduce {}", pod.name))?;
        }
        let request = WorkloadRequest { add: None, snapshot_sent: Some(SnapshotSent {}) };
        connection.ask(&request, None).context("end the snapshot")?;
        Ok(connection)
    }

    fn accept(&self) -> anyhow::Result<Connection> {
        readable(&self.0)?;
        let fd = accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        #[expect(unsafe_code, reason = "nix returns the number of an accepted socket, not its owner")]
        // SAFETY: accept4 made this descriptor just now and nobody else has it.
        Ok(Connection(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

impl Connection {
    fn ask(&self, request: &WorkloadRequest, netns: Option<&File>) -> anyhow::Result<()> {
        let (bytes, fds) = (request.encode_to_vec(), netns.map(|netns| [netns.as_raw_fd()]));
        let rights: Vec<_> = fds.iter().map(|fds| ControlMessage::ScmRights(fds)).collect();
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&bytes)], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
        let answer = WorkloadResponse::decode(self.receive()?.as_slice())?;
        let ack = answer.ack.context("its answer is not an ack")?;
        ensure!(ack.error.is_empty(), "it refused: {}", ack.error);
        Ok(())
    }

    fn receive(&self) -> anyhow::Result<Vec<u8>> {
        readable(&self.0)?;
        let mut packet = vec![0; PACKET];
        let length = recv(self.0.as_raw_fd(), &mut packet, MsgFlags::empty())?;
        ensure!(length > 0, "it closed the connection; see its output");
        packet.truncate(length);
        Ok(packet)
    }
}

impl Introduction<'_> {
    fn to_message(&self) -> AddWorkload {
        let workload_info = WorkloadInfo {
            name: self.name.into(),
            namespace: self.namespace.into(),
            service_account: self.service_account.into(),
        };
        AddWorkload { uid: self.uid.into(), workload_info: Some(workload_info) }
    }
}

fn readable(fd: &impl AsFd) -> io::Result<()> {
    let within = PollTimeout::try_from(WITHIN).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], within)? {
        0 => Err(io::Error::new(io::ErrorKind::TimedOut, format!("nothing came within {WITHIN:?}"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_numbers_of_the_protocol() {
        assert_eq!(Hello { version: 1 }.encode_to_vec(), [0x08, 1]);
        let snapshot = WorkloadRequest { add: None, snapshot_sent: Some(SnapshotSent {}) };
        assert_eq!(snapshot.encode_to_vec(), [0x1a, 0]);
        let pod = Introduction {
            uid: "u",
            namespace: "b",
            name: "a",
            service_account: "c",
            netns: Path::new("/n"),
        };
        let add = WorkloadRequest { add: Some(pod.to_message()), snapshot_sent: None };
        let expected = [0x0a, 14, 0x0a, 1, b'u', 0x12, 9, 0x0a, 1, b'a', 0x12, 1, b'b', 0x1a, 1, b'c'];
        assert_eq!(add.encode_to_vec(), expected);
        let ack = WorkloadResponse::decode([0x0a, 0].as_slice()).unwrap();
        assert_eq!(ack.ack.unwrap().error, "");
    }

    #[test]
    fn pods_are_introduced_with_their_namespaces() {
        let dir = std::env::temp_dir().join(format!("bench-zds-{}", std::process::id()));
        let listener = Listener::bind(&dir).unwrap();
        let path = dir.clone();
        let peer = std::thread::spawn(move || pretend(&path));
        let netns = Path::new("/proc/self/ns/net");
        let pod = Introduction { uid: "u", namespace: "b", name: "a", service_account: "c", netns };
        let outcome = listener.introduce(&[pod]);
        std::fs::remove_file(dir).unwrap();
        outcome.unwrap();
        assert_eq!(peer.join().unwrap(), [1, 0], "descriptors that came with each message");
    }

    /// Plays the peer; returns how many descriptors each message brought.
    fn pretend(path: &Path) -> Vec<usize> {
        use nix::sys::socket::{ControlMessageOwned, connect, recvmsg, send};
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        connect(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        send(fd.as_raw_fd(), &Hello { version: 1 }.encode_to_vec(), MsgFlags::empty()).unwrap();
        let mut counts = Vec::new();
        for _ in 0..2 {
            let mut packet = [0; PACKET];
            let mut space = nix::cmsg_space!([std::os::fd::RawFd; 4]);
            let mut slices = [std::io::IoSliceMut::new(&mut packet)];
            let received =
                recvmsg::<()>(fd.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
                    .unwrap();
            let rights = received
                .cmsgs()
                .unwrap()
                .map(|message| if let ControlMessageOwned::ScmRights(fds) = message { fds.len() } else { 0 });
            counts.push(rights.sum());
            let ack = WorkloadResponse { ack: Some(Ack { error: String::new() }) };
            send(fd.as_raw_fd(), &ack.encode_to_vec(), MsgFlags::empty()).unwrap();
        }
        counts
    }
}
