//! Floods of connections, from strangers and from inside of pods: silent, slow, broken off, or not even begun.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use lab::{Env, LabConfig};

use crate::mesh::{Mesh, SOON, get, serve};
use crate::support::arena::{Arena, BUDGET_MIB};
use crate::support::flood;

/// A tunnel's whole handshake may take ten seconds (`hbone::limits::HANDSHAKE`); as much again for a busy machine.
const HANDSHAKE: Duration = Duration::from_secs(20);

#[test]
fn floods_of_connections_disturb_nobody() {
    let arena = Arena::new();
    let tunnels = arena.at(15008);
    // Together less than one address may have, on whichever thread they are.
    let mut slow = flood::connect(&arena.stranger, tunnels, 100);
    // A TLS handshake of 16 KiB (RFC 8446 sections 4 and 5.1) that goes on byte by byte.
    flood::write(&mut slow, &[22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3]);
    let mut garbage = flood::connect(&arena.stranger, tunnels, 100);
    flood::write(&mut garbage, &[0x55; 64 * 1024]);
    flood::until_closed("garbage on 15008", garbage, HANDSHAKE, |_| {});
    let silent = flood::connect(&arena.stranger, tunnels, 2000);
    for port in [15001, 15006, 15008, 8080] {
        flood::connect_and_reset(&arena.stranger, arena.at(port), 1000);
    }
    let plain = flood::connect(&arena.stranger, arena.at(8080), 1000);
    for ip in [Ipv4Addr::LOCALHOST.into(), arena.server.ip(), arena.server.ip6()] {
        for port in [15001, 15006, 15008] {
            flood::connect_and_reset(&arena.server, SocketAddr::new(ip, port), 300);
        }
    }
    flood::until_closed("slow handshakes", slow, HANDSHAKE, |slow| flood::write(slow, &[0]));
    flood::until_closed("silence on 15008", silent, HANDSHAKE, |_| {});
    drop(plain);
    let half_open = flood::half_open(&arena.stranger, tunnels, 5000);
    arena.conclude();
    drop(half_open);
}

/// What one address may have under way with one pod on one thread (`ztunnel::data::handshakes`).
const MAX_HANDSHAKES: usize = 256;

#[test]
fn an_address_that_never_says_who_it_is_gets_no_more_than_its_share() {
    const MORE: usize = 50;
    let one_thread = Env::from([("AIRGLOW_THREADS".into(), "1".into())]);
    let mesh = Mesh::start_with(LabConfig::default(), &one_thread);
    let (client, server) = (mesh.pod(0, "client"), mesh.pod(1, "server"));
    let stranger = mesh.pod_in("wild", 0, "stranger");
    serve(&server, &["http"]);
    mesh.enrol("shop", &[&client, &server]);
    let silent = flood::connect(&stranger, SocketAddr::new(server.ip(), 15008), MAX_HANDSHAKES + MORE);
    let ztunnel = mesh.node(1).ztunnel().expect("a ztunnel");
    lab::wait_until("each of the rest is refused, and reported", SOON, || {
        let output = ztunnel.output().stdout;
        let refused = output.lines().filter(|line| line.contains("too-many-connections")).count();
        if refused == MORE { Ok(()) } else { Err(format!("{refused} are")) }
    })
    .expect("refusals");
    get(&client, &format!("http://{}/", SocketAddr::new(server.ip(), 8080)));
    drop(silent);
}

/// Each is owed 100 MB, and the buffers on the way fill.
#[test]
fn strangers_that_never_read_cost_no_more_than_their_buffers() {
    let arena = Arena::new();
    serve(&arena.server, &["source", "--listen", "[::]:8081", "--bytes", "100000000"]);
    let held = flood::connect(&arena.stranger, arena.at(8081), 500);
    arena.until_memory_stands_still();
    drop(held);
    arena.conclude();
}

/// Through the tunnel, to a service without endpoints, and to a port that nobody listens on.
#[test]
fn a_pod_that_opens_thousands_of_connections_disturbs_nobody() {
    let arena = Arena::new();
    let to = arena.at(8080).to_string();
    let hold = arena.insider.spawn(lab::Program::new("lab-app").args([
        "hold",
        "--to",
        &to,
        "--connections",
        "1500",
    ]));
    let hold = hold.expect("a program");
    hold.wait_for_line("holding", SOON).expect("connections");
    let empty = arena.mesh.service("shop", "empty", 9, 9).ips[0];
    arena.mesh.until_dumps("the service without endpoints", |dump| {
        let known = dump["services"].as_array().is_some_and(|all| all.iter().any(|s| s["name"] == "empty"));
        if known { Ok(()) } else { Err("not among the services".to_owned()) }
    });
    let nobody: [IpAddr; 2] = [empty, arena.server.ip()];
    for ip in nobody {
        let to = SocketAddr::new(ip, 9).to_string();
        let args = ["load", "--to", &to, "--mode", "new", "--connections", "50", "--requests", "1000"];
        let report = crate::mesh::client(&arena.insider, &args);
        assert_eq!(report["failed"], 1000, "nobody answers there: {report}");
    }
    hold.kill().expect("an end");
    arena.conclude();
}

/// The same through tunnels: a thousand streams that are owed 2 MB each would fill a GiB of windows.
#[test]
fn a_pod_that_reads_nothing_costs_no_more_than_its_budget() {
    let arena = Arena::new();
    serve(&arena.server, &["source", "--listen", "[::]:8081", "--bytes", "2000000"]);
    let held = flood::captured(&arena.insider, arena.at(8081), 1000);
    arena.until_memory_stands_still();
    drop(held);
    arena.conclude_within(BUDGET_MIB);
}

/// The other way round: the client sends as long as anybody takes it.
#[test]
fn a_server_that_reads_nothing_costs_no_more_than_its_budget() {
    let arena = Arena::new();
    let deaf = flood::Deaf::listen(&arena.server, 8081);
    let mut held = flood::captured(&arena.insider, arena.at(8081), 1000);
    flood::fill(&mut held);
    arena.until_memory_stands_still();
    drop((held, deaf));
    arena.conclude_within(BUDGET_MIB);
}
