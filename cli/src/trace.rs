//! `airglow trace -n shop deploy/x`: single requests through waypoints as they happen, each with every decision about it.
//!
//! Asks waypoints in turn for what they have told since the last time; they tell nothing while nobody asks. Decides nothing.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::Args;
use daemon::config::Vars;
use serde::Deserialize;
use serde_json::Value;

use crate::Terminal;
use crate::cluster::label;
use crate::interrupt::Interrupt;
use crate::mesh::{Mesh, Peer, Which};
use crate::progress::print;
use crate::term::Style;

/// Between two looks: quick for a person, and for a cluster each is a port-forward.
const INTERVAL: Duration = Duration::from_millis(500);

#[derive(Args, Debug)]
pub(crate) struct Trace {
    /// Only requests from or to this: deploy/NAME, job/NAME, cronjob/NAME, pod/NAME or svc/NAME. Without it: all of the namespace.
    #[arg(value_name = "KIND/NAME")]
    pub(crate) what: Option<Subject>,
    /// Its namespace, where the waypoints are asked as well.
    #[arg(short = 'n', long, value_name = "NAME", value_parser = label, default_value = "default")]
    pub(crate) namespace: String,
    /// Ask the waypoints of all namespaces: those that serve others' too.
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
    /// End after so many requests.
    #[arg(long, value_name = "COUNT")]
    pub(crate) count: Option<u64>,
    /// End after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) within: Option<u64>,
    #[command(flatten)]
    pub(crate) which: Which,
    /// Print each request as a line of JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What requests are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    kind: &'static str,
    name: String,
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "not deploy/NAME, job/NAME, cronjob/NAME, pod/NAME or svc/NAME".to_owned();
        let (kind, name) = text.split_once('/').filter(|(_, name)| !name.is_empty()).ok_or_else(wrong)?;
        let kind = match kind {
            "cj" | "cronjob" | "cronjobs" => "cronjob",
            "deploy" | "deployment" | "deployments" => "deployment",
            "job" | "jobs" => "job",
            "po" | "pod" | "pods" => "pod",
            "service" | "services" | "svc" => "service",
            _ => return Err(wrong()),
        };
        Ok(Self { kind, name: name.to_owned() })
    }
}

/// What a waypoint tells.
#[derive(Deserialize)]
struct Told {
    next: u64,
    missed: u64,
    lost: u64,
    requests: Vec<Value>,
}

/// A waypoint, and how far it was listened to.
struct Listened {
    peer: Peer,
    next: Option<u64>,
    lost: Option<u64>,
    is_well: bool,
}

/// Tells of requests until interrupted, or until there were enough of them or of time.
pub(crate) fn run(
    args: &Trace,
    terminal: Terminal,
    vars: &dyn Vars,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let mesh = Mesh::find(&args.which, vars)?;
    let namespace = (!args.all_namespaces).then_some(args.namespace.as_str());
    let fresh = |peer| Listened { peer, next: None, lost: None, is_well: true };
    let mut waypoints: Vec<_> = mesh.waypoints(namespace)?.into_iter().map(fresh).collect();
    waypoints.iter_mut().for_each(|waypoint| drop(waypoint.listen(&mesh)));
    let names: Vec<_> = waypoints.iter().map(|waypoint| waypoint.peer.name.as_str()).collect();
    // Requests from now on are told of.
    eprintln!("airglow: listening to {}", names.join(", "));
    let began = Instant::now();
    let is_over = || args.within.is_some_and(|within| began.elapsed() >= Duration::from_secs(within));
    let mut left = args.count.unwrap_or(u64::MAX);
    loop {
        for waypoint in &mut waypoints {
            for request in waypoint.listen(&mesh) {
                if !is_about(&request, &args.namespace, args.what.as_ref()) {
                    continue;
                }
                print(&if args.json { format!("{request}\n") } else { shown(&request, terminal.style) })?;
                left -= 1;
                if left == 0 {
                    return Ok(());
                }
            }
        }
        if is_over() || interrupt.pause(INTERVAL).is_err() {
            return Ok(());
        }
    }
}

impl Listened {
    /// What it has told since the last time. What is wrong is said once.
    fn listen(&mut self, mesh: &Mesh) -> Vec<Value> {
        let path = match self.next {
            Some(next) => format!("/requests?after={next}"),
            None => "/requests".to_owned(),
        };
        let name = &self.peer.name;
        let told = match mesh.ask_json::<Told>(&self.peer, &path) {
            Ok(told) => told,
            Err(error) => {
                if std::mem::take(&mut self.is_well) {
                    eprintln!("airglow: {error}");
                }
                // One that comes back counts from the beginning.
                self.next = None;
                return Vec::new();
            }
        };
        self.is_well = true;
        self.next = Some(told.next);
        let lost = told.lost - self.lost.replace(told.lost).unwrap_or(told.lost).min(told.lost);
        if lost + told.missed > 0 {
            eprintln!("airglow: {name} had more requests than are shown: {} are missing", lost + told.missed);
        }
        told.requests
    }
}

