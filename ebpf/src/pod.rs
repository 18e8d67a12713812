//! One pod: enrolled and released in the only orders that lose no connection and leak none.
//! In: routes, rules, sysctls -> listeners -> addresses -> sk_lookup link -> `pods` entry -> DNS rules.
//! Out: DNS rules -> `pods` entry -> (captured connections end) -> link -> rules, routes, sysctls -> the rest.
//! The entry is what captures, inbound and outbound at once; everything around it stands before and after.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use thiserror::Error;

use crate::Kind;
use crate::bpf::{self, AttachType, Link};
use crate::layout::{MAX_ADDRESSES, MAX_PODS, MAX_UID};
use crate::maps::PodEntry;
use crate::netns::Netns;
use crate::network::{self, NetworkError};
use crate::node::Node;
use crate::pins::{PinsError, remove_file};
use crate::programs::{self, LoadError};
use crate::record::{Record, SYSCTL_COUNT};
use crate::sysctl;

/// A pod as the node's runtime knows it. Identity is bound to all three: any mismatch refuses.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// The pod's uid: 1 to 63 letters, digits, `-` and `_`.
    pub uid: String,
    /// Its network namespace.
    pub netns: Arc<Netns>,
    /// Its addresses, which the namespace must really have. The first of a family is that family's default source.
    pub addresses: Vec<IpAddr>,
}

