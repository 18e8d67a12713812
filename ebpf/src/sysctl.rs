//! The sysctls of a pod that capture sets, and puts back as they were.
//! Everything here runs inside the pod's namespace (`Netns::run`).

use std::io;

use nix::mount::{MsFlags, mount};

use crate::network::NetworkError;
use crate::record::SYSCTL_COUNT;

/// Sysctls set in every enrolled pod, and why.
const SYSCTLS: [(&str, i32); SYSCTL_COUNT] = [
    // The application's accepted socket takes the mark of the proxy's SYN: its replies come back over lo.
    ("net/ipv4/tcp_fwmark_accept", 1),
    // The RST of a closed port comes back too; without it the proxy's connect would hang.
    ("net/ipv4/fwmark_reflect", 1),
    ("net/ipv6/fwmark_reflect", 1),
    // Connections in the queue of a listener that closes move to another listener of its SO_REUSEPORT group.
    ("net/ipv4/tcp_migrate_req", 1),
];

/// Reads what the sysctls are now; none for one that this pod cannot have (no IPv6).
pub(crate) fn read_all() -> Result<[Option<i32>; SYSCTL_COUNT], NetworkError> {
    let mut values = [None; SYSCTL_COUNT];
    for (value, (name, _)) in values.iter_mut().zip(SYSCTLS) {
        *value = read(name)?;
    }
    Ok(values)
}

/// Sets our values wherever the sysctl exists.
pub(crate) fn set() -> Result<(), NetworkError> {
    for (name, wanted) in SYSCTLS {
        if read(name)?.is_some_and(|value| value != wanted) {
            write(name, wanted)?;
        }
    }
    Ok(())
}

/// Puts previous values back, except where somebody else has changed ours meanwhile.
pub(crate) fn restore(previous: &[Option<i32>; SYSCTL_COUNT]) -> Result<(), NetworkError> {
    for ((name, ours), before) in SYSCTLS.into_iter().zip(previous) {
        let Some(before) = *before else { continue };
        if before != ours && read(name)? == Some(ours) {
            write(name, before)?;
        }
    }
    Ok(())
}

/// Those that are not as [`set`] leaves them.
pub(crate) fn wrong() -> Result<Vec<String>, NetworkError> {
    let mut wrong = Vec::new();
    for (name, wanted) in SYSCTLS {
        if read(name)?.is_some_and(|value| value != wanted) {
            wrong.push(format!("{}={wanted}", name.replace('/', ".")));
        }
    }
    Ok(wrong)
}

fn read(name: &'static str) -> Result<Option<i32>, NetworkError> {
    let error = |source| NetworkError::Sysctl { name, source };
    match std::fs::read_to_string(format!("/proc/sys/{name}")) {
        Ok(text) => {
            text.trim().parse().map(Some).map_err(|_| error(io::Error::from(io::ErrorKind::InvalidData)))
        }
        // A kernel without IPv6 has no IPv6 sysctls, and nothing that needs them.
        Err(source) if source.kind() == io::ErrorKind::NotFound && name.starts_with("net/ipv6/") => Ok(None),
        Err(source) => Err(error(source)),
    }
}

fn write(name: &'static str, value: i32) -> Result<(), NetworkError> {
    let write = || std::fs::write(format!("/proc/sys/{name}"), value.to_string());
    let written = match write() {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            make_writable().and_then(|()| write())
        }
        written => written,
    };
    written.map_err(|source| NetworkError::Sysctl { name, source })
}

/// Container runtimes mount /proc/sys read-only in containers that are not privileged; this process's view of it is its own
/// to change.
fn make_writable() -> io::Result<()> {
    let flags =
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(None::<&str>, "/proc/sys", None::<&str>, flags, None::<&str>)?;
    tracing::info!("/proc/sys was read-only in this container and is writable now");
    Ok(())
}
