//! Why a kernel refuses: asks it feature by feature, and names what is missing. Version numbers are only hints,
//! because distributions carry features back. Asked after a failure, so that a good start costs nothing.

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};

/// Effective capabilities without which nothing works: number of linux/capability.h, name, what for.
const CAPABILITIES: [(u32, &str); 4] = [
    (10, "CAP_NET_BIND_SERVICE (source ports of DNS queries)"),
    (12, "CAP_NET_ADMIN (transparent sockets, routing rules)"),
    (13, "CAP_NET_RAW (replies to DNS queries)"),
    (21, "CAP_SYS_ADMIN (entering pods' namespaces, BPF)"),
];

/// Program type, helper, its name and the release that brought it.
const HELPERS: [(ProgramType, BpfHelper, &str); 7] = [
    (
        ProgramType::CgroupSockAddr,
        BpfHelper::BPF_FUNC_get_netns_cookie,
        "bpf_get_netns_cookie in connect (Linux 5.7)",
    ),
    (
        ProgramType::CgroupSockAddr,
        BpfHelper::BPF_FUNC_get_current_ancestor_cgroup_id,
        "bpf_get_current_ancestor_cgroup_id in connect (Linux 5.7)",
    ),
    (ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_setsockopt, "bpf_setsockopt in connect (Linux 5.8)"),
    (ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval, "bpf_set_retval in connect (Linux 5.18)"),
    (
        ProgramType::CgroupSockopt,
        BpfHelper::BPF_FUNC_get_netns_cookie,
        "bpf_get_netns_cookie in setsockopt (Linux 5.15)",
    ),
    (ProgramType::SockOps, BpfHelper::BPF_FUNC_sk_storage_get, "bpf_sk_storage_get in sockops (Linux 5.4)"),
    (ProgramType::SkLookup, BpfHelper::BPF_FUNC_sk_assign, "bpf_sk_assign in sk_lookup (Linux 5.9)"),
];

const PROGRAMS: [(ProgramType, &str); 4] = [
    (ProgramType::CgroupSockAddr, "program type cgroup/connect4 (Linux 4.17, CONFIG_CGROUP_BPF)"),
    (ProgramType::CgroupSockopt, "program type cgroup/setsockopt (Linux 5.3, CONFIG_CGROUP_BPF)"),
    (ProgramType::SockOps, "program type sockops (Linux 4.13, CONFIG_CGROUP_BPF)"),
    (ProgramType::SkLookup, "program type sk_lookup (Linux 5.9)"),
];

const MAPS: [(MapType, &str); 2] = [
    (MapType::SockMap, "map type sockmap (CONFIG_BPF_STREAM_PARSER or CONFIG_NET_SOCK_MSG)"),
    (MapType::SkStorage, "map type sk_storage (Linux 5.2)"),
];

/// Names of the features that this kernel does not have. Empty when all that can be asked for are there.
pub(crate) fn missing_features() -> Vec<&'static str> {
    let programs = PROGRAMS
        .into_iter()
        .filter(|(kind, _)| matches!(is_program_supported(*kind), Ok(false)))
        .map(|(_, name)| name);
    let maps = MAPS
        .into_iter()
        .filter(|(kind, _)| matches!(is_map_supported(*kind), Ok(false)))
        .map(|(_, name)| name);
    let helpers = HELPERS
        .into_iter()
        .filter(|(kind, helper, _)| matches!(is_helper_supported(*kind, *helper), Ok(false)))
        .map(|(_, _, name)| name);
    programs.chain(maps).chain(helpers).collect()
}

/// Names of the capabilities that this process does not have.
pub(crate) fn missing_capabilities() -> Vec<&'static str> {
    // Unreadable means unknown: the operations themselves will tell.
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    effective(&status).map(lacking).unwrap_or_default()
}

fn lacking(effective: u64) -> Vec<&'static str> {
    CAPABILITIES.into_iter().filter(|(bit, _)| effective & (1 << bit) == 0).map(|(_, name)| name).collect()
}

/// The kernel's release, for messages.
pub(crate) fn running() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "?".to_owned(), |text| text.trim().to_owned())
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        let none = effective("Name:\tx\nCapEff:\t0000000000000000\n").expect("a number");
        assert_eq!(lacking(none).len(), CAPABILITIES.len());
        assert!(lacking(0x1ff_feff_ffff).is_empty());
        assert_eq!(lacking(0x1ff_feff_ffff & !(1 << 21)), ["CAP_SYS_ADMIN (entering pods' namespaces, BPF)"]);
    }
}
