//! Compiles the BPF programs with clang and leaves the objects in `OUT_DIR`. Nothing pre-built is in the tree.
//! The constants of `src/layout.rs` become preprocessor definitions, so that both sides share one set of numbers.

use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAMS: [&str; 2] = ["node", "pod"];
const LAYOUT: &str = "src/layout.rs";
const HEADER: &str = "programs/airglow.h";

/// Newest first. 12 is the oldest that knows all helpers' calling conventions used here.
const CLANG_VERSIONS: std::ops::RangeInclusive<u32> = 12..=25;

fn main() {
    println!("cargo::rerun-if-env-changed=AIRGLOW_CLANG");
    println!("cargo::rerun-if-changed={LAYOUT}");
    println!("cargo::rerun-if-changed={HEADER}");
    let out = PathBuf::from(variable("OUT_DIR").expect("cargo sets OUT_DIR"));
    let clang = find_clang().unwrap_or_else(|| {
        fail("no clang found. Install one (Debian, Ubuntu: `apt install clang`; Fedora: `dnf install clang`) or name it in AIRGLOW_CLANG")
    });
    let definitions = definitions(&std::fs::read_to_string(LAYOUT).expect("src/layout.rs is in the tree"));
    for name in PROGRAMS {
        compile(&clang, &definitions, name, &out);
    }
}

fn compile(clang: &str, definitions: &[String], name: &str, out: &Path) {
    let source = format!("programs/{name}.bpf.c");
    println!("cargo::rerun-if-changed={source}");
    let result = Command::new(clang)
        .args(["-target", "bpf", "-O2", "-g", "-Wall", "-Wextra", "-Werror"])
        // Debian keeps asm/types.h, which linux/bpf.h needs, in a folder named after the machine.
        .arg(format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH))
        .args(definitions)
        .args(["-c", &source, "-o"])
        .arg(out.join(format!("{name}.bpf.o")))
        .output()
        .unwrap_or_else(|error| fail(&format!("cannot run {clang}: {error}")));
    if !result.status.success() {
        let message = String::from_utf8_lossy(&result.stderr);
        let hint = if message.contains("file not found") {
            "\nInstall the headers it misses: Debian, Ubuntu: `apt install libbpf-dev linux-libc-dev`; Fedora: `dnf install libbpf-devel kernel-headers`"
        } else {
            ""
        };
        fail(&format!("{clang} refuses {source}:\n{message}{hint}"));
    }
}

/// `pub const NAME: u32 = 0x10_0;` -> `-DNAME=0x100`.
fn definitions(layout: &str) -> Vec<String> {
    layout
        .lines()
        .filter_map(|line| line.strip_prefix("pub const "))
        .map(|line| {
            let (name, rest) = line.split_once(':').expect("a constant has a type");
            let (_, value) = rest.split_once('=').expect("a constant has a value");
            format!("-D{name}={}", value.trim().trim_end_matches(';').replace('_', ""))
        })
        .collect()
}

fn find_clang() -> Option<String> {
    let named = variable("AIRGLOW_CLANG");
    if named.is_some() {
        return named;
    }
    let versioned = CLANG_VERSIONS.rev().map(|version| format!("clang-{version}"));
    ["clang-19".to_owned()]
        .into_iter()
        .chain(versioned)
        .chain(["clang".to_owned()])
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a build script is configured by cargo through the environment"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn fail(message: &str) -> ! {
    for line in message.lines() {
        println!("cargo::error={line}");
    }
    std::process::exit(1)
}
