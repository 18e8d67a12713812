//! Clients in a pod of the mesh that call, or hold connections, while a test does other things to the cluster. What they say is
//! read from their node's log files, which can be read whatever is down.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use lab::{APP_IMAGE, ClusterNode, wait_until};
use serde_json::{Value, json};

use crate::{Namespace, PATIENCE};

/// Clients of a caller that work at the same time.
const CLIENTS: u64 = 3;

/// How often a caller says how many of its calls have succeeded.
const TELL_EVERY: u64 = 5;

/// The end of a log that the newest line is looked for in.
const TAIL: u64 = 4096;

/// One of the clients: the name of its container, and the words for `lab-app`.
pub(crate) struct Client {
    name: &'static str,
    args: Vec<String>,
}

impl Client {
    /// Calls again and again, each time by a new connection. `protocol` is `http` or `echo`.
    pub(crate) fn calls(name: &'static str, protocol: &str, to: &str) -> Self {
        let (clients, every) = (CLIENTS.to_string(), TELL_EVERY.to_string());
        let args = ["load", "--to", to, "--mode", "new", "--protocol", protocol, "--connections", &clients];
        let pace = ["--interval-ms", "20", "--tell-every", &every];
        Self { name, args: args.iter().chain(&pace).map(|word| (*word).to_owned()).collect() }
    }

    /// Holds connections to an echo server.
    pub(crate) fn holds(name: &'static str, to: &str) -> Self {
        let args = ["hold", "--to", to, "--connections", "4"].map(str::to_owned);
        Self { name, args: args.into() }
    }

    fn is_calling(&self) -> bool {
        self.args[0] == "load"
    }
}

/// The clients at work.
pub(crate) struct Traffic<'a> {
    shop: &'a Namespace<'a>,
    pod: &'static str,
    /// With a folder for each container.
    logs: PathBuf,
    clients: Vec<Client>,
}

/// A moment, in each client's log.
pub(crate) struct Moment(BTreeMap<&'static str, usize>);

impl<'a> Traffic<'a> {
    /// Starts clients in a pod of that name on `node`. Returns when all of them work.
    pub(crate) fn start(
        shop: &'a Namespace<'a>,
        pod: &'static str,
        node: &ClusterNode,
        clients: Vec<Client>,
    ) -> Self {
        let container = |client: &Client| {
            // A question to DNS that is lost must be seen, and not be asked again.
            let env = json!([{"name": "RES_OPTIONS", "value": "attempts:1 timeout:20"}]);
            json!({"name": client.name, "image": APP_IMAGE, "args": client.args, "env": env})
        };
        let manifest = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": shop.name},
            "spec": {
                "nodeName": node.name(), "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
                "containers": clients.iter().map(container).collect::<Vec<_>>(),
            },
        });
        shop.cluster.apply(&manifest.to_string()).expect("a pod");
        let uid = shop.get(&["pod", pod])["metadata"]["uid"].as_str().expect("a uid").to_owned();
        let logs = node.path(format!("/var/log/pods/{}_{pod}_{uid}", shop.name)).expect("the node is on");
        let traffic = Self { shop, pod, logs, clients };
        traffic.progress();
        for client in traffic.clients.iter().filter(|client| !client.is_calling()) {
            traffic.wait_for(client, "its connections", |line| line.starts_with("holding").then_some(()));
        }
        traffic
    }

    /// Waits until every caller has had answers to calls that began after this was asked for.
    pub(crate) fn progress(&self) {
        let done = |line: &str| line.strip_prefix("done ").and_then(|number| number.parse::<u64>().ok());
        for client in self.clients.iter().filter(|client| client.is_calling()) {
            // Those that were under way, and as many again.
            let goal = newest(&self.tail(client), done).unwrap_or(0) + 2 * CLIENTS + TELL_EVERY;
            let reached = |line: &str| done(line).filter(|done| *done >= goal).map(drop);
            self.wait_for(client, "answers", reached);
        }
    }

    /// Now.
    pub(crate) fn now(&self) -> Moment {
        Moment(self.clients.iter().map(|client| (client.name, self.lines(client).len())).collect())
    }

    /// What has failed since then, with the time and the client's name.
    pub(crate) fn failures(&self, since: &Moment) -> Vec<String> {
        let of = |client: &Client| {
            let lines = self.lines(client);
            let new = lines[since.0[client.name]..].iter();
            new.filter(|line| begun(line).is_some()).map(|line| format!("{}: {line}", client.name)).collect()
        };
        self.clients.iter().flat_map(|client| -> Vec<String> { of(client) }).collect()
    }

    /// Those of them that a caller began after that time.
    pub(crate) fn failures_begun_after(&self, since: &Moment, when: SystemTime) -> Vec<String> {
        let mut failures = self.failures(since);
        failures.retain(|line| begun(line) > Some(when));
        failures
    }

    /// Does something that no caller may notice.
    pub(crate) fn undisturbed<T>(&self, what: &str, act: impl FnOnce() -> T) -> T {
        let before = self.now();
        let done = act();
        self.progress();
        assert_eq!(self.failures(&before), Vec::<String>::new(), "{what}");
        done
    }

    /// Asks a client to end, and returns its account.
    pub(crate) fn account(&self, name: &str) -> Value {
        let client = self.clients.iter().find(|client| client.name == name).expect("it was started");
        // The shell ends with its container's first process, so kubectl may complain although all is well.
        let end = ["-n", self.shop.name, "exec", self.pod, "-c", name, "--", "sh", "-c", "kill -TERM 1"];
        drop(self.shop.cluster.kubectl(&end));
        self.wait_for(client, "its account", |line| {
            serde_json::from_str::<Value>(line).ok().filter(Value::is_object)
        })
    }

    /// Removes the pod.
    pub(crate) fn end(&self) {
        self.shop.kubectl(&["delete", "pod", self.pod]);
    }

    fn wait_for<T>(&self, client: &Client, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        wait_until(&format!("{what} of {}", client.name), PATIENCE, || {
            let tail = self.tail(client);
            newest(&tail, &find).ok_or(tail)
        })
        .unwrap_or_else(|error| panic!("{error}"))
    }

    fn tail(&self, client: &Client) -> String {
        let mut text = Vec::new();
        // There is none yet for a client that was not started.
        if let Ok(mut file) = fs::File::open(self.log(client)) {
            let length = file.metadata().expect("a log's length").len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).expect("a place in a log");
            file.read_to_end(&mut text).expect("a log");
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    fn lines(&self, client: &Client) -> Vec<String> {
        let text = fs::read_to_string(self.log(client)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn log(&self, client: &Client) -> PathBuf {
        self.logs.join(client.name).join("0.log")
    }
}

/// What the newest of these lines says that says it.
fn newest<T>(lines: &str, find: impl Fn(&str) -> Option<T>) -> Option<T> {
    lines.lines().rev().find_map(|line| find(said(line)))
}

/// When a call was begun that failed, by a line that says so.
fn begun(line: &str) -> Option<SystemTime> {
    let (_, rest) = line.split_once(" failed, begun at ")?;
    let (millis, _) = rest.split_once(": ")?;
    let since = millis.parse().unwrap_or_else(|error| panic!("{line:?}: {error}"));
    Some(SystemTime::UNIX_EPOCH + Duration::from_millis(since))
}

/// A line without what the runtime writes before it: `<time> stdout F `.
fn said(line: &str) -> &str {
    line.splitn(4, ' ').nth(3).unwrap_or_default()
}
