//! The machine that was measured on, as far as it explains figures.

use std::{fmt, fs};

use anyhow::Context as _;
use nix::sys::utsname::uname;
use serde::Serialize;

/// The machine.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: f64,
    pub(crate) kernel: String,
    /// Whether the processor says that it is a virtual one.
    pub(crate) virtual_machine: bool,
    /// What sockets use when nobody chooses.
    pub(crate) congestion_control: String,
    /// How many tasks wanted to run on average in the minute before: how much else was going on.
    pub(crate) load_before: f64,
}

impl fmt::Display for Machine {
    /// All but the congestion control, which some measurements choose themselves.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cores, memory_gib, kernel, virtual_machine, congestion_control: _, load_before } =
            self;
        let kind = if *virtual_machine { "a virtual machine" } else { "bare metal" };
        write!(
            f,
            "{cpu}, {cores} cores, {memory_gib:.0} GiB, {kind}; Linux {kernel}; load before: {load_before}"
        )
    }
}

/// Looks at this machine.
pub(crate) fn describe() -> anyhow::Result<Machine> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
    let cpu_info = read("/proc/cpuinfo")?;
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory = field(&read("/proc/meminfo")?, "MemTotal").unwrap_or_default();
    let kib: f64 = memory.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0.0);
    let load = read("/proc/loadavg")?;
    Ok(Machine {
        cpu: field(&cpu_info, "model name").unwrap_or_else(|| "unknown".into()),
        cores: std::thread::available_parallelism()?.get(),
        memory_gib: kib / f64::from(1 << 20),
        kernel: uname()?.release().to_string_lossy().into_owned(),
        virtual_machine: field(&cpu_info, "flags")
            .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
        congestion_control: read("/proc/sys/net/ipv4/tcp_congestion_control")?.trim().to_owned(),
        load_before: load.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0.0),
    })
}
