//! Node proxies that die, and node proxies that are replaced under load: refused at once, or nothing noticed at all.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use lab::{Env, LabConfig, Pod, Signal};

use crate::enrolment::announce;
use crate::load::{Held, Load};
use crate::mesh::{AMBIENT, Mesh, SOON, admin, get, refused, serve};

/// What "at once" may take on a machine that does other things. A connection that nobody answers takes minutes.
const AT_ONCE: Duration = Duration::from_secs(2);

/// How often ztunnel is replaced under load.
const RESTARTS: usize = 20;

/// Dials without sending anything; says how that ended.
fn dial(pod: &Pod, ip: IpAddr, port: u16) -> (String, Duration) {
    let began = Instant::now();
    // Bash speaks TCP itself and names the error of connect(2).
    let script = format!("exec 3<>/dev/tcp/{ip}/{port} && echo connected");
    let output = pod.run(["bash", "-c", &script]).expect("an answer before the timeout");
    (format!("{}{}", output.stdout, output.stderr), began.elapsed())
}

fn must_be_refused(pod: &Pod, ip: IpAddr, port: u16) {
    let (said, took) = dial(pod, ip, port);
    assert!(said.contains("Connection refused"), "{} -> {ip}:{port}: {said}", pod.name());
    assert!(took < AT_ONCE, "{} -> {ip}:{port} took {took:?}", pod.name());
}

fn url(ip: IpAddr, path: &str) -> String {
    format!("http://{}/{path}", SocketAddr::new(ip, 8080))
}

#[test]
fn without_a_ztunnel_pods_are_refused_at_once_and_with_one_again_they_are_served() {
    let mesh = Mesh::start();
    let pods = [mesh.pod(0, "one"), mesh.pod(1, "two")];
    let outsiders = [mesh.pod_in("outside", 0, "near"), mesh.pod_in("outside", 1, "far")];
    for pod in pods.iter().chain(&outsiders) {
        serve(pod, &["http"]);
    }
    let service = mesh.service("shop", "two", 80, 8080);
    mesh.enrol("shop", &[&pods[0], &pods[1]]);
    let canary = "canary-without-a-ztunnel";
    let seen = mesh.lab.wire().watch(canary);

    for (index, pod) in pods.iter().enumerate() {
        let peer = &pods[1 - index];
        mesh.node(index).kill_ztunnel().expect("killed");
        for target in [peer, &outsiders[0], &outsiders[1]] {
            for ip in target.ips() {
                must_be_refused(pod, *ip, 8080);
            }
        }
        for ip in &service.ips {
            must_be_refused(pod, *ip, 80);
        }
        for outsider in &outsiders {
            for ip in pod.ips() {
                must_be_refused(outsider, *ip, 8080);
            }
        }
        for ip in pod.ips() {
            let began = Instant::now();
            // The peer's own ztunnel accepts first, and then finds nobody.
            refused(peer, &url(*ip, canary));
            assert!(began.elapsed() < AT_ONCE, "{} -> {ip} took {:?}", peer.name(), began.elapsed());
        }
        assert_eq!(seen.count().expect("a whole capture"), 0, "nothing goes out in the clear");

        mesh.node(index).start_ztunnel(Env::new()).expect("a new ztunnel");
        for ip in peer.ips() {
            get(pod, &url(*ip, canary));
        }
        for ip in pod.ips() {
            get(peer, &url(*ip, canary));
        }
    }
    assert_eq!(seen.count().expect("a whole capture"), 0, "nor afterwards");
}

#[test]
fn ztunnels_are_replaced_under_load_and_nobody_notices() {
    // Longer than this test takes: the connections that are kept end with it.
    let patient = Env::from([("AIRGLOW_DRAIN_DEADLINE".into(), "600s".into())]);
    let mesh = Mesh::start_with(LabConfig::default(), &patient);
    let (caller, server) = (mesh.pod(0, "caller"), mesh.pod(1, "server"));
    let neighbour = mesh.pod(0, "neighbour");
    for pod in [&server, &neighbour] {
        serve(pod, &["echo"]);
    }
    mesh.service("shop", "server", 80, 8080);
    mesh.enrol("shop", &[&caller, &server, &neighbour]);
    let v4 = SocketAddr::new(server.ip(), 8080).to_string();
    let v6 = SocketAddr::new(server.ip6(), 8080).to_string();
    let local = SocketAddr::new(neighbour.ip(), 8080).to_string();
    let kept = Load::kept_connections(&caller, &v4);
    let loads = [
        // By name: every request asks DNS, which must not be lost either.
        Load::new_connections(&caller, "server.shop:80"),
        Load::new_connections(&caller, &v6),
        Load::new_connections(&caller, &local),
    ];

    for round in 0..RESTARTS {
        let held = [&v4, &v6, &local].map(|to| Held::open(&caller, to, 4));
        let handover = mesh.node(round % 2).restart_ztunnel(patient.clone()).expect("a handover");
        loads.iter().for_each(Load::progress);
        held.into_iter().for_each(Held::must_still_work);
        // The first two hold the connections that are kept.
        if round >= 2 {
            handover.old.wait(SOON).expect("an old ztunnel ends when its last connection has");
        }
    }
    kept.progress();
    loads.into_iter().for_each(Load::must_have_succeeded);
    kept.must_have_succeeded();
}