/// Why a pod could not be enrolled or released. What was done before the failure stays: the order is safe at every step.
#[derive(Debug, Error)]
pub enum EnrolError {
    /// Not usable as the name of a pin.
    #[error("pod uid {0:?} cannot be used: 1 to {MAX_UID} letters, digits, - and _")]
    BadUid(String),
    /// None, or too many.
    #[error("pod {uid} has {count} addresses; 1 to {MAX_ADDRESSES} can be captured")]
    BadAddresses {
        /// The pod.
        uid: String,
        /// How many it has.
        count: usize,
    },
    /// The sandbox contradicts what is enrolled.
    #[error(
        "pod {uid} does not match what is enrolled: {reason}. Release it first, or wait until the old sandbox is gone"
    )]
    Conflict {
        /// The pod.
        uid: String,
        /// What differs.
        reason: String,
    },
    /// Every slot is taken.
    #[error("pod {0} cannot be enrolled: all {MAX_PODS} places of the node are taken")]
    NodeFull(String),
    /// Captured without having been prepared.
    #[error("pod {0} has not been prepared")]
    NotPrepared(String),
    /// Its namespace cannot be changed.
    #[error("pod {uid}: {source}")]
    Network {
        /// The pod.
        uid: String,
        /// What failed.
        source: NetworkError,
    },
    /// Its program cannot be loaded.
    #[error("pod {uid}: {source}")]
    Load {
        /// The pod.
        uid: String,
        /// What failed.
        source: LoadError,
    },
    /// The kernel refused a step.
    #[error("pod {uid}: cannot {action}: {source}")]
    Kernel {
        /// The pod.
        uid: String,
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Node {
    /// Routes, rules and sysctls in the pod, and a slot for it. Traffic is not touched yet. Repeating it repairs.
    ///
    /// # Errors
    /// [`EnrolError::Conflict`] when the uid is enrolled with another namespace or other addresses, or the namespace
    /// under another uid; [`EnrolError::Network`] when the namespace does not have the addresses.
    pub fn prepare(&self, sandbox: &Sandbox) -> Result<(), EnrolError> {
        sandbox.validate()?;
        sandbox.inside(|| network::check_addresses(&sandbox.addresses))?;
        self.slot_for(sandbox)?;
        sandbox.inside(|| {
            sysctl::set()?;
            network::add(&sandbox.addresses)
        })
    }

    /// Captures a prepared pod; `listeners` in the order of [`Kind::ALL`], made by [`crate::socket::listen`] in its
    /// namespace. Also takes a captured pod over: its connections then reach these listeners.
    pub fn capture(&self, sandbox: &Sandbox, listeners: [BorrowedFd<'_>; 4]) -> Result<(), EnrolError> {
        self.offer(sandbox, listeners)?;
        self.map_addresses(sandbox)?;
        self.link(sandbox)?;
        self.enter(sandbox)?;
        self.capture_dns(sandbox)
    }

    /// First half of a release: new connections are direct again from here on; captured ones keep flowing, and a
    /// connect that is under way still finds its listener. A pod that is not enrolled is a success.
    ///
    /// Whatever is captured shows in [`crate::socket::connections`] once this returns: when none of those is ours any
    /// more, [`Node::remove`] cuts nothing off.
    pub fn stop_new(&self, sandbox: &Sandbox) -> Result<(), EnrolError> {
        self.release_dns(sandbox)?;
        self.withdraw(&sandbox.uid)
    }

    /// Second half, when captured connections have ended: leaves nothing of ours in the pod or pinned.
    /// Captured connections that still exist are cut off.
    pub fn remove(&self, sandbox: &Sandbox) -> Result<(), EnrolError> {
        let Some((_, record)) = self.find(&sandbox.uid)? else { return Ok(()) };
        sandbox.check(&record)?;
        self.stop_new(sandbox)?;
        self.unlink(&sandbox.uid)?;
        sandbox.inside(|| {
            network::remove(&record.addresses)?;
            sysctl::restore(&record.sysctls)
        })?;
        self.erase(&sandbox.uid)
    }

    /// Removes what is pinned for a pod whose namespace is gone. A pod that is not known is a success.
    pub fn forget(&self, uid: &str) -> Result<(), EnrolError> {
        self.withdraw(uid)?;
        self.unlink(uid)?;
        self.erase(uid)
    }

    /// Puts the listeners into the pod's places.
    pub(crate) fn offer(&self, sandbox: &Sandbox, listeners: [BorrowedFd<'_>; 4]) -> Result<(), EnrolError> {
        let slot = self.prepared_slot(sandbox)?;
        for (kind, listener) in Kind::ALL.into_iter().zip(listeners) {
            self.maps.set_listener(slot, kind, listener).map_err(kernel(&sandbox.uid, "offer a listener"))?;
        }
        Ok(())
    }

    /// Makes the pod's addresses known.
    pub(crate) fn map_addresses(&self, sandbox: &Sandbox) -> Result<(), EnrolError> {
        let slot = self.prepared_slot(sandbox)?;
        let mut addresses = sandbox.addresses.iter();
        addresses
            .try_for_each(|address| self.maps.set_address(*address, slot))
            .map_err(kernel(&sandbox.uid, "note its addresses"))
    }

    /// Attaches the pod's sk_lookup program, or puts this version's into the link that stands.
    pub(crate) fn link(&self, sandbox: &Sandbox) -> Result<(), EnrolError> {
        let uid = &sandbox.uid;
        let slot = self.prepared_slot(sandbox)?;
        self.pins.create_pod(uid).map_err(pins(uid))?;
        let pin = self.pins.pod_link(uid);
        let program = programs::load_pod(&self.pins, slot, sandbox.netns.cookie())
            .map_err(|source| EnrolError::Load { uid: uid.clone(), source })?;
        if let Some(link) = open_link(uid, &pin)? {
            let info = link.info().map_err(kernel(uid, "ask about its link"))?;
            if u64::from(info.netns) == sandbox.netns.inode() {
                return link.update(program.as_fd()).map_err(kernel(uid, "replace its program"));
            }
            remove_file(&pin).map_err(pins(uid))?;
        }
        let link = Link::create(program.as_fd(), sandbox.netns.as_fd(), AttachType::SkLookup)
            .map_err(kernel(uid, "attach its program"))?;
        link.pin(&pin).map_err(kernel(uid, "pin its link"))
    }

    /// From here on connections are captured, inbound and outbound.
    pub(crate) fn enter(&self, sandbox: &Sandbox) -> Result<(), EnrolError> {
        let slot = self.prepared_slot(sandbox)?;
        let entry = PodEntry { slot, families: network::families(&sandbox.addresses) };
        self.maps.set_pod(sandbox.netns.cookie(), entry).map_err(kernel(&sandbox.uid, "enter it"))
    }

    /// Leads DNS over UDP to the proxy. Last, because without a listener queries would be lost.
    pub(crate) fn capture_dns(&self, sandbox: &Sandbox) -> Result<(), EnrolError> {
        self.prepared_slot(sandbox)?;
        sandbox.inside(|| network::add_dns(&sandbox.addresses))
    }

    pub(crate) fn release_dns(&self, sandbox: &Sandbox) -> Result<(), EnrolError> {
        let Some((_, record)) = self.find(&sandbox.uid)? else { return Ok(()) };
        sandbox.check(&record)?;
        sandbox.inside(|| network::remove_dns(&record.addresses))
    }

    pub(crate) fn withdraw(&self, uid: &str) -> Result<(), EnrolError> {
        let Some((_, record)) = self.find(uid)? else { return Ok(()) };
        self.maps.remove_pod(record.cookie).map_err(kernel(uid, "withdraw it"))?;
        bpf::wait_for_packets();
        Ok(())
    }

    /// Detaches at once, rather than some time after the pin is gone.
    pub(crate) fn unlink(&self, uid: &str) -> Result<(), EnrolError> {
        if self.find(uid)?.is_none() {
            return Ok(());
        }
        let pin = self.pins.pod_link(uid);
        if let Some(link) = open_link(uid, &pin)? {
            link.detach().map_err(kernel(uid, "detach its program"))?;
            remove_file(&pin).map_err(pins(uid))?;
        }
        Ok(())
    }

    pub(crate) fn find(&self, uid: &str) -> Result<Option<(u32, Record)>, EnrolError> {
        let records = self.maps.records().map_err(kernel(uid, "read the records"))?;
        Ok(records.into_iter().find(|(_, record)| record.uid == uid))
    }

    /// Everything of the pod's that is not in its namespace; the record goes last, because the slot hangs on it.
    fn erase(&self, uid: &str) -> Result<(), EnrolError> {
        let Some((slot, record)) = self.find(uid)? else { return Ok(()) };
        for address in &record.addresses {
            self.maps.remove_address(*address, slot).map_err(kernel(uid, "forget its addresses"))?;
        }
        self.maps.clear_listeners(slot).map_err(kernel(uid, "empty its places"))?;
        self.pins.remove_pod(uid).map_err(pins(uid))?;
        self.maps.remove_record(slot).map_err(kernel(uid, "free its slot"))
    }

    /// The pod's slot; a new one if it has none. A predecessor of the same uid whose namespace is gone is forgotten.
    fn slot_for(&self, sandbox: &Sandbox) -> Result<u32, EnrolError> {
        let uid = &sandbox.uid;
        let records = self.maps.records().map_err(kernel(uid, "read the records"))?;
        for (slot, record) in records {
            if record.uid == *uid && record.cookie == sandbox.netns.cookie() {
                return sandbox.check(&record).map(|()| slot);
            }
            if record.uid == *uid || record.cookie == sandbox.netns.cookie() {
                if self.is_netns_gone(&record)? {
                    self.forget(&record.uid)?;
                } else {
                    return Err(sandbox.conflict(&record));
                }
            }
        }
        let sysctls: [Option<i32>; SYSCTL_COUNT] = sandbox.inside(sysctl::read_all)?;
        let record = Record {
            uid: uid.clone(),
            cookie: sandbox.netns.cookie(),
            inode: sandbox.netns.inode(),
            addresses: sandbox.addresses.clone(),
            sysctls,
        };
        let claimed = self.maps.claim_slot(&record).map_err(kernel(uid, "claim a slot"))?;
        claimed.ok_or_else(|| EnrolError::NodeFull(uid.clone()))
    }

    /// Only a link can tell: the kernel zeroes its inode. Without one we do not know, and say no.
    fn is_netns_gone(&self, record: &Record) -> Result<bool, EnrolError> {
        let Some(link) = open_link(&record.uid, &self.pins.pod_link(&record.uid))? else { return Ok(false) };
        let info = link.info().map_err(kernel(&record.uid, "ask about its link"))?;
        Ok(info.netns == 0)
    }

    fn prepared_slot(&self, sandbox: &Sandbox) -> Result<u32, EnrolError> {
        let found = self.find(&sandbox.uid)?;
        let (slot, record) = found.ok_or_else(|| EnrolError::NotPrepared(sandbox.uid.clone()))?;
        sandbox.check(&record)?;
        Ok(slot)
    }
}

impl Sandbox {
    fn validate(&self) -> Result<(), EnrolError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if self.uid.is_empty() || self.uid.len() > MAX_UID as usize || !self.uid.bytes().all(allowed) {
            return Err(EnrolError::BadUid(self.uid.clone()));
        }
        let count = self.addresses.len();
        if count == 0 || count > MAX_ADDRESSES as usize {
            return Err(EnrolError::BadAddresses { uid: self.uid.clone(), count });
        }
        Ok(())
    }

    fn check(&self, record: &Record) -> Result<(), EnrolError> {
        let same = record.cookie == self.netns.cookie() && record.addresses == self.addresses;
        if same { Ok(()) } else { Err(self.conflict(record)) }
    }

    fn conflict(&self, record: &Record) -> EnrolError {
        let reason = if record.uid != self.uid {
            format!("its namespace {} is enrolled as {}", self.netns.inode(), record.uid)
        } else if record.cookie == self.netns.cookie() {
            format!("it has {:?}, enrolled are {:?}", self.addresses, record.addresses)
        } else {
            format!("its namespace is {}, enrolled is {}", self.netns.inode(), record.inode)
        };
        EnrolError::Conflict { uid: self.uid.clone(), reason }
    }

    /// Runs in the pod's namespace.
    pub(crate) fn inside<T>(&self, work: impl FnOnce() -> Result<T, NetworkError>) -> Result<T, EnrolError> {
        let result = self.netns.run(work).map_err(kernel(&self.uid, "enter its namespace"))?;
        result.map_err(|source| EnrolError::Network { uid: self.uid.clone(), source })
    }
}

pub(crate) fn open_link(uid: &str, pin: &std::path::Path) -> Result<Option<Link>, EnrolError> {
    match Link::open(pin) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(kernel(uid, "open its link")(error)),
    }
}

pub(crate) fn kernel(uid: &str, action: &'static str) -> impl FnOnce(io::Error) -> EnrolError {
    let uid = uid.to_owned();
    move |source| EnrolError::Kernel { uid, action, source }
}

fn pins(uid: &str) -> impl FnOnce(PinsError) -> EnrolError {
    let uid = uid.to_owned();
    move |error| EnrolError::Kernel { uid, action: "change its pins", source: io::Error::other(error) }
}
