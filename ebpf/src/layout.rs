//! The numbers that the kernel side and the user side must agree on.
//!
//! `build.rs` reads this very file and hands the constants to clang, so that there is one place to change them.
//! It holds no logic and no types.

/// Socket mark of the proxy's own sockets inside a pod. No rule looks at it: it tells them from the applications'.
pub const MARK_PROXY: u32 = 0x539;
/// Socket mark of a captured outbound connection: looked up in [`TABLE`], so that it arrives on `lo`.
pub const MARK_CAPTURE: u32 = 0x53a;
/// Socket mark of the proxy's connections to the application: brings the replies back over `lo`.
pub const MARK_RETURN: u32 = 0x53b;

/// First source port of the proxy's own DNS queries in a pod. Queries from these ports are not captured, and neither
/// is the kernel led to take their answers for spoofed: a mark would do for the first, but answers carry none.
/// Privileged ports, because no application is given one of them by chance, whatever its range of ephemeral ports.
pub const DNS_SOURCE_FIRST: u16 = 512;
/// Last source port of the proxy's own DNS queries in a pod: 512 sockets at once, each good for any number of queries.
pub const DNS_SOURCE_LAST: u16 = 1023;

/// The routing table of the pod that holds one local default route per family.
pub const TABLE: u32 = 100;

/// Listeners per slot: one per [`crate::Kind`].
pub const KINDS: u32 = 4;

/// Pods per node. Kubelet's default is 110 and large installations use 500; a slot stays taken while a released
/// pod drains, so twice that. The listeners map costs 32 bytes per slot, whether used or not.
pub const MAX_PODS: u32 = 1024;

/// Addresses per pod: two families, and room for additional networks (multus); a pod with more is refused.
pub const MAX_ADDRESSES: u32 = 8;

/// Bytes of a pod uid. Kubernetes' are 36 bytes long; names of other hosts may be longer, but are file names too.
pub const MAX_UID: u32 = 63;

/// Probe connections in flight. 1024 pods with three probes a second that each take some seconds would be 10,000;
/// the entry goes when the connection closes, so that the eviction of an LRU map is only a backstop.
pub const MAX_PROBES: u32 = 16_384;

/// Cgroups recognised as the proxy's: the running one, the draining one, and those of crashed restarts whose
/// directory still exists. Entries of directories that are gone are removed at every start.
pub const MAX_ZTUNNELS: u32 = 64;

/// Network namespaces recognised as the node's own. There is one; the rest is room for a node that was renamed.
pub const MAX_HOSTS: u32 = 16;

/// Version of the maps' layout. Pinned maps of another version are refused, never reinterpreted.
pub const LAYOUT_VERSION: u32 = 1;

/// Bytes of a record, the pinned note of what was done for one pod (see `record.rs`).
pub const RECORD_SIZE: u32 = 256;

/// `pods` entry flag: IPv4 rules and the local route stand in the pod.
pub const FAMILY_V4: u32 = 1;
/// `pods` entry flag: IPv6 rules and the local route stand in the pod.
pub const FAMILY_V6: u32 = 2;

/// Port of the outbound listener in the pod.
pub const PORT_OUTBOUND: u16 = 15001;
/// Port of the plaintext inbound listener in the pod.
pub const PORT_PLAINTEXT: u16 = 15006;
/// Port of the HBONE listener in the pod; also what peers dial.
pub const PORT_HBONE: u16 = 15008;
/// Port of the DNS socket in the pod (UDP).
pub const PORT_DNS: u16 = 15053;