#[test]
fn a_drain_ends_at_its_deadline_and_cuts_what_is_left() {
    let impatient = Env::from([("AIRGLOW_DRAIN_DEADLINE".into(), "1s".into())]);
    let mesh = Mesh::start_with(LabConfig::default(), &impatient);
    let (caller, server) = (mesh.pod(0, "caller"), mesh.pod(1, "server"));
    serve(&server, &["echo"]);
    mesh.enrol("shop", &[&caller, &server]);
    let to = SocketAddr::new(server.ip(), 8080).to_string();
    let kept = Load::kept_connections(&caller, &to);
    let handover = mesh.node(0).restart_ztunnel(impatient).expect("a handover");
    handover.old.wait(SOON).expect("the old ztunnel ends although connections are open");
    kept.progress();
    let account = kept.account();
    let errors = account["errors"].as_object().expect("errors").clone();
    assert!(!errors.is_empty(), "the connections were cut: {account}");
    assert!(
        errors.keys().all(|error| error.contains("on a kept connection")),
        "new ones were not: {account}"
    );
}

#[test]
fn one_that_is_told_to_end_serves_until_another_is_in_charge() {
    let mesh = Mesh::start();
    let (caller, server) = (mesh.pod(0, "caller"), mesh.pod(1, "server"));
    serve(&server, &["echo"]);
    mesh.enrol("shop", &[&caller, &server]);
    let to = SocketAddr::new(server.ip(), 8080).to_string();
    for node in mesh.lab.nodes() {
        let (held, load) = (Held::open(&caller, &to, 4), Load::new_connections(&caller, &to));
        let old = node.ztunnel().expect("it runs");
        old.signal(Signal::SIGTERM).expect("a signal");
        old.wait_for_line("draining", SOON).expect("it hears");
        load.progress();
        load.progress();
        node.start_ztunnel(Env::new()).expect("a successor");
        load.progress();
        held.must_still_work();
        load.must_have_succeeded();
        old.wait(SOON).expect("it ends when it is succeeded and its last connection has ended");
    }
    // Without a successor, and used by nobody, it ends at once.
    let old = mesh.node(0).ztunnel().expect("it runs");
    old.signal(Signal::SIGTERM).expect("a signal");
    old.wait(SOON).expect("nothing is left to do");
}

#[test]
fn a_successor_that_dies_gives_its_charge_back() {
    let mesh = Mesh::start();
    let (caller, server) = (mesh.pod(0, "caller"), mesh.pod(1, "server"));
    serve(&server, &["echo"]);
    mesh.enrol("shop", &[&caller, &server]);
    let to = SocketAddr::new(server.ip(), 8080).to_string();
    let held = Held::open(&caller, &to, 4);
    let node = mesh.node(1);
    let old = node.ztunnel().expect("it runs");

    // One that ends between taking the sockets' names and asking for the charge.
    for name in ["node.sock", "admin.sock"] {
        let draft = node.run_dir().join("draft");
        drop(UnixListener::bind(&draft).expect("a socket"));
        fs::rename(draft, node.run_dir().join(name)).expect("taken");
    }
    server.wait_for_state("enrolled", SOON).expect("the node API is back");
    lab::wait_until("the admin socket is back", SOON, || {
        if admin(&node, "/pods").is_null() { Err("nobody answers") } else { Ok(()) }
    })
    .expect("an answer");

    // One that ends when it is in charge.
    let new = node.start_ztunnel(Env::new()).expect("a successor");
    old.wait_for_line("a successor takes charge", SOON).expect("it hears");
    new.kill().expect("killed");
    old.wait_for_line("taking charge of the node's pods again", SOON).expect("it notices");
    server.wait_for_state("enrolled", SOON).expect("it answers for its pods again");
    let load = Load::new_connections(&caller, &to);
    load.progress();
    held.must_still_work();
    // It also acts again.
    let late = mesh.pod_in("late", 1, "late");
    serve(&late, &["echo"]);
    // The lab announces pods to the ztunnel that it started last only.
    assert_eq!(announce(&late, |_| {})["state"], "not wanted");
    mesh.enrol("late", &[&late]);
    Load::new_connections(&caller, &SocketAddr::new(late.ip6(), 8080).to_string()).must_have_succeeded();
    load.must_have_succeeded();
}

#[test]
fn what_changes_while_two_ztunnels_run_is_done_once() {
    let mesh = Mesh::start();
    let caller = mesh.pod_in("steady", 0, "caller");
    let [joins, leaves, stays] = ["joins", "leaves", "stays"].map(|name| {
        let pod = mesh.pod_in(name, 1, name);
        serve(&pod, &["echo"]);
        pod
    });
    mesh.enrol("steady", &[&caller]);
    mesh.enrol("leaves", &[&leaves]);
    mesh.enrol("stays", &[&stays]);
    let loads = [&joins, &leaves, &stays]
        .map(|pod| Load::new_connections(&caller, &SocketAddr::new(pod.ip(), 8080).to_string()));
    let held = Held::open(&caller, &SocketAddr::new(leaves.ip(), 8080).to_string(), 4);
    let node = mesh.node(1);
    let old = node.ztunnel().expect("it runs");

    node.start_ztunnel(Env::new()).expect("a successor");
    mesh.enrol("joins", &[&joins]);
    mesh.lab.label_namespace("leaves", AMBIENT, None).expect("a label");
    let born = mesh.pod_in("stays", 1, "born");
    serve(&born, &["echo"]);
    let to_born = Load::new_connections(&caller, &SocketAddr::new(born.ip(), 8080).to_string());
    loads.iter().for_each(Load::progress);
    leaves.wait_for_state("leaving", SOON).expect("it is held by a connection of before");
    old.signal(Signal::SIGTERM).expect("a signal");
    loads.iter().for_each(Load::progress);
    held.must_still_work();
    old.wait(SOON).expect("its last connection has ended");
    leaves.wait_for_state("not wanted", SOON).expect("nothing of ours is left");
    loads.iter().for_each(Load::progress);
    to_born.must_have_succeeded();
    loads.into_iter().for_each(Load::must_have_succeeded);
}
