//! bpf(2), as far as the loader needs it beyond loading programs (which aya does): maps by key and value of fixed
//! sizes, links, pins. Every size is checked against the kernel's when a map is opened; no decision is made here.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper for links and for maps of sockets")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Command numbers of linux/bpf.h, `enum bpf_cmd`.
#[derive(Clone, Copy)]
enum Command {
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ObjectPin = 6,
    ObjectGet = 7,
    ProgramById = 13,
    ObjectInfo = 15,
    ProgramQuery = 16,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// Where a program is attached; numbers of linux/bpf.h, `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttachType {
    SockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
    SetSockOpt = 22,
    SkLookup = 36,
}

/// `BPF_F_ALLOW_MULTI`: others may attach beside this program.
const ALLOW_MULTI: u32 = 2;

/// Programs asked for by one query. The kernel allows 64 per cgroup and attach type.
const MAX_QUERIED: usize = 64;

#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

/// Commands on links and ids take up to four numbers.
#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    first: u32,
    second: u32,
    third: u32,
    fourth: u32,
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
}

/// The head of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// `struct bpf_link_info`: the head, and as much of the union as cgroup and netns links fill.
#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    target: [u32; 4],
}

/// A map whose keys have `K` bytes and whose values have `V`.
#[derive(Debug)]
pub(crate) struct Map<const K: usize, const V: usize> {
    fd: OwnedFd,
}

impl<const K: usize, const V: usize> Map<K, V> {
    /// Opens a pinned map. A map of other sizes is `InvalidData`: it belongs to another version.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let fd = object_get(path)?;
        let info: MapInfo = object_info(fd.as_fd())?;
        if (info.key_size, info.value_size) != (K as u32, V as u32) {
            let message = format!(
                "{} has keys of {} and values of {} bytes; this version needs {K} and {V}",
                path.display(),
                info.key_size,
                info.value_size
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(Self { fd })
    }

    pub(crate) fn get(&self, key: &[u8; K]) -> io::Result<Option<[u8; V]>> {
        let mut value = [0u8; V];
        let mut attr = self.attr(key);
        attr.value = value.as_mut_ptr() as u64;
        // SAFETY: `key` and `value` have the sizes that `open` compared with the kernel's, and outlive the call.
        let result = unsafe { bpf(Command::MapLookup, &mut attr) };
        absent(result).map(|found| found.map(|_| value))
    }

    pub(crate) fn set(&self, key: &[u8; K], value: &[u8; V]) -> io::Result<()> {
        self.update(key, value, 0)
    }

    /// Fails with `AlreadyExists` when the key is taken: the kernel decides between two processes.
    pub(crate) fn claim(&self, key: &[u8; K], value: &[u8; V]) -> io::Result<()> {
        const NO_EXIST: u64 = 1;
        self.update(key, value, NO_EXIST)
    }

    /// Removes a key; one that is not there is a success.
    pub(crate) fn delete(&self, key: &[u8; K]) -> io::Result<()> {
        let mut attr = self.attr(key);
        // SAFETY: `key` has the size that `open` compared with the kernel's, and outlives the call.
        let result = unsafe { bpf(Command::MapDelete, &mut attr) };
        match result {
            // A sockmap answers EINVAL for an empty place.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(()),
            other => other.map(drop),
        }
    }

    /// All keys. Meant for maps that only user space changes; a key deleted meanwhile may end the walk early.
    pub(crate) fn keys(&self) -> io::Result<Vec<[u8; K]>> {
        let mut keys: Vec<[u8; K]> = Vec::new();
        loop {
            let mut next = [0u8; K];
            let key = keys.last().map_or(0, |last| last.as_ptr() as u64);
            let mut attr = ElementAttr { map: raw(self.fd.as_fd()), key, ..ElementAttr::default() };
            attr.value = next.as_mut_ptr() as u64;
            // SAFETY: `key` is null or points to K bytes of `keys`, `next` has K bytes; both outlive the call.
            let result = unsafe { bpf(Command::MapNextKey, &mut attr) };
            match absent(result)? {
                Some(_) => keys.push(next),
                None => return Ok(keys),
            }
        }
    }

    fn update(&self, key: &[u8; K], value: &[u8; V], flags: u64) -> io::Result<()> {
        let mut attr = ElementAttr { flags, ..self.attr(key) };
        attr.value = value.as_ptr() as u64;
        // SAFETY: `key` and `value` have the sizes that `open` compared with the kernel's, and outlive the call.
        unsafe { bpf(Command::MapUpdate, &mut attr) }.map(drop)
    }

    fn attr(&self, key: &[u8; K]) -> ElementAttr {
        ElementAttr { map: raw(self.fd.as_fd()), key: key.as_ptr() as u64, ..ElementAttr::default() }
    }
}

/// An attachment that lives as long as this value or its pin.
#[derive(Debug)]
pub(crate) struct Link {
    fd: OwnedFd,
}

/// What the kernel says about a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    /// Id of the attached program.
    pub(crate) program: u32,
    /// For a cgroup: the cgroup's id. 0 once it is gone or the link was detached.
    pub(crate) cgroup: u64,
    /// For a network namespace: its inode. 0 once it is gone or the link was detached.
    pub(crate) netns: u32,
}

