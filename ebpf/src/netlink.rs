//! Netlink, as far as capture needs it: one request at a time, blocking, in the namespace of the calling thread.
//! It frames messages and attributes; what they mean is the callers' (`network`, `diag`).

use std::io::{self, Read, Write};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// linux/netlink.h
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;

/// Flags of a request that makes something and fails with EEXIST if it is there.
pub(crate) const CREATE_EXCLUSIVE: u16 = 0x400 | 0x200;

/// The kernel fills at most 32 KiB per answer of a dump.
const BUFFER: usize = 64 * 1024;

/// The kernel answers at once; a lost answer must not hang enrolment for ever.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A dump that another process's changes interrupt is asked for again this often.
const DUMP_ATTEMPTS: usize = 8;

/// An open netlink socket. It belongs to the namespace it was opened in.
pub(crate) struct Netlink {
    socket: Socket,
}

impl Netlink {
    /// `protocol` is one of libc's `NETLINK_*`.
    pub(crate) fn open(protocol: libc::c_int) -> io::Result<Self> {
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(protocol)))?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self { socket })
    }

    /// Sends a request and waits for the kernel's verdict.
    pub(crate) fn request(&self, kind: u16, flags: u16, body: &Body) -> io::Result<()> {
        self.send(kind, flags | NLM_F_ACK, body)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = self.receive(&mut buffer)?;
            for message in messages(&buffer[..length]) {
                if message.kind == NLMSG_ERROR {
                    return verdict(message.body);
                }
            }
        }
    }

    /// Asks for one thing. The answer is a message's body, as the kernel sent it.
    pub(crate) fn ask(&self, kind: u16, body: &Body) -> io::Result<Vec<u8>> {
        self.send(kind, 0, body)?;
        let mut buffer = vec![0; BUFFER];
        let length = self.receive(&mut buffer)?;
        let answer = messages(&buffer[..length]).next().ok_or(io::ErrorKind::UnexpectedEof)?;
        if answer.kind == NLMSG_ERROR {
            verdict(answer.body)?;
        }
        Ok(answer.body.to_vec())
    }

    /// Asks for a list. Answers are the bodies of messages, as the kernel sent them.
    pub(crate) fn dump(&self, kind: u16, body: &Body) -> io::Result<Vec<Vec<u8>>> {
        for _ in 1..DUMP_ATTEMPTS {
            if let Some(answers) = self.try_dump(kind, body)? {
                return Ok(answers);
            }
        }
        self.try_dump(kind, body)?.ok_or_else(|| io::Error::from(io::ErrorKind::Interrupted))
    }

    /// None when the list changed while it was read.
    fn try_dump(&self, kind: u16, body: &Body) -> io::Result<Option<Vec<Vec<u8>>>> {
        self.send(kind, NLM_F_DUMP, body)?;
        let mut answers = Vec::new();
        let mut interrupted = false;
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = self.receive(&mut buffer)?;
            for message in messages(&buffer[..length]) {
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE => return Ok(Some(answers).filter(|_| !interrupted)),
                    NLMSG_ERROR => verdict(message.body)?,
                    _ => answers.push(message.body.to_vec()),
                }
            }
        }
    }

    /// A socket with a timeout is interrupted also by a process that is stopped and continued.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match (&self.socket).read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn send(&self, kind: u16, flags: u16, body: &Body) -> io::Result<()> {
        let length = (HEADER + body.0.len()) as u32;
        let mut message = Vec::with_capacity(length as usize);
        message.extend_from_slice(&length.to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        // Sequence number and port id: one request at a time on a socket of its own needs neither.
        message.extend_from_slice(&[0; 8]);
        message.extend_from_slice(&body.0);
        (&self.socket).write_all(&message)
    }
}

/// A request's body: a fixed head, then attributes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Body(Vec<u8>);

impl Body {
    pub(crate) fn new(head: &[u8]) -> Self {
        Self(head.to_vec())
    }

    /// Appends an attribute, padded to four bytes.
    pub(crate) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let length = (4 + value.len()) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

/// The value of one attribute of a message whose fixed head has `head` bytes.
pub(crate) fn attribute(message: &[u8], head: usize, wanted: u16) -> Option<&[u8]> {
    /// The upper bits of an attribute's type are flags (nested, byte order).
    const TYPE: u16 = 0x3fff;
    let mut rest = message.get(head..)?;
    loop {
        let length = usize::from(number16(rest, 0)?);
        let kind = number16(rest, 2)? & TYPE;
        let value = rest.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

/// A number of 32 bits in host order.
pub(crate) fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A number of 16 bits in host order.
pub(crate) fn number16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    body: &'a [u8],
}

fn messages(mut rest: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = number32(rest, 0)? as usize;
        let message =
            Message { kind: number16(rest, 4)?, flags: number16(rest, 6)?, body: rest.get(HEADER..length)? };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// `struct nlmsgerr` begins with the negated errno; 0 is success.
fn verdict(body: &[u8]) -> io::Result<()> {
    match number32(body, 0).map(|errno| errno as i32) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
        None => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_behind_padding() {
        let body = Body::new(&[0; 12]).with(22, &[17]).with(6, &9u32.to_ne_bytes());
        assert_eq!(attribute(&body.0, 12, 22), Some([17].as_slice()));
        assert_eq!(attribute(&body.0, 12, 6), Some(9u32.to_ne_bytes().as_slice()));
        assert_eq!(attribute(&body.0, 12, 7), None);
    }

    #[test]
    fn a_cut_message_has_no_attributes() {
        assert_eq!(attribute(&[0; 3], 12, 6), None);
        assert_eq!(attribute(&[0xff; 13], 12, 6), None);
        assert_eq!(attribute(&[0; 64], 0, 6), None);
    }
}
