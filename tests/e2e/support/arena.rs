//! A mesh under attack, with honest pods that talk all the time: what an attack costs ztunnel, and whether they notice.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use lab::{Node, Pod};

use crate::load::Load;
use crate::mesh::{Mesh, SOON, serve};

/// How many MiB a ztunnel may grow by under an attack. The dearest of ours that needs no certificate, hundreds of silent
/// connections beside a few hundred busy ones, cost less than 100 MiB. What grows without end is past this soon.
const MEMORY_MIB: u64 = 192;
/// The same for a pod whose streams nobody reads: its budget is 128 MiB (`hbone::limits::BUDGET`), and a byte that is held
/// may pin two more.
pub(crate) const BUDGET_MIB: u64 = 384;
/// Files that may be open after an attack beside those of before: honest connections come and go.
const SPARE_FILES: usize = 64;

/// A node's ztunnel before the attack.
struct Before {
    node: Node,
    files: usize,
    memory: u64,
}

/// Two enrolled pods that talk, one enrolled pod that turned bad, and a stranger on each node.
pub(crate) struct Arena {
    pub(crate) mesh: Mesh,
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    /// Enrolled, on the client's node.
    pub(crate) insider: Pod,
    /// Not enrolled, on the client's node.
    pub(crate) stranger: Pod,
    honest: Vec<Load>,
    before: Vec<Before>,
}

impl Arena {
    pub(crate) fn new() -> Self {
        let mesh = Mesh::start();
        let (client, server) = (mesh.pod(0, "client"), mesh.pod(1, "server"));
        let insider = mesh.pod(0, "insider");
        let stranger = mesh.pod_in("wild", 0, "stranger");
        mesh.service("shop", "server", 80, 8080);
        serve(&server, &["echo"]);
        mesh.enrol("shop", &[&client, &server, &insider]);
        let to = SocketAddr::new(server.ip(), 8080).to_string();
        let honest = vec![Load::new_connections(&client, &to), Load::kept_connections(&client, &to)];
        let before = mesh.lab.nodes().map(|node| {
            forget_peak(&node);
            Before { files: files(&node), memory: memory(&node).0, node }
        });
        let before = before.collect();
        Self { mesh, client, server, insider, stranger, honest, before }
    }

    /// An address of the server.
    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.server.ip(), port)
    }

    /// Waits until ztunnel has let go of what an attack held.
    pub(crate) fn until_let_go(&self) {
        for Before { node, files: before, .. } in &self.before {
            lab::wait_until(&format!("{} closes what the attack opened", node.name()), SOON, || match files(
                node,
            ) {
                now if now <= before + SPARE_FILES => Ok(()),
                now => Err(format!("{now} files are open, {before} were before")),
            })
            .expect("let go");
        }
    }

    /// Waits until what an attack sends has nowhere left to go: a round of honest work later nothing has grown.
    pub(crate) fn until_memory_stands_still(&self) {
        let now = || -> Vec<u64> { self.before.iter().map(|before| memory(&before.node).0).collect() };
        let mut last = now();
        lab::wait_until("memory stands still", SOON, || {
            self.honest.iter().for_each(Load::progress);
            let before = std::mem::replace(&mut last, now());
            if last == before { Ok(()) } else { Err(format!("{before:?}, then {last:?} MiB")) }
        })
        .expect("an end of growth");
    }

    /// Honest pods noticed nothing, and ztunnel's memory stayed within bounds.
    pub(crate) fn conclude(self) {
        self.conclude_within(MEMORY_MIB);
    }

    /// See [`Arena::conclude`].
    pub(crate) fn conclude_within(self, mib: u64) {
        self.until_let_go();
        for load in self.honest {
            load.progress();
            load.must_have_succeeded();
        }
        for Before { node, memory: before, .. } in &self.before {
            let grown = memory(node).1.saturating_sub(*before);
            assert!(grown < mib, "{}'s ztunnel grew by {grown} MiB, at most {mib}", node.name());
        }
    }
}

/// Of the node's ztunnel.
fn proc(node: &Node, file: &str) -> PathBuf {
    let ztunnel = node.ztunnel().expect("a ztunnel");
    assert!(ztunnel.is_running(), "{}'s ztunnel has ended: {:?}", node.name(), ztunnel.output());
    format!("/proc/{}/{file}", ztunnel.pid()).into()
}

fn files(node: &Node) -> usize {
    fs::read_dir(proc(node, "fd")).expect("open files").count()
}

/// The highest resident memory is the present one from here on (`proc_pid_clear_refs(5)`).
fn forget_peak(node: &Node) {
    fs::write(proc(node, "clear_refs"), "5").expect("a new peak");
}

/// Resident, and the most since [`forget_peak`], in MiB.
fn memory(node: &Node) -> (u64, u64) {
    let status = fs::read_to_string(proc(node, "status")).expect("a status");
    let mib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("every process has it");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib / 1024
    };
    (mib("VmRSS:"), mib("VmHWM:"))
}