impl Link {
    /// Attaches `program` to a cgroup or network namespace.
    pub(crate) fn create(
        program: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        kind: AttachType,
    ) -> io::Result<Self> {
        let mut attr = LinkAttr { first: raw(program), second: raw(target), third: kind as u32, fourth: 0 };
        // SAFETY: the attribute holds numbers only.
        let fd = unsafe { bpf(Command::LinkCreate, &mut attr) }?;
        Ok(Self { fd: owned(fd) })
    }

    pub(crate) fn open(pin: &Path) -> io::Result<Self> {
        object_get(pin).map(|fd| Self { fd })
    }

    /// Replaces the program at once: every connection sees the old one or the new one.
    pub(crate) fn update(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let mut attr = LinkAttr { first: raw(self.fd.as_fd()), second: raw(program), third: 0, fourth: 0 };
        // SAFETY: the attribute holds numbers only.
        unsafe { bpf(Command::LinkUpdate, &mut attr) }.map(drop)
    }

    /// Detaches now. Removing a pin detaches too, but some time later.
    pub(crate) fn detach(&self) -> io::Result<()> {
        let mut attr = LinkAttr { first: raw(self.fd.as_fd()), ..LinkAttr::default() };
        // SAFETY: the attribute holds numbers only.
        unsafe { bpf(Command::LinkDetach, &mut attr) }.map(drop)
    }

    pub(crate) fn pin(&self, path: &Path) -> io::Result<()> {
        let path = c_path(path)?;
        let fd = raw(self.fd.as_fd());
        let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd, flags: 0 };
        // SAFETY: `path` is a C string that outlives the call.
        unsafe { bpf(Command::ObjectPin, &mut attr) }.map(drop)
    }

    pub(crate) fn info(&self) -> io::Result<LinkInfo> {
        let RawLinkInfo { program, target, .. } = object_info(self.fd.as_fd())?;
        let [low, high, ..] = target;
        Ok(LinkInfo { program, cgroup: u64::from(low) | u64::from(high) << 32, netns: low })
    }
}

/// What the kernel computes over a program's instructions, without constants and map addresses.
pub(crate) type ProgramTag = [u8; 8];

/// The head of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: ProgramTag,
}

pub(crate) fn program_tag(program: BorrowedFd<'_>) -> io::Result<ProgramTag> {
    object_info(program).map(|ProgramInfo { tag, .. }| tag)
}

pub(crate) fn tag_of_id(id: u32) -> io::Result<ProgramTag> {
    let mut attr = LinkAttr { first: id, ..LinkAttr::default() };
    // SAFETY: the attribute holds numbers only.
    let program = unsafe { bpf(Command::ProgramById, &mut attr) }.map(owned)?;
    program_tag(program.as_fd())
}

/// Ids of the programs that a cgroup holds without letting others attach beside them.
pub(crate) fn exclusive_programs(cgroup: BorrowedFd<'_>, kind: AttachType) -> io::Result<Vec<u32>> {
    let mut programs = [0u32; MAX_QUERIED];
    let mut attr = QueryAttr {
        target: raw(cgroup),
        attach_type: kind as u32,
        programs: programs.as_mut_ptr() as u64,
        count: MAX_QUERIED as u32,
        ..QueryAttr::default()
    };
    // SAFETY: `programs` has room for `count` ids and outlives the call.
    unsafe { bpf(Command::ProgramQuery, &mut attr) }?;
    if attr.attach_flags & ALLOW_MULTI != 0 {
        return Ok(Vec::new());
    }
    Ok(programs.into_iter().take(attr.count as usize).collect())
}

/// Waits until every packet that is being processed has been: after a map was changed, nothing acts on its old content.
/// Some tens of milliseconds. A kernel that cannot (nohz_full) does not wait; the caller's own steps take longer.
pub(crate) fn wait_for_packets() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes numbers only. It ends after an RCU grace period, and packets are processed within one.
    let _ = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
}

fn object_get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, ..ObjectAttr::default() };
    // SAFETY: `path` is a C string that outlives the call.
    unsafe { bpf(Command::ObjectGet, &mut attr) }.map(owned)
}

/// `T` is one of the info structures above: plain numbers, any bytes are valid.
fn object_info<T: Default>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let length = size_of::<T>() as u32;
    let mut attr = InfoAttr { fd: raw(fd), length, info: &raw mut info as u64 };
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `info`.
    unsafe { bpf(Command::ObjectInfo, &mut attr) }?;
    Ok(info)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: only called with what a successful command returned, which nobody else holds.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// ENOENT is the answer "no such key", not a failure.
fn absent(result: io::Result<RawFd>) -> io::Result<Option<RawFd>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// # Safety
/// The addresses in `attr` must be valid for what the command reads or writes there.
unsafe fn bpf<A>(command: Command, attr: &mut A) -> io::Result<RawFd> {
    let size = size_of::<A>() as libc::c_ulong;
    // SAFETY: `attr` is a live value of `size` bytes laid out as the kernel's union; the caller vouches for the rest.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, &raw mut *attr, size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}
