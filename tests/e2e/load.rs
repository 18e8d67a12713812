//! Work that goes on beside what a test does, and its account at the end: nothing may have failed.

use lab::{Pod, Process, Program, Signal};
use serde_json::Value;

use crate::mesh::SOON;

/// Requests from a pod that go on until they are asked to end.
pub(crate) struct Load {
    name: String,
    clients: u64,
    process: Process,
}

impl Load {
    /// A new connection for every request to an echo server.
    pub(crate) fn new_connections(pod: &Pod, to: &str) -> Self {
        Self::start(pod, to, ("new", 3, 15))
    }

    /// The same at a pace that leaves room for many loads at once.
    pub(crate) fn gentle(pod: &Pod, to: &str) -> Self {
        Self::start(pod, to, ("new", 1, 50))
    }

    /// A few connections that are kept, each with a request now and then.
    pub(crate) fn kept_connections(pod: &Pod, to: &str) -> Self {
        Self::start(pod, to, ("keep", 4, 50))
    }

    fn start(pod: &Pod, to: &str, (mode, clients, pause): (&str, u64, u64)) -> Self {
        let program = Program::new("lab-app").args(["load", "--to", to, "--tell-every", "1", "--mode", mode]);
        let program = program.args(["--connections".into(), clients.to_string()]);
        let program = program.args(["--interval-ms".into(), pause.to_string()]);
        // A name is asked for once per request: a question that is lost must be seen, and not be asked again.
        let program = program.env("RES_OPTIONS", "attempts:1 timeout:20");
        let process = pod.spawn(program).expect("a load");
        let load = Self { name: format!("{mode} {} -> {to}", pod.name()), clients, process };
        load.progress();
        load
    }

    /// Waits until requests that began after this call have succeeded.
    pub(crate) fn progress(&self) {
        // Those that were under way, and as many again.
        let goal = self.done() + 2 * self.clients;
        lab::wait_until(&format!("progress of {}", self.name), SOON, || {
            let done = self.done();
            if done >= goal { Ok(()) } else { Err(format!("{done} done: {:?}", self.process.output())) }
        })
        .expect("progress");
    }

    fn done(&self) -> u64 {
        let output = self.process.output().stdout;
        let told = output.lines().rev().find_map(|line| line.strip_prefix("done ")?.parse().ok());
        told.unwrap_or(0)
    }

    /// Ends it and returns its account.
    pub(crate) fn account(self) -> Value {
        self.process.signal(Signal::SIGTERM).expect("a signal");
        let output = self.process.wait(SOON).expect("an end");
        let last = output.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{}: {error} in {output:?}", self.name))
    }

    /// Ends it; every request must have succeeded, on the connection that it was meant for.
    pub(crate) fn must_have_succeeded(self) {
        let name = self.name.clone();
        let account = self.account();
        assert_eq!(account["failed"], 0, "{name}: {account}");
        assert!(account["succeeded"].as_u64().is_some_and(|succeeded| succeeded > 0), "{name}: {account}");
    }
}

/// Connections that are held open, quiet, until they are asked whether they still work.
pub(crate) struct Held {
    name: String,
    process: Process,
}

impl Held {
    pub(crate) fn open(pod: &Pod, to: &str, connections: usize) -> Self {
        let count = connections.to_string();
        let program = Program::new("lab-app").args(["hold", "--to", to, "--connections", &count]);
        let process = pod.spawn(program).expect("a program");
        process.wait_for_line("holding", SOON).expect("connections");
        Self { name: format!("{connections} connections {} -> {to}", pod.name()), process }
    }

    /// Uses each connection once more; all must work. Then they are closed.
    pub(crate) fn must_still_work(self) {
        self.process.signal(Signal::SIGTERM).expect("a signal");
        let output = self.process.wait(SOON).expect("an end");
        assert!(output.success(), "{}: {output:?}", self.name);
    }
}
