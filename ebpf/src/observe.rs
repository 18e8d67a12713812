//! What the kernel says about the pods of a node: read from maps, links and namespaces, never from memory.
//! It changes nothing.

use std::net::IpAddr;

use crate::Kind;
use crate::bpf;
use crate::maps::PodEntry;
use crate::network::{self, NetworkFacts};
use crate::node::Node;
use crate::pod::{EnrolError, Sandbox, kernel, open_link};
use crate::record::Record;

/// The state of a pod's sk_lookup link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Nothing is attached.
    Absent,
    /// This version's program is attached to the pod's namespace; any version's, if the node was only opened.
    Attached,
    /// Another version's program is attached to the pod's namespace.
    Outdated,
    /// The namespace it was attached to is gone.
    Orphaned,
}

/// Kernel facts about one pod that something was done for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The pod.
    pub uid: String,
    /// Its place in the kernel's maps.
    pub slot: u32,
    /// Cookie of the namespace it was enrolled with.
    pub netns_cookie: u64,
    /// Inode of the namespace it was enrolled with.
    pub netns_inode: u64,
    /// The addresses it was enrolled with.
    pub addresses: Vec<IpAddr>,
    /// Whether its addresses are known to the programs as its own.
    pub mapped: bool,
    /// Its sk_lookup link.
    pub link: LinkState,
    /// Whether its outbound connections are captured.
    pub entered: bool,
    /// `SO_COOKIE` of the listener in each place, in the order of [`Kind::ALL`]; none where new connections are refused.
    pub listeners: [Option<u64>; 4],
    /// Its rules, routes and sysctls; none if its namespace was not given, or cannot be entered.
    pub network: Option<NetworkFacts>,
}

impl Node {
    /// Facts about every pod that something was done for, by this process or an earlier one. `sandboxes` are those
    /// whose namespaces are at hand; of others everything but [`Observed::network`] is known.
    pub fn observe<'a>(
        &self,
        sandboxes: impl IntoIterator<Item = &'a Sandbox>,
    ) -> Result<Vec<Observed>, EnrolError> {
        let sandboxes: Vec<&Sandbox> = sandboxes.into_iter().collect();
        let records = self.maps.records().map_err(kernel("(all)", "read the records"))?;
        records
            .into_iter()
            .map(|(slot, record)| {
                let sandbox = sandboxes.iter().find(|sandbox| sandbox.netns.cookie() == record.cookie);
                self.observe_pod(slot, record, sandbox.copied())
            })
            .collect()
    }

    fn observe_pod(
        &self,
        slot: u32,
        record: Record,
        sandbox: Option<&Sandbox>,
    ) -> Result<Observed, EnrolError> {
        let uid = record.uid.as_str();
        let mut mapped = true;
        for address in &record.addresses {
            let owner = self.maps.slot_of(*address).map_err(kernel(uid, "look its addresses up"))?;
            mapped &= owner == Some(slot);
        }
        let entry = self.maps.pod(record.cookie).map_err(kernel(uid, "look its entry up"))?;
        let expected = PodEntry { slot, families: network::families(&record.addresses) };
        let mut listeners = [None; 4];
        for (listener, kind) in listeners.iter_mut().zip(Kind::ALL) {
            *listener = self.maps.listener(slot, kind).map_err(kernel(uid, "look its listeners up"))?;
        }
        let network = sandbox.and_then(|sandbox| sandbox.inside(|| network::observe(&record.addresses)).ok());
        Ok(Observed {
            slot,
            netns_cookie: record.cookie,
            netns_inode: record.inode,
            mapped,
            link: self.observe_link(&record)?,
            entered: entry == Some(expected),
            listeners,
            network,
            addresses: record.addresses,
            uid: record.uid,
        })
    }

    fn observe_link(&self, record: &Record) -> Result<LinkState, EnrolError> {
        let uid = record.uid.as_str();
        let Some(link) = open_link(uid, &self.pins.pod_link(uid))? else { return Ok(LinkState::Absent) };
        let info = link.info().map_err(kernel(uid, "ask about its link"))?;
        if u64::from(info.netns) != record.inode {
            return Ok(LinkState::Orphaned);
        }
        let tag = bpf::tag_of_id(info.program).map_err(kernel(uid, "ask about its program"))?;
        let is_current = self.pod_program.is_none_or(|current| tag == current);
        Ok(if is_current { LinkState::Attached } else { LinkState::Outdated })
    }
}
