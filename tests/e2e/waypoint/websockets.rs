//! Many WebSockets at once: what each costs, and that they outlive the waypoint's order to end, by its grace.

use std::time::Duration;

use lab::{Process, Program, Signal};

use super::Guarded;
use crate::mesh::serve;

/// How many: those of a busy chat.
const MANY: u64 = 10_000;

/// For what takes as long as thousands of handshakes on a busy machine.
const LONG: Duration = Duration::from_secs(180);

/// What one may cost at the waypoint: two connections' tasks, streams and first buffers, and as much again for builds that are not
/// optimised.
const BYTES_EACH: u64 = 128 << 10;

/// WebSockets that each have been used once.
pub(super) fn hold(guarded: &Guarded, to: &str, number: u64) -> Process {
    let args = ["websocket-hold", "--to", to, "--connections", &number.to_string()];
    let holder = guarded.client.spawn(Program::new("lab-app").args(args)).expect("a client");
    holder.wait_for_line(&format!("holding {number}"), LONG).expect("all of them work");
    holder
}

/// Uses each of them once more, and closes them. All must work.
pub(super) fn check(holder: &Process, number: u64) {
    holder.signal(Signal::SIGTERM).expect("a signal");
    let output = holder.wait(LONG).expect("an end in good order");
    let last = output.stdout.lines().last().unwrap_or_default().to_owned();
    let last: serde_json::Value = serde_json::from_str(&last).expect("JSON");
    assert_eq!(last, serde_json::json!({"held": number, "errors": {}}), "{output:?}");
}

#[test]
fn thousands_of_websockets_work_at_once_and_drain() {
    let guarded = Guarded::start_with(&[("AIRGLOW_DRAIN_DEADLINE", "10m")]);
    serve(&guarded.servers[0], &["websocket", "--listen", "[::]:8082"]);
    guarded.service("chat", 8082);
    check(&hold(&guarded, "chat.shop:81", 10), 10);
    let before = guarded.resident();
    let holder = hold(&guarded, "chat.shop:81", MANY);
    let each = guarded.resident().saturating_sub(before) / MANY;
    println!("{MANY} WebSockets, {each} bytes each");
    assert!(each < BYTES_EACH, "{each} bytes for each WebSocket");
    guarded.process.signal(Signal::SIGTERM).expect("a signal");
    guarded.process.wait_for_line("drain", LONG).expect("a waypoint that drains");
    check(&holder, MANY);
    let output = guarded.process.wait(LONG).expect("an end with the last of them");
    assert_eq!(output.code(), Some(0), "{output:?}");
}