/// Whether a request comes from or goes to what was asked for.
fn is_about(request: &Value, namespace: &str, what: Option<&Subject>) -> bool {
    let ends = [&request["source"], &request["destination"]];
    let Some(Subject { kind, name }) = what else {
        let services = &request["service"]["namespace"];
        return *services == namespace || ends.iter().any(|end| end["namespace"] == namespace);
    };
    match *kind {
        "service" => {
            let service = &request["service"];
            service["name"] == name.as_str() && service["namespace"] == namespace
        }
        "pod" => ends.iter().any(|end| end["workload"] == name.as_str() && end["namespace"] == namespace),
        kind => ends
            .iter()
            .any(|end| end["owner"] == name.as_str() && end["kind"] == kind && end["namespace"] == namespace),
    }
}

/// A request for people: what, who, each step, the end.
fn shown(request: &Value, style: Style) -> String {
    // Clients write some of it, and a terminal obeys control characters.
    let plain = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    let text = |value: &Value| value.as_str().unwrap_or("-").chars().map(plain).collect::<String>();
    let millis = |value: &Value| value.as_f64().unwrap_or_default() / 1e3;
    let party = |party: &Value, address: &Value| match (&party["namespace"], &party["workload"]) {
        (Value::String(namespace), Value::String(workload)) => format!("{namespace}/{workload}"),
        _ => text(address),
    };
    let mut out = format!(
        "{} {} {}\n",
        style.bold(&text(&request["method"])),
        style.bold(&text(&request["url"])),
        text(&request["protocol"])
    );
    let from = party(&request["source"], &request["client"]);
    let identity = text(&request["source"]["identity"]);
    let _ = writeln!(out, "  from {from} as {identity}");
    for step in request["steps"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "  {:>9.3} ms  {}", millis(&step["after_us"]), text(&step["what"]));
    }
    let status = request["status"].as_u64().unwrap_or(0);
    let ended = if status == 0 { "no answer".to_owned() } else { format!("answered {status}") };
    let ended = if (200..400).contains(&status) { style.green(&ended) } else { style.red(&ended) };
    let grpc =
        request["grpc_status"].as_u64().map(|code| format!(", grpc-status {code}")).unwrap_or_default();
    let said: BTreeSet<String> = [&request["flags"], &request["code"]].into_iter().map(text).collect();
    let said: Vec<_> = said.into_iter().filter(|text| text != "-").collect();
    let _ = writeln!(
        out,
        "  {:>9.3} ms  {ended}{grpc} by {} ({} attempts, {} bytes in, {} out){}{}",
        millis(&request["duration_us"]),
        party(&request["destination"], &request["endpoint"]),
        request["attempts"],
        request["request_bytes"],
        request["response_bytes"],
        if said.is_empty() { "" } else { ": " },
        said.join(" "),
    );
    out + "\n"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request() -> Value {
        json!({
            "method": "GET", "url": "http://web.shop/a", "protocol": "HTTP/1.1",
            "source": {"workload": "client-1", "owner": "client", "kind": "deployment", "namespace": "shop",
                "identity": "spiffe://cluster.local/ns/shop/sa/client"},
            "destination": {"workload": "v1-x", "owner": "v1", "kind": "deployment", "namespace": "store"},
            "client": "10.0.0.1:4711", "endpoint": "10.0.0.2:8080",
            "service": {"name": "web", "namespace": "store", "hostname": "web.store.svc.cluster.local"},
            "status": 503, "grpc_status": null, "flags": "UF", "code": "connect-failed", "attempts": 2,
            "request_bytes": 0, "response_bytes": 5, "duration_us": 12345,
            "steps": [{"after_us": 17, "what": "rule HTTPRoute/store/split/0"}],
        })
    }

    #[test]
    fn a_request_is_about_both_its_ends_and_its_service() {
        let about =
            |namespace: &str, what: &str| is_about(&request(), namespace, Some(&what.parse().unwrap()));
        assert!(about("shop", "deploy/client") && about("store", "deployments/v1"));
        assert!(about("store", "pod/v1-x") && about("store", "svc/web"));
        for (namespace, what) in
            [("store", "deploy/client"), ("shop", "deploy/v1"), ("shop", "job/client"), ("shop", "svc/web")]
        {
            assert!(!about(namespace, what), "{namespace} {what}");
        }
        assert!(is_about(&request(), "shop", None) && is_about(&request(), "store", None));
        assert!(!is_about(&request(), "other", None));
        for wrong in ["client", "deploy/", "ship/it"] {
            assert!(wrong.parse::<Subject>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_request_is_shown_with_each_step_and_its_end() {
        let text = shown(&request(), Style::new(false, false, false));
        let expected = "\
GET http://web.shop/a HTTP/1.1
  from shop/client-1 as spiffe://cluster.local/ns/shop/sa/client
      0.017 ms  rule HTTPRoute/store/split/0
     12.345 ms  answered 503 by store/v1-x (2 attempts, 0 bytes in, 5 out): UF connect-failed

";
        assert_eq!(text, expected);
    }
}
