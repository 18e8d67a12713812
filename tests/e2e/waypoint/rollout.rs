//! Waypoints that come and go under load: no request fails, and what is open drains.

use lab::{Env, Pod, PodSpec, Process, Signal};

use super::websockets::{check, hold};
use super::{Guarded, account, load};
use crate::mesh::{SOON, serve, workload};

/// Another pod of the waypoint, which clients' nodes know.
fn another(guarded: &Guarded, name: &str) -> (Pod, Process) {
    let pod = guarded.mesh.node(1).add_pod(PodSpec::waypoint("shop", "waypoint", name)).expect("a pod");
    let process = pod.start_waypoint(Env::new()).expect("a waypoint");
    guarded.mesh.until_dumps(name, |dump| match workload(dump, &pod) {
        Some(known) if known["protocol"] == "HBONE" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    (pod, process)
}

/// Ends a waypoint as a kubelet does: its endpoint goes, and it is told to end.
fn end(pod: &Pod, process: &Process) {
    pod.start_deletion().expect("a deletion");
    process.signal(Signal::SIGTERM).expect("a signal");
}

#[test]
fn no_request_fails_while_waypoints_are_replaced_and_scaled_down() {
    let guarded = Guarded::start();
    let client = &guarded.client;
    serve(&guarded.servers[0], &["websocket", "--listen", "[::]:8082"]);
    guarded.service("chat", 8082);
    const HELD: u64 = 20;
    let holder = hold(&guarded, "chat.shop:81", HELD);
    let kept =
        client.spawn(load("server.shop:81", "keep", 4).args(["--interval-ms", "5", "--tell-every", "20"]));
    let kept = kept.expect("a load");
    let fresh = load("server.shop:81", "new", 2).args(["--interval-ms", "20", "--tell-every", "20"]);
    let fresh = client.spawn(fresh).expect("a load");
    let progress = || {
        for load in [&kept, &fresh] {
            let done = || load.output().stdout.lines().filter(|line| line.starts_with("done ")).count();
            let goal = done() + 3;
            let worked = || if done() >= goal { Ok(()) } else { Err(format!("{:?}", load.output())) };
            lab::wait_until("requests go on", SOON, worked).expect("progress");
        }
    };
    progress();

    // Replaced: the second serves before the first is told to end.
    let (second, second_process) = another(&guarded, "waypoint-1");
    progress();
    end(&guarded.waypoint, &guarded.process);
    progress();
    check(&holder, HELD);
    let output = guarded.process.wait(SOON).expect("an end with the last WebSocket");
    assert_eq!(output.code(), Some(0), "{output:?}");
    progress();

    // Scaled up and down again.
    let (_, _third) = another(&guarded, "waypoint-2");
    progress();
    end(&second, &second_process);
    let output = second_process.wait(SOON).expect("an end after a drain");
    assert_eq!(output.code(), Some(0), "{output:?}");
    progress();
    for load in [&kept, &fresh] {
        load.signal(Signal::SIGTERM).expect("a signal");
        let account = account(load);
        assert_eq!(account["failed"], 0, "{account}");
    }
}
