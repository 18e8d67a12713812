//! The two ends, as the line of a connection names them.

use super::line::{Field, Fields};
use super::{Party, Text};

/// Who speaks with whom.
pub(super) struct Ends<'a> {
    pub(super) source: Party<'a>,
    pub(super) destination: Party<'a>,
    pub(super) hbone_address: Text<'a>,
    pub(super) service: Text<'a>,
}

impl Ends<'_> {
    /// Addresses can hold nothing that ends a field: they were read as addresses.
    pub(super) fn fields(&self, to: &mut Fields<'_>) {
        let mut party = |name: &str, value: Text<'_>| {
            if let Some(value) = value {
                to.add(name, if name.ends_with("addr") { Field::Bare(value) } else { Field::Quoted(value) });
            }
        };
        party("src.addr", self.source.address);
        party("src.workload", self.source.workload);
        party("src.namespace", self.source.namespace);
        party("src.identity", self.source.identity);
        party("src.cluster", self.source.cluster);
        party("dst.addr", self.destination.address);
        party("dst.hbone_addr", self.hbone_address);
        party("dst.service", self.service);
        party("dst.workload", self.destination.workload);
        party("dst.namespace", self.destination.namespace);
        party("dst.identity", self.destination.identity);
        party("dst.cluster", self.destination.cluster);
    }
}
