//! The pinned maps of one node, in the loader's words. Layouts are those of `programs/airglow.h`.
//! Removals compare first: an entry that has passed to another pod stays.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::Kind;
use crate::bpf::Map;
use crate::layout::{KINDS, LAYOUT_VERSION, MAX_PODS, RECORD_SIZE};
use crate::pins::Pins;
use crate::record::{Record, address_key};

/// Every map that is pinned, by its name in the programs.
pub(crate) const NAMES: [&str; 9] =
    ["pods", "podips", "listeners", "probes", "ztunnels", "hosts", "config", "probers", "records"];

const PRESENT: [u8; 1] = [1];

/// An entry of `pods`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PodEntry {
    pub(crate) slot: u32,
    pub(crate) families: u32,
}

/// The single entry of `config`. Cgroup ids; 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) version: u64,
    pub(crate) kubepods: u64,
    pub(crate) kubelet: u64,
}

#[derive(Debug)]
pub(crate) struct Maps {
    pods: Map<8, 8>,
    podips: Map<16, 4>,
    listeners: Map<4, 8>,
    probes: Map<36, 8>,
    ztunnels: Map<8, 1>,
    hosts: Map<8, 1>,
    config: Map<4, 24>,
    records: Map<4, { RECORD_SIZE as usize }>,
}

impl Maps {
    /// Opens what an earlier process or the loading of the programs has pinned.
    pub(crate) fn open(pins: &Pins) -> io::Result<Self> {
        Ok(Self {
            pods: Map::open(&pins.map("pods"))?,
            podips: Map::open(&pins.map("podips"))?,
            listeners: Map::open(&pins.map("listeners"))?,
            probes: Map::open(&pins.map("probes"))?,
            ztunnels: Map::open(&pins.map("ztunnels"))?,
            hosts: Map::open(&pins.map("hosts"))?,
            config: Map::open(&pins.map("config"))?,
            records: Map::open(&pins.map("records"))?,
        })
    }

    pub(crate) fn config(&self) -> io::Result<Config> {
        let bytes = self.config.get(&[0; 4])?.unwrap_or([0; 24]);
        let word = |index: usize| u64::from_ne_bytes(std::array::from_fn(|byte| bytes[index * 8 + byte]));
        Ok(Config { version: word(0), kubepods: word(1), kubelet: word(2) })
    }

    pub(crate) fn set_config(&self, kubepods: u64, kubelet: u64) -> io::Result<()> {
        let words = [u64::from(LAYOUT_VERSION), kubepods, kubelet];
        let bytes: [u8; 24] = std::array::from_fn(|byte| words[byte / 8].to_ne_bytes()[byte % 8]);
        self.config.set(&[0; 4], &bytes)
    }

    pub(crate) fn add_ztunnel(&self, cgroup: u64) -> io::Result<()> {
        self.ztunnels.set(&cgroup.to_ne_bytes(), &PRESENT)
    }

    /// Forgets cgroups that no longer exist. Ids are not reused, so that one left behind does no harm but to take a place.
    pub(crate) fn keep_ztunnels(&self, alive: &[u64]) -> io::Result<()> {
        keep(&self.ztunnels, alive)
    }

    /// Makes `cookie` the only namespace from which probes come.
    pub(crate) fn set_host(&self, cookie: u64) -> io::Result<()> {
        self.hosts.set(&cookie.to_ne_bytes(), &PRESENT)?;
        keep(&self.hosts, &[cookie])
    }

    pub(crate) fn pod(&self, cookie: u64) -> io::Result<Option<PodEntry>> {
        let entry = self.pods.get(&cookie.to_ne_bytes())?;
        Ok(entry.map(|[a, b, c, d, e, f, g, h]| PodEntry {
            slot: u32::from_ne_bytes([a, b, c, d]),
            families: u32::from_ne_bytes([e, f, g, h]),
        }))
    }

    pub(crate) fn set_pod(&self, cookie: u64, entry: PodEntry) -> io::Result<()> {
        let [a, b, c, d] = entry.slot.to_ne_bytes();
        let [e, f, g, h] = entry.families.to_ne_bytes();
        self.pods.set(&cookie.to_ne_bytes(), &[a, b, c, d, e, f, g, h])
    }

    pub(crate) fn remove_pod(&self, cookie: u64) -> io::Result<()> {
        self.pods.delete(&cookie.to_ne_bytes())
    }

    pub(crate) fn slot_of(&self, address: IpAddr) -> io::Result<Option<u32>> {
        Ok(self.podips.get(&address_key(address))?.map(u32::from_ne_bytes))
    }

    pub(crate) fn set_address(&self, address: IpAddr, slot: u32) -> io::Result<()> {
        self.podips.set(&address_key(address), &slot.to_ne_bytes())
    }

    /// Leaves an address alone that another pod has got meanwhile.
    pub(crate) fn remove_address(&self, address: IpAddr, slot: u32) -> io::Result<()> {
        if self.slot_of(address)? == Some(slot) { self.podips.delete(&address_key(address)) } else { Ok(()) }
    }

    pub(crate) fn set_listener(&self, slot: u32, kind: Kind, socket: BorrowedFd<'_>) -> io::Result<()> {
        let value = socket.as_raw_fd() as u64;
        self.listeners.set(&listener_key(slot, kind), &value.to_ne_bytes())
    }

    /// The cookie (`SO_COOKIE`) of the socket in a place; none if nobody listens.
    pub(crate) fn listener(&self, slot: u32, kind: Kind) -> io::Result<Option<u64>> {
        Ok(self.listeners.get(&listener_key(slot, kind))?.map(u64::from_ne_bytes))
    }

    pub(crate) fn clear_listeners(&self, slot: u32) -> io::Result<()> {
        Kind::ALL.into_iter().try_for_each(|kind| self.listeners.delete(&listener_key(slot, kind)))
    }

    /// Probe connections in flight.
    pub(crate) fn probe_count(&self) -> io::Result<usize> {
        self.probes.keys().map(|keys| keys.len())
    }

    /// Every pod that anything was done for, by slot. A record that cannot be read belongs to no version of ours.
    pub(crate) fn records(&self) -> io::Result<Vec<(u32, Record)>> {
        let mut records = Vec::new();
        for key in self.records.keys()? {
            let Some(bytes) = self.records.get(&key)? else { continue };
            let unreadable = || io::Error::new(io::ErrorKind::InvalidData, "a record of another version");
            records.push((u32::from_ne_bytes(key), Record::decode(&bytes).ok_or_else(unreadable)?));
        }
        Ok(records)
    }

    /// Takes the lowest free slot. Two processes at once get different ones.
    pub(crate) fn claim_slot(&self, record: &Record) -> io::Result<Option<u32>> {
        for slot in 0..MAX_PODS {
            match self.records.claim(&slot.to_ne_bytes(), &record.encode()) {
                Ok(()) => return Ok(Some(slot)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                // The map itself is full.
                Err(error) if error.raw_os_error() == Some(libc::E2BIG) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    pub(crate) fn remove_record(&self, slot: u32) -> io::Result<()> {
        self.records.delete(&slot.to_ne_bytes())
    }
}

fn listener_key(slot: u32, kind: Kind) -> [u8; 4] {
    (slot * KINDS + kind as u32).to_ne_bytes()
}

fn keep(map: &Map<8, 1>, wanted: &[u64]) -> io::Result<()> {
    let stale = map.keys()?.into_iter().filter(|key| !wanted.contains(&u64::from_ne_bytes(*key)));
    stale.into_iter().try_for_each(|key| map.delete(&key))
}
