//! Requests and streams under way through a waypoint when a policy arrives that forbids them.

use std::time::Instant;

use lab::{Pod, Process, Program};
use serde_json::{Value, json};

use super::{CLIENT, DENY, Guarded, URL, until_told};
use crate::mesh::{SOON, refused, serve};

/// Asks argv[1]:argv[2] for argv[3], says so once the answer has begun, reads on at leisure, and says how it ended.
const READER: &str = r#"
import socket, sys, time
host, port, path = sys.argv[1:]
s = socket.create_connection((host, int(port)), 20)
s.sendall(f'GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n'.encode())
got = b''
while len(got) < 1000:
    part = s.recv(65536)
    if not part: sys.exit(f'all of the answer is {got}')
    got += part
print('begun', got[:12].decode(), flush=True)
s.settimeout(None)
try:
    while s.recv(65536): time.sleep(0.01)
    how = 'end'
except OSError as error:
    how = type(error).__name__
print('over', how, flush=True)
"#;

/// More than any test waits for.
const ENDLESS: &str = "1000000000000";

/// One client's.
struct UnderWay {
    /// A long answer of HTTP/1.1.
    answer: Process,
    /// A call of gRPC with messages both ways.
    call: Process,
    /// WebSockets that nothing is said on until the end.
    sockets: Process,
    /// A request that is never answered.
    silent: Process,
}

impl UnderWay {
    fn begin(client: &Pod) -> Self {
        let spawn = |program: Program| client.spawn(program).expect("a client");
        let app = |args: &[&str]| spawn(Program::new("lab-app").args(args));
        let path = format!("/chunked/{ENDLESS}");
        let answer = spawn(Program::new("python3").args(["-c", READER, "server.shop", "81", &path]));
        let call = app(&["grpc-client", "--to", "calls.shop:81", "--stream", ENDLESS]);
        let sockets = app(&["websocket-hold", "--to", "chat.shop:81", "--connections", "3"]);
        let url = format!("{URL}/fails/9/hang");
        let words = ["curl", "-sS", "-m", "60", "-o", "/dev/null", "-w", "%{http_code}", &url];
        let silent = client.spawn(words.as_slice()).expect("curl");
        answer.wait_for_line("begun HTTP/1.1 200", SOON).expect("an answer under way");
        call.wait_for_line("answered", SOON).expect("a call under way");
        sockets.wait_for_line("holding 3", SOON).expect("WebSockets");
        Self { answer, call, sockets, silent }
    }

    /// Everything ends, and nothing as if it were complete.
    fn expect_cut(self) {
        let line = self.answer.wait_for_line("over", SOON).expect("an end");
        assert_eq!(line, "over ConnectionResetError");
        let call = self.call.wait(SOON).expect("an end");
        assert!(!call.success() && call.stderr.contains("read the messages"), "{call:?}");
        let silent = self.silent.wait(SOON).expect("an answer");
        assert_eq!(silent.stdout, "403", "{silent:?}");
        let sockets = report(&self.sockets);
        let lost =
            sockets["errors"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64());
        assert_eq!(lost.sum::<u64>(), 3, "{sockets}");
    }

    /// Everything goes on; ends it.
    fn expect_alive(self) {
        assert_eq!(report(&self.sockets), json!({"held": 3, "errors": {}}));
        for process in [&self.answer, &self.call, &self.silent] {
            assert!(process.is_running(), "{:?}", process.output());
            let output = process.kill().expect("an end");
            assert!(!output.stdout.contains("over"), "{output:?}");
        }
    }
}

fn report(holder: &Process) -> Value {
    let output = holder.terminate().expect("an end");
    serde_json::from_str(output.stdout.lines().last().unwrap_or_default()).expect("a report")
}

#[test]
fn a_policy_that_arrives_ends_what_is_under_way_through_a_waypoint_and_nothing_of_others() {
    let guarded = Guarded::start();
    let Guarded { mesh, client, servers, .. } = &guarded;
    let other = mesh.pod(0, "other");
    serve(&servers[0], &["websocket", "--listen", "[::]:8082"]);
    guarded.service("chat", 8082);
    serve(&servers[0], &["grpc", "--listen", "[::]:9090"]);
    guarded.service("calls", 9090);
    other.wait_for_state("enrolled", SOON).expect("enrolment");
    let [forbidden, spared] = [client, &other].map(UnderWay::begin);

    let applied = Instant::now();
    mesh.lab.apply_yaml("deny.yaml", DENY).expect("a policy");
    forbidden.expect_cut();
    // The promise is a second; this is for people to look at, not a measurement.
    println!("all of it was cut {} ms after the file changed", applied.elapsed().as_millis());
    refused(client, "http://server.shop/");
    for of in [("path", "/lab.Echo/Echo"), ("path", "/chat"), ("path", "/fails/9/hang")] {
        guarded.logged(&[("src.identity", CLIENT), of, ("flags", "DENY"), ("code", "policy-denied")]);
    }
    spared.expect_alive();

    mesh.lab.delete_yaml("deny.yaml").expect("no policy");
    until_told(client, "%{http_code}", &[URL], "200");
    let again = UnderWay::begin(client);
    again.expect_alive();
}
