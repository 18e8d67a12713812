//! Loading the compiled objects into the kernel with aya. The only file that knows aya.
//! It attaches nothing.

use std::os::fd::{AsFd, OwnedFd};

use aya::programs::{CgroupSockAddr, CgroupSockopt, ProgramError, SkLookup, SockOps};
use aya::{Ebpf, EbpfError, EbpfLoader};
use thiserror::Error;

use crate::maps;
use crate::pins::Pins;

static NODE: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/node.bpf.o"));
static POD: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pod.bpf.o"));

/// Why a program could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The object with its maps.
    #[error("cannot load the BPF object: {0}")]
    Object(#[source] Box<EbpfError>),
    /// One program; the text ends with the verifier's words.
    #[error("the kernel refuses the BPF program: {0}")]
    Program(#[source] Box<ProgramError>),
    /// Its descriptor could not be kept.
    #[error("cannot keep the BPF program: {0}")]
    Descriptor(#[from] std::io::Error),
}

impl From<EbpfError> for LoadError {
    fn from(error: EbpfError) -> Self {
        Self::Object(Box::new(error))
    }
}

impl From<ProgramError> for LoadError {
    fn from(error: ProgramError) -> Self {
        Self::Program(Box::new(error))
    }
}

/// The node's programs, loaded and not attached.
#[derive(Debug)]
pub(crate) struct NodePrograms {
    pub(crate) connect4: OwnedFd,
    pub(crate) connect6: OwnedFd,
    pub(crate) set_option: OwnedFd,
    pub(crate) sockops: OwnedFd,
}

/// Loads the node's programs; maps that are not pinned yet are made and pinned.
pub(crate) fn load_node(pins: &Pins) -> Result<NodePrograms, LoadError> {
    let mut object = loader(pins).load(NODE)?;
    Ok(NodePrograms {
        connect4: load_connect(&mut object, "connect4")?,
        connect6: load_connect(&mut object, "connect6")?,
        set_option: load_set_option(&mut object)?,
        sockops: load_sockops(&mut object)?,
    })
}

/// Loads the instance of one pod; `netns` is the cookie of its namespace.
pub(crate) fn load_pod(pins: &Pins, slot: u32, netns: u64) -> Result<OwnedFd, LoadError> {
    let mut loader = loader(pins);
    let must_exist = true;
    loader.override_global("slot", &slot, must_exist).override_global("netns", &netns, must_exist);
    let mut object = loader.load(POD)?;
    let program: &mut SkLookup = program(&mut object, "arrive").try_into()?;
    program.load()?;
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
}

fn loader<'a>(pins: &Pins) -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    for name in maps::NAMES {
        loader.map_pin_path(name, pins.map(name));
    }
    loader
}

fn load_connect(object: &mut Ebpf, name: &str) -> Result<OwnedFd, LoadError> {
    let program: &mut CgroupSockAddr = program(object, name).try_into()?;
    program.load()?;
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
}

fn load_set_option(object: &mut Ebpf) -> Result<OwnedFd, LoadError> {
    let program: &mut CgroupSockopt = program(object, "set_option").try_into()?;
    program.load()?;
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
}

fn load_sockops(object: &mut Ebpf) -> Result<OwnedFd, LoadError> {
    let program: &mut SockOps = program(object, "sock_ops").try_into()?;
    program.load()?;
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
}

fn program<'a>(object: &'a mut Ebpf, name: &str) -> &'a mut aya::programs::Program {
    object.program_mut(name).expect("the object of this build has the program")
}
