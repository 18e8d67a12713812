//! The pinned note of what was done for one pod, so that another process can go on or undo it.
//! Bytes in, values out; the layout is fixed by `layout::LAYOUT_VERSION`.

use std::net::{IpAddr, Ipv6Addr};

use crate::layout::{MAX_ADDRESSES, MAX_UID, RECORD_SIZE};

/// Sysctls changed per pod; `sysctl::SYSCTLS` names them.
pub(crate) const SYSCTL_COUNT: usize = 4;

/// Kept instead of a sysctl's previous value when we did not change it.
const UNTOUCHED: i32 = i32::MIN;

/// The kernel's map value.
pub(crate) type Bytes = [u8; RECORD_SIZE as usize];

/// What was done for one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) uid: String,
    pub(crate) cookie: u64,
    pub(crate) inode: u64,
    pub(crate) addresses: Vec<IpAddr>,
    /// The values before ours, in the order of `sysctl::SYSCTLS`; none where we changed nothing.
    pub(crate) sysctls: [Option<i32>; SYSCTL_COUNT],
}

impl Record {
    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(RECORD_SIZE as usize);
        bytes.push(self.uid.len() as u8);
        bytes.extend_from_slice(self.uid.as_bytes());
        bytes.extend_from_slice(&self.cookie.to_ne_bytes());
        bytes.extend_from_slice(&self.inode.to_ne_bytes());
        for value in self.sysctls {
            bytes.extend_from_slice(&value.unwrap_or(UNTOUCHED).to_ne_bytes());
        }
        bytes.push(self.addresses.len() as u8);
        for address in &self.addresses {
            bytes.extend_from_slice(&address_key(*address));
        }
        let mut record = [0; RECORD_SIZE as usize];
        record[..bytes.len()].copy_from_slice(&bytes);
        record
    }

    /// None for bytes that no version of ours wrote.
    pub(crate) fn decode(bytes: &Bytes) -> Option<Self> {
        let mut rest = bytes.as_slice();
        let length = usize::from(take::<1>(&mut rest)?[0]);
        if length > MAX_UID as usize {
            return None;
        }
        let (uid, after) = rest.split_at_checked(length)?;
        rest = after;
        let uid = std::str::from_utf8(uid).ok()?.to_owned();
        let cookie = u64::from_ne_bytes(take(&mut rest)?);
        let inode = u64::from_ne_bytes(take(&mut rest)?);
        let mut sysctls = [None; SYSCTL_COUNT];
        for value in &mut sysctls {
            *value = Some(i32::from_ne_bytes(take(&mut rest)?)).filter(|value| *value != UNTOUCHED);
        }
        let count = usize::from(take::<1>(&mut rest)?[0]);
        if count > MAX_ADDRESSES as usize {
            return None;
        }
        let addresses: Option<Vec<IpAddr>> =
            (0..count).map(|_| take(&mut rest).map(address_of_key)).collect();
        Some(Self { uid, cookie, inode, addresses: addresses?, sysctls })
    }
}

/// The kernel side's `struct address`: IPv4 as `::ffff:a.b.c.d`, network order.
pub(crate) fn address_key(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn address_of_key(key: [u8; 16]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(key)).to_canonical()
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn any_record()(
            uid in "[A-Za-z0-9_-]{1,63}",
            (cookie, inode) in any::<(u64, u64)>(),
            addresses in prop::collection::vec(any::<IpAddr>().prop_map(|address| address.to_canonical()), 0..=8),
            sysctls in prop::array::uniform4(prop::option::of(-1..100)),
        ) -> Record {
            Record { uid, cookie, inode, addresses, sysctls }
        }
    }

    proptest! {
        #[test]
        fn what_was_noted_is_read_back(record in any_record()) {
            prop_assert_eq!(Record::decode(&record.encode()), Some(record));
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), RECORD_SIZE as usize)) {
            let bytes: Bytes = bytes.try_into().expect("of that length");
            let _ = Record::decode(&bytes);
        }
    }
}
