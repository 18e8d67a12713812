//! Running `ip` and `nft` with a batch on their standard input, inside a namespace.
//!
//! Batches keep process starts few: a lab of two nodes and six pods makes about thirty of them.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use crate::error::{LabError, cannot};
use crate::netns::Netns;

/// Applies lines of `ip` commands; stops at the first that fails.
pub(crate) fn ip(netns: &Netns, lines: &[String]) -> Result<(), LabError> {
    batch(netns, "ip", &["-batch", "-"], &format!("{}\n", lines.join("\n")))
}

/// Applies a ruleset in one transaction.
pub(crate) fn nft(netns: &Netns, ruleset: &str) -> Result<(), LabError> {
    batch(netns, "nft", &["-f", "-"], ruleset)
}

/// Sets sysctls (dotted names) of the namespace.
pub(crate) fn sysctl(netns: &Netns, settings: &[(String, String)]) -> Result<(), LabError> {
    netns.run(|| {
        for (name, value) in settings {
            let path = format!("/proc/sys/{}", name.replace('.', "/"));
            std::fs::write(&path, value).map_err(cannot(format!("write {value:?} to {path}")))?;
        }
        Ok(())
    })?
}

fn batch(netns: &Netns, program: &str, args: &[&str], input: &str) -> Result<(), LabError> {
    let output = netns.run(|| {
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        // Input is at most some hundred kilobytes and neither program prints before it has read it all.
        child.stdin.take().expect("stdin is piped").write_all(input.as_bytes())?;
        child.wait_with_output()
    })?;
    let output = output.map_err(|error: io::Error| {
        if error.kind() == io::ErrorKind::NotFound {
            let package = if program == "ip" { "iproute2" } else { "nftables" };
            LabError::Missing { what: program.into(), mend: format!("apt-get install {package}") }
        } else {
            cannot(format!("run {program}"))(error)
        }
    })?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(LabError::Tool { command: format!("{program} in {}", netns.path().display()), stderr })
}
